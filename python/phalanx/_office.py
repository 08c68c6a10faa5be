"""Workers of a pool: starting them, noticing their ends, and what each of them runs.

The mechanism (who holds which task, what a death costs, deadlines) is the engine's. Here is what must be Python: processes
come from a context, functions and exceptions from the pickler, callbacks run in one thread of the pool's.
"""

import functools
import os
import pickle
import signal
import sys
import threading
import time
import types
from multiprocessing import pool as _stock
from multiprocessing import process, reduction, util

from phalanx import _deaths, _engine, _install
from phalanx.errors import (
    PhalanxError,
    PoolTerminatedError,
    RemoteError,
    TaskCancelledError,
    TaskExitedError,
    describe_exit,
)

OPEN, CLOSING, TERMINATED = "OPEN", "CLOSING", "TERMINATED"

# How a task ended, as the engine counts.
VALUE, ERROR, DIED, TIMED_OUT, CANCELLED, ENDED, BROKEN = range(2, 9)

# How often in a row the system may refuse a worker, with growing pauses (a quarter of a minute in all), before the pool breaks.
REFUSED_MOST = 12

NO_OPTIONS = (0.0, 0, 0, False)

# ---- functions and arguments ----


class _ByValue:
    """An object that the stock pickler refuses, pickled by value."""

    def __init__(self, data):
        self.data = data

    def __reduce__(self):
        return _load_by_value, (self.data,)


def _load_by_value(data):
    return pickle.loads(data)


def by_value(value):
    """Pickle ``value`` with its code, for what cannot be named in another process."""
    import cloudpickle

    return _ByValue(cloudpickle.dumps(value, protocol=5))


def by_value_star(values):
    """Pickle the elements of a list of arguments by value."""
    return tuple(by_value(value) for value in values)


def _main_is_nameless():
    main = sys.modules.get("__main__")
    return getattr(main, "__file__", None) is None and getattr(main, "__spec__", None) is None


def dump_function(function):
    """Pack a function; tell whether what was packed names it (so that it can be kept)."""
    if type(function) is types.FunctionType and function.__module__ == "__main__" and _main_is_nameless():
        return _engine.Parcel(by_value(function)), False
    try:
        parcel = _engine.Parcel(function)
    except Exception:
        try:
            value = by_value(function)
        except Exception:
            value = None
        if value is None:
            raise
        return _engine.Parcel(value), False
    return parcel, isinstance(function, (types.FunctionType, types.BuiltinFunctionType, type)) and getattr(function, "__self__", None) is None


# ---- exceptions on their way ----


def dump_failure(error, unsendable, wrap):
    """Make the bytes of a task's exception."""
    import traceback

    if unsendable is not None and wrap != 2:
        error = _stock.MaybeEncodingError(error, unsendable)
    elif not isinstance(error, Exception) and wrap != 2:
        text = f"the task raised {type(error).__name__}: {error}" if str(error) else f"the task raised {type(error).__name__}"
        code = getattr(error, "code", None)
        plain = code if isinstance(code, (int, str, type(None))) else repr(code)
        exited = TaskExitedError(text, plain)
        exited.__traceback__ = error.__traceback__
        error = exited
    text = "".join(traceback.format_exception(type(error), error, error.__traceback__))
    sent = error
    if wrap == 2:
        from concurrent.futures.process import _ExceptionWithTraceback

        sent = _ExceptionWithTraceback(error, error.__traceback__)
    elif wrap and unsendable is None:
        sent = _stock.ExceptionWithTraceback(error, error.__traceback__)
    name, said = type(error).__qualname__, _safe(str, error)
    try:
        data = bytes(reduction.ForkingPickler.dumps(sent, 5))
    except BaseException as why:
        data = bytes(reduction.ForkingPickler.dumps(_stock.MaybeEncodingError(why, error), 5))
    return pickle.dumps((data, name, said, text), 5)


def _safe(how, value):
    try:
        return how(value)
    except BaseException as error:
        return f"<{type(value).__name__} that cannot be shown: {type(error).__name__}>"


def load_failure(data):
    """Make the exception of its bytes, or one that says what it was."""
    data, name, said, text = pickle.loads(data)
    try:
        error = pickle.loads(data)
        if isinstance(error, BaseException):
            return error
        why = f"it came back as {type(error).__name__}"
    except Exception as failure:
        why = f"{type(failure).__name__}: {failure}"
    error = RemoteError(f"the task raised {name}: {said} (it cannot be rebuilt here: {why})", name, said, text)
    error.__cause__ = _stock.RemoteTraceback(f'\n"""\n{text}"""')
    return error


# ---- the worker ----


class Desk:
    """What a worker is told; goes through any start method."""

    def __init__(self, crew, bell, words):
        self.crew = crew
        self.bell = bell
        self.words = words

    def take_bell(self):
        if isinstance(self.bell, int):
            return os.dup(self.bell)
        return self.bell.detach()

    def __getstate__(self):
        return self.crew, reduction.DupFd(self.bell), self.words

    def __setstate__(self, state):
        self.crew, self.bell, self.words = state


def _ignore_interrupt(number, frame):
    """Ctrl-C is the parent's to hear."""


def work(desk, number, threads, initializer, initargs, most, wrap, memory_limit):
    """Be a worker: the target of its process."""
    hand = _engine.Hand(desk.crew, desk.take_bell(), number * threads)
    if desk.words is not None:
        _deaths.listen(*desk.words, number)
    if threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _ignore_interrupt)
    if memory_limit:
        import resource

        resource.setrlimit(resource.RLIMIT_DATA, (memory_limit, memory_limit))
    if initializer is not None:
        try:
            initializer(*initargs)
        except BaseException as error:
            if wrap == 2:
                from concurrent.futures._base import LOGGER

                # First: whoever breaks with it ends this process.
                LOGGER.critical("Exception in initializer:", exc_info=True)
            hand.break_with(dump_failure(error, None, wrap))
            if wrap == 2:
                return
            raise
    others = [hand.beside(number * threads + thread) for thread in range(1, threads)]

    def fail(error, unsendable):
        try:
            return dump_failure(error, unsendable, wrap)
        except BaseException as why:
            # An exception of the user's that cannot even be shown, say.
            text = f"the task raised {type(error).__name__}, which cannot be told of: {type(why).__name__}"
            return dump_failure(RuntimeError(text), None, wrap)

    fail.ends_worker = wrap == 2
    begin = threading.Lock()

    def help_out(other):
        with begin:
            pass
        try:
            other.run(most, fail)
        except BaseException:
            # As where the main thread's ends so: the worker's end tells those who wait for what is on this seat.
            try:
                _report()
            finally:
                os._exit(1)

    helpers = [
        threading.Thread(target=help_out, args=(other,), name=f"{process.current_process().name}-{index}", daemon=True)
        for index, other in enumerate(others, 1)
    ]
    # Ready is who has all its threads: one that never gets them is not started again for ever.
    with begin:
        for helper in helpers:
            helper.start()
        hand.ready()
    hand.run(most, fail)
    for helper in helpers:
        helper.join()
    util.debug("worker exiting")


# ---- the parent's side ----


def seconds(limit, what="a task's time-out"):
    """Return a limit as the engine takes it: in seconds, 0 for none."""
    if limit is None:
        return 0.0
    limit = float(limit)
    if not limit > 0:
        raise ValueError(f"{what} must be more than 0 seconds")
    return min(limit, 1e9)


class Office:
    """The workers of one pool and the thread that oversees them. Knows nothing of the pool itself, so that it can be collected."""

    def __init__(self, ctx, make_process, workers, *, threads=1, initializer=None, initargs=(), most=0, wrap=True, memory_limit=None, start_timeout=None, staff=None, roll=None, daemon=True):
        self.ctx = ctx
        self.make_process = make_process
        self.target = self.most_workers = workers
        self.threads = threads
        self.orders = (initializer, initargs, most, wrap, memory_limit)
        self.crew = _engine.Crew(workers, threads)
        self.start_timeout = seconds(start_timeout, "start_timeout")
        self.crew.limit_starts(self.start_timeout)
        # Workers that were not ready in time, in a row.
        self.late = 0
        self.last_words = _deaths.Listener(workers)
        self.desk = Desk(*self.crew.token(), self.last_words.address())
        self.staff = [] if staff is None else staff
        # Processes by their ids.
        self.roll = {} if roll is None else roll
        self.daemon = daemon
        self.on_death = None
        self.workers = {}
        self.lock = threading.RLock()
        self.state = OPEN
        self.listeners = {}
        self.posted = []
        self.sources = set()
        self.known = {}
        self.broken = None
        self.on_broken = None
        self.thread = None
        self.starting = False
        # The thread has ended, or is about to and looks no more.
        self.over = False
        # Nothing is left that could end.
        self.settled = False
        self.owner = os.getpid()
        _install.hook()
        self.barren = 0
        self.refused = 0
        self.not_before = 0.0
        # Workers that ended and were not collected yet.
        self.ended = []

    # -- functions --

    def function(self, function):
        """Return what the engine takes for a function: its name in the crew, or its bytes."""
        try:
            return self.known[function]
        except (KeyError, TypeError):
            pass
        parcel, lasting = dump_function(function)
        if not lasting:
            return parcel
        name = self.known[function] = self.crew.know(parcel)
        return name

    def apply(self, function, args, kwds, options):
        if self.broken is not None:
            raise self.broken
        name = self.function(function)
        try:
            return self.crew.apply(name, args, kwds, options)
        except Exception as error:
            # It may have broken, and nobody has heard of it yet.
            self.check()
            if self.state != OPEN:
                raise
            try:
                args, kwds = tuple(by_value(value) for value in args), {key: by_value(value) for key, value in kwds.items()}
                return self.crew.apply(name, args, kwds, options)
            except Exception:
                raise error from None

    def map(self, function, items, star, options, batch=1):
        """Submit a call per item; ``batch`` of them are one task to the engine."""
        self.check()
        name = self.function(function)
        try:
            return self.crew.map(name, items, star, options, batch, by_value_star if star else by_value)
        except Exception:
            # It may have broken since the check above.
            self.check()
            raise

    def check(self):
        if self.broken is None and self.crew.broken() is not None:
            self.broken = load_failure(self.crew.broken())
        if self.broken is not None:
            raise self.broken

    # -- starting --

    def start(self):
        with self.lock:
            if self.starting:
                # From within the start: a signal's handler.
                return
            self.starting = True
            try:
                self.fill()
                self.thread = threading.Thread(target=_oversee, args=(self,), name="PoolOverseer", daemon=True)
                self.thread.start()
            except BaseException:
                # Interrupted, it may have begun.
                self.thread = None
                self.undo_start()
                raise
            finally:
                self.starting = False

    def undo_start(self):
        """End workers that nobody oversees. Another start is possible."""
        self.crew.signal(signal.SIGKILL)
        for number, worker in self.workers.items():
            if worker.exitcode is None:
                # The engine knows no id of a process that a context made in a way of its own.
                worker.terminate()
            worker.join()
            self.crew.settle(number, b"")
            self.strike(worker)
        self.workers.clear()

    def want(self, workers):
        """Have so many workers from now on, if it may have them and has fewer.

        What the system refuses for the moment the overseer tries again; what no second try changes is raised, and nothing is wanted.
        """
        with self.lock:
            if self.target >= min(workers, self.most_workers):
                return
            before, self.target = self.target, min(workers, self.most_workers)
            try:
                self.fill()
            except (OSError, EOFError, MemoryError):
                self.crew.ring()
            except BaseException:
                self.target = max(before, len(self.workers))
                raise

    def fill(self):
        """Start workers up to the number wanted."""
        with self.lock:
            if self.state == TERMINATED:
                return
            for number in range(self.target):
                if number not in self.workers:
                    self.hire(number)

    def hire(self, number):
        worker = self.make_process(
            self.ctx,
            target=work,
            args=(self.desk, number, self.threads, *self.orders),
        )
        if self.daemon:
            worker.name = worker.name.replace("Process", "PoolWorker")
            worker.daemon = True
        config = process.current_process()._config
        daemon = config.get("daemon")
        # A worker of ours may have workers of its own: they end with it.
        if daemon:
            config["daemon"] = False
        try:
            worker.start()
            # A context may make processes of its own kind.
            pid = _pid(worker)
            self.workers[number] = worker
            self.staff.append(worker)
            self.roll[pid] = worker
            self.crew.hired(number, pid)
        except BaseException:
            # Interrupted: nobody would oversee it, and another may get its seat.
            self.undo_hire(number, worker)
            raise
        finally:
            if daemon:
                config["daemon"] = daemon
        util.debug("added worker")

    def undo_hire(self, number, worker):
        """End a worker that was started and is not watched."""
        pid = getattr(worker, "pid", None)
        if pid is not None:
            worker.kill()
            worker.join()
        self.crew.settle(number, b"")
        self.workers.pop(number, None)
        self.strike(worker)

    def strike(self, worker):
        """Take a worker that has ended off the lists that the pool shows."""
        self.roll.pop(_pid(worker), None)
        if worker in self.staff:
            self.staff.remove(worker)

    # -- overseeing --

    def oversee(self, timeout):
        """Sleep until something happens and see to it. Returns how long to sleep next, ``False`` when there is no next time."""
        crew = self.crew
        ended, done = crew.look(timeout)
        self.ended.extend(ended)
        self.tell(done)
        while self.ended:
            self.collect(self.ended[0])
            del self.ended[0]
        if self.state == TERMINATED:
            return False
        if crew.broken() is not None:
            try:
                self.check()
            except BaseException as error:
                self.terminate(broken=True)
                self.tell(crew.look(0)[1])
                if self.on_broken is not None:
                    _run(functools.partial(self.on_broken, error))
            return False
        if self.state == CLOSING and not self.sources and crew.is_idle():
            crew.dismiss()
            return None if self.workers else False
        missing = self.target - len(self.workers)
        if not missing or self.posted:
            return None
        wait = self.not_before - time.monotonic()
        if wait > 0:
            return wait
        try:
            self.fill()
        except Exception as error:
            # The system may have room again later.
            pause = 0.1 * 2 ** min(self.refused, 4)
            self.refused += 1
            # Those it has can do the work.
            if self.refused > REFUSED_MOST and not self.workers:
                crew.break_with(dump_failure(error, None, False))
            self.not_before = time.monotonic() + pause
            return pause
        self.refused = 0
        return None

    def collect(self, number):
        """A worker ended: settle what it left. Returns nothing; the next round hires another."""
        worker = self.workers.get(number)
        if worker is None:
            return
        # The kernel has said that it is dead. Its sentinel may say so later: somebody's fork may have a copy of the other end.
        worker.join(0 if worker.exitcode is not None else 5)
        exitcode = worker.exitcode
        report = pickle.dumps(self.last_words.report(number, _pid(worker), exitcode), 5)
        had_task, killed, ready, late = self.crew.settle(number, report)
        with self.lock:
            self.workers.pop(number, None)
            self.strike(worker)
        if late:
            self.was_late()
            return
        if ready:
            self.late = 0
        # One that ends by itself before it is set up does so again, and the last of several says why.
        abrupt = exitcode and not killed and (ready or exitcode < 0)
        if abrupt and self.on_death is not None and self.state != TERMINATED:
            # After those are told whose task died with it: they hear what happened, the others that it is over.
            self.post(lambda: self.on_death(exitcode))
            return
        if had_task or killed or ready:
            # It could be set up; what killed it while it had nothing to do says nothing about the next.
            self.barren = 0
            return
        self.barren += 1
        if self.barren > 2 * self.target + 4 and self.crew.broken() is None and self.state != TERMINATED:
            self.crew.break_with(
                dump_failure(
                    RuntimeError(
                        f"{self.barren} workers in a row ended before they got to a task; the last one {describe_exit(exitcode)}. "
                        "With the start methods spawn and forkserver the main module must be importable without starting a pool: "
                        "guard it with if __name__ == '__main__'"
                    ),
                    None,
                    False,
                )
            )
        elif self.barren > self.target:
            self.not_before = time.monotonic() + 0.01 * 2 ** min(self.barren - self.target, 6)

    def was_late(self):
        """A worker was killed because it was not ready in time. When none gets ready, none will."""
        if self.crew.any_ready():
            self.late = 0
            return
        self.late += 1
        if self.late > self.target and self.crew.broken() is None and self.state != TERMINATED:
            self.crew.break_with(
                dump_failure(
                    RuntimeError(
                        f"{self.late} workers in a row were not ready after {self.start_timeout:g} s and were killed: "
                        "the initializer or the main module's import hangs, or start_timeout= is too short"
                    ),
                    None,
                    False,
                )
            )

    def listen(self, lot, then):
        """Call ``then`` in the pool's thread when the lot is done."""

        def told():
            if lot.done():
                then()
            else:
                self.listen(lot, then)

        name = lot.id
        self.listeners[name] = told
        if not lot.notify():
            self.post(name)

    def post(self, what):
        self.posted.append(what)
        if self.over or self.owner != os.getpid():
            self.tell(())
        else:
            self.crew.ring()

    def tell(self, done):
        for lot in done:
            then = self.listeners.pop(lot, None)
            if then is not None:
                _run(then)
        posted, self.posted = self.posted, []
        for what in posted:
            if callable(what):
                _run(what)
            else:
                then = self.listeners.pop(what, None)
                if then is not None:
                    _run(then)

    def dismiss_unstarted(self):
        """No worker was ever started, and none will be."""
        if os.getpid() != self.owner:
            return
        self.state = TERMINATED
        self.crew.dismiss()

    def close(self):
        if os.getpid() != self.owner:
            # A fork's copy: the pool goes on in the process it belongs to.
            return
        with self.lock:
            if self.state == OPEN:
                self.state = CLOSING
        self.crew.close()

    def terminate(self, broken=False):
        """End every worker and every task, now."""
        if os.getpid() != self.owner:
            return
        with self.lock:
            self.state = TERMINATED
            if self.settled:
                return
            workers = list(self.workers.values())
        self.crew.dismiss()
        self.crew.signal(signal.SIGTERM)
        if not self.crew.wait_workers(1.0):
            self.crew.signal(signal.SIGKILL)
            self.crew.wait_workers(5.0)
        for worker in workers:
            worker.join(1)
        with self.lock:
            self.workers.clear()
        self.crew.end_all(broken)
        self.settled = True
        self.crew.ring()

    def in_callback(self):
        """Tell whether this is the thread that calls callbacks: it would wait for itself."""
        return self.thread is threading.current_thread()

    def catch_up(self, lot):
        """Call what is to be called when a lot is done, which it is, from within a callback."""
        then = self.listeners.pop(lot.id, None)
        if then is not None:
            _run(then)

    def join(self):
        if self.thread is not None and not self.in_callback():
            self.thread.join()

    # -- results --

    def failure(self, lot, index, function=None):
        """The exception of a task that did not end with a value."""
        return self.explain(lot.end(index), lot.raw(index), function, lambda inside: lot.call(index, inside), lambda: lot.tries(index))

    def explain(self, end, data, function=None, call=None, tries=None):
        if end == ERROR:
            return load_failure(data)
        if end in (DIED, TIMED_OUT):
            if type(data) is tuple:
                # From a stream, which is read by now.
                data, described, attempts = data
                call, tries = lambda inside: described, lambda: attempts
            ran = int.from_bytes(data[:8], "little") / 1e9
            inside = int.from_bytes(data[8:16], "little")
            report = pickle.loads(data[16:]) if data[16:] else {}
            task = _deaths.summary(function, call(inside) if call else None)
            say = _deaths.late if end == TIMED_OUT else _deaths.death
            return say(report, task, ran, tries() if tries else 1)
        if end == CANCELLED:
            return TaskCancelledError("the task was cancelled")
        if end == BROKEN:
            try:
                self.check()
            except BaseException as error:
                return error
        return PoolTerminatedError("the pool was terminated before the task was done")


def _pid(worker):
    # A context may make processes of its own kind.
    return getattr(worker, "pid", None) or 0


def _run(then):
    try:
        then()
    except BaseException:
        _report()


def _report():
    """Report what is being handled as a thread of its own would; the pool goes on, also if nobody can be told."""
    try:
        threading.excepthook(threading.ExceptHookArgs((*sys.exc_info(), threading.current_thread())))
    except BaseException:
        # A hook that raises, or a stderr that is closed.
        pass


def _oversee(office):
    with office.lock:
        if office.thread is not threading.current_thread():
            # The start was given up.
            return
    office.last_words.begin()
    timeout, failed = None, False
    while True:
        try:
            timeout = office.oversee(timeout)
            failed = False
            if timeout is False:
                break
        except BaseException:
            # Short of memory for a moment, say: without this thread everybody would wait for ever.
            if not failed:
                _report()
            failed = True
            time.sleep(0.1)
            timeout = 0.1
    if office.state == TERMINATED:
        # Whoever terminated it may be at it still, or was interrupted.
        office.terminate()
    # From here on those who post see to it themselves.
    office.over = True
    # What was done at the last moment.
    office.tell(office.crew.look(0)[1])
    util.debug("pool overseer exiting")
