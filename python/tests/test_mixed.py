"""Both sides mixed: objects of the standard library beside ours, ``install()`` at odd moments, forks by hand, others' children.

Each program runs in an interpreter of its own under ``-W error``, and must end in order and without a word.
"""

import os
import signal
import subprocess
import sys
import textwrap

import pytest

METHODS = ("fork", "spawn", "forkserver")

methods = pytest.mark.parametrize("method", METHODS)


@pytest.fixture
def run(tmp_path):
    """Return a function that runs a program; what it prints is returned."""

    def go(text, *args):
        path = tmp_path / "program.py"
        path.write_text(textwrap.dedent(text))
        program = subprocess.Popen(
            [sys.executable, "-W", "error", str(path), *args],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        try:
            out, err = program.communicate(timeout=90)
        except subprocess.TimeoutExpired:
            os.killpg(program.pid, signal.SIGABRT)
            out, err = program.communicate()
            raise AssertionError(f"it hangs\n{out}\n{err}") from None
        assert (program.returncode, err) == (0, ""), f"{program.returncode}\n{out}\n{err}"
        return out

    return go


# ---- locks and queues of both kinds ----


@methods
def test_a_stock_lock_beside_our_queue(run, method):
    out = run(
        """
        import multiprocessing, sys
        context = multiprocessing.get_context(sys.argv[1])
        if __name__ == "__main__":
            stock = context.Lock(), context.Semaphore(0), context.Value("i", 0)
            import phalanx; phalanx.install()

        def work(lock, semaphore, total, queue, ours):
            for number in range(50):
                with lock, ours:
                    total.value += 1
                queue.put(number)
            semaphore.release()

        if __name__ == "__main__":
            queue, ours = context.Queue(), context.Lock()
            kinds = [type(one).__module__ for one in (stock[0], queue, ours)]
            processes = [context.Process(target=work, args=(*stock, queue, ours)) for _ in range(2)]
            for process in processes: process.start()
            got = [queue.get(timeout=60) for _ in range(100)]
            assert all(stock[1].acquire(timeout=60) for _ in range(2))
            for process in processes: process.join()
            print(*kinds, stock[2].value, sum(got))
        """,
        method,
    )
    assert out == "multiprocessing.synchronize phalanx.queues phalanx.synchronize 100 2450\n"


@methods
def test_objects_and_subclasses_from_before_reach_the_children(run, method):
    out = run(
        """
        import multiprocessing, sys
        from multiprocessing import queues, shared_memory
        context = multiprocessing.get_context(sys.argv[1])

        class MyQueue(queues.Queue):
            def put_twice(self, value):
                self.put(value); self.put(value)

        class MySimple(queues.SimpleQueue):
            pass

        def work(lock, queue, simple, mine, event, barrier, joinable, memory, number):
            with lock:
                queue.put_twice(number)
            with mine:
                simple.put(number)
            memory.buf[number] = number + 1
            barrier.wait(60)
            if event.wait(60):
                joinable.get(timeout=60); joinable.task_done()
            memory.close()

        if __name__ == "__main__":
            memory = shared_memory.SharedMemory(create=True, size=8)
            made = (context.Lock(), MyQueue(ctx=context), MySimple(ctx=context), context.RLock(), context.Event(),
                context.Barrier(2), context.JoinableQueue(), memory)
            import phalanx; phalanx.install()
            processes = [context.Process(target=work, args=(*made, number)) for number in range(2)]
            for process in processes: process.start()
            made[4].set(); made[6].put("a"); made[6].put("b")
            got = sorted([made[1].get(timeout=60) for _ in range(4)]), sorted(made[2].get() for _ in range(2))
            made[6].join()
            for process in processes: process.join(); assert process.exitcode == 0
            print(*got, bytes(memory.buf[:2]))
            memory.close(); memory.unlink()
        """,
        method,
    )
    assert out == "[0, 0, 1, 1] [0, 1] b'\\x01\\x02'\n"


@methods
@pytest.mark.parametrize("whose", ["stock condition, our lock", "our condition, stock lock"])
def test_a_condition_over_a_lock_of_the_other_kind(run, method, whose):
    out = run(
        """
        import multiprocessing, sys
        from multiprocessing import synchronize
        context = multiprocessing.get_context(sys.argv[1])
        Stock = synchronize.Condition
        if __name__ == "__main__":
            stock_lock = context.RLock()
            import phalanx; phalanx.install()

        def turn(condition, turns, mine):
            for _ in range(20):
                with condition:
                    assert condition.wait_for(lambda: turns.value % 2 == mine, timeout=60)
                    turns.value += 1
                    condition.notify_all()

        if __name__ == "__main__":
            if sys.argv[2].startswith("stock"):
                condition = Stock(context.Lock(), ctx=context)
            else:
                condition = context.Condition(stock_lock)
            turns = context.RawValue("i", 0)
            processes = [context.Process(target=turn, args=(condition, turns, mine)) for mine in range(2)]
            for process in processes: process.start()
            for process in processes: process.join()
            print(type(condition).__module__, type(condition._lock).__module__, turns.value)
        """,
        method,
        whose,
    )
    kinds = "multiprocessing.synchronize phalanx.synchronize", "phalanx.synchronize multiprocessing.synchronize"
    assert out == f"{kinds[whose.startswith('our')]} 40\n"


def test_threads_with_locks_of_both_kinds(run):
    out = run(
        """
        import queue, threading
        Stock = threading.Condition
        stock_lock, stock_rlock = threading.Lock(), threading.RLock()
        import phalanx; phalanx.install()
        from phalanx import _engine

        def hand_over(condition):
            turns = [0]
            def turn(mine):
                for _ in range(200):
                    with condition:
                        assert condition.wait_for(lambda: turns[0] % 2 == mine, 60)
                        turns[0] += 1
                        condition.notify()
            threads = [threading.Thread(target=turn, args=(mine,)) for mine in range(2)]
            for thread in threads: thread.start()
            for thread in threads: thread.join()
            return turns[0]

        assert issubclass(threading.Condition, _engine.ThreadCondition) and not issubclass(Stock, _engine.ThreadCondition)
        print(*[hand_over(threading.Condition(lock)) for lock in (stock_lock, stock_rlock, threading.Lock())])
        ours = queue.Queue()
        print(hand_over(Stock(ours.mutex)), hand_over(Stock(threading.RLock())))
        # The idiom of many programs: parts of one queue replaced by stock ones.
        ours.mutex = stock_lock
        ours.not_empty, ours.not_full, ours.all_tasks_done = (Stock(stock_lock) for _ in range(3))
        feeder = threading.Thread(target=lambda: [ours.put(n) for n in range(100)])
        feeder.start()
        print(sum(ours.get(timeout=60) for _ in range(100)))
        feeder.join()
        """
    )
    assert out == "400 400 400\n400 400\n4950\n"


# ---- install() late, twice, undone ----

EVERYTHING = """
import concurrent.futures, logging, multiprocessing, sys, threading
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor

def double(x):
    return 2 * x

def put(queue, lock, value):
    with lock:
        queue.put(value)

def everything(method):
    "Use a bit of all; return the modules that the classes came from."
    context = multiprocessing.get_context(method)
    queue, lock = context.Queue(), context.Lock()
    process = context.Process(target=put, args=(queue, lock, "hello"))
    process.start()
    assert queue.get(timeout=60) == "hello"
    process.join()
    with context.Pool(2) as pool:
        assert pool.map(double, range(10)) == list(range(0, 20, 2))
    with concurrent.futures.ProcessPoolExecutor(2, mp_context=context) as executor:
        assert list(executor.map(double, range(10))) == list(range(0, 20, 2))
    with ThreadPoolExecutor(2) as threads:
        assert list(threads.map(double, range(10))) == list(range(0, 20, 2))
    with context.Manager() as manager:
        shared = manager.dict(a=1)
        assert shared.copy() == {"a": 1}
    return [type(one).__module__.partition(".")[0] for one in (queue, lock, pool, executor, manager, shared)]
"""


@methods
def test_installed_late(run, method):
    out = run(
        EVERYTHING
        + textwrap.dedent(
            """
        import asyncio, logging.config, logging.handlers
        import multiprocessing.dummy, multiprocessing.managers, multiprocessing.pool, multiprocessing.shared_memory
        import queue, socketserver
        early = logging.getLogger("early"), ThreadPoolExecutor(1)
        early[1].submit(double, 1).result()

        if __name__ == "__main__":
            import phalanx; phalanx.install()
            print(*everything(sys.argv[1]))
            # A log of the processes: the handler's queue is ours, the listener's thread and all locks of logging are older.
            records = []
            class Keep(logging.Handler):
                def emit(self, record): records.append(record.getMessage())
            queue = multiprocessing.get_context(sys.argv[1]).Queue()
            listener = logging.handlers.QueueListener(queue, Keep())
            listener.start()
            early[0].addHandler(logging.handlers.QueueHandler(queue))
            early[0].warning("from %s", "here")
            listener.stop()
            print(records, type(queue).__module__, early[1].submit(double, 21).result())
            early[1].shutdown()
        """
        ),
        method,
    )
    assert out == "phalanx phalanx phalanx phalanx phalanx phalanx\n['from here'] phalanx.queues 42\n"


@methods
def test_installed_twice_and_undone(run, method):
    out = run(
        EVERYTHING
        + textwrap.dedent(
            """
        if __name__ == "__main__":
            import phalanx
            method = sys.argv[1]
            context = multiprocessing.get_context(method)
            print(*everything(method))
            for _ in range(2):
                phalanx.install(); phalanx.install()
                print(*everything(method))
                # Made now, used when all is undone.
                queue, lock, pool = context.Queue(), context.Lock(), context.Pool(1)
                phalanx.uninstall(); phalanx.uninstall()
                print(*everything(method))
                process = context.Process(target=put, args=(queue, lock, "still here"))
                process.start()
                print(queue.get(timeout=60), pool.apply(double, (4,)))
                process.join(); pool.close(); pool.join()
        """
        ),
        method,
    )
    stock = "multiprocessing multiprocessing multiprocessing concurrent multiprocessing multiprocessing\n"
    ours = "phalanx phalanx phalanx phalanx phalanx phalanx\n"
    assert out == stock + 2 * (ours + stock + "still here 8\n")


def test_classes_captured_before_still_work_after(run):
    out = run(
        """
        from concurrent.futures import ProcessPoolExecutor
        from multiprocessing import Event, Lock, Process, Queue, Value
        from multiprocessing.pool import Pool
        from multiprocessing.queues import Queue as QueueClass
        from queue import Queue as ThreadQueue
        from threading import Event as ThreadEvent, Lock as ThreadLock

        def work(queue, lock, event, value):
            event.wait()
            with lock, value.get_lock():
                queue.put(value.value)

        if __name__ == "__main__":
            import phalanx; phalanx.install()
            queue, lock, event, value = Queue(), Lock(), Event(), Value("i", 5)
            process = Process(target=work, args=(queue, lock, event, value))
            process.start(); event.set()
            print(queue.get(timeout=60), type(queue).__module__, type(lock).__module__)
            process.join()
            # The classes themselves were the stock ones, and stay that.
            with Pool(1) as pool, ProcessPoolExecutor(1) as executor:
                print(pool.apply(abs, (-1,)), executor.submit(abs, -2).result(), isinstance(queue, QueueClass))
            one, done = ThreadQueue(), ThreadEvent()
            one.put(1); done.set()
            with ThreadLock():
                print(one.get(), done.wait())
        """
    )
    assert out == "5 phalanx.queues phalanx.synchronize\n1 2 True\n1 True\n"


@methods
@pytest.mark.parametrize("when", ["object from before", "class from before"])
def test_own_locks_derived_before_install(run, method, when):
    """The child defines the classes again, over ours by then; the object is what it is here."""
    out = run(
        """
        import multiprocessing, sys
        from multiprocessing import synchronize
        context, when = multiprocessing.get_context(sys.argv[1]), sys.argv[2]

        class Counted:
            def __enter__(self):
                return super().__enter__()

        class MyLock(Counted, synchronize.Lock):
            def __init__(self, note="none", **rest):
                super().__init__(ctx=context, **rest)

            @property
            def free(self):
                return self.acquire(False) and (self.release() or True)

        class Below(MyLock):
            pass

        class MyCondition(synchronize.Condition):
            def wake(self):
                with self: self.notify_all()

        class MyEvent(synchronize.Event): pass
        class MySemaphore(synchronize.BoundedSemaphore): pass
        class MyRLock(synchronize.RLock): pass
        class MyBarrier(synchronize.Barrier): pass

        def make():
            rest = (kind(ctx=context) for kind in (MyCondition, MyEvent, MyRLock))
            return (Below(), *rest, MySemaphore(2, ctx=context), MyBarrier(2, ctx=context))

        def work(lock, condition, event, rlock, semaphore, barrier):
            with lock, rlock, semaphore:
                assert isinstance(lock, MyLock) and type(lock).__name__ == "Below"
                condition.wake()
            event.set()
            barrier.wait(60)

        if __name__ == "__main__":
            made = make() if when.startswith("object") else None
            import phalanx; phalanx.install()
            made = made or make()
            lock, condition, event, rlock, semaphore, barrier = made
            assert lock.free
            process = context.Process(target=work, args=made)
            with condition:
                process.start()
                print(condition.wait(60), event.wait(60), barrier.wait(60) in (0, 1))
            process.join()
            print(process.exitcode, lock.free, semaphore.get_value())
        """,
        method,
        when,
    )
    assert out == "True True True\n0 True 2\n"


@methods
def test_stock_classes_taken_by_name_before_install(run, method):
    out = run(
        """
        import multiprocessing, sys
        from multiprocessing.queues import JoinableQueue, Queue, SimpleQueue
        from multiprocessing.synchronize import Barrier, BoundedSemaphore, Condition, Event, Lock, RLock, Semaphore
        context = multiprocessing.get_context(sys.argv[1])

        def work(queue, joinable, simple, barrier, bounded, condition, event, lock, rlock, semaphore):
            with bounded, lock, rlock, semaphore:
                queue.put(joinable.get(timeout=60)); joinable.task_done(); simple.put("simple")
            with condition: condition.notify_all()
            event.set(); barrier.wait(60)

        if __name__ == "__main__":
            import phalanx; phalanx.install()
            queues = [kind(ctx=context) for kind in (Queue, JoinableQueue, SimpleQueue)]
            barrier, bounded = Barrier(2, ctx=context), BoundedSemaphore(1, ctx=context)
            condition, event, lock, rlock = (kind(ctx=context) for kind in (Condition, Event, Lock, RLock))
            semaphore = Semaphore(1, ctx=context)
            process = context.Process(
                target=work, args=(*queues, barrier, bounded, condition, event, lock, rlock, semaphore)
            )
            queues[1].put("joinable")
            with condition:
                process.start()
                print(condition.wait(60), event.wait(60), queues[0].get(timeout=60), queues[2].get())
            barrier.wait(60); queues[1].join(); process.join()
            print(process.exitcode)
        """,
        method,
    )
    assert out == "True True joinable simple\n0\n"


# ---- threads that were there before ----


@methods
def test_threads_started_before(run, method):
    out = run(
        """
        import multiprocessing, queue, sys, threading
        from concurrent.futures import ThreadPoolExecutor

        def double(x):
            return 2 * x

        if __name__ == "__main__":
            event, condition, items, results = threading.Event(), threading.Condition(), queue.Queue(), []
            def on_event(): results.append(event.wait(60))
            def on_condition():
                with condition: results.append(condition.wait(60))
            def on_queue(): results.append(items.get(timeout=60))
            threads = [threading.Thread(target=one) for one in (on_event, on_condition, on_queue)]
            for thread in threads: thread.start()
            executor = ThreadPoolExecutor(2)
            waiting = executor.submit(event.wait, 60)

            import phalanx; phalanx.install()
            context = multiprocessing.get_context(sys.argv[1])
            with context.Pool(2) as pool:
                print(pool.map(double, range(5)))
            event.set(); items.put(True)
            while not condition._waiters: pass
            with condition: condition.notify_all()
            for thread in threads: thread.join()
            print(results, waiting.result(), executor.submit(double, 3).result())
            executor.shutdown()
        """,
        method,
    )
    assert out == "[0, 2, 4, 6, 8]\n[True, True, True] True 6\n"


# ---- threads that are somebody else's ----

# What gevent does, by its names: threads that are not the system's, and classes that nothing of ours can derive from.
GREEN = """
import queue, sys, threading, _thread

class Green(dict):
    __slots__ = ()

def start_new_thread(*args): raise RuntimeError("green")

def patch_all():
    for module in (_thread, threading):
        for name in ("start_new_thread", "start_joinable_thread", "_start_new_thread", "_start_joinable_thread"):
            if hasattr(module, name):
                setattr(module, name, start_new_thread)
    threading.Event = queue.Queue = Green
"""


@pytest.mark.parametrize("when", ["patched before", "imported before", "all after"])
def test_others_threads(run, tmp_path, when):
    (tmp_path / "gevent").mkdir()
    (tmp_path / "gevent" / "__init__.py").write_text("")
    (tmp_path / "gevent" / "monkey.py").write_text(GREEN)
    text = """
        import sys
        when = sys.argv[1]
        import queue, threading, multiprocessing
        before = threading.Condition, threading.Barrier, queue.LifoQueue
        def patch():
            from gevent import monkey
            monkey.patch_all()
        if when == "patched before": patch()
        if when == "imported before": import gevent.monkey
        import phalanx; phalanx.install()
        ours = threading.Condition is not before[0]
        patch()
        assert (threading.Condition, threading.Barrier, queue.LifoQueue) == before
        assert threading.Event.__name__ == queue.Queue.__name__ == "Green"
        # What is for processes stays ours.
        context = multiprocessing.get_context("fork")
        items, lock, barrier = context.SimpleQueue(), context.Lock(), context.Barrier(1)
        items.put(1)
        with lock: print(items.get(), type(items).__module__, type(lock).__module__, barrier.wait(), ours)
        import logging, multiprocessing.managers, multiprocessing.pool
        phalanx.uninstall()
        assert (threading.Condition, threading.Barrier, queue.LifoQueue) == before
        assert threading.Event.__name__ == queue.Queue.__name__ == "Green"
    """
    out = run(text, when)
    assert out == f"1 phalanx.queues phalanx.synchronize 0 {when == 'all after'}\n"


# ---- forks by hand, and others' children ----


def test_forks_by_hand_at_any_time(run):
    out = run(
        """
        import multiprocessing, os, sys, warnings
        # Said of any fork with threads alive, the standard library's pools included.
        warnings.filterwarnings("ignore", message=".*use of fork.*", category=DeprecationWarning)
        import phalanx; phalanx.install()
        context = multiprocessing.get_context("fork")

        def double(x):
            return 2 * x

        def fork(what):
            pid = os.fork()
            if pid == 0:
                try:
                    what()
                    sys.stdout.flush()
                    os._exit(0)
                finally:
                    os._exit(1)
            assert os.waitpid(pid, 0)[1] == 0

        queue, lock, event, value = context.Queue(), context.RLock(), context.Event(), context.Value("i", 0)
        pool = context.Pool(2)
        assert pool.apply(double, (1,)) == 2

        def uses_what_is_there():
            with lock:
                value.value += 1
            queue.put(os.getpid() != 0)
            event.set()

        def has_a_pool_of_its_own():
            with context.Pool(2) as mine:
                queue.put(mine.map(double, range(3)))

        def has_a_child_that_forks():
            process = context.Process(target=fork, args=(uses_what_is_there,))
            process.start(); process.join()
            assert process.exitcode == 0

        def cannot_use_its_parents_pool():
            try:
                pool.apply(double, (1,))
            except Exception as error:
                queue.put(type(error).__name__)

        for what in (uses_what_is_there, has_a_pool_of_its_own, has_a_child_that_forks, cannot_use_its_parents_pool):
            fork(what)
        print([queue.get(timeout=60) for _ in range(4)], event.is_set(), value.value, pool.apply(double, (5,)))
        pool.close(); pool.join()
        """
    )
    assert out == "[True, [0, 2, 4], True, 'RuntimeError'] True 2 10\n"


@methods
def test_subprocess_beside_us(run, method):
    out = run(
        """
        import multiprocessing, os, subprocess, sys
        import phalanx; phalanx.install()

        def shell(code):
            return subprocess.run(["sh", "-c", f"echo out; echo err >&2; exit {code}"], capture_output=True).returncode

        def descriptors():
            listed = subprocess.run(["ls", "/proc/self/fd"], capture_output=True, text=True, close_fds=False).stdout
            return len(listed.split())

        if __name__ == "__main__":
            before = descriptors()
            context = multiprocessing.get_context(sys.argv[1])
            slow = subprocess.Popen(["sleep", "60"])
            queue, lock = context.Queue(), context.Lock()
            with context.Pool(2) as pool:
                # Ours are not handed on, not even to who closes nothing.
                assert descriptors() == before, (before, descriptors())
                print(pool.map(shell, range(6)), [shell(code) for code in range(3)])
            slow.terminate()
            print(slow.wait(), subprocess.run(["sh", "-c", "kill -9 $$"]).returncode)
        """,
        method,
    )
    assert out == "[0, 1, 2, 3, 4, 5] [0, 1, 2]\n-15 -9\n"


@methods
def test_a_program_that_collects_every_child_itself(run, method):
    """As servers do in a handler of SIGCHLD: our children's exit codes are gone then, and nothing may wait for them."""
    out = run(
        """
        import multiprocessing, os, signal, sys
        import phalanx; phalanx.install()

        def collect(*_):
            try:
                while os.waitpid(-1, os.WNOHANG)[0]: pass
            except ChildProcessError:
                pass

        def double(x):
            return 2 * x

        if __name__ == "__main__":
            signal.signal(signal.SIGCHLD, collect)
            context = multiprocessing.get_context(sys.argv[1])
            pool = context.Pool(2, maxtasksperchild=3)
            print(pool.map(double, range(20), chunksize=1))
            pool.close(); pool.join()
        """,
        method,
    )
    assert out == f"{[2 * x for x in range(20)]}\n"


# ---- warnings that are errors ----


@methods
def test_a_bit_of_all_says_nothing(run, method):
    out = run(
        EVERYTHING
        + textwrap.dedent(
            """
        from multiprocessing import shared_memory

        def attach(name):
            memory = shared_memory.SharedMemory(name)
            memory.buf[0] += 1
            memory.close()

        if __name__ == "__main__":
            import phalanx; phalanx.install()
            print(*everything(sys.argv[1]))
            context = multiprocessing.get_context(sys.argv[1])
            memory = shared_memory.SharedMemory(create=True, size=16)
            process = context.Process(target=attach, args=(memory.name,))
            process.start(); process.join()
            print(memory.buf[0])
            memory.close(); memory.unlink()
            # Left as they are at the end.
            left = context.Queue(), context.Pool(1), concurrent.futures.ProcessPoolExecutor(1, mp_context=context)
            left[0].put(b"x" * 1000000)
            print(left[1].apply(double, (1,)), left[2].submit(double, 2).result())
        """
        ),
        method,
    )
    assert out == "phalanx phalanx phalanx phalanx phalanx phalanx\n1\n2 4\n"
