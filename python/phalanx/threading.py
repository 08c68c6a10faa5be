"""``threading`` with this package's Condition, Event, Semaphore, BoundedSemaphore and Barrier.

The rest is the standard library's: ``Thread``, ``local``, ``Timer``, and also ``Lock`` and ``RLock``, which are C already.
Each class derives from the stock one as well, so that ``isinstance`` holds for code that took the name before
``install()``, and what is not hot (``wait_for``, ``notifyAll``, ``repr``) is inherited.
"""

import threading as _stock
from threading import *  # noqa: F403

from phalanx import _engine
from phalanx._stock import untouched_threading as _untouched

__all__ = list(_stock.__all__)

_Condition, _Event = _stock.Condition, _stock.Event
_Semaphore, _BoundedSemaphore, _Barrier = _stock.Semaphore, _stock.BoundedSemaphore, _stock.Barrier


# Somebody else may have made threads something of their own (gevent, eventlet), and the classes theirs: these stay then.
if _untouched():

    class Condition(_engine.ThreadCondition, _Condition):
        """A condition variable; over any lock, its own ``RLock`` by default."""

    class Event(_engine.ThreadEvent, _Event):
        """A flag that threads can wait for."""

    class Semaphore(_engine.ThreadSemaphore, _Semaphore):
        """A counter of what may be taken at the same time."""

    class BoundedSemaphore(Semaphore, _BoundedSemaphore):
        """A semaphore that refuses more releases than acquisitions."""

        def __init__(self, value=1):
            _engine.ThreadSemaphore.__init__(self, value)
            self._bind()

    class Barrier(_engine.ThreadBarrier, _Barrier):
        """A point where a number of threads wait for each other."""

    for _class in (Condition, Event, Semaphore, BoundedSemaphore, Barrier):
        _class.__module__ = "threading"


def __getattr__(name):
    if name != "PATCHES":
        # Private names, for those who import them from here.
        return getattr(_stock, name)
    if not _untouched():
        # A wait of ours would stop all of their threads.
        return []
    return [
        (module, name, globals()[name])
        for module in ("threading", "?multiprocessing.dummy")
        for name in ("Condition", "Event", "Semaphore", "BoundedSemaphore", "Barrier")
    ]
