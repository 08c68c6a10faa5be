"""Large arrays into a pool and out of it move at memory's speed, not at a pipe's."""

import multiprocessing as mp
import sys
import time

from _speed import compare

MEGABYTES = 60


def double(array):
    array += 1
    return array


def measure(method):
    import numpy

    array = numpy.zeros(MEGABYTES << 17)
    with mp.get_context(method).Pool(1) as pool:
        pool.apply(double, (array[:10],))
        begun = time.perf_counter()
        for _ in range(3):
            assert pool.apply(double, (array,))[-1] == 1
        print(time.perf_counter() - begun)


if __name__ == "__main__":
    if sys.argv[1] == "measure":
        measure(sys.argv[2])
    else:
        try:
            import numpy  # noqa: F401
        except ImportError:
            sys.exit(print("skipped: numpy is not installed") or 0)
        compare(__file__, 1.5, sys.argv[1])
