"""A task opens a pool of its own."""

import multiprocessing as mp
import sys


def inner(number):
    return number + 1


def outer(method, number):
    with mp.get_context(method).Pool(1) as workers:
        return workers.apply_async(inner, (number,)).get(20)


def main(method):
    with mp.get_context(method).Pool(2) as workers:
        assert workers.starmap_async(outer, [(method, n) for n in range(3)]).get(40) == [1, 2, 3]


if __name__ == "__main__":
    main(sys.argv[1])
    print("good")
