"""threading's Condition, Event, Semaphore, BoundedSemaphore and Barrier: beside the stock ones, across fork, under signals."""

import gc
import os
import pickle
import signal
import subprocess
import sys
import threading as stock
import time
import weakref

import pytest

import phalanx.threading as ours

KINDS = {
    "Condition": (),
    "Event": (),
    "Semaphore": (2,),
    "BoundedSemaphore": (2,),
    "Barrier": (2,),
}


def run_threads(*functions):
    """Run functions in threads of their own and raise what one of them raised."""
    errors = []

    def call(function):
        try:
            function()
        except BaseException as error:
            errors.append(error)

    threads = [stock.Thread(target=call, args=(function,), daemon=True) for function in functions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive(), "a thread hangs"
    if errors:
        raise errors[0]


def run_script(text, code=0):
    """Run a program in an interpreter of its own and return what it printed."""
    done = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, timeout=60)
    assert done.returncode == code, done.stderr
    return done.stdout


@pytest.mark.parametrize("name", KINDS)
def test_is_one_of_the_stock_kind_and_looks_like_it(name):
    made = getattr(ours, name)(*KINDS[name])
    like = getattr(stock, name)(*KINDS[name])
    assert isinstance(made, getattr(stock, name))
    assert type(made).__module__ == "threading" and type(made).__qualname__ == name

    def shape(thing):
        words = repr(thing).replace("phalanx.", "_thread.").split()
        return [word.split("0x")[0] for word in words if not word.startswith("owner")]

    assert shape(made) == shape(like)


@pytest.mark.parametrize("name", KINDS)
def test_can_be_subclassed_referred_to_weakly_and_collected(name):
    class Sub(getattr(ours, name)):
        def __init__(self, note):
            super().__init__(*KINDS[name])
            self.note = note

    made = Sub("a note")
    made.me = made
    assert made.note == "a note"
    ref = weakref.ref(made)
    del made
    gc.collect()
    assert ref() is None, "a cycle through its attributes is garbage"


@pytest.mark.parametrize("name", KINDS)
def test_is_refused_by_pickle(name):
    with pytest.raises(TypeError):
        pickle.dumps(getattr(ours, name)(*KINDS[name]))


@pytest.mark.parametrize("make_lock", [stock.Lock, stock.RLock, None])
def test_condition_hands_turns_over(make_lock):
    condition = ours.Condition(*([make_lock()] if make_lock else []))
    turns = []

    def take(me):
        for _ in range(200):
            with condition:
                while len(turns) % 2 != me:
                    assert condition.wait(20)
                turns.append(me)
                condition.notify()

    run_threads(lambda: take(0), lambda: take(1))
    assert turns == [0, 1] * 200


def test_condition_gives_a_recursive_lock_back_altogether():
    for lock in (stock.RLock(), None):
        condition = ours.Condition(lock)
        order = []

        def waiter():
            with condition:
                with condition:
                    order.append("waits")
                    assert condition.wait(20)
                    order.append("woken")
                assert condition._is_owned(), "one level is left"
            assert not condition._is_owned()

        def notifier():
            while order != ["waits"]:
                time.sleep(0.001)
            with condition:
                order.append("notifies")
                condition.notify_all()

        run_threads(waiter, notifier)
        assert order == ["waits", "notifies", "woken"]


def test_condition_refuses_who_does_not_hold_the_lock():
    for condition in (ours.Condition(), ours.Condition(stock.Lock()), ours.Condition(stock.RLock())):
        with pytest.raises(RuntimeError, match="cannot wait on un-acquired lock"):
            condition.wait(0)
        with pytest.raises(RuntimeError, match="cannot notify on un-acquired lock"):
            condition.notify()
        with condition:
            assert condition.wait(0) is False
            assert condition.wait(-1) is False
            assert condition.wait_for(lambda: 7) == 7


def test_stock_condition_over_our_lock():
    queue_mutex = __import__("phalanx.queue").queue.Queue().mutex
    condition = stock.Condition(queue_mutex)
    seen = []

    def waiter():
        with condition:
            seen.append(1)
            assert condition.wait(20)

    def notifier():
        while not seen:
            time.sleep(0.001)
        with condition:
            condition.notify()

    run_threads(waiter, notifier)


def test_condition_of_three_waiters_wakes_as_many_as_told():
    condition, woken = ours.Condition(), []

    def waiter():
        with condition:
            assert condition.wait(20)
            woken.append(1)

    def notifier():
        while len(condition._waiters) < 3:
            time.sleep(0.001)
        with condition:
            condition.notify(2)
        while len(woken) < 2:
            time.sleep(0.001)
        with condition:
            assert len(woken) == 2 and len(condition._waiters) == 1
            condition.notify()

    run_threads(waiter, waiter, waiter, notifier)
    assert len(woken) == 3


def test_event_wakes_everybody_and_stays_set():
    event, seen = ours.Event(), []
    run_threads(*[lambda: seen.append(event.wait(20))] * 4, lambda: (time.sleep(0.01), event.set()))
    assert seen == [True] * 4 and event.is_set() and event.wait(0)
    event.clear()
    assert not event.is_set() and event.wait(0.001) is False


def test_semaphore_counts():
    semaphore = ours.Semaphore(2)
    assert semaphore.acquire() and semaphore.acquire(timeout=1) and not semaphore.acquire(False)
    assert semaphore.acquire(timeout=0.001) is False
    semaphore.release(2)
    assert semaphore._value == 2
    with pytest.raises(ValueError, match="can't specify timeout for non-blocking acquire"):
        semaphore.acquire(False, 1)
    with pytest.raises(ValueError, match="n must be one or more"):
        semaphore.release(0)
    with pytest.raises(ValueError, match="semaphore initial value must be >= 0"):
        ours.Semaphore(-1)


def test_bounded_semaphore_refuses_one_too_many():
    semaphore = ours.BoundedSemaphore(1)
    with semaphore:
        pass
    with pytest.raises(ValueError, match="Semaphore released too many times"):
        semaphore.release()


def test_semaphore_limits_how_many_are_inside():
    semaphore, inside, most = ours.Semaphore(2), [], []

    def visit():
        for _ in range(50):
            with semaphore:
                inside.append(1)
                most.append(len(inside))
                time.sleep(0)
                inside.pop()

    run_threads(*[visit] * 5)
    assert max(most) <= 2 and semaphore._value == 2


def test_a_subclass_may_reach_for_the_parts_of_a_semaphore():
    class Resizable(ours.Semaphore):
        def grow(self):
            with self._cond:
                self._value += 1
                self._cond.notify()

    semaphore = Resizable(0)
    run_threads(lambda: semaphore.acquire(timeout=20) or 1 / 0, lambda: (time.sleep(0.01), semaphore.grow()))


def test_overridden_release_is_called_at_the_end_of_a_with():
    calls = []

    class Noting(ours.Semaphore):
        def release(self, n=1):
            calls.append(n)
            super().release(n)

    with Noting():
        pass
    assert calls == [1]


def test_barrier_rounds_numbers_and_action():
    done, numbers = [], []
    barrier = ours.Barrier(3, action=lambda: done.append(len(numbers)))

    def rounds():
        for _ in range(50):
            numbers.append(barrier.wait(20))

    run_threads(rounds, rounds, rounds)
    assert sorted(numbers) == sorted([0, 1, 2] * 50) and len(done) == 50
    assert barrier.parties == 3 and barrier.n_waiting == 0 and not barrier.broken


def test_barrier_breaks_and_is_reset():
    barrier = ours.Barrier(2)
    with pytest.raises(stock.BrokenBarrierError):
        barrier.wait(0.01)
    assert barrier.broken
    with pytest.raises(stock.BrokenBarrierError):
        barrier.wait()
    barrier.reset()
    run_threads(lambda: barrier.wait(20), lambda: barrier.wait(20))

    def is_reset():
        with pytest.raises(stock.BrokenBarrierError):
            barrier.wait(20)

    def resets():
        while not barrier.n_waiting:
            time.sleep(0.001)
        barrier.reset()

    run_threads(is_reset, resets)
    assert not barrier.broken

    failing = ours.Barrier(1, action=lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        failing.wait()
    assert failing.broken


@pytest.mark.parametrize(
    "wait",
    [
        "threading.Event().wait()",
        "threading.Semaphore(0).acquire()",
        "c = threading.Condition(); c.acquire(); c.wait()",
        "threading.Barrier(2).wait()",
        "queue.Queue().get()",
        "q = queue.Queue(1); q.put(1); q.put(2)",
        "q = queue.Queue(); q.put(1); q.join()",
    ],
)
def test_a_signal_interrupts_the_wait(wait):
    text = f"""
import os, signal, threading, time
import phalanx; phalanx.install()
import queue
threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT)).start()
try:
    {wait}
except KeyboardInterrupt:
    print("interrupted")
"""
    assert run_script(text) == "interrupted\n"


def test_a_handler_that_returns_lets_the_wait_go_on():
    event, heard = ours.Event(), []
    before = signal.signal(signal.SIGALRM, lambda *_: heard.append(1))
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.02, 0.02)
        stock.Timer(0.2, event.set).start()
        assert event.wait(20)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert heard


def test_a_forked_child_is_not_fooled_by_its_parents_waiters():
    semaphore, condition, event = ours.Semaphore(0), ours.Condition(), ours.Event()

    def hold():
        with condition:
            condition.wait(20)

    threads = [
        stock.Thread(target=semaphore.acquire, daemon=True),
        stock.Thread(target=event.wait, daemon=True),
        stock.Thread(target=hold, daemon=True),
    ]
    for thread in threads:
        thread.start()
    while not len(condition._waiters) or not len(semaphore._cond._waiters):
        time.sleep(0.001)
    pid = os.fork()
    if pid == 0:
        try:
            stock.Timer(0.05, semaphore.release).start()
            good = semaphore.acquire(timeout=20)
            stock.Timer(0.05, event.set).start()
            good = good and event.wait(20)

            def notify():
                with condition:
                    condition.notify()

            with condition:
                stock.Timer(0.05, notify).start()
                good = good and condition.wait(20)
            os._exit(0 if good else 1)
        finally:
            os._exit(2)
    assert os.waitpid(pid, 0)[1] == 0
    semaphore.release()
    event.set()
    with condition:
        condition.notify()
    for thread in threads:
        thread.join(20)
        assert not thread.is_alive()


def test_reinit_in_a_child_frees_what_a_lost_thread_held():
    condition, held = ours.Condition(), stock.Event()

    def hold():
        with condition:
            held.set()
            time.sleep(1)

    thread = stock.Thread(target=hold)
    thread.start()
    assert held.wait(20)
    pid = os.fork()
    if pid == 0:
        condition._at_fork_reinit()
        os._exit(0 if condition.acquire(timeout=5) else 1)
    assert os.waitpid(pid, 0)[1] == 0
    thread.join()


def test_install_and_uninstall():
    text = """
import threading, queue, multiprocessing.dummy
before = threading.Event, queue.Queue
stock_event, stock_queue = threading.Event(), queue.Queue()
import phalanx; phalanx.install(); phalanx.install()
from phalanx import _engine
assert isinstance(threading.Event(), _engine.ThreadEvent) and isinstance(queue.Queue(), _engine.LocalQueue)
assert isinstance(multiprocessing.dummy.Queue(), _engine.LocalQueue)
t = threading.Thread(target=stock_event.set); t.start(); assert stock_event.wait(20); t.join()
stock_queue.put(1); assert stock_queue.get() == 1
mixed = threading.Condition(stock_queue.mutex)
with mixed: mixed.notify()
phalanx.uninstall()
assert (threading.Event, queue.Queue) == before
print("good")
"""
    assert run_script(text) == "good\n"


def test_what_others_patched_before_stays_theirs():
    text = """
import _thread, threading, queue
def start_new_thread(*args): raise RuntimeError("green")
_thread.start_new_thread = threading._start_new_thread = start_new_thread
_thread.start_joinable_thread = threading._start_joinable_thread = start_new_thread
event, q = threading.Event, queue.Queue
import phalanx; phalanx.install()
assert threading.Event is event and queue.Queue is q
print("good")
"""
    assert run_script(text) == "good\n"
