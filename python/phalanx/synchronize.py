"""Locks, semaphores, conditions, events and barriers for processes: the classes of ``multiprocessing.synchronize``.

They live in the arena of the process tree. Each can be pickled at any time; each survives the death of whoever used it.
"""

import sys
import tempfile
import threading

import _multiprocessing
from multiprocessing import context, process

from phalanx import _engine
from phalanx._engine import OwnerDiedWarning

__all__ = [
    "Lock",
    "RLock",
    "Semaphore",
    "BoundedSemaphore",
    "Condition",
    "Event",
    "Barrier",
    "OwnerDiedWarning",
]

RECURSIVE_MUTEX, SEMAPHORE = range(2)
SEM_VALUE_MAX = _engine.SemLock.SEM_VALUE_MAX

_stock_semlock = getattr(_multiprocessing, "SemLock", None)
if _stock_semlock is not None and not issubclass(_stock_semlock, _engine.SemLock):
    _engine._set_stock_semlock(_stock_semlock)


class SemLock(_engine.SemLock):
    """What locks and semaphores have in common. ``name`` is for reports."""

    _rand = tempfile._RandomNameSequence()

    def __init__(self, kind, value, maxvalue, *, ctx=None, name=None):
        self._bind(kind, value, maxvalue, name)

    def _make_methods(self):
        # Those who derive from the standard library's class call it; here the methods are the type's own.
        pass

    @staticmethod
    def _make_name():
        prefix = process.current_process()._config["semprefix"]
        return f"{prefix}-{next(SemLock._rand)}"


class Semaphore(SemLock):
    """A number of permits. Those that a process holds come back when it dies."""

    def __init__(self, value=1, *, ctx=None, name=None):
        self._bind(SEMAPHORE, value, SEM_VALUE_MAX, name, True)

    def get_value(self):
        return self._get_value()

    def __repr__(self):
        return f"<{type(self).__name__}(value={_told(self._get_value)})>"


class BoundedSemaphore(Semaphore):
    """A semaphore whose value never exceeds the first one."""

    def __init__(self, value=1, *, ctx=None, name=None):
        self._bind(SEMAPHORE, value, value, name, True)

    def __repr__(self):
        return f"<{type(self).__name__}(value={_told(self._get_value)}, maxvalue={self.maxvalue})>"


class Lock(SemLock):
    """A lock that knows its owner. If the owner's process dies, the next one to acquire it has it, and is warned."""

    def __init__(self, *, ctx=None, name=None):
        self._bind(SEMAPHORE, 1, 1, name)

    def __repr__(self):
        return f"<{type(self).__name__}(owner={_owner(self)[0]})>"


class RLock(SemLock):
    """A lock that the thread which holds it can acquire again."""

    def __init__(self, *, ctx=None, name=None):
        self._bind(RECURSIVE_MUTEX, 1, 1, name)

    def __repr__(self):
        owner, count = _owner(self)
        return f"<{type(self).__name__}({owner}, {count})>"


def _told(ask):
    try:
        return ask()
    except Exception:
        return "unknown"


def _owner(lock):
    try:
        if lock._is_mine():
            name = process.current_process().name
            if threading.current_thread().name != "MainThread":
                name += "|" + threading.current_thread().name
            return name, lock._count()
        if lock._get_value() == 1:
            return "None", 0
        if lock._count() > 0:
            return "SomeOtherThread", "nonzero"
        return "SomeOtherProcess", "nonzero"
    except Exception:
        return "unknown", "unknown"


PATCHES = [
    ("?_multiprocessing", "SemLock", _engine.SemLock),
    ("multiprocessing.synchronize", "SEM_VALUE_MAX", SEM_VALUE_MAX),
    ("multiprocessing.synchronize", "SemLock", SemLock),
    ("multiprocessing.synchronize", "Semaphore", Semaphore),
    ("multiprocessing.synchronize", "BoundedSemaphore", BoundedSemaphore),
    ("multiprocessing.synchronize", "Lock", Lock),
    ("multiprocessing.synchronize", "RLock", RLock),
]
