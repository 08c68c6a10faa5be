"""loky: lambdas and closures."""

from _peer import need

if __name__ == "__main__":
    loky = need("loky")
    factor = 3
    with loky.ProcessPoolExecutor(2) as workers:
        assert list(workers.map(lambda number: number * factor, range(4), timeout=20)) == [0, 3, 6, 9]
    print("good")
