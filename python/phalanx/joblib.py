"""A backend for joblib: ``with joblib.parallel_config("phalanx"): joblib.Parallel(n_jobs=4)(…)``.

It is known to joblib once both packages are imported, joblib first; otherwise import this module.
"""

import os

from joblib import register_parallel_backend
from joblib._parallel_backends import AutoBatchingMixin, FallbackToBackend, ParallelBackendBase, PoolManagerMixin, SequentialBackend

from phalanx.pool import Pool

__all__ = ["PhalanxBackend", "register"]


class PhalanxBackend(PoolManagerMixin, AutoBatchingMixin, ParallelBackendBase):
    """Runs joblib's calls in a :class:`phalanx.Pool`: arrays are mapped, a dead worker fails its batch, nesting is allowed."""

    supports_retrieve_callback = True
    supports_return_generator = True
    supports_sharedmem = False

    def configure(self, n_jobs=1, parallel=None, prefer=None, require=None, **options):
        """Start the pool; returns the number of workers."""
        n_jobs = self.effective_n_jobs(n_jobs)
        if n_jobs == 1:
            raise FallbackToBackend(SequentialBackend(nesting_level=self.nesting_level))
        known = {**self.backend_kwargs, **options}
        ours = ("initializer", "initargs", "task_timeout", "retries", "memory_limit", "start_timeout")
        self._pool = Pool(n_jobs, context=known.get("context"), **{name: known[name] for name in ours if name in known})
        self.parallel = parallel
        return n_jobs

    def effective_n_jobs(self, n_jobs):
        """The number of workers that ``n_jobs`` means."""
        if n_jobs is not None and n_jobs < 0:
            n_jobs = max(len(os.sched_getaffinity(0)) + 1 + n_jobs, 1)
        return super().effective_n_jobs(n_jobs)

    def get_nested_backend(self):
        """Calls inside of a worker run one after the other, unless they ask for a backend."""
        return SequentialBackend(nesting_level=(self.nesting_level or 0) + 1), None

    def terminate(self):
        """End the pool."""
        super().terminate()
        self.reset_batch_stats()


def register():
    """Make the backend known to joblib."""
    register_parallel_backend("phalanx", PhalanxBackend)


register()
