"""A pool of worker processes: apply, map, lazy maps, an initializer's state, callbacks, ends.

Written against the standard library alone.
"""

import multiprocessing

table = None


def square(x):
    return x * x


def power(base, exponent):
    return base**exponent


def open_table(size):
    """What each worker makes once, before its first task."""
    global table
    table = [x * x for x in range(size)]


def look_up(index):
    return table[index]


def main():
    pool = multiprocessing.Pool(2, initializer=open_table, initargs=(100,), maxtasksperchild=1000)
    print("apply:", pool.apply(square, (12,)))
    print("map:", pool.map(square, range(8)))
    print("starmap:", pool.starmap(power, [(2, 10), (3, 4)]))
    print("state:", pool.apply(look_up, (9,)))

    pending = pool.apply_async(square, (1000,))
    print("asynchronously:", pending.get())
    pool.apply_async(square, (5,), callback=lambda result: print("callback:", result, flush=True)).wait()

    print("lazily:", list(pool.imap(square, range(1, 6))))
    print("in any order, summed:", sum(pool.imap_unordered(square, range(1000))))

    pool.close()
    pool.join()
    try:
        pool.apply(square, (2,))
    except ValueError as error:
        print("after close():", error)


if __name__ == "__main__":
    main()
