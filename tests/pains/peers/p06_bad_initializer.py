"""loky: a bad initializer breaks the pool once."""

from _peer import need


def bad():
    raise ValueError("no such database")


def work(number):
    return number


if __name__ == "__main__":
    loky = need("loky")
    with loky.ProcessPoolExecutor(2, initializer=bad) as workers:
        try:
            workers.submit(work, 1).result(15)
        except loky.BrokenProcessPool:
            pass
        else:
            raise AssertionError("a pool without workers has results")
    print("good")
