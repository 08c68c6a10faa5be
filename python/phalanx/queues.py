"""``Queue``, ``JoinableQueue`` and ``SimpleQueue`` in the memory that all processes of a tree share.

No thread feeds them: an object is in the queue when ``put()`` returns, and stays there if the process that put it exits or is
killed. A process killed at any moment leaves no lock taken and no half-written item behind.

A subclass that overrides how the standard library's queues work inside (``__getstate__``, ``_feed`` and the like) runs on the
standard library's code, unchanged.
"""

import collections
import errno
import threading
import types
import warnings
from multiprocessing import queues as _stock
from multiprocessing.queues import Empty, Full
from multiprocessing.util import debug

from phalanx import _engine

__all__ = ["Empty", "Full", "JoinableQueue", "Queue", "SimpleQueue"]

# Taken before anything can have replaced them.
_StockQueue = _stock.Queue
_StockJoinableQueue = _stock.JoinableQueue
_StockSimpleQueue = _stock.SimpleQueue

# Who overrides one of these means the machinery of the standard library.
_QUEUE_HOOKS = ("__getstate__", "__setstate__", "_after_fork", "_reset", "_start_thread", "_feed")
_SIMPLE_HOOKS = ("__getstate__", "__setstate__", "_make_methods")


def _overrides(cls, hooks):
    # Up to the first class of this module: what stands before it is the user's.
    for base in cls.__mro__:
        if base.__module__ == __name__:
            return False
        if any(name in base.__dict__ for name in hooks):
            return True
    return False


class Queue(_engine.Queue, _StockQueue):
    """A queue of objects between processes and threads, first in, first out.

    ``maxsize`` bounds the number of items; 0 means any number. ``get_async``, ``put_async`` and ``async for`` are for
    coroutines. A queue can be sent to another process of the tree in any way: as an argument, through another queue.
    """

    _on_stock = False

    def __init_subclass__(cls, **kwargs):
        super().__init_subclass__(**kwargs)
        cls._on_stock = _overrides(cls, _QUEUE_HOOKS)

    def __init__(self, maxsize=0, *, ctx):
        # The first: one from before `install()`, whose class derives from the stock one and has this one by its name.
        if not isinstance(self, Queue) or self._on_stock:
            _StockQueue.__init__(self, maxsize, ctx=ctx)
            return
        maxsize = max(maxsize, 0)
        self._open(maxsize, False)
        self._set_up(maxsize, False, ctx)

    def _set_up(self, maxsize, ignore_epipe, ctx=None):
        if maxsize <= 0:
            from multiprocessing.synchronize import SEM_VALUE_MAX as maxsize
        self._maxsize = maxsize
        self._ignore_epipe = ignore_epipe

    def __reduce_ex__(self, protocol):
        if not self._native:
            return object.__reduce_ex__(self, protocol)
        return _rebuild_queue, (type(self), self._handle(), self._maxsize, self._ignore_epipe)

    def __getattr__(self, name):
        # What the standard library's queue has inside, for those who look: made when it is asked for.
        try:
            make = _INSIDES[name]
        except KeyError:
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}") from None
        if not self._native:
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        value = make(self)
        return self.__dict__.setdefault(name, value)

    def _stock_put(self, obj, block, timeout):
        _StockQueue.put(self, obj, block, timeout)

    def _stock_get(self, block, timeout):
        return _StockQueue.get(self, block, timeout)

    def _not_pickled(self, error, obj):
        if not isinstance(error, Exception):
            raise error
        if isinstance(error, MemoryError) and self._on_queue_feeder_error is _StockQueue._on_queue_feeder_error:
            raise error
        try:
            raise error
        except Exception as caught:
            self._on_queue_feeder_error(caught, obj)

    async def get_async(self):
        """Take an object out of the queue; other coroutines run until there is one."""
        while True:
            try:
                return self.get(False)
            except Empty:
                await self._rung(False)

    async def put_async(self, obj):
        """Put an object into the queue; other coroutines run until there is room."""
        while True:
            try:
                self.put(obj, False)
                return
            except Full:
                await self._rung(True)

    def __aiter__(self):
        return self

    async def __anext__(self):
        # As long as this process uses the queue there may be another item.
        if self._closed:
            raise StopAsyncIteration
        return await self.get_async()

    def _rung(self, writable):
        if not self._native:
            raise TypeError(f"{type(self).__name__} overrides how the standard library's queue works, which no coroutine can await")
        from phalanx._bells import rung

        return rung(self, writable)

    def qsize(self):
        """Return the number of items; a moment later it may be another."""
        if not self._native:
            return _StockQueue.qsize(self)
        return self._len()

    def empty(self):
        """Tell whether there is no item; a moment later there may be one."""
        if not self._native:
            return _StockQueue.empty(self)
        return self._is_empty()

    def full(self):
        """Tell whether there are ``maxsize`` items; a moment later there may be fewer."""
        if not self._native:
            return _StockQueue.full(self)
        return self._is_full()

    def close(self):
        """Say that this process puts and gets no more. What was put stays for the others."""
        if not self._native:
            _StockQueue.close(self)
            return
        self._closed = True

    def join_thread(self):
        """Return at once: no thread feeds the queue, and what was put is in it."""
        if not self._native:
            _StockQueue.join_thread(self)
            return
        debug("Queue.join_thread()")
        assert self._closed, f"Queue {self!r} not closed"

    def cancel_join_thread(self):
        """Do nothing: exit waits for nobody."""
        if not self._native:
            _StockQueue.cancel_join_thread(self)

    def _terminate_broken(self):
        if not self._native:
            _StockQueue._terminate_broken(self)
            return
        self._reader.close()
        self.close()
        self.join_thread()

    __class_getitem__ = classmethod(types.GenericAlias)


class JoinableQueue(Queue, _StockJoinableQueue):
    """A queue that knows which of its items are done.

    If a process dies with items it took and did not finish, they count as done, and ``join()`` warns that they were lost.
    """

    def __init__(self, maxsize=0, *, ctx):
        if self._on_stock:
            _StockJoinableQueue.__init__(self, maxsize, ctx=ctx)
            return
        maxsize = max(maxsize, 0)
        self._open(maxsize, True)
        self._set_up(maxsize, False, ctx)

    def _stock_put(self, obj, block, timeout):
        _StockJoinableQueue.put(self, obj, block, timeout)

    def task_done(self):
        """Say that an item that was taken is done."""
        if not self._native:
            _StockJoinableQueue.task_done(self)
        elif not self._task_done():
            raise ValueError("task_done() called too many times")

    def join(self):
        """Wait until every item that was put is done."""
        if not self._native:
            _StockJoinableQueue.join(self)
            return
        lost = self._join()
        if lost:
            warnings.warn(f"{lost} items were lost with a process that had taken them", RuntimeWarning, stacklevel=2)


class SimpleQueue(_engine.SimpleQueue, _StockSimpleQueue):
    """A queue without bound, time-outs and ``task_done``."""

    _on_stock = False

    def __init_subclass__(cls, **kwargs):
        super().__init_subclass__(**kwargs)
        cls._on_stock = _overrides(cls, _SIMPLE_HOOKS)

    def __init__(self, *, ctx):
        if self._on_stock:
            _StockSimpleQueue.__init__(self, ctx=ctx)
            return
        self._open()

    def __reduce_ex__(self, protocol):
        if not self._native:
            return object.__reduce_ex__(self, protocol)
        return _rebuild_simple_queue, (type(self), self._handle())

    __getattr__ = Queue.__getattr__

    def _stock_put(self, obj):
        _StockSimpleQueue.put(self, obj)

    def _stock_get(self):
        return _StockSimpleQueue.get(self)

    def empty(self):
        """Tell whether there is no item; a moment later there may be one."""
        if not self._native:
            return _StockSimpleQueue.empty(self)
        return self._len() == 0

    def close(self):
        """Close this process's end."""
        if not self._native:
            _StockSimpleQueue.close(self)
            return
        self._reader.close()
        self._writer.close()
        self._shut()

    __class_getitem__ = classmethod(types.GenericAlias)


def _rebuild_queue(cls, handle, maxsize, ignore_epipe):
    queue = cls.__new__(cls)
    queue._attach(handle)
    queue._set_up(maxsize, ignore_epipe)
    return queue


def _rebuild_simple_queue(cls, handle):
    queue = cls.__new__(cls)
    queue._attach(handle)
    return queue


class _NoLock:
    """Stands where the standard library has the lock of an end: no end needs one."""

    def acquire(self, block=True, timeout=None):
        return True

    def release(self):
        pass

    def __enter__(self):
        return True

    def __exit__(self, *exc_info):
        pass


class _Reader:
    """The receiving end of a queue, as the standard library's queue has it: pollable, one item a message."""

    readable = True
    writable = False

    def __init__(self, queue):
        self._queue = queue
        self._closed = False

    @property
    def closed(self):
        return self._closed

    def _check(self):
        if self._closed:
            raise OSError("handle is closed")

    def poll(self, timeout=0.0):
        """Tell whether there is an item, waiting up to ``timeout`` seconds for one."""
        self._check()
        return self._queue._wait_readable(timeout)

    def recv(self):
        """Take an item out of the queue."""
        self._check()
        return self._queue._take()

    def recv_bytes(self, maxlength=None):
        """Take an item out of the queue as the bytes of its pickle."""
        self._check()
        data = self._queue._get_bytes(True, None)
        if maxlength is not None and len(data) > maxlength:
            raise OSError("bad message length")
        return data

    def fileno(self):
        """Return a descriptor of this process that polls readable while there is an item."""
        self._check()
        return self._queue._bell(False)

    def close(self):
        self._closed = True

    def __enter__(self):
        return self

    def __exit__(self, *exc_info):
        self.close()


class _Writer:
    """The sending end."""

    readable = False
    writable = True

    def __init__(self, queue):
        self._queue = queue
        self._closed = False

    @property
    def closed(self):
        return self._closed

    def send(self, obj):
        """Put an object into the queue."""
        self.send_bytes(_stock._ForkingPickler.dumps(obj))

    def send_bytes(self, buf, offset=0, size=None):
        """Put the bytes of a pickle into the queue."""
        if self._closed:
            raise OSError(errno.EPIPE, "handle is closed")
        view = memoryview(buf).cast("B")
        self._queue._put_bytes(view[offset:] if size is None else view[offset : offset + size])

    def close(self):
        self._closed = True


class _Slots:
    """Counts free places as the standard library's semaphore does, for those who look."""

    def __init__(self, queue):
        self._queue = queue
        self._semlock = self

    def get_value(self):
        return self._queue._maxsize - self._queue._len()

    _get_value = get_value

    def _is_zero(self):
        return self.get_value() <= 0


_INSIDES = {
    "_reader": _Reader,
    "_writer": _Writer,
    "_rlock": lambda queue: _NoLock(),
    "_wlock": lambda queue: _NoLock(),
    "_sem": _Slots,
    "_notempty": lambda queue: threading.Condition(threading.Lock()),
    "_buffer": lambda queue: collections.deque(),
    "_thread": lambda queue: None,
    "_jointhread": lambda queue: None,
    "_joincancelled": lambda queue: False,
    "_close": lambda queue: None,
    "_poll": lambda queue: queue._reader.poll,
    "_recv_bytes": lambda queue: queue._reader.recv_bytes,
    "_send_bytes": lambda queue: queue._writer.send_bytes,
}

PATCHES = [
    ("multiprocessing.queues", "Queue", Queue),
    ("multiprocessing.queues", "JoinableQueue", JoinableQueue),
    ("multiprocessing.queues", "SimpleQueue", SimpleQueue),
]
