"""``queue`` with this package's Queue, LifoQueue and PriorityQueue.

``SimpleQueue`` and the exceptions are the standard library's. Each class derives from the stock one as well: a subclass that
overrides ``_init``, ``_qsize``, ``_put`` or ``_get``, and a queue whose attributes are replaced, run the stock code.
"""

import heapq as _heapq
import queue as _stock
from collections import deque as _deque
from queue import *  # noqa: F403

from phalanx import _engine
from phalanx._stock import untouched_threading as _untouched

__all__ = list(_stock.__all__)

# See `phalanx.threading`.
if _untouched():
    _Queue, _LifoQueue, _PriorityQueue = _stock.Queue, _stock.LifoQueue, _stock.PriorityQueue
    _HOOKS = ("_init", "_qsize", "_put", "_get")
    _hooks = {kind: tuple(getattr(kind, name) for name in _HOOKS) for kind in (_Queue, _LifoQueue, _PriorityQueue)}

    def _begin(queue, maxsize, kind):
        cls = type(queue)
        if (cls._init, cls._qsize, cls._put, cls._get) == _hooks[kind] and type(maxsize) is int:
            if kind is _Queue:
                items = _deque()
                parts = items, items.append, items.popleft, False
            elif kind is _LifoQueue:
                items = []
                parts = items, items.append, items.pop, False
            else:
                parts = [], _heapq.heappush, _heapq.heappop, True
            direct = cls.put is _put and cls.get is _get
            if queue._begin(maxsize, kind, direct, *parts):
                return
        queue._begin_own(kind)
        kind.__init__(queue, maxsize)

    _put, _get = _engine.LocalQueue.put, _engine.LocalQueue.get

    class Queue(_engine.LocalQueue, _Queue):
        """A first-in, first-out queue; without limit if ``maxsize`` is 0 or less."""

        def __init__(self, maxsize=0):
            _begin(self, maxsize, _Queue)

    class PriorityQueue(Queue, _PriorityQueue):
        """A queue that gives the least item first."""

        def __init__(self, maxsize=0):
            _begin(self, maxsize, _PriorityQueue)

    class LifoQueue(Queue, _LifoQueue):
        """A queue that gives the latest item first."""

        def __init__(self, maxsize=0):
            _begin(self, maxsize, _LifoQueue)

    for _class in (Queue, PriorityQueue, LifoQueue):
        _class.__module__ = "queue"


def __getattr__(name):
    if name != "PATCHES":
        return getattr(_stock, name)
    if not _untouched():
        return []
    return [("queue", name, globals()[name]) for name in ("Queue", "PriorityQueue", "LifoQueue")] + [
        ("?multiprocessing.dummy", "Queue", Queue),
    ]
