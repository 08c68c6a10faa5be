"""The contexts of ``import phalanx as mp``: the standard library's, handing out this package's classes.

The start method is one for both: what is set here holds for ``multiprocessing`` and the other way round, so that libraries
beside the program see the same. Processes are the standard library's own classes, started in the engine's tree.
"""

import importlib
from multiprocessing import context

from phalanx import _install

_install.hook()


def ours(module: str, name: str):
    """Return what this package has in place of ``module.name``, else what is there."""
    found = None
    for target, attribute, replacement in _install.patches(module):
        if target == module and attribute == name:
            found = replacement
    return getattr(importlib.import_module(module), name) if found is None else found


class _Factories:
    """What a context makes. The arguments are those of ``multiprocessing``; further ones go to the class."""

    def Manager(self):
        """Return a manager with a running server process of its own."""
        manager = ours("multiprocessing.managers", "SyncManager")(ctx=self.get_context())
        manager.start()
        return manager

    def Pipe(self, duplex=True):
        """Return two connected ends of a pipe."""
        return ours("multiprocessing.connection", "Pipe")(duplex)

    def Lock(self):
        """Return a lock that is not recursive."""
        return ours("multiprocessing.synchronize", "Lock")(ctx=self.get_context())

    def RLock(self):
        """Return a recursive lock."""
        return ours("multiprocessing.synchronize", "RLock")(ctx=self.get_context())

    def Condition(self, lock=None):
        """Return a condition, on a lock of its own if none is given."""
        return ours("multiprocessing.synchronize", "Condition")(lock, ctx=self.get_context())

    def Semaphore(self, value=1):
        """Return a semaphore."""
        return ours("multiprocessing.synchronize", "Semaphore")(value, ctx=self.get_context())

    def BoundedSemaphore(self, value=1):
        """Return a semaphore that refuses to be released more often than it was acquired."""
        return ours("multiprocessing.synchronize", "BoundedSemaphore")(value, ctx=self.get_context())

    def Event(self):
        """Return an event."""
        return ours("multiprocessing.synchronize", "Event")(ctx=self.get_context())

    def Barrier(self, parties, action=None, timeout=None):
        """Return a barrier."""
        return ours("multiprocessing.synchronize", "Barrier")(parties, action, timeout, ctx=self.get_context())

    def Queue(self, maxsize=0, **more):
        """Return a queue."""
        return ours("multiprocessing.queues", "Queue")(maxsize, ctx=self.get_context(), **more)

    def JoinableQueue(self, maxsize=0, **more):
        """Return a queue that can be joined."""
        return ours("multiprocessing.queues", "JoinableQueue")(maxsize, ctx=self.get_context(), **more)

    def SimpleQueue(self):
        """Return a queue with the bare minimum of methods."""
        return ours("multiprocessing.queues", "SimpleQueue")(ctx=self.get_context())

    def Pool(self, processes=None, initializer=None, initargs=(), maxtasksperchild=None, **more):
        """Return a pool of processes."""
        pool = ours("multiprocessing.pool", "Pool")
        return pool(processes, initializer, initargs, maxtasksperchild, context=self.get_context(), **more)

    def RawValue(self, typecode_or_type, *args):
        """Return a shared ctypes object."""
        return ours("multiprocessing.sharedctypes", "RawValue")(typecode_or_type, *args)

    def RawArray(self, typecode_or_type, size_or_initializer):
        """Return a shared ctypes array."""
        return ours("multiprocessing.sharedctypes", "RawArray")(typecode_or_type, size_or_initializer)

    def Value(self, typecode_or_type, *args, lock=True):
        """Return a shared ctypes object with a lock."""
        make = ours("multiprocessing.sharedctypes", "Value")
        return make(typecode_or_type, *args, lock=lock, ctx=self.get_context())

    def Array(self, typecode_or_type, size_or_initializer, *, lock=True):
        """Return a shared ctypes array with a lock."""
        make = ours("multiprocessing.sharedctypes", "Array")
        return make(typecode_or_type, size_or_initializer, lock=lock, ctx=self.get_context())

    def get_context(self, method=None):
        """Return the context of a start method, or this one."""
        if method is None:
            return self
        try:
            found = _contexts[method]
        except KeyError:
            raise ValueError(f"cannot find context for {method!r}") from None
        found._check_available()
        return found


class ForkContext(_Factories, context.ForkContext):
    """Children are copies of this process."""


class SpawnContext(_Factories, context.SpawnContext):
    """Children are fresh interpreters."""


class ForkServerContext(_Factories, context.ForkServerContext):
    """Children are forks of a server that has the main module's imports done."""


class DefaultContext(_Factories, context.DefaultContext):
    """The context in use: that of the start method, which is ``multiprocessing``'s."""

    def __init__(self):
        pass

    def get_context(self, method=None):
        """Return the context of a start method, by default the one in use."""
        return super().get_context(method or context._default_context.get_start_method())

    def set_start_method(self, method, force=False):
        """Choose the start method, for this package and for ``multiprocessing``."""
        context._default_context.set_start_method(method, force)

    def get_start_method(self, allow_none=False):
        """Return the start method in use."""
        return context._default_context.get_start_method(allow_none)

    def get_all_start_methods(self):
        """Return the start methods there are, the default one first."""
        return context._default_context.get_all_start_methods()


_contexts = {"fork": ForkContext(), "spawn": SpawnContext(), "forkserver": ForkServerContext()}
default = DefaultContext()


def mirror(submodule: str):
    """Return ``__getattr__``, ``__dir__`` and ``__all__`` of a module that shows one of ``multiprocessing``."""
    stock = importlib.import_module(f"multiprocessing.{submodule}")

    def get(name: str):
        if name.startswith("__") or not hasattr(stock, name):
            raise AttributeError(f"module 'phalanx.{submodule}' has no attribute {name!r}")
        return ours(stock.__name__, name)

    def names():
        return dir(stock)

    public = getattr(stock, "__all__", [name for name in dir(stock) if not name.startswith("_")])
    return get, names, list(public)
