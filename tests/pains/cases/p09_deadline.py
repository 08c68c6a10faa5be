"""One task of eight takes too long: its limit ends that task alone, and a running task can be cancelled."""

import multiprocessing as mp
import sys
import time


def work(number):
    if number in (2, 5):
        time.sleep(60)
    return number


def main(context):
    begun = time.monotonic()
    with context.Pool(2) as workers:
        results = [workers.apply_async(work, (number,), timeout=1) for number in range(5)]
        for number, result in enumerate(results):
            try:
                assert result.get(20) == number
            except Exception as error:
                assert number == 2, repr(error)
            else:
                assert number != 2
        running = workers.apply_async(work, (5,))
        time.sleep(0.3)
        assert running.cancel()
        try:
            running.get(20)
        except Exception as error:
            assert "cancel" in f"{type(error).__name__} {error}".lower(), repr(error)
        else:
            raise AssertionError("a cancelled task has a result")
        assert workers.map(work, [0, 1]) == [0, 1]
    assert time.monotonic() - begun < 30


if __name__ == "__main__":
    main(mp.get_context(sys.argv[1]))
    print("good")
