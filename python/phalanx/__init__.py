"""Processes, threads, queues and locks that survive a death: a drop-in for ``multiprocessing``.

Three doors to the same thing: ``import phalanx as mp``; ``phalanx.install()``, after which ``multiprocessing``,
``threading`` and ``queue`` hand out this package's objects, here and in every child; ``python -m phalanx app.py``.

Importing the package starts nothing and imports nothing of ``multiprocessing``: that comes with the first use.

(For pytest, which would complain of a plugin's package that is imported before it: PYTEST_DONT_REWRITE.)
"""

from phalanx._engine import __version__
from phalanx._install import install, installed, uninstall

# What `multiprocessing` has, from this package's contexts.
_API = (
    "Array",
    "AuthenticationError",
    "Barrier",
    "BoundedSemaphore",
    "BufferTooShort",
    "Condition",
    "Event",
    "JoinableQueue",
    "Lock",
    "Manager",
    "Pipe",
    "Pool",
    "Process",
    "ProcessError",
    "Queue",
    "RLock",
    "RawArray",
    "RawValue",
    "Semaphore",
    "SimpleQueue",
    "TimeoutError",
    "Value",
    "active_children",
    "allow_connection_pickling",
    "cpu_count",
    "current_process",
    "freeze_support",
    "get_all_start_methods",
    "get_context",
    "get_logger",
    "get_start_method",
    "log_to_stderr",
    "parent_process",
    "reducer",
    "set_executable",
    "set_forkserver_preload",
    "set_start_method",
)

# What only this package has, by the module that has it.
_MORE: dict[str, str] = {
    "DeadlockError": "phalanx.errors",
    "OwnerDiedWarning": "phalanx.synchronize",
    "PhalanxError": "phalanx.errors",
    "PoolTerminatedError": "phalanx.errors",
    "ProcessPoolExecutor": "phalanx.futures",
    "RemoteError": "phalanx.errors",
    "TaskCancelledError": "phalanx.errors",
    "TaskExitedError": "phalanx.errors",
    "TaskTimeoutError": "phalanx.errors",
    "ThreadPool": "phalanx.pool",
    "WorkerDiedError": "phalanx.errors",
}

# Modules of `multiprocessing` that programs use by name, here with this package's classes.
_SUBMODULES = (
    "connection",
    "deadlocks",
    "dummy",
    "managers",
    "pool",
    "queues",
    "shared_memory",
    "sharedctypes",
    "synchronize",
)

__all__ = ["__version__", "install", "installed", "uninstall", *_MORE, *_API]


def __getattr__(name: str):
    if name in _API:
        from phalanx import _context

        value = getattr(_context.default, name)
        if name == "reducer":
            # Programs replace it in the context.
            return value
    elif name in _MORE:
        from importlib import import_module

        value = getattr(import_module(_MORE[name]), name)
    elif name in _SUBMODULES:
        from importlib import import_module

        return import_module(f"phalanx.{name}")
    else:
        raise AttributeError(f"module 'phalanx' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__():
    return sorted({*globals(), *__all__, *_SUBMODULES})


def _tell_joblib() -> None:
    """Let joblib, if the program has it, find its backend by name."""
    import sys

    parallel = sys.modules.get("joblib.parallel")
    external = getattr(parallel, "EXTERNAL_BACKENDS", None)
    if external is not None:

        def register() -> None:
            from importlib import import_module

            import_module("phalanx.joblib").register()

        external.setdefault("phalanx", register)


_tell_joblib()
