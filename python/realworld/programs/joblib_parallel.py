"""joblib: its own executor (loky) with a lambda and with arrays, then its multiprocessing and threading backends."""

import math

import numpy as np
from joblib import Parallel, delayed, parallel_config


def norm(block):
    return float(np.sqrt((block * block).sum()))


def main():
    print(Parallel(n_jobs=2)(delayed(lambda n: n * n)(n) for n in range(10)))
    blocks = [np.arange(n, dtype=float) for n in (10, 1000, 300_000)]
    for backend in ("loky", "multiprocessing", "threading"):
        with parallel_config(backend, n_jobs=2):
            roots = Parallel()(delayed(math.sqrt)(n) for n in range(2000))
            norms = Parallel()(delayed(norm)(block) for block in blocks)
        print(backend, round(sum(roots), 3), [round(value, 3) for value in norms])
    generator = Parallel(n_jobs=2, return_as="generator")(delayed(abs)(-n) for n in range(50))
    print(sum(generator))


if __name__ == "__main__":
    main()
