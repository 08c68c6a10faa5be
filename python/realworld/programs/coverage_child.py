"""Measured by coverage with concurrency = multiprocessing: the lines run in children only must be counted."""

import multiprocessing
import time


def in_child(n):
    # Long enough that both workers get some: coverage complains of a process that ran none of the lines.
    time.sleep(0.05)
    if n % 2:
        return -n
    return n


def in_process(queue):
    total = 0
    for n in range(10):
        total += n
    queue.put(total)


def main():
    with multiprocessing.Pool(2) as pool:
        print(pool.map(in_child, range(10), chunksize=1))
        pool.close()
        pool.join()
    queue = multiprocessing.Queue()
    child = multiprocessing.Process(target=in_process, args=(queue,))
    child.start()
    print(queue.get())
    child.join()


if __name__ == "__main__":
    main()
