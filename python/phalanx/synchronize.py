"""Locks, semaphores, conditions, events and barriers for processes: the classes of ``multiprocessing.synchronize``.

They live in the arena of the process tree. Each can be pickled at any time; each survives the death of whoever used it.
"""

import sys
import threading
import time

from multiprocessing import process
from multiprocessing import synchronize as _stock

from phalanx import _engine
from phalanx import _semlock  # noqa: F401  the engine must know the stock type
from phalanx import threading as _threads
from phalanx._engine import OwnerDiedWarning
from phalanx._stock import Names

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

_StockSemLock = _stock.SemLock


class SemLock(_engine.SemLock):
    """What locks and semaphores have in common. ``name`` is for reports."""

    _rand = Names()

    def __init__(self, kind, value, maxvalue, *, ctx=None, name=None):
        if isinstance(self, SemLock):
            self._bind(kind, value, maxvalue, name)
        else:
            # A class from before `install()`: it derives from the stock one, and has this one by the name of its base.
            _StockSemLock.__init__(self, kind, value, maxvalue, ctx=ctx)

    _cleanup = staticmethod(_StockSemLock._cleanup)

    def _make_methods(self):
        # Those who derive from the standard library's class call it; here the methods are the type's own.
        pass

    @staticmethod
    def _make_name():
        prefix = process.current_process()._config["semprefix"]
        return f"{prefix}-{next(SemLock._rand)}"


@_engine._quicken
class Semaphore(SemLock):
    """A number of permits. Those that a process holds come back when it dies."""

    def __init__(self, value=1, *, ctx=None, name=None):
        self._bind(SEMAPHORE, value, SEM_VALUE_MAX, name, True)

    def get_value(self):
        return self._get_value()

    def __repr__(self):
        return f"<{type(self).__name__}(value={_told(self._get_value)})>"


@_engine._quicken
class BoundedSemaphore(Semaphore):
    """A semaphore whose value never exceeds the first one."""

    def __init__(self, value=1, *, ctx=None, name=None):
        self._bind(SEMAPHORE, value, value, name, True)

    def __repr__(self):
        return f"<{type(self).__name__}(value={_told(self._get_value)}, maxvalue={self.maxvalue})>"


@_engine._quicken
class Lock(SemLock):
    """A lock that knows its owner. If the owner's process dies, the next one to acquire it has it, and is warned."""

    def __init__(self, *, ctx=None, name=None):
        self._bind(SEMAPHORE, 1, 1, name)

    def __repr__(self):
        return f"<{type(self).__name__}(owner={_owner(self)[0]})>"


@_engine._quicken
class RLock(SemLock):
    """A lock that the thread which holds it can acquire again."""

    def __init__(self, *, ctx=None, name=None):
        self._bind(RECURSIVE_MUTEX, 1, 1, name)

    def __repr__(self):
        owner, count = _owner(self)
        return f"<{type(self).__name__}({owner}, {count})>"


class _Count:
    """A number that others read of a condition as if it were a semaphore."""

    def __init__(self, ask):
        self._get_value = self.get_value = ask
        self._semlock = self


class Condition(_engine.SharedCondition):
    """Wait for a notification, with a lock let go meanwhile. ``lock`` is a Lock or RLock, by default a new RLock."""

    def __init__(self, lock=None, *, ctx=None):
        self._bind(lock or RLock())

    @property
    def _sleeping_count(self):
        return _Count(self._waiters)

    @property
    def _woken_count(self):
        return _Count(int)

    _wait_semaphore = _woken_count

    def _make_methods(self):
        pass

    def __repr__(self):
        return f"<{type(self).__name__}({self._lock}, {_told(self._waiters)})>"

    def wait_for(self, predicate, timeout=None):
        """Wait until the predicate is true, or for ``timeout`` seconds; return what it answered last."""
        result = predicate()
        end = None
        while not result:
            left = None
            if timeout is not None:
                now = time.monotonic()
                end = now + timeout if end is None else end
                left = end - now
                if left <= 0:
                    break
            self.wait(left)
            result = predicate()
        return result


class Event(_engine.SharedEvent):
    """A flag that processes wait for."""

    def __init__(self, *, ctx=None):
        self._bind()

    if "__repr__" in vars(_stock.Event):

        def __repr__(self):
            status = "set" if self.is_set() else "unset"
            return f"<{type(self).__qualname__} at {id(self):#x} {status}>"


class Barrier(_threads.Barrier):
    """A meeting point of a number of processes. A party that dies while it waits breaks it for the others."""

    def __init__(self, parties, action=None, timeout=None, *, ctx=None):
        self._barrier = _engine.SharedBarrier(parties)
        self._action = action
        self._timeout = timeout

    def __reduce__(self):
        return _rebuild_barrier, (type(self),), self.__dict__

    def wait(self, timeout=None):
        """Wait for all parties; return this one's number, from 0, in the order in which they came."""
        return self._barrier.wait(self._timeout if timeout is None else timeout, self._action)

    def reset(self):
        """Make it as new. Those who wait find it broken."""
        self._barrier.reset()

    def abort(self):
        """Break it: those who wait, and who come, get BrokenBarrierError."""
        self._barrier.abort()

    @property
    def parties(self):
        """The number of parties it takes."""
        return self._barrier.parties

    @property
    def n_waiting(self):
        """How many wait at this moment."""
        return self._barrier.n_waiting

    @property
    def broken(self):
        """Whether it is broken."""
        return self._barrier.broken

    _parties = parties
    _count = n_waiting

    @property
    def _state(self):
        return -2 if self.broken else 0


def _rebuild_barrier(cls):
    return cls.__new__(cls)


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
    ("multiprocessing.synchronize", "SEM_VALUE_MAX", SEM_VALUE_MAX),
    ("multiprocessing.synchronize", "SemLock", SemLock),
    ("multiprocessing.synchronize", "Semaphore", Semaphore),
    ("multiprocessing.synchronize", "BoundedSemaphore", BoundedSemaphore),
    ("multiprocessing.synchronize", "Lock", Lock),
    ("multiprocessing.synchronize", "RLock", RLock),
    ("multiprocessing.synchronize", "Condition", Condition),
    ("multiprocessing.synchronize", "Event", Event),
    ("multiprocessing.synchronize", "Barrier", Barrier),
]
