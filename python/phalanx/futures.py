"""``ProcessPoolExecutor``: the class of ``concurrent.futures`` on the pool's engine."""

import os
import threading
import time
import weakref
from concurrent import futures as _futures
from concurrent.futures import _base
from concurrent.futures import process as _stock

from phalanx import _engine
from phalanx._office import BROKEN, CANCELLED, DIED, ENDED, NO_OPTIONS, OPEN, VALUE, Office, seconds
from phalanx.errors import WorkerDiedError
from phalanx.queues import Queue

__all__ = ["BrokenWorkerError", "ProcessPoolExecutor"]

_StockExecutor = _stock.ProcessPoolExecutor
BrokenProcessPool = _stock.BrokenProcessPool

# A subclass that replaces one of these works on the stock executor's processes: it gets the stock executor.
_INNER = (
    "_start_executor_manager_thread",
    "_adjust_process_count",
    "_launch_processes",
    "_spawn_process",
)

_ABRUPT = "A process in the process pool was terminated abruptly while the future was running or pending."
_UNSET = "A child process terminated abruptly, the process pool is not usable anymore"


class BrokenWorkerError(WorkerDiedError, BrokenProcessPool):
    """The process that ran a future's call died."""


class _Future(_base.Future):
    _lot = None

    def cancel(self):
        lot = self._lot
        if lot is not None and not self.done() and not lot.cancel(0, False):
            return False
        return super().cancel()

    def running(self):
        lot = self._lot
        return super().running() or (lot is not None and not self.done() and lot.running(0))


_offices = weakref.WeakSet()


def _at_exit():
    # As the stock executor: what was submitted is done before the interpreter ends.
    for office in list(_offices):
        if office.owner == os.getpid() and office.thread is not None:
            office.close()
            office.join()


threading._register_atexit(_at_exit)


def _make_process(ctx, *args, **kwds):
    return ctx.Process(*args, **kwds)


class ProcessPoolExecutor(_StockExecutor):
    """Calls in worker processes, as futures.

    Beyond ``concurrent.futures``: ``task_timeout``, ``retries``, ``memory_limit``, ``threads_per_worker`` and ``start_timeout`` as
    in :class:`phalanx.Pool`; and ``survive=True``: a worker that dies fails the future of the call it ran, with
    :class:`BrokenWorkerError`, and the executor goes on with a new worker. Without it a death breaks the executor, as
    in the standard library.
    """

    _office = None

    def __init__(
        self,
        max_workers=None,
        mp_context=None,
        initializer=None,
        initargs=(),
        *,
        survive=False,
        task_timeout=None,
        retries=0,
        memory_limit=None,
        start_timeout=None,
        threads_per_worker=1,
        **more,
    ):
        super().__init__(max_workers, mp_context, initializer, initargs, **more)
        mro = type(self).__mro__
        if any(name in vars(cls) for cls in mro[: mro.index(ProcessPoolExecutor)] for name in _INNER):
            return
        # Arguments are pickled under it, and a signal's handler may come at any time: both may submit, or shut it down.
        self._shutdown_lock = threading.RLock()
        # Ours needs none of these.
        self._call_queue.close()
        self._result_queue.close()
        self._executor_manager_thread_wakeup.close()
        self._survive = survive
        self._options = seconds(task_timeout), retries, 0, False
        # Those that are not done, oldest first.
        self._futures = {}
        self._mapped = 0
        self._office = Office(
            self._mp_context,
            _make_process,
            self._max_workers,
            threads=threads_per_worker,
            initializer=initializer,
            initargs=initargs,
            most=getattr(self, "_max_tasks_per_child", None) or 0,
            wrap=2,
            memory_limit=memory_limit,
            start_timeout=start_timeout,
            roll=self._processes,
            daemon=False,
        )
        if self._mp_context.get_start_method(allow_none=False) != "fork":
            # As the stock executor: a process is started when there is a call for it. Forks are made while no call runs.
            self._office.target = 0
        this = weakref.ref(self)

        def broke(error):
            executor = this()
            if executor is not None:
                executor._break(str(error), error)

        self._office.on_broken = broke
        if not survive:
            self._office.on_death = lambda exitcode: broke(_ABRUPT)
        self._end = weakref.finalize(self, _finish, self._office)
        self._end.atexit = False
        _offices.add(self._office)

    def submit(self, fn, /, *args, **kwargs):
        if self._office is None:
            return super().submit(fn, *args, **kwargs)
        office = self._office
        with self._shutdown_lock:
            self._check()
            # First: who hears that there can be no worker has submitted nothing.
            if office.target < self._max_workers:
                self._want(1)
            future = _Future()
            try:
                lot = office.apply(fn, args, kwargs, self._options)
            except Exception as error:
                if office.state == OPEN and office.crew.broken() is None:
                    # As a future that the stock executor could not send.
                    future.set_running_or_notify_cancel()
                    future.set_exception(error)
                    return future
                raise BrokenProcessPool(_UNSET) from error
            future._lot = lot
            futures = self._futures
            futures[future] = None
            office.listen(lot, lambda: _settle(office, future, lot, fn, futures))
            return future

    submit.__doc__ = _base.Executor.submit.__doc__

    def _check(self):
        if self._broken:
            raise BrokenProcessPool(self._broken)
        if self._shutdown_thread:
            raise RuntimeError("cannot schedule new futures after shutdown")
        if _stock._global_shutdown:
            raise RuntimeError("cannot schedule new futures after interpreter shutdown")
        office = self._office
        if office.crew.broken() is not None:
            raise BrokenProcessPool(_UNSET)
        if office.thread is None:
            office.start()
            # Who waits for the stock executor's thread waits for ours.
            self._executor_manager_thread = office.thread

    def _want(self, more):
        """Have workers for so many calls more."""
        # Nobody tells of a map's calls that they are done: they are taken to go on, so that no call waits for another.
        self._office.want(-(-(len(self._futures) + self._mapped + more) // self._office.threads))

    def map(self, fn, *iterables, timeout=None, chunksize=1, **more):
        if self._office is None or more:
            return super().map(fn, *iterables, timeout=timeout, chunksize=chunksize, **more)
        if chunksize < 1:
            raise ValueError("chunksize must be >= 1.")
        deadline = None if timeout is None else timeout + time.monotonic()
        items = list(zip(*iterables))
        office = self._office
        together = chunksize if chunksize > 1 else 0
        with self._shutdown_lock:
            self._check()
            error = None
            stream = _engine.Stream(office.crew, True)
            try:
                seconds, retries, _, _ = self._options
                if office.target < self._max_workers:
                    calls = -(-len(items) // chunksize)
                    self._want(calls)
                    self._mapped += calls
                stream.push(office.map(fn, items, True, (seconds, retries, together, True)))
            except Exception as failure:
                error = failure
            stream.close()
        return _results(weakref.ref(self), office, stream, fn, deadline, error)

    map.__doc__ = _base.Executor.map.__doc__

    def _break(self, text, cause=None):
        with self._shutdown_lock:
            if self._broken:
                return
            self._broken = text if isinstance(text, str) and text else _UNSET
            self._shutdown_thread = True
            futures = list(self._futures)
            self._futures.clear()
        for future in futures:
            if not future.done():
                error = BrokenProcessPool(_ABRUPT)
                if isinstance(cause, BaseException):
                    error.__cause__ = cause
                _end_future(future, error)
        self._office.terminate(broken=True)

    def shutdown(self, wait=True, *, cancel_futures=False):
        if self._office is None:
            return super().shutdown(wait, cancel_futures=cancel_futures)
        with self._shutdown_lock:
            self._cancel_pending_futures = cancel_futures
            self._shutdown_thread = True
        office = self._office
        if cancel_futures:
            self._cancel_pending()
        if office.thread is None:
            office.dismiss_unstarted()
            return
        office.close()
        if wait:
            office.join()

    shutdown.__doc__ = _base.Executor.shutdown.__doc__

    def _cancel_pending(self):
        pending = [future for future in list(self._futures) if not future.running()]
        # A worker that is not at work yet has its first call as good as begun.
        idle = self._office.target * self._office.threads - (len(self._futures) - len(pending))
        for future in reversed(pending[max(idle, 0) :]):
            future.cancel()


def _finish(office):
    """The executor is gone: what was submitted is done, then the workers go home."""
    if office.owner == os.getpid():
        office.close()


def _end_future(future, error):
    try:
        if future.set_running_or_notify_cancel():
            future.set_exception(error)
    except _base.InvalidStateError:
        pass


def _settle(office, future, lot, fn, futures):
    futures.pop(future, None)
    if future.done():
        if future.cancelled():
            # Tell those who wait.
            future.set_running_or_notify_cancel()
        future._lot = None
        return
    try:
        end = lot.end(0)
        if end == VALUE:
            try:
                value = lot.value(0)
            except BaseException as failure:
                if office.on_death is None:
                    raise
                # What cannot be read breaks the executor, as in the standard library.
                broken = BrokenProcessPool(_ABRUPT)
                broken.__cause__ = failure
                _end_future(future, broken)
                office.on_death(None)
                return
            if future.set_running_or_notify_cancel():
                future.set_result(value)
            return
        if end == CANCELLED:
            # Whoever cancels it may not have come to say so of the future.
            _base.Future.cancel(future)
            if future.set_running_or_notify_cancel():
                future.set_exception(_base.CancelledError())
            return
        error = _translate(end, office.failure(lot, 0, fn))
    except BaseException as failure:
        error = failure
    finally:
        future._lot = None
    _end_future(future, error)


def _translate(end, error):
    if end == DIED:
        broken = BrokenWorkerError(*error.args)
        broken.__dict__.update(error.__dict__)
        return broken
    if end in (ENDED, BROKEN):
        broken = BrokenProcessPool(_ABRUPT)
        broken.__cause__ = error if end == BROKEN else None
        return broken
    if end == CANCELLED:
        return _base.CancelledError()
    return error


def _results(executor, office, stream, fn, deadline, error):
    try:
        if error is not None:
            raise error
        while True:
            left = None if deadline is None else max(deadline - time.monotonic(), 0)
            batch = stream.take(left)
            if batch is None:
                return
            if not batch:
                raise _base.TimeoutError
            batch.reverse()
            while batch:
                if batch[-1][0] == VALUE:
                    # No reference is kept to what was handed out.
                    yield batch.pop()[1]
                    continue
                end, value = batch.pop()
                raise value if end == 0 else _translate(end, office.explain(end, value, fn))
    finally:
        if office.owner == os.getpid():
            stream.cancel(False)


# The package fetches the class when it is first asked for: now, so that there is something to replace.
_futures.ProcessPoolExecutor  # noqa: B018

def _safe_queue():
    # A subclass of the stock queue, made when its module was imported, which may have been before ours took the stock one's
    # place. Its methods go on to the next class, which is ours here.
    stock = _stock._SafeQueue
    if issubclass(stock, Queue):
        return stock
    return type("_SafeQueue", (stock, Queue), {"__module__": stock.__module__, "__doc__": stock.__doc__})


PATCHES = [
    ("concurrent.futures.process", "Queue", Queue),
    ("concurrent.futures.process", "_SafeQueue", _safe_queue()),
    ("concurrent.futures.process", "ProcessPoolExecutor", ProcessPoolExecutor),
    ("concurrent.futures", "ProcessPoolExecutor", ProcessPoolExecutor),
]
