"""Every blocking call: its time-out bounds the whole call, Ctrl-C ends it, and the object is usable afterwards.

A line of the table below is a call that has nothing to return: what it waits for does not come while it waits.
"""

import concurrent.futures as cf
import contextlib
import multiprocessing as mp
import os
import queue as stock_queue
import signal
import socket
import statistics
import threading
import time

import pytest

from phalanx import ProcessPoolExecutor, ThreadPool, get_context
from phalanx import queue as local_queue
from phalanx import threading as local

CONTEXT = get_context("fork")
# Seconds: a wait that nothing ends; the test's own watchdog is longer.
LONG = 60
SHORT = 0.2

latencies = {}


def nap(seconds):
    time.sleep(seconds)
    return seconds


def square(number):
    return number * number


def hold(lock, held, over):
    with lock:
        held.set()
        over.wait(LONG)


@contextlib.contextmanager
def held(lock):
    """Another thread has the lock."""
    there, over = threading.Event(), threading.Event()
    thread = threading.Thread(target=hold, args=(lock, there, over))
    thread.start()
    assert there.wait(LONG)
    try:
        yield lock
    finally:
        over.set()
        thread.join()


@contextlib.contextmanager
def held_by_process(lock):
    there, over = CONTEXT.Event(), CONTEXT.Event()
    process = CONTEXT.Process(target=hold, args=(lock, there, over))
    process.start()
    assert there.wait(LONG)
    try:
        yield lock
    finally:
        over.set()
        process.join()
        assert process.exitcode == 0


def free(lock):
    assert lock.acquire(timeout=LONG)
    lock.release()


@contextlib.contextmanager
def taken(semaphore):
    semaphore.acquire()
    yield semaphore


def release_once(semaphore):
    semaphore.release()
    free(semaphore)


@contextlib.contextmanager
def owned(condition):
    with condition:
        yield condition
        # It is ours again however the wait ended.
        condition.notify()


def wake(condition):
    waker = threading.Timer(0.05, lambda: notify(condition))
    waker.start()
    with condition:
        assert condition.wait(LONG)
    waker.join()


def notify(condition):
    # Whoever waits has let it go by then.
    with condition:
        condition.notify_all()


def still(value):
    return contextlib.nullcontext(value)


def set_and_wait(event):
    event.set()
    assert event.wait(LONG)


def meet(barrier):
    barrier.reset()
    thread = threading.Thread(target=barrier.wait)
    thread.start()
    barrier.wait(LONG)
    thread.join()


@contextlib.contextmanager
def full(queue):
    queue.put(1)
    yield queue
    assert queue.get() == 1


def put_and_get(queue):
    queue.put(2)
    assert queue.get() == 2


@contextlib.contextmanager
def undone(queue):
    queue.put(1)
    queue.get()
    yield queue


def finish(queue):
    queue.task_done()
    queue.join()


@contextlib.contextmanager
def pipe():
    ours, theirs = CONTEXT.Pipe()
    with ours, theirs:
        yield ours, theirs


def talk(ends):
    ours, theirs = ends
    theirs.send("there")
    assert ours.poll(LONG) and ours.recv() == "there"


@contextlib.contextmanager
def sleeper():
    process = CONTEXT.Process(target=nap, args=(LONG,))
    process.start()
    yield process
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL


def is_alive(process):
    assert process.is_alive()


@contextlib.contextmanager
def pool(kind=None):
    with (kind or CONTEXT.Pool)(1) as made:
        yield made


def works(pool):
    assert pool.apply_async(square, (3,)).get(LONG) == 9


@contextlib.contextmanager
def busy_pool():
    with CONTEXT.Pool(1) as made:
        result = made.apply_async(nap, (LONG,))
        yield made, result
        result.cancel()
        works(made)


@contextlib.contextmanager
def executor():
    with ProcessPoolExecutor(1, mp_context=CONTEXT, survive=True) as made:
        future = made.submit(nap, LONG)
        yield made, future
        future.cancel()
        for pid in list(made._processes):
            os.kill(pid, signal.SIGKILL)
        with contextlib.suppress(Exception):
            future.result(LONG)
        assert made.submit(square, 3).result(LONG) == 9


@contextlib.contextmanager
def manager():
    with CONTEXT.Manager() as made:
        yield made


@contextlib.contextmanager
def listener():
    from phalanx.connection import Listener

    with Listener() as made:
        yield made


def accept(made):
    from phalanx.connection import Client

    thread = threading.Thread(target=lambda: Client(made.address).close())
    thread.start()
    made.accept().close()
    thread.join()


def raises(kind):
    """The time-out is this exception."""

    def check(call):
        with pytest.raises(kind):
            call()

    return check


def returns(value):
    """The time-out is this value."""

    def check(call):
        assert call() == value

    return check


Empty, Full = raises(stock_queue.Empty), raises(stock_queue.Full)
No = returns(False)
Late = raises((TimeoutError, cf.TimeoutError, mp.TimeoutError))
# The call has no time-out.
Never = None
# What these hold while the call waits has to go first.
AFTER_ALL = ("Lock", "RLock", "Condition", "Value's lock", "threading.Lock", "threading.RLock", "threading.Condition")


def comes_after_all(name):
    return name.split(",")[0].removesuffix(" of a process").split(".w")[0].removesuffix(".acquire") in AFTER_ALL

CASES = {
    # what: (object, call with a time-out, how a time-out looks, the object afterwards)
    "Lock": (lambda: held(CONTEXT.Lock()), lambda x, t: x.acquire(timeout=t), No, free),
    "Lock of a process": (lambda: held_by_process(CONTEXT.Lock()), lambda x, t: x.acquire(timeout=t), No, free),
    "Lock, with": (lambda: held(CONTEXT.Lock()), lambda x, t: x.__enter__(), Never, free),
    "RLock": (lambda: held(CONTEXT.RLock()), lambda x, t: x.acquire(timeout=t), No, free),
    "Semaphore": (lambda: taken(CONTEXT.Semaphore(1)), lambda x, t: x.acquire(timeout=t), No, release_once),
    "BoundedSemaphore": (lambda: taken(CONTEXT.BoundedSemaphore(1)), lambda x, t: x.acquire(timeout=t), No, release_once),
    "Condition.acquire": (lambda: held(CONTEXT.Condition()), lambda x, t: x.acquire(timeout=t), No, free),
    "Condition.wait": (lambda: owned(CONTEXT.Condition()), lambda x, t: x.wait(t), No, wake),
    "Condition.wait_for": (lambda: owned(CONTEXT.Condition()), lambda x, t: x.wait_for(lambda: False, t), No, wake),
    "Event.wait": (lambda: still(CONTEXT.Event()), lambda x, t: x.wait(t), No, set_and_wait),
    "Barrier.wait": (lambda: still(CONTEXT.Barrier(2)), lambda x, t: x.wait(t), raises(threading.BrokenBarrierError), meet),
    "Value's lock": (lambda: held(CONTEXT.Value("i").get_lock()), lambda x, t: x.acquire(timeout=t), No, free),
    "Queue.get": (lambda: still(CONTEXT.Queue()), lambda x, t: x.get(timeout=t), Empty, put_and_get),
    "Queue.put": (lambda: full(CONTEXT.Queue(1)), lambda x, t: x.put(2, timeout=t), Full, lambda x: None),
    "JoinableQueue.join": (lambda: undone(CONTEXT.JoinableQueue()), lambda x, t: x.join(), Never, finish),
    "SimpleQueue.get": (lambda: still(CONTEXT.SimpleQueue()), lambda x, t: x.get(), Never, put_and_get),
    "Connection.poll": (pipe, lambda x, t: x[0].poll(t), No, talk),
    "Connection.recv": (pipe, lambda x, t: x[0].recv(), Never, talk),
    "Connection.send": (pipe, lambda x, t: x[0].send_bytes(b"x" * 50_000_000), Never, lambda x: None),
    "connection.wait": (pipe, lambda x, t: wait_for(x, t), returns([]), talk),
    "Process.join": (sleeper, lambda x, t: x.join(t), returns(None), is_alive),
    "AsyncResult.get": (busy_pool, lambda x, t: x[1].get(t), Late, lambda x: None),
    "AsyncResult.wait": (busy_pool, lambda x, t: x[1].wait(t), returns(None), lambda x: None),
    "Pool.apply": (pool, lambda x, t: x.apply(nap, (2,)), Never, works),
    "Pool.map": (pool, lambda x, t: x.map(nap, [1, 1]), Never, works),
    "MapResult.get": (pool, lambda x, t: x.map_async(nap, [1, 1]).get(t), Late, works),
    "imap.next": (pool, lambda x, t: x.imap(nap, [2]).next(t), Late, works),
    "imap_unordered.next": (pool, lambda x, t: x.imap_unordered(nap, [2]).next(t), Late, works),
    "ThreadPool's get": (lambda: pool(ThreadPool), lambda x, t: x.apply_async(nap, (2,)).get(t), Late, works),
    "Future.result": (executor, lambda x, t: x[1].result(t), Late, lambda x: None),
    "futures.wait": (executor, lambda x, t: len(cf.wait([x[1]], t).done), returns(0), lambda x: None),
    "as_completed": (executor, lambda x, t: list(cf.as_completed([x[1]], t)), Late, lambda x: None),
    "Executor.map": (executor, lambda x, t: list(x[0].map(nap, [LONG], timeout=t)), Late, lambda x: None),
    "a manager's Queue.get": (manager, lambda x, t: x.Queue().get(timeout=t), Empty, lambda x: None),
    "a manager's Event.wait": (manager, lambda x, t: x.Event().wait(t), No, lambda x: None),
    "Listener.accept": (listener, lambda x, t: x.accept(), Never, accept),
    "threading.Lock": (lambda: held(local.Lock()), lambda x, t: x.acquire(timeout=t), No, free),
    "threading.RLock": (lambda: held(local.RLock()), lambda x, t: x.acquire(timeout=t), No, free),
    "threading.Semaphore": (lambda: taken(local.Semaphore(1)), lambda x, t: x.acquire(timeout=t), No, release_once),
    "threading.Condition": (lambda: owned(local.Condition()), lambda x, t: x.wait(t), No, wake),
    "threading.Event": (lambda: still(local.Event()), lambda x, t: x.wait(t), No, set_and_wait),
    "threading.Barrier": (lambda: still(local.Barrier(2)), lambda x, t: x.wait(t), raises(threading.BrokenBarrierError), meet),
    "queue.Queue.get": (lambda: still(local_queue.Queue()), lambda x, t: x.get(timeout=t), Empty, put_and_get),
    "queue.Queue.put": (lambda: full(local_queue.Queue(1)), lambda x, t: x.put(2, timeout=t), Full, lambda x: None),
    "queue.Queue.join": (lambda: undone(local_queue.Queue()), lambda x, t: x.join(), Never, finish),
    "queue.SimpleQueue.get": (lambda: still(local_queue.SimpleQueue()), lambda x, t: x.get(timeout=t), Empty, put_and_get),
    "queue.PriorityQueue.get": (lambda: still(local_queue.PriorityQueue()), lambda x, t: x.get(timeout=t), Empty, put_and_get),
}


def wait_for(ends, timeout):
    from phalanx import connection

    return connection.wait([ends[0]], timeout)


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case[2] is not Never])
def test_a_time_out_ends_the_call(name):
    make, call, check, after = CASES[name]
    with make() as thing:
        begun = time.monotonic()
        check(lambda: call(thing, SHORT))
        assert time.monotonic() - begun > SHORT * 0.9, "it did not wait"
        # Once more, and with no time at all.
        if name not in ("Barrier.wait", "threading.Barrier"):
            check(lambda: call(thing, 0.01))
        if not comes_after_all(name):
            after(thing)
    if comes_after_all(name):
        after(thing)


class Heard(Exception):
    """What the handler raises: when the signal came to it."""


@contextlib.contextmanager
def interrupt():
    """Ctrl-C, once the main thread has been in its call for a moment."""
    sent = []

    def handle(number, frame):
        raise Heard

    def send():
        sent.append(time.monotonic())
        # To the process, as the terminal does.
        os.kill(os.getpid(), signal.SIGINT)

    before = signal.signal(signal.SIGINT, handle)
    timer = threading.Timer(0.15, send)
    timer.start()
    try:
        yield sent
    finally:
        timer.join()
        signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("name", list(CASES))
def test_ctrl_c_ends_the_call(name):
    make, call, _, after = CASES[name]
    with make() as thing:
        with interrupt() as sent:
            # Not by its time-out: that is longer than the watchdog is patient.
            with pytest.raises(Heard):
                call(thing, 3 * LONG)
            latencies[name] = time.monotonic() - sent[0]
        if not comes_after_all(name):
            after(thing)
    if comes_after_all(name):
        after(thing)


def test_how_long_ctrl_c_took():
    """Prints what was measured; a loaded machine decides how long that is, so nothing is asserted of the worst."""
    if not latencies:
        pytest.skip("the tests above were not run")
    worst = sorted(latencies.items(), key=lambda line: -line[1])[:5]
    print(f"median {statistics.median(latencies.values()) * 1000:.1f} ms; the slowest:")
    for name, seconds in worst:
        print(f"  {name}: {seconds * 1000:.1f} ms")
    assert statistics.median(latencies.values()) > 0


def test_a_handler_that_returns_ends_nothing():
    """A wait goes on after a handler, and its time-out still counts from the beginning."""
    event, calls = CONTEXT.Event(), []
    before = signal.signal(signal.SIGALRM, lambda *_: calls.append(time.monotonic()))
    signal.setitimer(signal.ITIMER_REAL, 0.05, 0.05)
    try:
        begun = time.monotonic()
        assert not event.wait(0.4)
        assert time.monotonic() - begun > 0.36 and len(calls) >= 2
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def test_a_socket_is_none_of_ours():
    """What is not ours is as ever: a signal ends it the same way."""
    ours, theirs = socket.socketpair()
    with ours, theirs, interrupt():
        with pytest.raises(Heard):
            ours.recv(1)
