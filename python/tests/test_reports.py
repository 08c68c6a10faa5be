"""What is said of a task whose worker died; and that the worker's stderr is what it would be."""

import concurrent.futures
import contextlib
import ctypes
import dataclasses
import faulthandler
import multiprocessing
import os
import pathlib
import pickle
import pty
import re
import signal
import subprocess
import sys
import textwrap
import threading

import pytest

from phalanx import TaskTimeoutError, WorkerDiedError, futures, pool

METHODS = ("fork", "spawn", "forkserver")


@dataclasses.dataclass
class Order:
    number: int
    parts: list


def crash(*args, **kwds):
    print("last", "words", file=sys.stderr)
    ctypes.string_at(0)


def leave(*args):
    for number in range(1000):
        sys.stderr.write(f"line {number}\n")
    os._exit(3)


def sleep(*args):
    print("still at it", file=sys.stderr)
    threading.Event().wait()


def kill(*args):
    os.kill(os.getpid(), signal.SIGKILL)


def die(*args):
    os.kill(os.getpid(), signal.SIGTERM)
    threading.Event().wait()


class KillsWhoMakesIt:
    """Kills the process that unpickles it."""

    def __reduce__(self):
        return kill, (1, 2)


@pytest.fixture(autouse=True)
def no_fault_handler_of_the_test_runners():
    was = faulthandler.is_enabled()
    faulthandler.disable()
    yield
    if was:
        faulthandler.enable(sys.__stderr__)


def death(made, function, *args, **kwds):
    with pytest.raises(WorkerDiedError) as told:
        made.apply(function, args, kwds)
    return told.value


@pytest.mark.parametrize("method", METHODS)
def test_a_crash_is_told_with_all_that_is_known(method):
    with pool.Pool(1, context=multiprocessing.get_context(method)) as made:
        error = death(made, crash, Order(7, [1]), "x" * 100, key=2.5)
    assert error.signal == "SIGSEGV" and error.exitcode == -signal.SIGSEGV
    assert error.task.startswith("crash(Order(number=7, parts=[1]), 'xxxx") and error.task.endswith("xxxx', key=2.5)")
    assert error.stderr == "last words\n"
    lines = error.stack.splitlines()
    assert "in string_at" in lines[0] and lines[-1].endswith("in crash"), error.stack
    text = str(error)
    assert re.match(rf"worker {error.pid} was killed by SIGSEGV while it ran crash\(.*\) for [0-9.e-]+ s\n", text), text
    assert "\n    last words\n" in text and "\n  what to do: native code crashed" in text and " in crash\n" in text
    again = pickle.loads(pickle.dumps(error))
    assert (str(again), again.stack, again.stderr) == (text, error.stack, error.stderr)


@pytest.mark.parametrize("method", METHODS)
def test_an_executors_call_is_told_alike(method):
    context = multiprocessing.get_context(method)
    with futures.ProcessPoolExecutor(1, mp_context=context, survive=True) as executor:
        with pytest.raises(futures.BrokenWorkerError, match="in crash") as told:
            executor.submit(crash, [1, 2]).result()
        assert executor.submit(abs, -1).result() == 1
    assert (told.value.task, told.value.stderr) == ("crash([1, 2])", "last words\n")
    with futures.ProcessPoolExecutor(1, mp_context=context) as executor:
        with pytest.raises(concurrent.futures.process.BrokenProcessPool, match="last words"):
            executor.submit(crash).result()


def test_calls_of_lazy_maps_are_told_as_well():
    with pool.Pool(2) as made:
        for lazy in (made.imap, made.imap_unordered):
            with pytest.raises(WorkerDiedError, match=r"while it ran crash\(Order\(number=3, parts=\[\]\)\) for"):
                list(lazy(crash, [Order(3, [])]))
            with pytest.raises(TaskTimeoutError, match=r"sleep\(4\) was stopped after .* 2 attempts"):
                list(lazy(sleep, [4], timeout=0.2, retries=1))
    with futures.ProcessPoolExecutor(1, survive=True) as executor:
        with pytest.raises(futures.BrokenWorkerError, match=r"while it ran crash\('a', 1\) for"):
            list(executor.map(crash, ["a"], [1]))


def test_nothing_is_unpickled_for_the_description():
    with pool.Pool(1) as made:
        error = death(made, print, [KillsWhoMakesIt()])
        assert error.task == "print([kill(1, 2)])"
        assert made.apply(abs, (-1,)) == 1


def test_what_cannot_be_described_shortly_is_cut():
    # Before the pool: a worker forked in the middle of an import could not go on with it.
    numpy = pytest.importorskip("numpy")
    with pool.Pool(1) as made:
        error = death(made, kill, *range(100))
        assert error.task == "kill(0, 1, 2, 3, 4, 5, 6, 7, 8, ...)"
        error = death(made, kill, numpy.zeros(3), numpy.zeros(1_000_000), {"a": numpy.zeros(100_000)}, b"x" * 1_000_000)
        assert error.task.startswith("kill(ndarray(...), ndarray(...), {'a': ndarray(...)}, b'xxx"), error.task
        assert len(error.task) < 150


def test_the_last_lines_are_the_last():
    with pool.Pool(1) as made:
        error = death(made, leave)
    assert error.exitcode == 3 and error.signal is None
    assert error.stderr.endswith("line 998\nline 999\n") and len(error.stderr) == 4096
    assert str(error).count("\n    line ") == 12 and "os._exit()" in str(error)


def test_a_time_out_is_told_with_last_words():
    with pool.Pool(1) as made:
        with pytest.raises(TaskTimeoutError, match=r"sleep\(5\) was stopped after .*\n  last on its stderr:\n    still at it"):
            made.apply(sleep, (5,), timeout=0.3)


def test_the_next_worker_has_words_of_its_own():
    with pool.Pool(1) as made:
        assert death(made, crash).stack
        error = death(made, kill)
        assert (error.stack, error.stderr) == ("", "")
        error = death(made, die)
        assert error.signal == "SIGTERM" and "asked it to end" in str(error)


def script(code, *flags, **kwds):
    return subprocess.run(
        [sys.executable, *flags, "-c", textwrap.dedent(code)], capture_output=True, text=True, timeout=60, **kwds
    )


def test_one_traceback_for_a_map():
    done = script(
        """
        import os, signal, phalanx as mp
        def f(x):
            if x % 10 == 3: os.kill(os.getpid(), signal.SIGSEGV)
            return x
        with mp.Pool(2) as pool:
            pool.map(f, range(50))
        """
    )
    assert done.returncode == 1 and done.stderr.count("Traceback") == 1, done.stderr
    assert "f(3)" in done.stderr and "SIGSEGV" in done.stderr


LOOK = """
import ctypes, logging, os, sys
def look():
    sys.stderr.write("by the stream\\n")
    ctypes.CDLL(None).dprintf(2, b"by C\\n")
    print("by print", file=sys.stderr)
    sys.stderr.writelines(["by ", "lines\\n"])
    logging.warning("by a log")
    os.system("echo by a child >&2")
    return type(sys.stderr).__name__, sys.stderr.name, sys.stderr.fileno(), sys.stderr.isatty(), os.isatty(2), sys.stderr.encoding
if __name__ == "__main__":
    import multiprocessing
    with multiprocessing.Pool(1) as pool:
        print(pool.apply(look))
"""


@pytest.mark.parametrize("terminal", [False, True])
def test_stderr_is_what_it_would_be(terminal):
    outcomes = []
    for install in ("", "import phalanx; phalanx.install()\n"):
        ours, theirs = pty.openpty()
        try:
            done = subprocess.run(
                [sys.executable, "-c", install + LOOK],
                stdout=subprocess.PIPE,
                stderr=theirs if terminal else subprocess.PIPE,
                timeout=60,
            )
            said = os.read(ours, 4096) if terminal else done.stderr
        finally:
            os.close(ours)
            os.close(theirs)
        outcomes.append((done.returncode, done.stdout, said.replace(b"\r\n", b"\n")))
    assert outcomes[0] == outcomes[1]
    assert outcomes[0][2].split(b"\n")[:3] == [b"by the stream", b"by C", b"by print"]


def test_a_fault_handler_of_the_program_stays_its_own():
    code = """
        import ctypes, phalanx as mp
        with mp.Pool(1) as pool:
            try:
                pool.apply(ctypes.string_at, (0,))
            except mp.WorkerDiedError as error:
                print(repr(error.stack), error.signal)
        """
    done = script(code, "-X", "faulthandler")
    assert done.stdout == "'' SIGSEGV\n" and done.stderr.startswith("Fatal Python error: Segmentation fault"), done.stderr
    done = script(code)
    assert "in string_at" in done.stdout and done.stderr == ""


def test_a_nested_pool_is_told_of_its_own_workers():
    def outer():
        with pool.Pool(1) as inner:
            return death(inner, crash).stderr

    with pool.Pool(1) as made:
        assert made.apply(outer) == "last words\n"
        error = death(made, kill)
    assert (error.stack, error.stderr) == ("", "")


def test_a_process_forked_in_a_task_leaves_no_words():
    def forks():
        pid = os.fork()
        if pid == 0:
            if os.fork() == 0:
                os._exit(0)
            sys.stderr.write("")
            os.kill(os.getpid(), signal.SIGSEGV)
        os.waitpid(pid, 0)
        os.kill(os.getpid(), signal.SIGKILL)

    with pool.Pool(1) as made:
        error = death(made, forks)
    assert (error.signal, error.stack, error.stderr) == ("SIGKILL", "", "")


@contextlib.contextmanager
def memory_group(limit):
    """Make a control group with so much memory; its folder is returned."""
    mine = pathlib.Path("/proc/self/cgroup").read_text().splitlines()
    for line in mine:
        _, controllers, path = line.split(":", 2)
        if "memory" in controllers.split(","):
            parent, knob = pathlib.Path("/sys/fs/cgroup/memory" + path), "memory.limit_in_bytes"
            break
    else:
        parent, knob = pathlib.Path("/sys/fs/cgroup" + mine[-1].split(":", 2)[2]), "memory.max"
    group = parent / f"phalanx-test-{os.getpid()}"
    try:
        group.mkdir()
        (group / knob).write_text(str(limit))
    except OSError as error:
        if group.is_dir():
            group.rmdir()
        pytest.skip(f"no control group can be made here: {error}")
    try:
        yield group
    finally:
        group.rmdir()


def test_the_out_of_memory_killer_is_named():
    code = """
        import os, sys
        with open(sys.argv[1] + "/cgroup.procs", "w") as file:
            file.write(str(os.getpid()))
        import phalanx as mp
        def eat():
            eaten = []
            while True: eaten.append(bytearray(os.urandom(1 << 20)))
        with mp.Pool(2) as pool:
            for _ in range(2):
                try:
                    pool.apply(eat)
                except mp.WorkerDiedError as error:
                    print(error.oom, error.signal, "out-of-memory killer" in str(error), "memory_limit=" in str(error))
        """
    with memory_group(200 << 20) as group:
        done = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(code), str(group)], capture_output=True, text=True, timeout=100
        )
    assert done.stdout == "True SIGKILL True True\n" * 2, done.stderr


def test_a_plain_kill_is_not_blamed_on_memory():
    with pool.Pool(1) as made:
        error = death(made, kill)
    assert error.oom is False and "somebody killed it" in str(error)
