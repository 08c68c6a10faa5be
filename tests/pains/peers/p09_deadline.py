"""Pebble: a deadline and a cancel end one task."""

import time
from concurrent.futures import CancelledError

from _peer import need


def work(number):
    if number in (2, 5):
        time.sleep(60)
    return number


if __name__ == "__main__":
    pebble = need("pebble")
    begun = time.monotonic()
    with pebble.ProcessPool(2) as workers:
        results = [workers.schedule(work, args=[number], timeout=1) for number in range(5)]
        for number, result in enumerate(results):
            try:
                assert result.result(20) == number
            except Exception as error:
                assert number == 2, repr(error)
            else:
                assert number != 2
        running = workers.schedule(work, args=[5])
        time.sleep(0.3)
        assert running.cancel()
        try:
            running.result(20)
        except CancelledError:
            pass
        else:
            raise AssertionError("a cancelled task has a result")
        assert list(workers.map(work, [0, 1]).result()) == [0, 1]
    assert time.monotonic() - begun < 30
    print("good")
