"""Locks, semaphores, conditions, events and barriers between processes: what travels, what deaths do, what is left."""

import gc
import multiprocessing as mp
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
import warnings
import weakref

import pytest

import phalanx
from phalanx import _engine, synchronize
from phalanx._engine import OwnerDiedWarning

METHODS = ["fork", "spawn", "forkserver"]


@pytest.fixture(autouse=True, scope="module")
def installed():
    phalanx.install()
    yield
    phalanx.uninstall()


@pytest.fixture(params=METHODS)
def ctx(request):
    return mp.get_context(request.param)


fork = mp.get_context("fork")


def run(ctx, target, *args):
    process = ctx.Process(target=target, args=args)
    process.start()
    return process


def joined(process, code=0):
    process.join(60)
    assert process.exitcode == code


def until(condition):
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end, "it did not come true"
        time.sleep(0.001)


def script(code, *options):
    return subprocess.run(
        [sys.executable, *options, "-c", code], capture_output=True, text=True, timeout=60
    )


# What they are


def test_the_standard_library_hands_out_ours():
    for name in ("Lock", "RLock", "Semaphore", "BoundedSemaphore", "Condition", "Event"):
        assert type(getattr(mp, name)()) is getattr(synchronize, name)
        assert type(getattr(mp.get_context("spawn"), name)()) is getattr(synchronize, name)
    assert isinstance(mp.Lock(), mp.synchronize.SemLock)
    assert not isinstance(mp.RLock(), mp.synchronize.Lock)
    assert isinstance(mp.Barrier(2), threading.Barrier)


def test_what_others_reach_through():
    lock, semaphore = mp.Lock(), mp.BoundedSemaphore(3)
    assert lock._semlock._get_value() == 1 and not lock._semlock._is_zero()
    with lock:
        assert lock._semlock._is_mine() and lock._semlock._count() == 1 and lock._semlock._is_zero()
        assert lock.owner == os.getpid()
    assert (lock.kind, lock.maxvalue, lock.name) == (1, 1, None)
    assert isinstance(lock._semlock.handle, int)
    assert semaphore.maxvalue == 3
    assert mp.synchronize.SemLock._make_name().startswith("/mp-")
    assert next(mp.synchronize.SemLock._rand)


def test_reprs():
    lock, recursive = mp.Lock(), mp.RLock()
    assert repr(lock) == "<Lock(owner=None)>"
    assert repr(recursive) == "<RLock(None, 0)>"
    with lock, recursive, recursive:
        assert repr(lock) == "<Lock(owner=MainProcess)>"
        assert repr(recursive) == "<RLock(MainProcess, 2)>"
        seen = []
        thread = threading.Thread(target=lambda: seen.extend([repr(lock), repr(recursive)]))
        thread.start()
        thread.join()
        assert seen == ["<Lock(owner=SomeOtherThread)>", "<RLock(SomeOtherThread, nonzero)>"]
    assert repr(mp.Semaphore(4)) == "<Semaphore(value=4)>"
    assert repr(mp.BoundedSemaphore(4)) == "<BoundedSemaphore(value=4, maxvalue=4)>"
    assert repr(mp.Condition(lock)) == "<Condition(<Lock(owner=None)>, 0)>"


def test_errors_are_the_standard_librarys():
    with pytest.raises(ValueError, match="semaphore or lock released too many times"):
        mp.Lock().release()
    with pytest.raises(AssertionError, match="not owned by thread"):
        mp.RLock().release()
    with pytest.raises(ValueError, match="released too many times"):
        mp.BoundedSemaphore(2).release()
    with pytest.raises(ValueError, match="released too many times"):
        mp.BoundedSemaphore(0).release()
    with pytest.raises(OSError):
        mp.Semaphore(-1)
    with pytest.raises(AssertionError):
        mp.Condition().notify()
    with pytest.raises(AssertionError, match="must acquire"):
        mp.Condition().wait()
    with pytest.raises(TypeError):
        mp.Lock().acquire(True, 1, 2)
    with pytest.raises(TypeError):
        mp.Lock().acquire(wait=True)
    with pytest.raises(RuntimeError):
        _engine.SemLock.__new__(_engine.SemLock).acquire()


def test_arguments_of_acquire():
    lock = mp.Lock()
    assert lock.acquire() is True
    assert lock.acquire(False) is False
    assert lock.acquire(block=False) is False
    assert lock.acquire(True, 0) is False
    assert lock.acquire(True, -5) is False
    assert lock.acquire(timeout=0.01) is False
    assert lock.acquire(True, timeout=0.01) is False
    with pytest.raises(ValueError, match="NaN"):
        lock.acquire(timeout=float("nan"))
    lock.release()
    assert lock.acquire(True, None) is True


class Named(synchronize.Lock):
    def __init__(self, label):
        super().__init__(ctx=fork)
        self.label = label


class Three(synchronize.Semaphore):
    def __init__(self):
        super().__init__(3, ctx=fork)


def test_subclasses_keep_what_is_theirs():
    lock = Named("a")
    other = pickle.loads(pickle.dumps(lock))
    assert type(other) is Named and other.label == "a"
    with lock:
        assert not other.acquire(False)
    assert Three().get_value() == 3
    assert weakref.ref(lock)() is lock


def test_the_low_level_class_takes_the_names_of_others():
    made = _engine.SemLock(1, 1, 1, name="x", unlink=True)
    assert made.acquire() and made._is_zero()
    again = _engine.SemLock._rebuild(made.handle, made.kind, made.maxvalue, made.name)
    assert not again.acquire(False)
    with pytest.raises(ValueError, match="kind"):
        _engine.SemLock(7, 1, 1, "x", True)
    # With a name of its own it must be found by those who open it.
    name = f"/phx-test-{os.getpid()}"
    real = _engine.SemLock(1, 2, 5, name, False)
    try:
        assert os.path.exists(f"/dev/shm/sem.{name[1:]}")
        assert real.acquire() and real._get_value() == 1
        real.release()
    finally:
        import _multiprocessing

        _multiprocessing.sem_unlink(name)


# Across processes


def take_and_tell(lock, event, semaphore, recursive):
    with lock, recursive, recursive:
        semaphore.release()
        event.set()


def test_all_of_them_reach_a_child(ctx):
    lock, event, semaphore, recursive = ctx.Lock(), ctx.Event(), ctx.Semaphore(0), ctx.RLock()
    lock.acquire()
    process = run(ctx, take_and_tell, lock, event, semaphore, recursive)
    assert not event.wait(0.05)
    lock.release()
    assert event.wait(60)
    assert semaphore.acquire(timeout=60)
    joined(process)


def release_it(lock):
    lock.release()


def test_a_lock_may_be_released_by_another_process(ctx):
    lock = ctx.Lock()
    lock.acquire()
    joined(run(ctx, release_it, lock))
    assert lock.acquire(False)


def meet(barrier, condition, numbers):
    numbers.put(barrier.wait(60))
    with condition:
        condition.notify()


def test_conditions_and_barriers_reach_a_child(ctx):
    barrier, condition, numbers = ctx.Barrier(2), ctx.Condition(), ctx.SimpleQueue()
    process = run(ctx, meet, barrier, condition, numbers)
    with condition:
        mine = barrier.wait(60)
        assert condition.wait(60)
    assert {mine, numbers.get()} == {0, 1}
    joined(process)


def test_a_dropped_lock_lives_until_the_child_has_it(ctx):
    event = ctx.Event()

    def start():
        # Nobody here keeps the lock.
        return run(ctx, take_and_tell, ctx.Lock(), event, ctx.Semaphore(0), ctx.RLock())

    process = start()
    gc.collect()
    assert event.wait(60)
    joined(process)


def take_from(queue, answers):
    lock = queue.get(timeout=60)
    answers.put(lock.acquire(False))


def test_a_lock_goes_through_a_queue(ctx):
    queue, answers, lock = ctx.Queue(), ctx.SimpleQueue(), ctx.Lock()
    process = run(ctx, take_from, queue, answers)
    with lock:
        queue.put(lock)
        assert answers.get() is False
    joined(process)


def receive_and_take(connection):
    lock = connection.recv()
    connection.send(lock.acquire(False))


def test_a_lock_goes_through_a_pipe(ctx):
    ours, theirs = ctx.Pipe()
    process = run(ctx, receive_and_take, theirs)
    lock = ctx.Lock()
    ours.send(lock)
    assert ours.recv() is True
    joined(process)
    assert lock.owner is None or lock.acquire(timeout=60)


def test_a_stale_handle_is_told():
    text = pickle.dumps(mp.Lock())
    gc.collect()
    with pytest.raises(RuntimeError, match="no longer exists|not a Lock"):
        pickle.loads(text)


def test_identity_is_kept():
    lock = mp.RLock()
    other = pickle.loads(pickle.dumps(lock))
    with lock:
        assert other.acquire(False), "the same lock, the same thread"
        other.release()
        assert lock._count() == 1


# Deaths


def take_and_die(lock, semaphore):
    lock.acquire()
    semaphore.acquire()
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("kind", ["Lock", "RLock"])
def test_a_dead_owners_lock_goes_to_the_next_with_one_warning(ctx, kind):
    lock, semaphore = getattr(ctx, kind)(), ctx.Semaphore(1)
    process = run(ctx, take_and_die, lock, semaphore)
    joined(process, -signal.SIGKILL)
    with pytest.warns(OwnerDiedWarning, match=f"process {process.pid} died holding the {kind}"):
        assert lock.acquire(timeout=60)
    lock.release()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert lock.acquire()
        # Its permit is back as well.
        assert semaphore.acquire(timeout=60)


def hold_until_killed(lock, ready):
    lock.acquire()
    ready.set()
    time.sleep(100)


@pytest.mark.parametrize("kind", ["Lock", "Semaphore"])
def test_who_waits_while_the_owner_dies_has_it(ctx, kind):
    lock, ready = getattr(ctx, kind)(), ctx.Event()
    process = run(ctx, hold_until_killed, lock, ready)
    assert ready.wait(60)
    timer = threading.Timer(0.05, process.kill)
    timer.start()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", OwnerDiedWarning)
        assert lock.acquire(timeout=60)
    timer.join()
    joined(process, -signal.SIGKILL)


def test_a_warning_made_an_error_leaves_the_lock_free():
    lock, semaphore = mp.Lock(), mp.Semaphore(1)
    joined(run(fork, take_and_die, lock, semaphore), -signal.SIGKILL)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(OwnerDiedWarning):
            lock.acquire(timeout=60)
    assert lock.acquire(timeout=60)


def consume_and_die(semaphore):
    semaphore.acquire()
    semaphore.acquire()
    os._exit(0)


def test_a_signal_is_not_given_back():
    semaphore = mp.Semaphore(0)
    for _ in range(3):
        semaphore.release()
    joined(run(fork, consume_and_die, semaphore))
    assert semaphore.get_value() == 1


def wait_for_ever(event, condition):
    if event is not None:
        event.wait()
    else:
        with condition:
            condition.wait()


def test_event_and_condition_do_not_wait_for_the_dead(ctx):
    event, condition = ctx.Event(), ctx.Condition()
    waiters = [run(ctx, wait_for_ever, event, None), run(ctx, wait_for_ever, None, condition)]
    until(lambda: condition._waiters() == 1)
    for process in waiters:
        process.kill()
        joined(process, -signal.SIGKILL)
    event.set()
    with condition:
        condition.notify_all()
    assert condition._waiters() == 0
    assert event.wait(0)


def wait_at(barrier):
    barrier.wait()


def test_a_dead_party_breaks_the_barrier(ctx):
    barrier = ctx.Barrier(3)
    process = run(ctx, wait_at, barrier)
    until(lambda: barrier.n_waiting == 1)
    timer = threading.Timer(0.05, process.kill)
    timer.start()
    with pytest.raises(threading.BrokenBarrierError):
        barrier.wait(60)
    timer.join()
    joined(process, -signal.SIGKILL)
    assert barrier.broken
    barrier.reset()
    assert not barrier.broken and barrier.n_waiting == 0


# Time and signals


def test_time_outs():
    event, condition, barrier = mp.Event(), mp.Condition(), mp.Barrier(2)
    assert event.wait(0.01) is False
    with condition:
        assert condition.wait(0.01) is False
        assert condition.wait_for(lambda: False, 0.01) is False
        assert condition.wait_for(lambda: 7, 0.01) == 7
    with pytest.raises(threading.BrokenBarrierError):
        barrier.wait(0.01)


def test_a_condition_frees_a_recursive_lock_altogether():
    condition = mp.Condition()
    with condition, condition:
        thread = threading.Thread(target=lambda: [condition.acquire(), condition.notify(), condition.release()])
        thread.start()
        assert condition.wait(60)
        assert condition._lock._count() == 2
        thread.join()


def test_a_condition_over_a_lock_of_others():
    class Foreign:
        def __init__(self):
            self._lock = threading.RLock()
            self._semlock = self
            self.acquire, self.release = self._lock.acquire, self._lock.release
            self.__enter__ = self._lock.__enter__

        def __enter__(self):
            return self.acquire()

        def __exit__(self, *args):
            self.release()

        def _is_mine(self):
            return self._lock._is_owned()

        def _count(self):
            return 1

    condition = mp.Condition(Foreign())

    def wake():
        with condition:
            condition.notify_all()

    with condition:
        thread = threading.Thread(target=wake)
        thread.start()
        assert condition.wait(60)
    thread.join()


@pytest.mark.parametrize("what", ["lock", "semaphore", "event", "condition", "barrier"])
def test_ctrl_c_ends_a_wait(what):
    code = f"""
import multiprocessing as mp, phalanx, threading, os, signal
phalanx.install()
def wait(what):
    if what == "lock":
        lock = mp.Lock(); lock.acquire(); lock.acquire()
    elif what == "semaphore":
        mp.Semaphore(0).acquire()
    elif what == "event":
        mp.Event().wait()
    elif what == "condition":
        with mp.Condition() as _: pass
        condition = mp.Condition()
        with condition: condition.wait()
    else:
        mp.Barrier(2).wait()
threading.Timer(0.2, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
try:
    wait({what!r})
except KeyboardInterrupt:
    print("interrupted")
"""
    done = script(code)
    assert (done.stdout, done.stderr) == ("interrupted\n", "")


def test_a_handler_that_returns_does_not_end_a_wait():
    event, barrier = mp.Event(), mp.Barrier(2)
    heard = []
    before = signal.signal(signal.SIGALRM, lambda *_: heard.append(1))
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.02, 0.02)
        timer = threading.Timer(0.2, event.set)
        timer.start()
        assert event.wait(60)
        other = threading.Timer(0.2, barrier.wait)
        other.start()
        barrier.wait(60)
        assert not mp.Semaphore(0).acquire(timeout=0.1)
        timer.join()
        other.join()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert heard


def test_a_handler_may_notify_what_its_thread_waits_for():
    condition = mp.Condition()

    def notify(*_):
        with condition:
            condition.notify()

    before = signal.signal(signal.SIGALRM, notify)
    try:
        with condition:
            signal.setitimer(signal.ITIMER_REAL, 0.05)
            assert condition.wait(60)
    finally:
        signal.signal(signal.SIGALRM, before)


def test_the_barriers_action_runs_once_and_may_fail():
    ran = []
    barrier = mp.Barrier(2, action=lambda: ran.append(1), timeout=60)
    thread = threading.Thread(target=barrier.wait)
    thread.start()
    barrier.wait()
    thread.join()
    assert ran == [1]

    def fail():
        raise LookupError("action")

    barrier = mp.Barrier(1, action=fail)
    with pytest.raises(LookupError):
        barrier.wait()
    assert barrier.broken


# What it costs and leaves


def test_locks_cost_little_and_are_given_back():
    mp.Lock()
    gc.collect()
    blocks, _, committed = _engine.usage()
    descriptors = len(os.listdir("/proc/self/fd"))
    locks = [mp.Lock() for _ in range(20_000)]
    assert (_engine.usage()[2] - committed) <= 20_000 * 160
    assert len(os.listdir("/proc/self/fd")) == descriptors
    del locks
    gc.collect()
    # The table of holds stays.
    assert _engine.usage()[0] - blocks <= 20


def test_everything_is_given_back():
    def make():
        return [
            mp.Lock(), mp.RLock(), mp.Semaphore(2), mp.BoundedSemaphore(2), mp.Condition(), mp.Event(),
            mp.Barrier(2), mp.Condition(mp.Lock()),
        ]  # fmt: skip

    make()
    gc.collect()
    before = _engine.usage()[0]
    for _ in range(100):
        made = make()
        pickle.loads(pickle.dumps(made))
    del made
    gc.collect()
    assert _engine.usage()[0] - before <= 2


def test_nothing_is_said_at_exit():
    code = """
import multiprocessing as mp, phalanx, os
phalanx.install()
from multiprocessing import resource_tracker
def hold(lock): lock.acquire()
if __name__ == "__main__":
    ctx = mp.get_context("fork")
    lock = ctx.Lock(); others = [ctx.Condition(), ctx.Event(), ctx.Barrier(2), ctx.Semaphore()]
    p = ctx.Process(target=hold, args=(lock,)); p.start(); p.join()
    print(resource_tracker._resource_tracker._fd)
"""
    done = script(code, "-W", "error")
    assert (done.stdout, done.stderr) == ("None\n", "")


def test_a_name_is_told_when_its_owner_died():
    lock = synchronize.Lock(name="ledger")
    joined(run(fork, take_and_die, lock, mp.Semaphore(1)), -signal.SIGKILL)
    with pytest.warns(OwnerDiedWarning, match="ledger"):
        lock.acquire(timeout=60)


def test_a_bare_fork_has_locks_of_the_tree():
    lock = mp.Lock()
    lock.acquire()
    pid = os.fork()
    if pid == 0:
        os._exit(0 if not lock._is_mine() and not lock.acquire(False) and lock._count() == 0 else 1)
    assert os.waitpid(pid, 0)[1] == 0
    assert lock._is_mine()
