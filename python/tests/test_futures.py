"""The executor: what it promises beyond the standard library's, and that a death breaks it as there."""

import errno
import os
import signal
import threading
import time
from concurrent.futures import as_completed, wait
from concurrent.futures.process import BrokenProcessPool

import pytest

import phalanx
from phalanx import _office
from phalanx.futures import BrokenWorkerError, ProcessPoolExecutor


def square(x):
    return x * x


def die(_=None):
    os.kill(os.getpid(), signal.SIGKILL)


def raise_key_error():
    raise KeyError("gone")


def fail_to_start():
    raise ValueError("not set up")


def test_submit_and_map():
    with ProcessPoolExecutor(2) as executor:
        futures = [executor.submit(square, x) for x in range(20)]
        assert sorted(future.result() for future in as_completed(futures)) == [x * x for x in range(20)]
        assert list(executor.map(square, range(300), chunksize=7)) == [x * x for x in range(300)]
        assert list(executor.map(pow, [2, 3], [3, 2])) == [8, 9]
        error = executor.submit(raise_key_error).exception()
        assert type(error) is KeyError and "raise_key_error" in str(error.__cause__)


def test_a_death_breaks_it():
    with ProcessPoolExecutor(1) as executor:
        futures = [executor.submit(die), executor.submit(square, 2)]
        wait(futures)
        assert all(isinstance(future.exception(), BrokenProcessPool) for future in futures)
        with pytest.raises(BrokenProcessPool):
            executor.submit(square, 2)


def test_a_death_fails_its_future_alone():
    with ProcessPoolExecutor(2, survive=True) as executor:
        bad = executor.submit(die)
        good = [executor.submit(square, x) for x in range(10)]
        assert [future.result() for future in good] == [x * x for x in range(10)]
        with pytest.raises(BrokenWorkerError) as caught:
            bad.result()
        assert caught.value.signal == "SIGKILL"
        assert executor.submit(square, 3).result() == 9


def test_an_initializer_that_fails_breaks_it():
    with ProcessPoolExecutor(1, initializer=fail_to_start) as executor, pytest.raises(BrokenProcessPool):
        executor.submit(square, 2).result()


def test_a_call_taken_back_before_its_future_was_told_is_cancelled():
    with ProcessPoolExecutor(1, mp_context=phalanx.get_context("fork")) as executor:
        executor.submit(time.sleep, 0.5)
        futures = [executor.submit(time.sleep, 0) for _ in range(3)]
        # What `cancel()` does first; the pool's thread may be quicker than what it does next.
        assert futures[-1]._lot.cancel(0, False)
        assert not wait(futures, timeout=60).not_done
        assert futures[-1].cancelled() and futures[-1].cancel()
        assert [future.exception() for future in futures[:-1]] == [None, None]


def test_pending_futures_are_cancelled():
    executor = ProcessPoolExecutor(1)
    futures = [executor.submit(time.sleep, 0.05) for _ in range(20)]
    executor.shutdown(cancel_futures=True)
    assert sum(future.cancelled() for future in futures) >= 15
    assert all(future.done() for future in futures)
    with pytest.raises(RuntimeError, match="after shutdown"):
        executor.submit(square, 2)


@pytest.mark.parametrize("method", ["forkserver", "spawn"])
def test_a_worker_that_was_refused_for_the_moment_is_started_later(method, monkeypatch):
    ctx = phalanx.get_context(method)
    start, refused = ctx.Process.start, []

    def refuse(self):
        if len(refused) < 3:
            refused.append(self)
            raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        start(self)

    monkeypatch.setattr(ctx.Process, "start", refuse)
    with ProcessPoolExecutor(2, ctx) as executor:
        futures = [executor.submit(abs, -x) for x in range(10)]
        assert [future.result() for future in futures] == list(range(10))
        assert sum(executor.map(abs, range(10))) == 45
        assert len(refused) == 3


def test_workers_that_are_always_refused_break_it(monkeypatch):
    monkeypatch.setattr(_office, "REFUSED_MOST", 2)
    ctx = phalanx.get_context("forkserver")

    def refuse(self):
        raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))

    monkeypatch.setattr(ctx.Process, "start", refuse)
    with ProcessPoolExecutor(2, ctx) as executor:
        futures = [executor.submit(abs, -x) for x in range(10)]
        for future in futures:
            with pytest.raises(BrokenProcessPool):
                future.result()


def test_a_worker_that_cannot_be_started_at_all_is_an_error_of_each_submit():
    with ProcessPoolExecutor(1, phalanx.get_context("spawn"), initializer=abs, initargs=(threading.Lock(),)) as executor:
        for _ in range(3):
            with pytest.raises(TypeError, match="pickle"):
                executor.submit(square, 2)
        with pytest.raises(TypeError, match="pickle"):
            list(executor.map(square, [2]))


@pytest.mark.parametrize("started", [False, True])
def test_a_forked_child_shuts_nothing_down_in_its_parent(started):
    executor = ProcessPoolExecutor(1, phalanx.get_context("forkserver"))
    if started:
        assert executor.submit(square, 2).result() == 4
    child = os.fork()
    if child == 0:
        executor.shutdown()
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    with executor:
        assert executor.submit(square, 3).result() == 9


class Submits:
    """An argument that is worked out by another call when it is sent."""

    executor = None

    def __reduce__(self):
        return int, (self.executor.submit(square, 3).result(),)


def test_an_argument_may_submit_while_it_is_sent():
    with ProcessPoolExecutor(2, phalanx.get_context("forkserver")) as executor:
        Submits.executor = executor
        assert executor.submit(square, Submits()).result() == 81


def test_a_signals_handler_shuts_an_executor_down_at_any_time():
    class Interrupts:
        def __reduce__(self):
            signal.raise_signal(signal.SIGUSR1)
            return int, (3,)

    executor = ProcessPoolExecutor(1, phalanx.get_context("forkserver"))
    first = executor.submit(square, 2)
    before = signal.signal(signal.SIGUSR1, lambda *_: executor.shutdown(wait=False))
    try:
        with pytest.raises((RuntimeError, BrokenProcessPool)):
            executor.submit(square, Interrupts()).result()
    finally:
        signal.signal(signal.SIGUSR1, before)
    executor.shutdown()
    assert first.result() == 4
