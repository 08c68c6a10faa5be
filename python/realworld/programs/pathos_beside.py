"""pathos and its fork of the standard library (multiprocess, pickling with dill), beside multiprocessing itself."""

import multiprocessing

import multiprocess
from pathos.pools import ProcessPool, ThreadPool


def twice(n):
    return 2 * n


def fill(queue, n):
    for item in range(n):
        queue.put(item)
    queue.put(None)


def main():
    pool = ProcessPool(nodes=2)
    print(pool.map(lambda a, b: a * b, range(5), range(5)))
    print(sum(pool.imap(lambda n: n + 1, range(100))), sorted(pool.uimap(twice, range(5))))
    pool.close()
    pool.join()
    pool.clear()
    print(ThreadPool(nodes=2).map(twice, range(5)))
    with multiprocess.Pool(2) as theirs, multiprocessing.Pool(2) as ours:
        print(theirs.map(lambda n: n - 1, range(5)), ours.map(twice, range(5)))
    for library in (multiprocess, multiprocessing):
        queue = library.Queue()
        child = library.Process(target=fill, args=(queue, 1000))
        child.start()
        print(sum(iter(queue.get, None)))
        child.join()
        print(child.exitcode)


if __name__ == "__main__":
    main()
