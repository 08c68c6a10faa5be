"""dask: the multiprocessing scheduler (a ProcessPoolExecutor over spawn), a pool of the user's own, and threads."""

from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import dask
import dask.bag as db


@dask.delayed
def add(a, b):
    return a + b


def words(n):
    return [f"w{n % 13}", f"w{n % 7}"]


def main():
    bag = db.from_sequence(range(2000), npartitions=8)
    counts = bag.map(words).flatten().frequencies()
    print(sorted(counts.compute(scheduler="processes", num_workers=2)))
    total = add(0, 0)
    for n in range(30):
        total = add(total, n)
    print(total.compute(scheduler="processes", num_workers=2))
    with ProcessPoolExecutor(2, mp_context=get_context("fork")) as pool, dask.config.set(pool=pool):
        print(bag.map(lambda n: n * 3).sum().compute(scheduler="processes"))
    print(bag.map(lambda n: n + 1).sum().compute(scheduler="threads", num_workers=2))


if __name__ == "__main__":
    main()
