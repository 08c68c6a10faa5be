"""tqdm.contrib.concurrent: process_map and thread_map, whose workers share one lock through an initializer."""

import sys

from tqdm.contrib.concurrent import process_map, thread_map


def collatz(n):
    steps = 0
    while n != 1:
        n = n // 2 if n % 2 == 0 else 3 * n + 1
        steps += 1
    return steps


def main():
    numbers = range(1, 3001)
    print(max(process_map(collatz, numbers, max_workers=2, chunksize=50)))
    print(max(process_map(collatz, range(1, 201), max_workers=2, chunksize=1, file=sys.stderr)))
    print(max(thread_map(collatz, range(1, 501), max_workers=2)))


if __name__ == "__main__":
    main()
