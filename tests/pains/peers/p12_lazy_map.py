"""mpire: a lazy map takes a window of its input."""

import itertools
import os
import time

from _peer import need


def work(number):
    return number


if __name__ == "__main__":
    mpire = need("mpire")
    pulled = 0

    def numbers():
        global pulled
        for number in itertools.count():
            pulled += 1
            if pulled > 1_000_000:
                return
            yield number

    with mpire.WorkerPool(n_jobs=2) as workers:
        results = workers.imap(work, numbers(), chunk_size=1, max_tasks_active=8)
        first = [next(results) for _ in range(5)]
        assert first == [0, 1, 2, 3, 4]
        time.sleep(1)
        assert pulled < 20_000, f"{pulled} items were taken for 5 results"
        print("good", flush=True)
        # How it ends in the middle of a map is no part of this pain.
        workers.terminate()
        os._exit(0)
