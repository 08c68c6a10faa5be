"""Queues: what goes through them, and what deaths, time-outs and exits do to them."""

import asyncio
import collections
import copyreg
import gc
import multiprocessing as mp
import os
import pickle
import queue as local_queue
import random
import signal
import subprocess
import sys
import threading
import time

import pytest

import phalanx
from phalanx import _engine, queues
from phalanx.connection import wait

np = pytest.importorskip("numpy", reason="large buffers are numpy's")

fork = mp.get_context("fork")


@pytest.fixture(autouse=True, scope="module")
def in_place():
    phalanx.install()
    yield
    phalanx.uninstall()


def make(maxsize=0):
    return queues.Queue(maxsize, ctx=fork)


def make_simple():
    return queues.SimpleQueue(ctx=fork)


def make_joinable(maxsize=0):
    return queues.JoinableQueue(maxsize, ctx=fork)


def through(obj):
    queue = make()
    queue.put(obj)
    return queue.get(timeout=30)


def run(target, *args):
    process = fork.Process(target=target, args=args)
    process.start()
    return process


def script(code, timeout=60):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=timeout)


class Point:
    def __init__(self, x):
        self.x = x

    def __eq__(self, other):
        return type(other) is Point and other.x == self.x

    __hash__ = None


PLAIN = [
    None,
    True,
    False,
    0,
    -1,
    63,
    64,
    2**31,
    -(2**63),
    2**63 - 1,
    2**63,
    -(2**200),
    0.0,
    -1.5,
    float("inf"),
    "",
    "a",
    "é\U0001f600",
    "\ud800",
    "x" * 100_000,
    b"",
    b"\0\xff",
    b"y" * 1023,
    b"y" * 1024,
    b"y" * 1535,
    b"y" * 1536,
    b"y" * 3_000_000,
    bytearray(b"z" * 10),
    bytearray(b"z" * 3_000_000),
    (),
    (1,),
    [],
    {},
    [1, [2, (3, {"k": [4]})]],
    {1: "a", "b": (None, True), (1, 2): b"c"},
    {1, 2},
    frozenset([1]),
    1 + 2j,
    range(5),
    collections.OrderedDict(a=1),
    Point(3),
    [Point([1, 2]), "text"],
    list(range(5000)),
    {str(i): i for i in range(2000)},
]


@pytest.mark.parametrize("value", PLAIN, ids=lambda value: f"{type(value).__name__}-{str(value)[:12]!r}")
def test_value_arrives_equal_and_of_its_type(value):
    got = through(value)
    assert type(got) is type(value)
    assert got == value


def test_nan_and_negative_zero():
    assert through(float("nan")) != through(float("nan"))
    assert str(through(-0.0)) == "-0.0"


class SubInt(int):
    pass


class SubList(list):
    pass


@pytest.mark.parametrize("value", [SubInt(3), SubList([1]), np.float64(1.5), collections.Counter("aab")])
def test_subclass_keeps_its_class(value):
    got = through(value)
    assert type(got) is type(value)
    assert got == value


def test_shared_references_stay_shared():
    item = [1]
    first, (second,), third = through([item, (item,), {"k": item}])
    assert first is second is third["k"]
    text = "".join(["some", "text"])
    left, right = through((text, text))
    assert left is right
    point = Point(1)
    one, two = through([point, point])
    assert one is two


def test_distinct_equal_objects_stay_distinct():
    one, two = through([[1], [1]])
    assert one is not two


def test_recursion():
    endless = [1]
    endless.append(endless)
    got = through(endless)
    assert got[1] is got
    table = {}
    table["self"] = table
    got = through(table)
    assert got["self"] is got
    inner = []
    knot = (inner,)
    inner.append(knot)
    got = through(knot)
    assert got[0][0] is got


def test_deep_nesting():
    value = 0
    for _ in range(200):
        value = [value]
    assert through(value) == value


def test_what_is_read_twice_is_not_mixed_up():
    rng = random.Random(7)

    def plain(depth):
        kind = rng.randrange(9 if depth else 6)
        if kind == 0:
            return rng.choice([None, True, False])
        if kind == 1:
            return rng.randrange(-(2 ** rng.randrange(1, 70)), 2 ** rng.randrange(1, 70))
        if kind == 2:
            return rng.random()
        if kind == 3:
            return "".join(chr(rng.randrange(32, 1000)) for _ in range(rng.randrange(20)))
        if kind in (4, 5):
            return rng.randbytes(rng.randrange(50))
        if kind == 6:
            return [plain(depth - 1) for _ in range(rng.randrange(5))]
        if kind == 7:
            return tuple(plain(depth - 1) for _ in range(rng.randrange(5)))
        return {rng.randrange(100): plain(depth - 1) for _ in range(rng.randrange(5))}

    queue = make()
    values = [plain(4) for _ in range(3000)]
    for value in values:
        queue.put(value)
    got = [queue.get() for _ in values]
    assert got == values
    assert [pickle.dumps(one) for one in map(type, got)] == [pickle.dumps(one) for one in map(type, values)]


def test_reducers_of_third_parties_count():
    class Gadget:
        pass

    mp.reduction.ForkingPickler.register(Gadget, lambda gadget: (str, ("reduced",)))
    assert through(Gadget()) == "reduced"
    assert through([1, Gadget()]) == [1, "reduced"]

    class Gizmo:
        pass

    copyreg.pickle(Gizmo, lambda gizmo: (str, ("copyreg",)))
    try:
        assert through(Gizmo()) == "copyreg"
    finally:
        del copyreg.dispatch_table[Gizmo]


def test_pickling_may_use_queues_itself():
    inner = make()

    class Nested:
        def __reduce__(self):
            inner.put([1, Point(2)])
            return (tuple, (inner.get(),))

    assert through(Nested()) == (1, Point(2))


# --- large buffers


@pytest.mark.parametrize(
    "array",
    [
        np.arange(10),
        np.arange(1_000_000),
        np.zeros((0, 3)),
        np.ones((300, 301), order="F"),
        np.arange(90_000).reshape(300, 300)[::2, ::3],
        np.arange(100_000)[::-1],
        np.array(["a", "bc"]),
        np.array([{"a": 1}, None], dtype=object),
        np.zeros(50_000, dtype=[("a", "i4"), ("b", "f8")]),
    ],
    ids=lambda array: f"{array.shape}-{array.dtype}",
)
def test_array_arrives_whole_and_writable(array):
    got = through(array)
    assert got.dtype == array.dtype and got.shape == array.shape
    assert (got == array).all()
    assert got.flags.writeable
    if got.size:
        got[0] = got[-1]


def test_read_only_array_stays_read_only():
    array = np.arange(100_000)
    array.flags.writeable = False
    assert not through(array).flags.writeable


def test_sender_and_receiver_do_not_share():
    array = np.arange(100_000)
    got = through(array)
    array[:] = 0
    assert got[99_999] == 99_999
    got[:] = 1
    assert not array.any()


def test_several_arrays_in_one_message():
    arrays = [np.full(50_000, n) for n in range(5)]
    message = through({"all": arrays, "first": arrays[0], "rest": "x" * 100})
    assert all((one == two).all() for one, two in zip(message["all"], arrays))
    assert message["first"] is message["all"][0]


def test_memory_comes_back_with_the_last_view():
    queue = make()
    queue.put(np.arange(1_000_000))
    queue.put(np.arange(1_000_000))
    before = _engine.usage()[1]
    got = queue.get()
    view = got[10:20]
    del got
    gc.collect()
    assert _engine.usage()[1] >= before - 1_000_000
    assert view.sum() == sum(range(10, 20))
    del view
    gc.collect()
    assert _engine.usage()[1] <= before - 7_000_000


def test_fork_keeps_received_arrays_apart():
    got = through(np.arange(1_000_000))
    reader, writer = fork.Pipe(duplex=False)
    gone = fork.Event()

    def child():
        assert gone.wait(30)
        assert got[999_999] == 999_999
        got[:] = 7
        writer.send(int(got.sum()))

    process = run(child)
    got[:] = 3
    assert (got == 3).all()
    del got
    # What the parent let go may be anybody's now, but not while the child looks at it.
    others = [through(np.full(1_000_000, 9)) for _ in range(4)]
    gone.set()
    assert reader.poll(30) and reader.recv() == 7_000_000
    process.join(30)
    assert process.exitcode == 0
    assert all((other == 9).all() for other in others)


def test_shared_payload_is_copied_once_and_private_to_each_receiver():
    array = np.arange(2_000_000)
    shared = _engine.Shared({"array": array, "name": "n"})
    before = _engine.usage()[1]
    queue, back = make(), make()

    def child():
        for _ in range(3):
            got = queue.get()
            assert got["name"] == "n" and got["array"][1] == 1
            got["array"][1] = -5
            back.put(int(got["array"].sum()))

    for _ in range(6):
        queue.put(shared)
    assert _engine.usage()[1] - before < 100_000
    processes = [run(child), run(child)]
    expected = int(array.sum()) - 6
    assert [back.get(timeout=60) for _ in range(6)] == [expected] * 6
    for process in processes:
        process.join(30)
    assert shared.get()["array"][1] == 1
    assert _engine.Shared([1, 2]).get() == [1, 2]


def test_two_and_a_half_gigabytes():
    if os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") < 8 << 30:
        pytest.skip("needs 8 GB of free memory")
    array = np.zeros(2_500_000_000, dtype=np.uint8)
    array[-1] = 7
    got = through(array)
    assert got.size == array.size and got[-1] == 7


# --- bounds, time-outs, closing


def test_bounds_count_items():
    queue = make(2)
    queue.put(b"x" * 5000)
    assert not queue.full() and queue.qsize() == 1
    queue.put(2, timeout=1)
    assert queue.full() and queue.qsize() == 2
    for put in (lambda: queue.put(3, False), lambda: queue.put_nowait(3), lambda: queue.put(3, True, 0.02)):
        with pytest.raises(local_queue.Full):
            put()
    with pytest.raises(local_queue.Full):
        queue.put(3, timeout=-1)
    queue.get()
    queue.put(3)
    assert [queue.get(), queue.get()] == [2, 3]
    assert queue.empty() and not queue.full()


def test_a_full_queue_does_not_pickle():
    queue = make(1)
    queue.put(1)

    class Loud:
        def __reduce__(self):
            raise AssertionError("pickled for a full queue")

    with pytest.raises(local_queue.Full):
        queue.put(Loud(), False)


def test_empty_in_time():
    queue = make()
    for get in (lambda: queue.get(False), queue.get_nowait, lambda: queue.get(True, 0.02), lambda: queue.get(timeout=-3)):
        with pytest.raises(local_queue.Empty):
            get()
    with pytest.raises(ValueError):
        queue.get(timeout=float("nan"))


def test_time_out_is_kept_while_others_take():
    queue = make()
    stop = threading.Event()

    def churn():
        while not stop.is_set():
            queue.put(1)
            queue.get()

    thread = threading.Thread(target=churn)
    thread.start()
    try:
        got = 0
        for _ in range(50):
            try:
                queue.get(timeout=0.001)
                queue.put(1)
                got += 1
            except local_queue.Empty:
                pass
    finally:
        # One item may be missing for the other.
        queue.put(1)
        stop.set()
        thread.join()


def test_closed_in_this_process_only():
    queue = make()
    queue.put(1)
    queue.close()
    for use in (lambda: queue.put(2), queue.get, queue.get_nowait):
        with pytest.raises(ValueError, match="is closed"):
            use()
    queue.join_thread()
    with pytest.raises(OSError, match="is closed"):
        queue.empty()
    unused = make()
    unused.close()
    assert unused.empty()
    with pytest.raises(AssertionError):
        make().join_thread()


def test_unpicklable_goes_to_the_hook():
    class Careful(queues.Queue):
        seen = []

        @staticmethod
        def _on_queue_feeder_error(error, obj):
            Careful.seen.append((error, obj))

    queue = Careful(1, ctx=fork)
    bad = lambda: 1  # noqa: E731
    queue.put(bad)
    assert queue.empty()
    queue.put(5)
    assert queue.get() == 5
    ((error, obj),) = Careful.seen
    assert isinstance(error, (pickle.PicklingError, AttributeError)) and obj is bad


def test_unpicklable_is_reported(capfd):
    queue = make()
    queue.put(lambda: 1)
    assert queue.empty()
    assert "Traceback" in capfd.readouterr().err


def test_simple_queue_raises_what_pickling_raises():
    queue = make_simple()
    with pytest.raises((pickle.PicklingError, AttributeError)):
        queue.put(lambda: 1)
    assert queue.empty()
    queue.put(1)
    assert not queue.empty() and queue.get() == 1
    queue.close()
    with pytest.raises(OSError, match="handle is closed"):
        queue.put(1)


def test_what_cannot_be_unpickled_is_gone():
    class Trap:
        def __reduce__(self):
            return (int, ("not a number",))

    queue = make()
    queue.put(Trap())
    queue.put(2)
    with pytest.raises(ValueError):
        queue.get()
    assert queue.get() == 2


def test_garbage_is_an_error():
    queue = make()
    for bytes_ in (b"", b"nonsense", b"\x80\x05", b"." * 5000):
        queue._writer.send_bytes(bytes_)
        with pytest.raises((pickle.UnpicklingError, EOFError, IndexError, ValueError)):
            queue.get(timeout=10)


# --- joinable


def test_join_waits_for_every_task():
    queue = make_joinable()

    def worker():
        while queue.get() is not None:
            queue.task_done()
        queue.task_done()

    processes = [run(worker) for _ in range(3)]
    for item in range(300):
        queue.put(item)
    queue.join()
    for _ in processes:
        queue.put(None)
    queue.join()
    for process in processes:
        process.join(30)
        assert process.exitcode == 0
    with pytest.raises(ValueError):
        queue.task_done()


def test_tasks_may_be_finished_elsewhere():
    queue = make_joinable()
    queue.put(1)
    queue.get()
    process = run(queue.task_done)
    process.join(30)
    assert process.exitcode == 0
    queue.join()


# --- as the standard library's


def test_ends_and_insides_as_the_standard_library_has_them():
    queue = make(5)
    assert isinstance(queue, mp.queues.Queue) or isinstance(queue, queues._StockQueue)
    queue._writer.send_bytes(pickle.dumps([1]))
    assert queue.get() == [1]
    for value in (1, "a", Point(1), b"z" * 5000, np.arange(3)):
        queue.put(value)
        data = queue._reader.recv_bytes()
        got = pickle.loads(data)
        assert type(got) is type(value)
    assert not queue._reader.poll() and not queue._poll(0.01)
    queue.put(3)
    assert queue._reader.poll(5) and queue._reader.recv() == 3
    with queue._rlock, queue._wlock:
        assert queue._sem._semlock._get_value() == 5
    queue._reader.close()
    assert queue._reader.closed
    with pytest.raises(AttributeError):
        queue._nonsense


def test_descriptor_polls_readable_while_there_are_items():
    queue = make()
    fd = queue._reader.fileno()
    assert wait([fd], 0) == []
    queue.put(1)
    queue.put(2)
    assert wait([fd], 30) == [fd]
    queue.get()
    assert wait([fd], 0) == [fd]
    queue.get()
    while wait([fd], 0):
        # News of the second item that came late.
        queue._settle()
    assert wait([queue], 0) == []
    process = run(queue.put, 3)
    assert wait([queue, process.sentinel, fd], 30)
    process.join(30)
    assert queue.get(timeout=30) == 3


def test_a_bell_that_is_not_heard_keeps_nobody_waiting():
    queue = make()
    queue._reader.fileno()
    for _ in range(20):
        process = run(queue.get)
        time.sleep(0.01)
        queue.put(1)
        process.join(30)
        assert process.exitcode == 0


class Counting(queues.Queue):
    # The well-known recipe for a queue with a state of its own.
    def __init__(self, *args):
        super().__init__(*args, ctx=fork)
        self.size = 0

    def __getstate__(self):
        return {"parent": super().__getstate__(), "size": self.size}

    def __setstate__(self, state):
        super().__setstate__(state["parent"])
        self.size = state["size"]

    def put(self, *args, **kwargs):
        super().put(*args, **kwargs)
        self.size += 1


def test_a_subclass_with_insides_of_its_own_runs_on_the_standard_library():
    queue = Counting()
    process = run(queue.put, [1, 2])
    assert queue.get(timeout=30) == [1, 2]
    process.join(30)
    queue.put(3)
    assert queue.size == 1 and queue.get() == 3
    queue.close()
    queue.join_thread()


class Named(queues.Queue):
    pass


def test_a_queue_goes_through_a_queue():
    outer = make()
    for inner in (make(3), make_joinable(), make_simple(), Named(ctx=fork)):
        outer.put([inner, 5])
        got, _ = outer.get()
        assert type(got) is type(inner) and got._native
        inner.put("x")
        assert got.get() == "x"
    inner = make(1)
    outer.put(inner)
    del inner
    gc.collect()
    got = outer.get()
    got.put(1)
    assert got.full()


def test_generic_alias():
    assert queues.Queue[int].__origin__ is queues.Queue
    assert queues.SimpleQueue[int].__origin__ is queues.SimpleQueue


# --- coroutines


def test_coroutines_take_turns():
    async def main():
        queue = make(2)

        async def produce():
            for item in range(500):
                await queue.put_async(item)

        async def consume():
            return [await queue.get_async() for _ in range(250)]

        _, one, two = await asyncio.gather(produce(), consume(), consume())
        assert sorted(one + two) == list(range(500))
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(queue.get_async(), 0.05)
        queue.put(1)
        assert await asyncio.wait_for(queue.get_async(), 30) == 1

    asyncio.run(main())


def test_async_for_ends_with_close():
    async def main():
        queue = make()
        process = run(lambda: [queue.put(item) for item in range(100)])
        seen = []
        async for item in queue:
            seen.append(item)
            if item == 99:
                queue.close()
        process.join(30)
        assert seen == list(range(100))

    asyncio.run(main())


# --- deaths


def test_killed_writers_leave_no_damage():
    queue = make()
    rng = random.Random(3)
    payloads = [b"s", b"m" * 900, b"l" * 40_000, b"h" * 1_000_000]

    def writer(number):
        index = 0
        while True:
            queue.put((number, index, payloads[index % len(payloads)]))
            index += 1

    expected = {}
    for number in range(300):
        process = run(writer, number)
        # Some get going first, some hardly.
        if number % 3:
            seen = queue.get(timeout=60)
            assert seen[1] == expected.get(seen[0], 0) and seen[2] == payloads[seen[1] % len(payloads)]
            expected[seen[0]] = seen[1] + 1
        time.sleep(rng.random() * 0.004)
        os.kill(process.pid, signal.SIGKILL)
        process.join(30)
        while True:
            try:
                who, index, payload = queue.get(timeout=0.001)
            except local_queue.Empty:
                break
            # In order, whole, and once.
            assert index == expected.get(who, 0)
            assert payload == payloads[index % len(payloads)]
            expected[who] = index + 1
    process = run(queue.put, "after")
    assert queue.get(timeout=30) == "after"
    process.join(30)


def test_killed_readers_lose_at_most_what_they_had():
    queue = make(50)
    taken = make()

    def reader():
        while True:
            item = queue.get()
            taken.put(item)

    rng = random.Random(5)
    put = 0
    seen = []
    for _ in range(100):
        process = run(reader)
        until = time.monotonic() + 0.02 * rng.random()
        while time.monotonic() < until:
            try:
                queue.put((put, b"x" * (put % 3) * 1500), timeout=0.01)
                put += 1
            except local_queue.Full:
                pass
        os.kill(process.pid, signal.SIGKILL)
        process.join(30)
        while not taken.empty():
            seen.append(taken.get()[0])
    while not queue.empty():
        seen.append(queue.get(timeout=10)[0])
    assert seen == sorted(set(seen))
    assert put - 100 <= len(seen) <= put


def test_a_killed_worker_does_not_keep_join_waiting():
    queue = make_joinable()
    queue.put(1)

    def worker():
        queue.get()
        os.kill(os.getpid(), signal.SIGKILL)

    process = run(worker)
    process.join(30)
    with pytest.warns(RuntimeWarning, match="1 items were lost"):
        queue.join()


def test_a_killed_child_of_a_bare_fork_does_not_keep_join_waiting():
    queue = make_joinable()
    queue.put(1)
    pid = os.fork()
    if pid == 0:
        queue.get()
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(pid, 0)
    with pytest.warns(RuntimeWarning, match="1 items were lost"):
        queue.join()


def test_put_and_exit():
    queue = make()

    def child():
        for item in range(1000):
            queue.put(item)
        queue.put(b"x" * 5_000_000)
        os._exit(0)

    process = run(child)
    process.join(30)
    assert [queue.get(timeout=30) for _ in range(1000)] == list(range(1000))
    assert len(queue.get(timeout=30)) == 5_000_000


EXITS = """
import phalanx; phalanx.install()
import multiprocessing as mp
ctx = mp.get_context("fork")
def child(q):
    q.put(b"y" * 1_000_000)
if __name__ == "__main__":
    q, s, j = ctx.Queue(), ctx.SimpleQueue(), ctx.JoinableQueue()
    for one in (q, s, j):
        for _ in range(100):
            one.put(b"x" * 70_000)
    p = ctx.Process(target=child, args=(q,))
    p.start()
    p.join()
    print(p.exitcode, q.qsize())
"""


def test_exit_with_full_queues_does_not_wait():
    done = script(EXITS)
    assert (done.returncode, done.stdout, done.stderr) == (0, "0 101\n", "")


def test_ctrl_c_ends_a_get():
    code = """
import os, signal, threading, phalanx
phalanx.install()
import multiprocessing as mp
q = mp.get_context("fork").Queue()
threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start()
try:
    q.get()
except KeyboardInterrupt:
    print("interrupted")
q.put(1)
print(q.get())
"""
    done = script(code)
    assert (done.returncode, done.stdout, done.stderr) == (0, "interrupted\n1\n", "")


def test_memory_runs_out_as_an_exception():
    code = """
import phalanx
phalanx.install()
import multiprocessing as mp
q = mp.get_context("fork").Queue()
try:
    for _ in range(100):
        q.put(b"x" * 10_000_000)
except MemoryError as error:
    print("MemoryError", "bytes" in str(error))
q.get()
q.put(1)
"""
    environment = dict(os.environ, PHALANX_ARENA_BYTES=str(200 << 20))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, env=environment)
    assert (done.returncode, done.stdout, done.stderr) == (0, "MemoryError True\n", "")


def test_a_bell_is_no_thread_to_a_fork_and_rings_after_it():
    code = """
import os, phalanx
phalanx.install()
import multiprocessing as mp
from multiprocessing.connection import wait
q = mp.get_context("fork").Queue()
fd = q._reader.fileno()
pid = os.fork()
if pid == 0:
    q.put("from the child")
    os._exit(0)
assert wait([fd], 30) == [fd]
print(q.get())
os.waitpid(pid, 0)
"""
    done = subprocess.run([sys.executable, "-W", "always", "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "from the child\n", "")
