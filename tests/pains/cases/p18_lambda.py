"""Lambdas and functions made in a function run in workers."""

import multiprocessing as mp
import sys


def main(context):
    factor = 3
    with context.Pool(2) as workers:
        assert workers.map_async(lambda number: number * factor, range(4)).get(20) == [0, 3, 6, 9]


if __name__ == "__main__":
    main(mp.get_context(sys.argv[1]))
    print("good")
