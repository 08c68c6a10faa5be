"""A manager's dict is memory that processes share, not a server that is asked for each item; it is right from forked processes."""

import multiprocessing as mp
import sys
import time

from _speed import compare

STORES = 3000


def store(shared, base):
    for number in range(STORES // 10):
        shared[base, number] = number


def measure(method):
    context = mp.get_context(method)
    with context.Manager() as manager:
        shared = manager.dict()
        # The same proxy in two processes, as a fork hands it on.
        both = [context.Process(target=store, args=(shared, base)) for base in range(2)]
        for process in both:
            process.start()
        for process in both:
            process.join()
            assert process.exitcode == 0
        assert len(shared) == 2 * (STORES // 10)
        begun = time.perf_counter()
        for number in range(STORES):
            shared[number % 100] = number
        print(time.perf_counter() - begun)


if __name__ == "__main__":
    if sys.argv[1] == "measure":
        measure(sys.argv[2])
    else:
        compare(__file__, 3, sys.argv[1])
