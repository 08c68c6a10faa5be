"""queue's Queue, LifoQueue and PriorityQueue."""

import gc
import os
import queue as stock
import threading
import time
import weakref
from collections import OrderedDict, deque

import pytest

import phalanx.queue as ours
from test_threading import run_threads

KINDS = ["Queue", "LifoQueue", "PriorityQueue"]


@pytest.mark.parametrize("kind", KINDS)
def test_gives_back_what_was_put_as_the_stock_one_does(kind):
    made, like = getattr(ours, kind)(), getattr(stock, kind)()
    assert isinstance(made, getattr(stock, kind)) and isinstance(made, ours.Queue)
    for item in (3, 1, 2):
        made.put(item)
        like.put_nowait(item)
    assert made.qsize() == 3 and list(made.queue) == list(like.queue) and type(made.queue) is type(like.queue)
    assert [made.get() for _ in range(3)] == [like.get() for _ in range(3)]
    assert made.empty() and not made.full()
    with pytest.raises(stock.Empty):
        made.get_nowait()


@pytest.mark.parametrize("kind", KINDS)
def test_bounds_and_times_out(kind):
    made = getattr(ours, kind)(1)
    made.put(1)
    assert made.full()
    for call in (
        lambda: made.put_nowait(2),
        lambda: made.put(2, timeout=0.01),
        lambda: made.put(2, False),
    ):
        with pytest.raises(stock.Full):
            call()
    with pytest.raises(ValueError, match="'timeout' must be a non-negative number"):
        made.put(2, timeout=-1)
    with pytest.raises(ValueError, match="'timeout' must be a non-negative number"):
        made.get(timeout=-1)
    assert made.get() == 1
    with pytest.raises(stock.Empty):
        made.get(timeout=0.01)


@pytest.mark.parametrize("kind", KINDS)
def test_many_threads_lose_and_double_nothing(kind):
    made, gotten = getattr(ours, kind)(7), []

    def put(first):
        for number in range(first, first + 300):
            made.put(number)

    def get():
        for _ in range(300):
            gotten.append(made.get(timeout=20))
            made.task_done()

    run_threads(lambda: put(0), lambda: put(300), get, get, lambda: made.join())
    made.join()
    assert sorted(gotten) == list(range(600)) and made.unfinished_tasks == 0


def test_task_done_is_counted():
    made = ours.Queue()
    with pytest.raises(ValueError, match="called too many times"):
        made.task_done()
    made.put(1)
    assert made.unfinished_tasks == 1
    made.task_done()
    made.join()


def test_the_parts_are_real():
    made = ours.Queue(2)
    made.put("a")
    made.put("b")
    with made.mutex:
        assert made.mutex.locked()
        made.queue.clear()
        made.not_full.notify_all()
    made.put("c")
    with made.not_empty:
        assert made.queue[0] == "c"
    made.maxsize = 0
    for number in range(5):
        made.put(number)
    assert made.qsize() == 6


def test_the_mutex_keeps_everybody_out():
    made, order = ours.Queue(), []
    made.mutex.acquire()

    def putter():
        made.put(1)
        order.append("put")

    def holder():
        time.sleep(0.05)
        order.append("freed")
        made.mutex.release()

    run_threads(putter, holder)
    assert order == ["freed", "put"]


def test_a_condition_of_the_queue_wakes_its_getters():
    made, gotten = ours.Queue(), []

    def append():
        while not len(made.not_empty._waiters):
            time.sleep(0.001)
        with made.not_empty:
            made.queue.append("by hand")
            made.not_empty.notify()

    run_threads(lambda: gotten.append(made.get(timeout=20)), append)
    assert gotten == ["by hand"]


def test_overridden_hooks_are_used():
    class Unique(ours.Queue):
        def _init(self, maxsize):
            self.queue = OrderedDict()

        def _put(self, item):
            self.queue[item] = None

        def _get(self):
            return self.queue.popitem(last=False)[0]

    made = Unique()
    for item in (1, 2, 1):
        made.put(item)
    assert made.qsize() == 2 and made.unfinished_tasks == 3
    gotten = []
    run_threads(lambda: gotten.extend(made.get(timeout=20) for _ in range(3)), lambda: made.put(9))
    assert gotten == [1, 2, 9]


def test_overridden_put_and_get_are_used_by_the_nowait_forms():
    class Noting(ours.Queue):
        def put(self, item, block=True, timeout=None):
            super().put(("noted", item), block, timeout)

        def get(self, block=True, timeout=None):
            return super().get(block, timeout)[1]

    made = Noting()
    made.put_nowait(1)
    assert made.queue[0] == ("noted", 1) and made.get_nowait() == 1


def test_replaced_parts_are_used_even_by_those_who_wait():
    made, gotten = ours.Queue(), []

    def replace():
        while not len(made.not_empty._waiters):
            time.sleep(0.001)
        made.queue = deque(["new"])
        with made.not_empty:
            made.not_empty.notify()

    run_threads(lambda: gotten.append(made.get(timeout=20)), replace)
    assert gotten == ["new"]
    made.mutex = threading.RLock()
    made.put(1)
    assert made.get() == 1


def test_a_comparison_that_fails_leaves_the_heap_usable():
    made = ours.PriorityQueue()
    made.put(1)
    with pytest.raises(TypeError):
        made.put("text")
    assert made.qsize() in (1, 2) and not made.mutex.locked()
    with made.mutex:
        made.queue.clear()
    made.put(2)
    assert made.get() == 2


def test_garbage_is_collected():
    class Sub(ours.Queue):
        pass

    made = Sub()
    made.put(made)
    made.note = made
    ref = weakref.ref(made)
    del made
    gc.collect()
    assert ref() is None


@pytest.mark.skipif(not hasattr(stock, "ShutDown"), reason="queues have shutdown() from 3.13 on")
def test_shutdown():
    made, ended = ours.Queue(1), []
    made.put(1)

    def putter():
        with pytest.raises(stock.ShutDown):
            made.put(2)
        ended.append(1)

    def closer():
        while not len(made.not_full._waiters):
            time.sleep(0.001)
        made.shutdown()

    run_threads(putter, closer)
    assert made.is_shutdown and made.get() == 1
    with pytest.raises(stock.ShutDown):
        made.get()
    other = ours.LifoQueue()
    other.put(1)
    other.shutdown(immediate=True)
    with pytest.raises(stock.ShutDown):
        other.get()
    assert ended == [1]


def test_a_queue_works_in_a_child_forked_while_others_wait_for_it():
    made = ours.Queue()
    thread = threading.Thread(target=made.get, daemon=True)
    thread.start()
    while not len(made.not_empty._waiters):
        time.sleep(0.001)
    pid = os.fork()
    if pid == 0:
        try:
            threading.Timer(0.05, made.put, (5,)).start()
            os._exit(0 if made.get(timeout=20) == 5 else 1)
        finally:
            os._exit(2)
    assert os.waitpid(pid, 0)[1] == 0
    made.put(None)
    thread.join(20)
    assert not thread.is_alive()
