"""loky: a pool in a pool."""

from _peer import need


def inner(number):
    return number + 1


def outer(number):
    loky = need("loky")
    with loky.ProcessPoolExecutor(1) as workers:
        return workers.submit(inner, number).result(20)


if __name__ == "__main__":
    loky = need("loky")
    with loky.ProcessPoolExecutor(2) as workers:
        assert list(workers.map(outer, range(3), timeout=40)) == [1, 2, 3]
    print("good")
