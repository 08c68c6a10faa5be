"""``Pool``: the class of ``multiprocessing.pool`` on the engine.

Tasks, results and the record of who holds what are in shared memory; one thread per pool starts workers anew and runs
callbacks. A worker that dies costs the task it ran, which fails with :class:`phalanx.WorkerDiedError`.
"""

import _thread
import collections
import itertools
import os
import threading
import time
import types
import warnings
from multiprocessing import TimeoutError, get_context, util
from multiprocessing import pool as _stock

from phalanx import _engine
from phalanx._office import VALUE, Office, seconds
from phalanx._progress import bar as _bar
from phalanx.errors import PoolTerminatedError

__all__ = ["ApplyResult", "AsyncResult", "IMapIterator", "IMapUnorderedIterator", "MapResult", "Pool", "ThreadPool"]

# Most calls of a map that are one task to the engine.
_BATCH_MOST = 256

INIT, RUN, CLOSE, TERMINATE = "INIT", "RUN", "CLOSE", "TERMINATE"

_StockPool = _stock.Pool
_StockApplyResult = _stock.ApplyResult
_StockMapResult = _stock.MapResult
_StockIMapIterator = _stock.IMapIterator
_StockIMapUnorderedIterator = _stock.IMapUnorderedIterator
_StockThreadPool = _stock.ThreadPool

# A subclass that replaces one of these works on the stock pool's queues or threads: it gets the stock pool.
_INNER = (
    "_setup_queues",
    "_repopulate_pool",
    "_repopulate_pool_static",
    "_maintain_pool",
    "_handle_workers",
    "_handle_tasks",
    "_handle_results",
    "_get_sentinels",
    "_get_worker_sentinels",
    "_join_exited_workers",
    "_help_stuff_finish",
    "_terminate_pool",
    "_guarded_task_generation",
    "_get_tasks",
    "_wait_for_updates",
    "_map_async",
)


def __getattr__(name):
    # The stock module's other names.
    return getattr(_stock, name)


def _cpu_count():
    count = getattr(os, "process_cpu_count", None) or os.cpu_count
    return count() or 1


class Pool(_StockPool):
    """A pool of worker processes.

    Beyond ``multiprocessing``: ``task_timeout`` seconds after which a task's worker is killed, ``retries`` after a death, a
    time-out or an exception, ``memory_limit`` bytes per worker, ``threads_per_worker``; ``start_timeout`` seconds after which
    a worker that is not ready (its start, the main module's import, the initializer) is killed and another one tried: when none gets ready
    the pool breaks (by default it takes as long as it takes). A worker that dies fails its task alone, with
    :class:`phalanx.WorkerDiedError`. Ctrl-C is heard by the parent only. In a forked child the pool is its
    parent's and cannot be used.
    """

    _office = None

    def __init__(
        self,
        processes=None,
        initializer=None,
        initargs=(),
        maxtasksperchild=None,
        context=None,
        *,
        task_timeout=None,
        retries=0,
        memory_limit=None,
        start_timeout=None,
        threads_per_worker=1,
    ):
        mro = type(self).__mro__
        if any(name in vars(cls) for cls in mro[: mro.index(Pool)] for name in _INNER):
            _StockPool.__init__(self, processes, initializer, initargs, maxtasksperchild, context)
            return
        # Early, for __del__ of a pool that failed here.
        self._pool = []
        self._state = INIT
        self._ctx = context or get_context()
        self._cache = {}
        self._maxtasksperchild = maxtasksperchild
        self._initializer = initializer
        self._initargs = initargs
        if processes is None:
            processes = _cpu_count()
        if processes < 1:
            raise ValueError("Number of processes must be at least 1")
        if maxtasksperchild is not None and (not isinstance(maxtasksperchild, int) or maxtasksperchild <= 0):
            raise ValueError("maxtasksperchild must be a positive int or None")
        if initializer is not None and not callable(initializer):
            raise TypeError("initializer must be a callable")
        if threads_per_worker < 1:
            raise ValueError("threads_per_worker must be at least 1")
        self._processes = processes
        self._timeout = seconds(task_timeout)
        self._retries = retries
        office = Office(
            self._ctx,
            self.Process,
            processes,
            threads=threads_per_worker,
            initializer=initializer,
            initargs=initargs,
            most=maxtasksperchild or 0,
            wrap=self._wrap_exception,
            memory_limit=memory_limit,
            start_timeout=start_timeout,
            staff=self._pool,
        )
        self._office = office
        try:
            office.start()
        except BaseException:
            for worker in self._pool:
                if worker.exitcode is None:
                    worker.terminate()
            for worker in self._pool:
                worker.join()
            raise
        self._terminate = util.Finalize(self, _end, args=(office,), exitpriority=15)
        self._state = RUN

    def __del__(self, _warn=warnings.warn, RUN=RUN, _stock_del=_StockPool.__del__):
        if getattr(self, "_office", None) is None:
            if hasattr(self, "_change_notifier"):
                _stock_del(self)
            return
        if self._state == RUN:
            _warn(f"unclosed running multiprocessing pool {self!r}", ResourceWarning, source=self)

    def _repopulate_pool(self):
        if self._office is None:
            return _StockPool._repopulate_pool(self)
        self._office.fill()

    # ---- submitting ----

    def _options(self, timeout=None, retries=None, together=0, streamed=False):
        timeout = self._timeout if timeout is None else seconds(timeout)
        return timeout, self._retries if retries is None else retries, together, streamed

    def apply(self, func, args=(), kwds={}, *, timeout=None, retries=None):
        """Call ``func(*args, **kwds)`` in a worker and return its value.

        After ``timeout`` seconds the worker is killed and :class:`phalanx.TaskTimeoutError` raised.
        """
        if self._office is None:
            return _StockPool.apply(self, func, args, kwds)
        return self.apply_async(func, args, kwds, timeout=timeout, retries=retries).get()

    def apply_async(self, func, args=(), kwds={}, callback=None, error_callback=None, *, timeout=None, retries=None):
        """Asynchronous version of :meth:`apply`."""
        office = self._office
        if office is None:
            return _StockPool.apply_async(self, func, args, kwds, callback, error_callback)
        self._check_running()
        options = self._options(timeout, retries)
        try:
            lot = office.apply(func, args, kwds, options)
        except Exception as error:
            return self._failed(ApplyResult, error, func, callback, error_callback)
        return ApplyResult(self, callback, error_callback, office=office, lot=lot, function=func)

    def _failed(self, kind, error, func, callback, error_callback):
        office = self._office
        if office.broken is error:
            raise error
        return kind(self, callback, error_callback, office=office, lot=None, function=func, error=error)

    def map(self, func, iterable, chunksize=None, *, timeout=None, retries=None, progress=None):
        """Call ``func`` with each item and return the list of values.

        ``timeout`` seconds are each task's. ``progress`` is ``True`` for a bar on stderr, or a callable like ``tqdm.tqdm``.
        """
        if self._office is None:
            return _StockPool.map(self, func, iterable, chunksize)
        result = self._submit_map(func, iterable, False, chunksize, None, None, timeout, retries, progress)
        return result._get_with(progress)

    def starmap(self, func, iterable, chunksize=None, *, timeout=None, retries=None, progress=None):
        """As :meth:`map`, with items that are argument lists: ``func(*item)``."""
        if self._office is None:
            return _StockPool.starmap(self, func, iterable, chunksize)
        result = self._submit_map(func, iterable, True, chunksize, None, None, timeout, retries, progress)
        return result._get_with(progress)

    def map_async(self, func, iterable, chunksize=None, callback=None, error_callback=None, *, timeout=None, retries=None):
        """Asynchronous version of :meth:`map`."""
        if self._office is None:
            return _StockPool.map_async(self, func, iterable, chunksize, callback, error_callback)
        return self._submit_map(func, iterable, False, chunksize, callback, error_callback, timeout, retries)

    def starmap_async(self, func, iterable, chunksize=None, callback=None, error_callback=None, *, timeout=None, retries=None):
        """Asynchronous version of :meth:`starmap`."""
        if self._office is None:
            return _StockPool.starmap_async(self, func, iterable, chunksize, callback, error_callback)
        return self._submit_map(func, iterable, True, chunksize, callback, error_callback, timeout, retries)

    def _submit_map(self, func, iterable, star, chunksize, callback, error_callback, timeout, retries, progress=None):
        self._check_running()
        if type(iterable) is not list:
            iterable = list(iterable)
        if chunksize is not None and chunksize < 0:
            chunksize = 0
        timeout, retries, _, _ = self._options(timeout, retries)
        batch, together = 1, self._together(len(iterable), chunksize)
        if not timeout and not retries and not progress and self._maxtasksperchild is None:
            batch = self._batch(len(iterable), chunksize)
            together //= batch
        try:
            lot = self._office.map(func, iterable, star, (timeout, retries, together, False), batch)
        except Exception as error:
            return self._failed(MapResult, error, func, callback, error_callback)
        return MapResult(self, callback, error_callback, office=self._office, lot=lot, function=func)

    def _batch(self, items, chunksize):
        """How many calls are one task of a map that fails as a whole: few enough that all workers end about together."""
        if chunksize is None:
            return min(max(items // (64 * self._processes * self._office.threads), 1), _BATCH_MOST)
        # As many as divide a chunk.
        return max((size for size in range(1, min(chunksize, _BATCH_MOST) + 1) if chunksize % size == 0), default=1)

    def _together(self, items, chunksize):
        """How many items a worker must take as one; 0 leaves it to the engine."""
        if self._maxtasksperchild is None:
            return chunksize if chunksize is not None and chunksize > 1 else 0
        if chunksize is None:
            # A chunk is a task that counts against the limit.
            chunksize, extra = divmod(items, self._processes * 4)
            if extra:
                chunksize += 1
        return max(chunksize, 1)

    def imap(self, func, iterable, chunksize=1, *, timeout=None, retries=None, buffersize=None, progress=None):
        """Return an iterator of values in the order of the items.

        Items are read as results are taken, ``buffersize`` ahead at most (by default a window that grows while the taker
        waits). After :meth:`close`, and if nobody ever takes a result, all items are read. An iterator that is dropped half-way cancels
        what has not begun.
        """
        if self._office is None:
            return _StockPool.imap(self, func, iterable, chunksize)
        return self._lazy(IMapIterator, func, iterable, chunksize, timeout, retries, buffersize, progress)

    def imap_unordered(self, func, iterable, chunksize=1, *, timeout=None, retries=None, buffersize=None, progress=None):
        """As :meth:`imap`, in the order in which the values are there."""
        if self._office is None:
            return _StockPool.imap_unordered(self, func, iterable, chunksize)
        return self._lazy(IMapUnorderedIterator, func, iterable, chunksize, timeout, retries, buffersize, progress)

    def _lazy(self, kind, func, iterable, chunksize, timeout, retries, buffersize, progress):
        self._check_running()
        if chunksize < 1:
            raise ValueError(f"Chunksize must be 1+, not {chunksize:n}")
        if buffersize is not None and buffersize < 1:
            raise ValueError("buffersize must be at least 1")
        self._office.check()
        together = chunksize if chunksize > 1 or self._maxtasksperchild is not None else 0
        options = self._options(timeout, retries, together, True)
        result = kind(self, func, iterable, options, chunksize, buffersize)
        if progress:
            return _follow(result, progress, iterable)
        return result

    # ---- the end ----

    def close(self):
        """Take no more tasks; workers go home when all is done."""
        if self._office is None:
            return _StockPool.close(self)
        util.debug("closing pool")
        # Again after an interruption.
        if self._state in (RUN, CLOSE):
            self._state = CLOSE
            for source in list(self._office.sources):
                source.read_all()
            self._office.close()

    def terminate(self):
        """End every worker and every task now; results that are not there raise :class:`phalanx.PoolTerminatedError`."""
        if self._office is None:
            return _StockPool.terminate(self)
        util.debug("terminating pool")
        self._state = TERMINATE
        self._terminate()

    def join(self):
        """Wait until all workers have ended; after :meth:`close` or :meth:`terminate`."""
        if self._office is None:
            return _StockPool.join(self)
        util.debug("joining pool")
        if self._state == RUN:
            raise ValueError("Pool is still running")
        if self._state not in (CLOSE, TERMINATE):
            raise ValueError("In unknown state")
        if self._state == CLOSE and self._office.in_callback():
            raise RuntimeError("a callback cannot wait for its own pool: the workers go home after it")
        self._office.join()
        for worker in list(self._pool):
            worker.join()

    def stats(self):
        """Runs of tasks and seconds spent in them, for each worker thread."""
        if self._office is None:
            raise NotImplementedError("a pool with its own queues keeps no counts")
        return [{"tasks": tasks, "busy": busy} for tasks, busy in self._office.crew.runs()]


def _end(office):
    util.debug("finalizing pool")
    for source in list(office.sources):
        source.drop(PoolTerminatedError("the pool was terminated before all items were read"))
    office.terminate()
    office.join()


# ---- results ----


class ApplyResult(_StockApplyResult):
    """The result of one call. ``await`` it, or :meth:`get` it."""

    # The thread that runs the callback now.
    _called_by = None

    def __init__(self, pool, callback=None, error_callback=None, *, office=None, lot=None, function=None, error=None):
        self._office = office
        self._lot = lot
        self._function = function
        self._callback = callback
        self._error_callback = error_callback
        self._event = None
        self._settling = _thread.allocate_lock()
        self._settled = error is not None
        self._success = False
        self._value = error
        if callback is not None or error_callback is not None:
            # Ready only once they have run.
            self._event = threading.Event()
            if lot is None:
                office.post(self._called)
            else:
                office.listen(lot, self._called)

    def _called(self):
        self._called_by = threading.get_ident()
        try:
            self._settle()
            callback = self._callback if self._success else self._error_callback
            if callback is not None:
                callback(self._value)
        finally:
            self._called_by = None
            self._event.set()
            self._callback = self._error_callback = None

    def _settle(self):
        if self._settled:
            return
        # A large value is made once: a second thread waits for it.
        with self._settling:
            lot = self._lot
            if self._settled or lot is None:
                return
            self._success, self._value = self._read(lot)
            self._settled = True
            self._lot = self._office = self._function = None

    def _read(self, lot):
        try:
            if lot.end(0) == VALUE:
                return True, lot.value(0)
            return False, self._office.failure(lot, 0, self._function)
        except Exception as error:
            return False, error

    def ready(self):
        """Tell whether the call is done."""
        if self._event is not None:
            # Its own callback may ask.
            return self._event.is_set() or (self._settled and self._called_by == threading.get_ident())
        lot = self._lot
        return lot is None or lot.done()

    def successful(self):
        """Tell whether it ended with a value; ``ValueError`` while it is not done."""
        if not self.ready():
            raise ValueError(f"{self!r} not ready")
        self._settle()
        return self._success

    def wait(self, timeout=None):
        """Wait until the call is done, for at most ``timeout`` seconds."""
        event, office, lot = self._event, self._office, self._lot
        if event is None:
            if lot is not None:
                lot.wait(timeout)
        elif office is not None and lot is not None and office.in_callback() and not event.is_set():
            # Within a callback of the pool's: ours would wait for that to return.
            if lot.wait(timeout):
                office.catch_up(lot)
        elif not (self._settled and self._called_by == threading.get_ident()):
            event.wait(timeout)

    def get(self, timeout=None):
        """Return the value, or raise what the call raised; ``TimeoutError`` if it is not there in time."""
        self.wait(timeout)
        if not self.ready():
            raise TimeoutError
        self._settle()
        if self._success:
            return self._value
        raise self._value

    def cancel(self):
        """Cancel the call: if it runs, its worker is killed. Returns ``False`` if it was done already."""
        lot = self._lot
        if lot is None:
            return False
        done = [lot.cancel(index, True) for index in reversed(range(len(lot)))]
        return any(done)

    def cancelled(self):
        """Tell whether the call was cancelled."""
        from phalanx.errors import TaskCancelledError

        if not self.ready():
            return False
        self._settle()
        return isinstance(self._value, TaskCancelledError) and not self._success

    def __await__(self):
        import asyncio

        loop = asyncio.get_running_loop()
        future = loop.create_future()

        def arrived():
            if not future.done():
                future.set_result(None)

        def tell():
            try:
                loop.call_soon_threadsafe(arrived)
            except RuntimeError:
                # The loop was closed meanwhile.
                pass

        if not self.ready():
            lot, office = self._lot, self._office
            if self._event is not None:
                # Behind the callbacks, in the same thread.
                office.post(lambda: self._event.is_set() and tell() or self._tell_later(tell))
            elif lot is not None:
                office.listen(lot, tell)
            if lot is not None or self._event is not None:
                yield from future.__await__()
        return self.get()

    def _tell_later(self, tell):
        called = self._callback, self._error_callback

        def then(index):
            def run(value):
                try:
                    if called[index] is not None:
                        called[index](value)
                finally:
                    tell()

            return run

        self._callback, self._error_callback = then(0), then(1)


AsyncResult = ApplyResult


class MapResult(ApplyResult, _StockMapResult):
    """The results of a map, together."""

    def _read(self, lot):
        try:
            values = lot.values()
            if type(values) is list:
                return True, values
            return False, self._office.failure(lot, values, self._function)
        except Exception as error:
            return False, error

    def get(self, timeout=None):
        """Return the values, or raise what the first call that failed raised; ``TimeoutError`` if they are not there in time."""
        if self._event is None and self._lot is not None:
            # One thread makes values while others still run; a second one waits until it is done or gives up.
            begun = time.monotonic()
            if not self._settling.acquire(timeout=-1 if timeout is None else max(timeout, 0)):
                raise TimeoutError
            try:
                lot = self._lot
                if lot is not None:
                    lot.collect(None if timeout is None else timeout - (time.monotonic() - begun))
            finally:
                self._settling.release()
            timeout = 0
        return super().get(timeout)

    def _get_with(self, progress):
        lot = self._lot
        if not progress or lot is None:
            return self.get()
        total = len(lot)
        with _bar(progress, total) as advance:
            done = 0
            while not lot.wait(0.1):
                now = total - lot.pending()
                advance(now - done)
                done = now
            advance(total - done)
        return self.get()


# ---- lazy maps ----

# Iterables whose items are there: reading them runs none of the user's code that could block.
_PLAIN = (list, tuple, range, str, bytes, dict, set, frozenset, collections.deque)
_LOT_MOST = 64
_WINDOW_MOST = 4096


class _Source:
    """Reads the items of a lazy map and submits them, at most a window ahead of what was taken."""

    def __init__(self, office, func, iterable, options, chunksize, buffersize, ordered, seats):
        self.office = office
        self.func = func
        self.options = options
        self.chunksize = chunksize
        self.bounded = buffersize
        self.window = buffersize or max(8 * seats, 16, 4 * chunksize)
        self.stream = _engine.Stream(office.crew, ordered)
        self.submitted = 0
        self.taken = 0
        self.error = None
        self.over = False
        self.unbounded = False
        self.dropped = False
        self.lock = threading.Lock()
        self.filling = threading.RLock()
        self.room = None
        office.sources.add(self)
        try:
            self.items = iter(iterable)
        except BaseException:
            office.sources.discard(self)
            raise
        if type(iterable) in _PLAIN:
            self.fill()
        else:
            # It may block, or wait for a result of ours: not in the taker's thread.
            self.room = threading.Condition(self.lock)
            try:
                threading.Thread(target=self.feed, name="PoolFeeder", daemon=True).start()
            except BaseException:
                self.dropped = True
                office.sources.discard(self)
                raise

    def more(self):
        """How many items to read now."""
        if self.unbounded:
            return _LOT_MOST
        free = self.window - (self.submitted - self.taken)
        if self.room is None and free * 2 < self.window and self.submitted > self.taken:
            # In few large steps, not in many small ones.
            return 0
        return min(free, _LOT_MOST)

    def read(self, count):
        if self.chunksize > 1:
            count = max(count // self.chunksize, 1) * self.chunksize
            if self.bounded is not None:
                count = max(min(count, self.bounded - (self.submitted - self.taken)), 1)
        batch = []
        try:
            for _ in range(count):
                batch.append(next(self.items))
        except StopIteration:
            self.finish_after = True
        except BaseException as error:
            if self.room is None and not isinstance(error, Exception):
                # The taker is interrupted. What it did read comes first the next time.
                self.items = itertools.chain(batch, self.items)
                raise
            self.error = error
            self.finish_after = True
            # A chunk that is not whole is not begun.
            del batch[len(batch) // self.chunksize * self.chunksize :]
        return batch

    finish_after = False

    def step(self, count):
        """Read and submit up to ``count`` items."""
        batch = self.read(count)
        if batch and not self.dropped:
            try:
                lot = self.office.map(self.func, batch, False, self.options)
            except Exception as error:
                self.error = error
                self.finish_after = True
            except BaseException:
                # Interrupted before anything was submitted: the next look begins with these items.
                self.items = itertools.chain(batch, self.items)
                self.finish_after = self.error is not None
                raise
            else:
                self.submitted += len(batch)
                self.stream.push(lot)
        if self.finish_after or self.dropped:
            self.finish()

    def finish(self):
        self.over = True
        self.items = None
        self.office.sources.discard(self)
        self.stream.close()
        self.office.crew.ring()

    def fill(self):
        # A taker and whoever closes the pool: one reads on where the other stopped.
        with self.filling:
            while not self.over:
                count = self.more()
                if count <= 0:
                    return
                self.step(count)

    def feed(self):
        try:
            self.feed_on()
        except BaseException as error:
            # Nobody else would tell the taker.
            self.error = error
            self.finish()

    def feed_on(self):
        while not self.over:
            with self.room:
                count = self.more()
                while count <= 0 and not self.dropped:
                    self.room.wait()
                    count = self.more()
            # One by one: the next may not come before a result of this one was taken.
            self.step(1)

    def took(self, count, starved):
        """Results were taken; the taker had to wait for them or not."""
        self.taken += count
        if self.over:
            return
        if self.bounded is None and starved and self.window < _WINDOW_MOST:
            self.window *= 2
        if self.room is None:
            self.fill()
        else:
            with self.room:
                self.room.notify()

    def read_on(self):
        """Nothing is there: read what an interruption has left, or it would be waited for in vain."""
        if self.room is None:
            self.fill()

    def read_all(self):
        """No window any more: everything is submitted as fast as it can be read."""
        self.unbounded = True
        if self.room is None:
            self.fill()
        else:
            with self.room:
                self.room.notify()

    def drop(self, error=None):
        """Read no more; ``error`` is for the taker, behind the results that are there."""
        if not self.over and self.error is None:
            self.error = error
        self.dropped = True
        if self.room is not None:
            # The thread may be inside the user's iterator for ever.
            self.stream.close()
            with self.room:
                self.room.notify()
        elif not self.over:
            self.finish()


class IMapIterator(_StockIMapIterator):
    """The values of a lazy map, in the order of the items. ``async for`` works as well."""

    _ordered = True

    def __init__(self, pool, func, iterable, options, chunksize, buffersize):
        self._office = pool._office
        self._function = func
        self._started = False
        self._items = collections.deque()
        self._lock = threading.Lock()
        seats = pool._processes * pool._office.threads
        self._source = _Source(pool._office, func, iterable, options, chunksize, buffersize, self._ordered, seats)

    def __iter__(self):
        return self

    def next(self, timeout=None):
        """Return the next value; ``TimeoutError`` if it is not there within ``timeout`` seconds."""
        items = self._items
        if items:
            try:
                end, value = items.popleft()
            except IndexError:
                return self._more(timeout)
        else:
            return self._more(timeout)
        if end == VALUE:
            return value
        raise self._explain(end, value)

    __next__ = next

    def _explain(self, end, value):
        if end == 0:
            return value
        return self._office.explain(end, value, self._function)

    def _more(self, timeout):
        self._started = True
        if timeout is None:
            self._lock.acquire()
        else:
            # Another thread may be waiting in here for as long as it takes.
            begun = time.monotonic()
            if not self._lock.acquire(timeout=min(max(timeout, 0), threading.TIMEOUT_MAX)):
                raise TimeoutError
            timeout -= time.monotonic() - begun
        try:
            source = self._source
            if not self._items:
                if source is None:
                    raise StopIteration
                batch = source.stream.take(0)
                starved = batch is not None and not batch
                if starved:
                    source.read_on()
                    batch = source.stream.take(timeout)
                    if batch is not None and not batch:
                        raise TimeoutError
                if batch is None:
                    self._source = None
                    error, source.error = source.error, None
                    if error is not None:
                        raise error
                    raise StopIteration
                # First: reading on may be interrupted.
                self._items.extend(batch)
                source.took(len(batch), starved)
            end, value = self._items.popleft()
        finally:
            self._lock.release()
        if end == VALUE:
            return value
        raise self._explain(end, value)

    def cancel(self):
        """Cancel every task that is not done, also those that run, and read no more items."""
        source = self._source
        if source is not None:
            source.drop()
            source.stream.cancel(True)

    def __del__(self):
        source = getattr(self, "_source", None)
        if source is None:
            return
        if self._started:
            source.drop()
            source.stream.cancel(False)
        elif not source.over:
            # Never looked at: it was for the tasks' effects.
            source.office.post(source.read_all)

    def __aiter__(self):
        return self

    async def __anext__(self):
        import asyncio

        if self._items:
            return self.next()
        try:
            return await asyncio.get_running_loop().run_in_executor(None, self._next_or_end)
        except _End:
            raise StopAsyncIteration from None

    def _next_or_end(self):
        try:
            return self.next()
        except StopIteration:
            raise _End from None


class _End(Exception):
    """StopIteration cannot pass through a future."""


class IMapUnorderedIterator(IMapIterator, _StockIMapUnorderedIterator):
    """The values of a lazy map, in the order in which they are there."""

    _ordered = False


def _follow(result, progress, iterable):
    try:
        total = len(iterable)
    except TypeError:
        total = None
    with _bar(progress, total) as advance:
        for value in result:
            advance(1)
            yield value


ThreadPool = types.new_class(
    "ThreadPool",
    (Pool,),
    {},
    lambda body: body.update({**{k: v for k, v in vars(_StockThreadPool).items() if k not in ("__dict__", "__weakref__")}, "__module__": __name__, "__doc__": "A pool of threads, with the methods of a pool of processes."}),
)

# The stock result classes stay: what the stock pool makes (threads, subclasses with their own queues) and what ours makes
# are both instances of them.
PATCHES = [
    ("multiprocessing.pool", "Pool", Pool),
    ("multiprocessing.pool", "ThreadPool", ThreadPool),
]
