"""emcee: a sampler that makes some hundred tiny maps on a Pool; the chain must be that of a run without one."""

from multiprocessing import Pool

import emcee
import numpy as np


def log_probability(theta):
    return -0.5 * float(np.sum(theta**2))


def chain(pool):
    np.random.seed(42)
    start = np.random.randn(16, 3)
    sampler = emcee.EnsembleSampler(16, 3, log_probability, pool=pool)
    sampler.run_mcmc(start, 150)
    return sampler.get_chain()


def main():
    alone = chain(None)
    with Pool(2) as pool:
        shared = chain(pool)
    print(np.array_equal(alone, shared), alone.shape, round(float(alone.sum()), 6))


if __name__ == "__main__":
    main()
