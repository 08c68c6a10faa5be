"""imap over an endless input takes a window of it, not all; so does the executor's map when asked."""

import itertools
import multiprocessing as mp
import sys
import time


def work(number):
    return number


def main(context):
    pulled = 0

    def numbers():
        nonlocal pulled
        for number in itertools.count():
            pulled += 1
            if pulled > 1_000_000:
                return
            yield number

    with context.Pool(2) as workers:
        results = workers.imap(work, numbers())
        first = [next(results) for _ in range(5)]
        assert first == [0, 1, 2, 3, 4]
        time.sleep(1)
        assert pulled < 20_000, f"{pulled} items were taken for 5 results"


if __name__ == "__main__":
    main(mp.get_context(sys.argv[1]))
    print("good")
