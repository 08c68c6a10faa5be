"""Pools: what they share with the standard library's is its own tests' business; here is what they promise beyond it."""

import asyncio
import gc
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time

import pytest

from phalanx import (
    PoolTerminatedError,
    RemoteError,
    TaskCancelledError,
    TaskExitedError,
    TaskTimeoutError,
    WorkerDiedError,
    _office,
    get_context,
    pool,
)


def square(x):
    return x * x


def nap(seconds):
    time.sleep(seconds)
    return seconds


def die_at_three(x):
    if x == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return x


class Two(Exception):
    """Takes two arguments, and tells its base of one: it cannot be rebuilt."""

    def __init__(self, one, two):
        super().__init__(one)


def raise_two():
    raise Two(1, 2)


def leave():
    sys.exit(3)


def once(path):
    """Die the first time."""
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return "second"
    os.kill(os.getpid(), signal.SIGKILL)


def fail_to_start():
    raise ValueError("not set up")


def nested(count):
    with pool.Pool(2) as inner:
        return sum(inner.map(square, range(count)))


@pytest.fixture
def two():
    with pool.Pool(2) as made:
        yield made


def test_a_death_fails_its_task_alone(two):
    results = [two.apply_async(die_at_three, (x,)) for x in range(8)]
    for x, result in enumerate(results):
        if x != 3:
            assert result.get() == x
            continue
        with pytest.raises(WorkerDiedError, match=r"SIGKILL while it ran die_at_three\(3\)") as caught:
            result.get()
        assert (caught.value.signal, caught.value.exitcode) == ("SIGKILL", -9)
        assert caught.value.pid not in (None, os.getpid())


def test_a_map_says_which_task_died_and_the_pool_goes_on(two):
    with pytest.raises(WorkerDiedError):
        two.map(die_at_three, range(100), chunksize=1)
    assert two.map(square, range(100)) == [x * x for x in range(100)]


def die_at_777(x):
    if x == 777:
        os.kill(os.getpid(), signal.SIGKILL)
    return x


def wrong_at_777(x):
    if x == 777:
        raise ArithmeticError(x)
    return x


def ones(x):
    import numpy

    return numpy.full(20_000, float(x))


def mark(path, value):
    """Note that it was called; with one byte, so that none is lost."""
    with open(path, "ab") as file:
        file.write(b".")
    return value() if callable(value) else value


def shared_bytes():
    """What this process has mapped of the memory that its family shares."""
    total, ours = 0, False
    for line in open("/proc/self/smaps"):
        if "-" in line.split(" ", 1)[0]:
            ours = "memfd:" in line
        elif ours and line.startswith("Rss:"):
            total += int(line.split()[1]) * 1024
    return total


class Opaque:
    """What no pickler takes."""

    def __reduce_ex__(self, protocol):
        raise ValueError("not to be pickled")


@pytest.mark.parametrize("chunksize", [None, 1, 7, 64, 250, 5000])
def test_a_large_map_is_run_in_batches_and_comes_back_whole(two, chunksize):
    want = [x * x for x in range(20_011)]
    assert two.map(square, range(20_011), chunksize) == want
    assert two.starmap(pow, [(x, 2) for x in range(20_011)], chunksize) == want
    # Those of a test before may be among them.
    assert sum(seat["tasks"] for seat in two.stats()) >= 40_022


def test_a_batch_tells_which_of_its_calls_died_and_which_failed(two):
    with pytest.raises(WorkerDiedError, match=r"while it ran die_at_777\(777\)"):
        two.map(die_at_777, range(5000))
    with pytest.raises(ArithmeticError, match="777"):
        two.map(wrong_at_777, range(5000))
    assert two.map(square, range(5000)) == [x * x for x in range(5000)]


def test_a_map_that_needs_functions_by_value_calls_each_once(two, tmp_path):
    path = tmp_path / "marks"
    path.touch()
    values = [(str(path), x) for x in range(2999)]
    values.insert(1500, (str(path), lambda: 7))
    back = two.starmap(mark, values)
    assert back[1500] == 7
    assert back[:1500] + back[1501:] == list(range(2999))
    assert path.stat().st_size == 3000


def test_a_map_that_cannot_be_pickled_fails_and_leaves_the_pool_whole(two):
    with pytest.raises(ValueError, match="not to be pickled"):
        two.map(square, [*range(4000), Opaque(), *range(4000)])
    assert two.map(square, range(5000)) == [x * x for x in range(5000)]


def double(array, path=None):
    """Change an argument where it is; with a path, die of it the first time."""
    array *= 2
    if path is not None and once_more(path):
        os.kill(os.getpid(), signal.SIGKILL)
    return float(array[0]), float(array[-1])


def once_more(path):
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return False
    return True


@pytest.mark.parametrize("threads", [1, 2])
def test_a_task_may_change_its_arrays_and_changes_nobody_elses(threads, tmp_path):
    numpy = pytest.importorskip("numpy")
    array, other = numpy.ones(500_000), numpy.full(400_000, 3.0)
    with pool.Pool(2, threads_per_worker=threads) as made:
        for _ in range(3):
            assert made.apply(double, (array,)) == (2, 2)
        assert made.starmap(double, [(array,), (other,), (array,), (array,)]) == [(2, 2), (6, 6), (2, 2), (2, 2)]
        assert made.map(double, [array, other, array], chunksize=1) == [(2, 2), (6, 6), (2, 2)]
        # A task that is tried again has the arguments that it had the first time.
        assert made.apply(double, (array, str(tmp_path / "mark")), retries=1) == (2, 2)
    assert array[0] == array[-1] == 1 and other[0] == 3


def test_large_values_of_a_batch_do_not_keep_each_other_alive(two):
    numpy = pytest.importorskip("numpy")
    back = two.map(ones, range(2000), chunksize=50)
    assert all(float(array.sum()) == 20_000.0 * x for x, array in enumerate(back))
    full = shared_bytes()
    kept = back[7]
    del back
    gc.collect()
    # 320 MB were there; a batch is 8 MB, one array 160 kB.
    assert full > 300e6
    assert shared_bytes() < full - 310e6
    assert numpy.array_equal(kept, numpy.full(20_000, 7.0))


def test_threads_that_ask_for_one_result_all_get_it(two):
    result = two.map_async(square, range(50_000))
    found = []

    def ask():
        found.append(result.get(60))

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    want = [x * x for x in range(50_000)]
    assert len(found) == 4 and all(values == want for values in found)


def test_a_map_whose_time_is_up_can_be_asked_again(two):
    result = two.map_async(nap, [0.4] + [0.0] * 5000)
    with pytest.raises(pool.TimeoutError):
        result.get(0.01)
    assert len(result.get(60)) == 5001


def test_lazy_maps_give_the_error_in_its_place(two):
    values = two.imap(die_at_three, range(6))
    assert [next(values) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(WorkerDiedError):
        next(values)
    assert list(values) == [4, 5]


def test_a_task_is_tried_again(two, tmp_path):
    assert two.apply(once, (str(tmp_path / "mark"),), retries=1) == "second"


def test_a_time_out_kills_that_task_only(two):
    quick = [two.apply_async(nap, (0.01,)) for _ in range(10)]
    with pytest.raises(TaskTimeoutError, match=r"nap\(60\)"):
        two.apply(nap, (60,), timeout=0.1)
    assert [result.get() for result in quick] == [0.01] * 10


def test_a_running_task_is_cancelled(two):
    result = two.apply_async(nap, (60,))
    time.sleep(0.05)
    assert result.cancel()
    with pytest.raises(TaskCancelledError):
        result.get()
    assert result.cancelled() and not result.cancel()


def test_exceptions_that_cannot_be_rebuilt(two):
    with pytest.raises(RemoteError, match="Two") as caught:
        two.apply(raise_two)
    assert caught.value.type_name == "Two"
    assert "raise Two(1, 2)" in caught.value.traceback


def test_a_task_that_exits(two):
    before = {worker.pid for worker in two._pool}
    with pytest.raises(TaskExitedError) as caught:
        two.apply(leave)
    assert caught.value.code == 3
    assert {worker.pid for worker in two._pool} == before


def test_what_cannot_be_pickled(two):
    with pytest.raises(pool.MaybeEncodingError):
        two.apply(threading.Lock)
    with pytest.raises(TypeError):
        two.apply(square, (threading.Lock(),))
    assert two.apply(square, (3,)) == 9


def test_functions_by_value(two):
    offset = 5
    assert two.map(lambda x: x + offset, range(3)) == [5, 6, 7]
    assert two.apply(lambda f: f(2), (lambda x: x + offset,)) == 7


def sleep_once(path):
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return
    time.sleep(3600)


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_a_worker_that_is_not_ready_in_time_is_replaced(method, tmp_path):
    # Long enough for an interpreter on a machine at work, which is given a second chance.
    with get_context(method).Pool(1, sleep_once, (str(tmp_path / "once"),), start_timeout=5) as made:
        assert made.apply(square, (5,)) == 25


def test_a_pool_whose_workers_never_get_ready_breaks_and_says_why():
    with get_context("fork").Pool(2, time.sleep, (3600,), start_timeout=0.2) as made:
        with pytest.raises(RuntimeError, match=r"not ready after 0\.2 s .*initializer"):
            made.apply(square, (5,))


def test_a_pool_whose_workers_hang_at_their_start_can_be_ended():
    made = get_context("fork").Pool(2, time.sleep, (3600,))
    workers = list(made._pool)
    os.kill(workers[0].pid, signal.SIGSTOP)
    result = made.apply_async(square, (5,))
    with pytest.raises(pool.TimeoutError):
        result.get(0.1)
    made.terminate()
    made.join()
    assert not any(worker.is_alive() for worker in workers)
    with pytest.raises(PoolTerminatedError):
        result.get()


def test_a_failing_initializer_breaks_the_pool():
    with pool.Pool(2, initializer=fail_to_start) as made:
        with pytest.raises(ValueError, match="not set up"):
            made.apply(square, (2,))
        with pytest.raises(ValueError, match="not set up"):
            made.map(square, [2])


def test_workers_without_end_break_the_pool():
    with pool.Pool(1, initializer=os._exit, initargs=(7,)) as made, pytest.raises(RuntimeError, match="in a row"):
        made.apply(square, (2,))


def test_terminate_ends_what_waits(two):
    result = two.apply_async(nap, (60,))
    two.terminate()
    with pytest.raises(PoolTerminatedError):
        result.get()


def test_lazy_maps_read_a_window():
    pulled = []

    def endless():
        x = 0
        while True:
            pulled.append(x)
            yield x
            x += 1

    with pool.Pool(2) as made:
        values = made.imap(square, endless(), buffersize=20)
        assert [next(values) for _ in range(5)] == [0, 1, 4, 9, 16]
        time.sleep(0.2)
        assert len(pulled) <= 5 + 20 + 20
        values = made.imap_unordered(square, endless())
        for _ in range(5):
            next(values)
        del values
        gc.collect()
        seen = len(pulled)
        time.sleep(0.1)
        assert len(pulled) <= seen + 64


def test_a_generator_may_wait_for_results(two):
    free = threading.Semaphore(2)

    def items():
        for x in range(40):
            free.acquire()
            yield x

    seen = []
    for value in two.imap_unordered(square, items()):
        seen.append(value)
        free.release()
    assert sorted(seen) == [x * x for x in range(40)]


def touch(path):
    with open(path, "a"):
        pass


def test_a_lazy_map_nobody_reads_is_done_all_the_same(tmp_path):
    paths = [str(tmp_path / str(x)) for x in range(300)]
    made = pool.Pool(2)
    made.imap_unordered(touch, paths)
    made.close()
    made.join()
    assert len(list(tmp_path.iterdir())) == 300


def test_await_and_async_for(two):
    async def main():
        one = await two.apply_async(square, (4,))
        many = await two.map_async(square, range(5))
        lazy = [value async for value in two.imap(square, range(5))]
        called = []
        with_callback = await two.apply_async(square, (6,), callback=called.append)
        return one, many, lazy, with_callback, called

    assert asyncio.run(main()) == (16, [0, 1, 4, 9, 16], [0, 1, 4, 9, 16], 36, [36])


def test_nested_pools(two):
    assert two.map(nested, [3, 4]) == [5, 14]


def test_progress(two, capsys):
    told = []

    class Bar:
        def __init__(self, total):
            told.append(("total", total))

        def update(self, count):
            told.append(count)

        def close(self):
            told.append("closed")

    assert two.map(square, range(50), progress=Bar) == [x * x for x in range(50)]
    assert told[0] == ("total", 50) and told[-1] == "closed"
    assert sum(count for count in told if isinstance(count, int)) == 50
    assert list(two.imap(square, range(3), progress=True)) == [0, 1, 4]
    assert "3/3" in capsys.readouterr().err


def test_threads_in_workers():
    with pool.Pool(2, threads_per_worker=3) as made:
        began = made.map(nap, [0.05] * 12)
        assert began == [0.05] * 12
        names = set(made.map(thread_name, range(60), chunksize=1))
        assert len(names) > 2


def thread_name(_):
    time.sleep(0.005)
    return os.getpid(), threading.get_ident()


def grab(count):
    return len(bytearray(count))


def test_memory_limit():
    with pool.Pool(1, memory_limit=1 << 30) as made:
        with pytest.raises(MemoryError):
            made.apply(grab, (4 << 30,))
        assert made.apply(grab, (10,)) == 10


def change(array):
    array[0] += 1
    return float(array[0]), len(array)


def test_arrays_are_each_tasks_own(two):
    numpy = pytest.importorskip("numpy")
    array = numpy.ones(200_000)
    assert two.map(change, [array] * 6) == [(2.0, 200_000)] * 6
    assert array[0] == 1
    back = two.apply(numpy.zeros, (200_000,))
    back[3] = 4
    assert back.sum() == 4


def test_a_subclass_with_its_own_queues_is_a_stock_pool():
    class Own(pool.Pool):
        def _setup_queues(self):
            super()._setup_queues()

    with Own(1) as made:
        assert made.map(square, [1, 2]) == [1, 4]
    with pool.ThreadPool(2) as made:
        assert made.map(square, [1, 2]) == [1, 4]
        assert isinstance(made, pool.Pool)


def _script(text):
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(text)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )


def _is_gone(pid):
    try:
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def _all_gone(pids):
    for _ in range(500):
        if all(_is_gone(pid) for pid in pids):
            return True
        time.sleep(0.01)
    return False


_MAP = """
    import time
    from phalanx import pool
    if __name__ == "__main__":
        with pool.Pool(4) as made:
            print(*(worker.pid for worker in made._pool), flush=True)
            made.map(time.sleep, [60] * 8, chunksize=1)
"""


def test_ctrl_c_ends_a_map_with_one_traceback():
    program = _script(_MAP)
    pids = [int(pid) for pid in program.stdout.readline().split()]
    time.sleep(0.3)
    os.killpg(program.pid, signal.SIGINT)
    _, said = program.communicate(timeout=30)
    assert said.count("Traceback") == 1 and "KeyboardInterrupt" in said
    assert _all_gone(pids)


def test_workers_end_with_their_parent():
    program = _script(_MAP)
    pids = [int(pid) for pid in program.stdout.readline().split()]
    time.sleep(0.1)
    program.kill()
    program.communicate(timeout=30)
    assert len(pids) == 4 and _all_gone(pids)


def test_exit_with_an_open_pool():
    program = _script(
        """
        import time
        from phalanx import pool
        made = pool.Pool(2)
        result = made.apply_async(time.sleep, (60,))
        """
    )
    _, said = program.communicate(timeout=30)
    assert (program.returncode, said) == (0, "")


def test_joblib():
    joblib = pytest.importorskip("joblib")
    import phalanx.joblib  # noqa: F401

    with joblib.parallel_config("phalanx"):
        assert joblib.Parallel(n_jobs=2)(joblib.delayed(square)(x) for x in range(20)) == [x * x for x in range(20)]


def _census():
    import collections
    import gc

    from phalanx import _engine

    gc.collect()
    return collections.Counter(kind for kind, _ in _engine.census())


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_a_pool_leaves_no_block(method):
    context = get_context(method)

    def use():
        with context.Pool(2) as pool:
            assert pool.map(abs, [-1, 2]) == [1, 2]
            assert pool.apply(square, (4,)) == 16
        pool.join()

    use()
    before = _census()
    use()
    until = time.monotonic() + 20
    while _census() != before:
        assert time.monotonic() < until, _census() - before
        time.sleep(0.01)


def test_an_overseer_that_fails_goes_on(monkeypatch):
    from phalanx import _office

    collect, failures, reported = _office.Office.collect, [], []
    monkeypatch.setattr(threading, "excepthook", lambda args: reported.append(str(args.exc_value)))

    def fail_once(self, number):
        if not failures:
            failures.append(number)
            raise OSError("no descriptor left")
        collect(self, number)

    monkeypatch.setattr(_office.Office, "collect", fail_once)
    with get_context("fork").Pool(1) as pool:
        with pytest.raises(TaskTimeoutError):
            pool.apply_async(time.sleep, (60,), timeout=0.1).get(30)
        assert pool.apply_async(square, (4,)).get(30) == 16
    assert reported == ["no descriptor left"]


@pytest.mark.parametrize("kind", ["pool", "executor"])
def test_a_pool_without_room_for_its_thread_leaves_nothing(kind, monkeypatch):
    from phalanx import ProcessPoolExecutor

    context = get_context("fork")
    start, refused = threading.Thread.start, []

    def refuse_once(self):
        if self.name == "PoolOverseer" and not refused:
            refused.append(self)
            raise RuntimeError("can't start new thread")
        start(self)

    monkeypatch.setattr(threading.Thread, "start", refuse_once)
    if kind == "pool":
        with pytest.raises(RuntimeError, match="new thread"):
            context.Pool(2)
        assert not context.active_children()
        with context.Pool(2) as made:
            assert made.apply_async(square, (3,)).get(30) == 9
    else:
        with ProcessPoolExecutor(2, mp_context=context) as made:
            with pytest.raises(RuntimeError, match="new thread"):
                made.submit(square, 3)
            assert made.submit(square, 3).result(30) == 9


def test_a_pool_without_memory_for_its_tables_says_so():
    code = """
import phalanx
from phalanx import _engine
crews = []
try:
    while True:
        crews.append(_engine.Crew(1, 1))
except MemoryError as error:
    print("no memory", len(crews) > 3, "PHALANX_ARENA_BYTES" in str(error))
"""
    surroundings = {**os.environ, "PHALANX_ARENA_BYTES": str(32 << 20)}
    done = subprocess.run([sys.executable, "-c", code], env=surroundings, capture_output=True, text=True, timeout=100)
    assert (done.returncode, done.stdout) == (0, "no memory True True\n"), done.stderr


def test_a_pool_over_processes_of_another_kind_takes_back_those_it_started():
    made = []

    class Actor:
        """As little of a process as a context must make: it has no id."""

        name, exitcode, state = "Actor-Process", None, None

        def __init__(self, **kwargs):
            made.append(self)

        def start(self):
            if len(made) == 3:
                raise OSError("no more actors")
            self.state = "started"

        def terminate(self):
            self.state = "stopping"

        def join(self, timeout=None):
            assert self.state != "started", "nobody ended it: this would hang"
            self.state = "stopped"

        def is_alive(self):
            return self.state in ("started", "stopping")

    class Stage(type(get_context("fork"))):
        Process = Actor

    with pytest.raises(OSError, match="no more actors"):
        pool.Pool(5, context=Stage())
    assert [one.state for one in made] == ["stopped", "stopped", None]


# ---- whoever waits is told: errors in the pool's own threads, calls from callbacks, interruptions between two steps ----


def test_a_hook_that_raises_keeps_no_callback_from_being_called(monkeypatch):
    def hook(args):
        raise BrokenPipeError("nobody reads stderr")

    def fail(value):
        raise ValueError(value)

    monkeypatch.setattr(threading, "excepthook", hook)
    with pool.Pool(1) as workers:
        results = [workers.apply_async(square, (x,), callback=fail if x % 3 == 0 else str) for x in range(12)]
        for result in results:
            result.wait()
        assert [result.get() for result in results] == [x * x for x in range(12)]


def test_results_with_callbacks_end_with_a_pool_that_is_terminated():
    for _ in range(5):
        heard = []
        workers = pool.Pool(2)
        results = [workers.apply_async(nap, (60,), callback=heard.append, error_callback=heard.append) for _ in range(4)]
        workers.terminate()
        for result in results:
            with pytest.raises(PoolTerminatedError):
                result.get()
        workers.join()
        assert len(heard) == 4


def test_a_result_that_is_listened_to_when_the_overseer_is_gone():
    workers = pool.Pool(1)
    office = workers._office
    lot = office.apply(square, (2,), {}, workers._options())
    workers.close()
    workers.join()
    heard = []
    result = pool.ApplyResult(workers, heard.append, office=office, lot=lot, function=square)
    assert result.get() == 4
    assert heard == [4]


def test_a_callback_waits_for_other_results_and_its_own():
    workers = pool.Pool(1)
    seen = []

    def called(value):
        seen.append(workers.apply_async(square, (4,), callback=seen.append).get())
        seen.append(workers.map_async(square, [1, 2], callback=seen.append).get())
        seen.append(result.get())

    result = workers.apply_async(square, (3,), callback=called)
    assert result.get() == 9
    assert seen == [16, 16, [1, 4], [1, 4], 9]
    workers.close()
    workers.join()


def test_a_callback_cannot_join_its_pool():
    workers = pool.Pool(1)
    seen = []

    def called(value):
        workers.close()
        try:
            workers.join()
        except RuntimeError as error:
            seen.append(error)

    assert workers.apply_async(square, (3,), callback=called).get() == 9
    workers.join()
    assert len(seen) == 1


def test_a_lazy_map_without_a_thread_to_read_with_keeps_nobody_waiting(monkeypatch):
    workers = pool.Pool(1)
    start = threading.Thread.start

    def refuse(self):
        if self.name == "PoolFeeder":
            raise RuntimeError("can't start new thread")
        start(self)

    monkeypatch.setattr(threading.Thread, "start", refuse)
    with pytest.raises(RuntimeError, match="new thread"):
        workers.imap(square, (x for x in range(3)))
    workers.close()
    workers.join()


def test_whatever_the_items_raise_is_raised_to_the_taker():
    def items():
        yield 2
        raise SystemExit(3)

    with pool.Pool(1) as workers:
        values = workers.imap(square, items())
        assert next(values) == 4
        with pytest.raises(SystemExit):
            next(values)
        workers.close()
        workers.join()


def test_a_pool_is_terminated_while_its_items_block():
    release = threading.Event()

    def items():
        yield 2
        release.wait()

    workers = pool.Pool(1)
    values = workers.imap(square, items())
    assert next(values) == 4
    workers.terminate()
    try:
        with pytest.raises(PoolTerminatedError):
            next(values)
        workers.join()
    finally:
        release.set()


def test_two_threads_take_from_one_lazy_map_each_with_its_time_out():
    with pool.Pool(1) as workers:
        values = workers.imap(nap, [60])
        other = threading.Thread(target=lambda: pytest.raises(PoolTerminatedError, next, values))
        other.start()
        while not values._lock.locked():
            time.sleep(0.01)
        with pytest.raises(get_context().TimeoutError):
            values.next(0.1)
        workers.terminate()
        other.join()


class InterruptOnce:
    """An item that is interrupted when it is sent first."""

    def __init__(self):
        self.sent = 0

    def __reduce__(self):
        self.sent += 1
        if self.sent == 1:
            raise KeyboardInterrupt
        return int, (7,)


@pytest.mark.parametrize("pause", [0, 0.2])
def test_a_taker_that_is_interrupted_loses_no_result_it_was_given(pause):
    with pool.Pool(1) as workers:
        values = workers.imap(int, [0, 1, 2, InterruptOnce(), 4], buffersize=2)
        # After a while both results are there, and none is under way when it is interrupted.
        time.sleep(pause)
        got, interrupted = [], 0
        while True:
            try:
                got.append(next(values))
            except KeyboardInterrupt:
                interrupted += 1
            except StopIteration:
                break
        assert interrupted == 1
        assert got == [0, 1, 2, 7, 4]


def test_close_goes_on_after_an_interruption():
    workers = pool.Pool(1)
    values = workers.imap(int, [0, 1, InterruptOnce(), 3], buffersize=1)
    with pytest.raises(KeyboardInterrupt):
        workers.close()
    workers.close()
    workers.join()
    assert list(values) == [0, 1, 7, 3]


class Unspeakable(Exception):
    """An exception that ends whoever shows or sends it."""

    def __str__(self):
        raise SystemExit("not to be shown")

    def __reduce__(self):
        raise KeyboardInterrupt


class Unsendable:
    def __reduce__(self):
        raise ValueError("not to be sent")

    def __repr__(self):
        raise SystemExit("not to be shown")


def raise_unspeakable(x):
    raise Unspeakable


def make_unsendable(x):
    return Unsendable()


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("function", [raise_unspeakable, make_unsendable])
def test_what_cannot_be_told_is_an_error_all_the_same(function, threads):
    with pool.Pool(1, threads_per_worker=threads) as workers:
        results = [workers.apply_async(function, (x,)) for x in range(6)]
        for result in results:
            result.wait()
            assert not result.successful()
        assert workers.apply(square, (3,)) == 9


def refuse_threads():
    def refuse(self):
        raise RuntimeError("can't start new thread")

    threading.Thread.start = refuse


def test_a_worker_that_gets_no_threads_is_not_started_for_ever():
    with pool.Pool(1, refuse_threads, threads_per_worker=3) as workers:
        with pytest.raises(RuntimeError, match="in a row"):
            workers.apply_async(square, (2,)).get()


def test_a_start_that_is_interrupted_leaves_no_worker(monkeypatch):
    from phalanx import _engine

    before = set(get_context().active_children())
    crew = _engine.Crew

    class Interrupted:
        def __init__(self, *args):
            self.crew = crew(*args)
            self.hires = 0

        def __getattr__(self, name):
            return getattr(self.crew, name)

        def hired(self, number, pid):
            self.hires += 1
            if self.hires == 2:
                raise KeyboardInterrupt
            self.crew.hired(number, pid)

    monkeypatch.setattr(_engine, "Crew", Interrupted)
    with pytest.raises(KeyboardInterrupt):
        pool.Pool(3)
    assert not set(get_context().active_children()) - before


def fail_beside(_):
    if threading.current_thread() is threading.main_thread():
        time.sleep(60)
    raise ValueError("beside")


def test_a_thread_of_a_worker_that_can_tell_nothing_ends_the_worker(monkeypatch):
    def refuse(*_):
        raise SystemExit

    # The fork has it as well.
    monkeypatch.setattr(_office, "dump_failure", refuse)
    with get_context("fork").Pool(1, threads_per_worker=2) as workers:
        for result in [workers.apply_async(fail_beside, (number,)) for number in range(2)]:
            with pytest.raises(WorkerDiedError):
                result.get(30)
