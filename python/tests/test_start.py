"""Starting processes: each has its place in the tree, keeps it to its end, and does not outlive its parent."""

import os
import signal
import subprocess
import sys
import time

import pytest

METHODS = ["fork", "spawn", "forkserver"]


def run(code, tmp_path, *args, **kwargs):
    """Run a program of its own, with a main module that children can import."""
    program = tmp_path / "program.py"
    program.write_text(code)
    done = subprocess.run(
        [sys.executable, *args, str(program)], capture_output=True, text=True, timeout=90, cwd=tmp_path, **kwargs
    )
    assert done.returncode == 0, done.stderr
    return done


def gone(pid):
    """Tell whether a process has ended; a zombie has."""
    try:
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().rpartition(")")[2].split()[0] in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return True


def wait_gone(pids):
    while not all(map(gone, pids)):
        time.sleep(0.01)


TREE = """
import multiprocessing, os, sys, time
{install}

def report(queue):
    from phalanx import _engine, installed
    queue.put((os.getpid(), _engine.has_session(), _engine.slot(), installed()))

def grandchild(queue):
    report(queue)
    process = multiprocessing.get_context({method!r}).Process(target=report, args=(queue,))
    process.start()
    process.join()
    assert process.exitcode == 0

if __name__ == "__main__":
    from phalanx import _engine, installed
    context = multiprocessing.get_context({method!r})
    queue = context.SimpleQueue()
    process = context.Process(target=grandchild, args=(queue,))
    process.start()
    seen = [(os.getpid(), True, _engine.slot(), installed()), queue.get(), queue.get()]
    process.join()
    assert process.exitcode == 0
    assert len({{pid for pid, *_ in seen}}) == 3
    assert len({{slot for _, _, slot, _ in seen}}) == 3, seen
    assert all(session for _, session, _, _ in seen), seen
    assert all(is_installed == {installed} for *_, is_installed in seen), seen
"""


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("install", "installed"),
    [("import phalanx; phalanx.install()", True), ("import phalanx; phalanx.get_context(); phalanx._engine.slot()", False)],
)
def test_children_and_grandchildren_are_in_the_tree(method, install, installed, tmp_path):
    # Said under the main guard as well, so that children do not have it from their main module.
    head, _, rest = TREE.partition('if __name__ == "__main__":\n')
    code = head.replace("{install}", "") + 'if __name__ == "__main__":\n    ' + install + "\n" + rest
    run(code.format(method=method, installed=installed), tmp_path)


@pytest.mark.parametrize("method", METHODS)
def test_exit_codes_are_told(method, tmp_path):
    code = f"""
import multiprocessing, os, signal, sys
def leave(how):
    if how == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    sys.exit(how)
if __name__ == "__main__":
    import phalanx; phalanx.install()
    context = multiprocessing.get_context({method!r})
    for how, code in [(None, 0), (7, 7), ("kill", -9), (0, 0)]:
        process = context.Process(target=leave, args=(how,))
        process.start()
        process.join()
        assert process.exitcode == code, (how, process.exitcode)
        process.close()
    print(len(phalanx._engine.processes()))
"""
    # The program itself, and the server where there is one.
    assert run(code, tmp_path).stdout.strip() == ("2" if method == "forkserver" else "1")


FAMILY = r"""
import multiprocessing, os, sys, time
def below(depth, method):
    # One write each: they share the pipe.
    os.write(1, b"%d\n" % os.getpid())
    if depth:
        process = multiprocessing.get_context(method).Process(target=below, args=(depth - 1, method))
        process.start()
    time.sleep(600)
if __name__ == "__main__":
    import phalanx; phalanx.install()
    method = sys.argv[1]
    below(2, method)
"""


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("victim", ["head", "middle"])
def test_nobody_outlives_a_killed_parent(method, victim, tmp_path):
    program = tmp_path / "family.py"
    program.write_text(FAMILY)
    head = subprocess.Popen([sys.executable, program, method], stdout=subprocess.PIPE, text=True)
    pids = []
    while len(pids) < 3:
        line = head.stdout.readline().strip()
        assert line, "the family ended by itself"
        pids.append(int(line))
    assert pids[0] == head.pid
    try:
        if victim == "head":
            head.kill()
            wait_gone(pids)
        else:
            os.kill(pids[1], signal.SIGKILL)
            wait_gone(pids[1:])
            assert head.poll() is None
    finally:
        head.kill()
        head.wait()
        head.stdout.close()
        wait_gone(pids)


def test_a_fork_by_hand_outlives_its_parent(tmp_path):
    code = """
import os, time, sys
import phalanx; phalanx.install()
import multiprocessing
multiprocessing.get_context("fork").Process(target=int).start()
reader, writer = os.pipe()
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        # The daemon: its own processes are as safe as anybody's.
        os.close(reader)
        time.sleep(0.3)
        process = multiprocessing.get_context("fork").Process(target=os.write, args=(writer, b"child "))
        process.start()
        process.join()
        os.write(writer, b"daemon")
        os._exit(0)
    os._exit(0)
os.close(writer)
os.wait()
print(reader)
if os.fork() != 0:
    os._exit(0)
data = b""
while chunk := os.read(reader, 100):
    data += chunk
print(data.decode(), flush=True)
"""
    assert run(code, tmp_path).stdout.splitlines()[-1] == "child daemon"


def test_forks_are_those_of_one_thread(tmp_path):
    code = """
import os, multiprocessing, time, warnings
import phalanx; phalanx.install()
if __name__ == "__main__":
    process = multiprocessing.get_context("fork").Process(target=int)
    process.start()
    # The engine's thread watches it.
    assert len(os.listdir("/proc/self/task")) == 2
    warnings.showwarning = lambda message, *rest: print("warned:", message)
    for _ in range(20):
        warnings.simplefilter("always")
        pid = os.fork()
        if pid == 0:
            os._exit(len(os.listdir("/proc/self/task")))
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 1
        while len(os.listdir("/proc/self/task")) != 2:
            time.sleep(0.001)
    process.join()
"""
    done = run(code, tmp_path)
    assert done.stdout == "" and done.stderr == ""


def test_the_fork_server_imports_the_main_module_once(tmp_path):
    code = """
import multiprocessing, os, sys
with open("imports.txt", "a") as file:
    print(__name__, os.getpid(), file=file)
def target(): pass
if __name__ == "__main__":
    import phalanx; phalanx.install()
    context = multiprocessing.get_context("forkserver")
    for _ in range(3):
        process = context.Process(target=target)
        process.start()
        process.join()
        assert process.exitcode == 0
    from multiprocessing.forkserver import _forkserver
    server = _forkserver._forkserver_pid
    print(server)
    _forkserver._stop()
    assert _forkserver._forkserver_pid is None
"""
    server = run(code, tmp_path).stdout.strip()
    lines = (tmp_path / "imports.txt").read_text().splitlines()
    assert [line.split()[0] for line in lines] == ["__main__", "__mp_main__"]
    assert lines[1].split()[1] == server
    assert gone(int(server))


def test_a_main_module_that_fails_or_starts_threads_is_not_kept_warm(tmp_path):
    code = """
import multiprocessing, os, sys, threading, time
if __name__ == "__mp_main__":
    if os.environ["HOW"] == "fails" and os.getppid() == int(os.environ["HEAD"]):
        raise OSError("only in the server")
    if os.environ["HOW"] == "thread":
        threading.Thread(target=time.sleep, args=(600,), daemon=True).start()
def target():
    sys.exit(10 + threading.active_count())
if __name__ == "__main__":
    import phalanx; phalanx.install()
    os.environ["HEAD"] = str(os.getpid())
    process = multiprocessing.get_context("forkserver").Process(target=target)
    process.start()
    process.join()
    print(process.exitcode)
"""
    assert run(code, tmp_path, env={**os.environ, "HOW": "fails"}).stdout.strip() == "11"
    assert run(code, tmp_path, env={**os.environ, "HOW": "thread"}).stdout.strip() == "12"


@pytest.mark.parametrize("method", METHODS)
def test_starting_does_not_warn(method, tmp_path):
    code = f"""
import multiprocessing
def target(): pass
if __name__ == "__main__":
    import phalanx; phalanx.install()
    for _ in range(2):
        process = multiprocessing.get_context({method!r}).Process(target=target)
        process.start()
        process.join()
        assert process.exitcode == 0
"""
    done = run(code, tmp_path, "-W", "error")
    assert done.stdout == "" and done.stderr == ""


@pytest.mark.parametrize("how", ["by hand", "fork"])
def test_a_forked_child_holds_what_its_parent_lets_go_of(how, tmp_path):
    code = f"""
import multiprocessing, os, time
import phalanx; phalanx.install()
context = multiprocessing.get_context("fork")
lock, queue = context.Lock(), context.SimpleQueue()
reader, writer = os.pipe()

def child():
    os.read(reader, 1)
    with lock:
        queue.put("still there")
        assert queue.get() == "still there"

if {how!r} == "fork":
    process = context.Process(target=child)
    process.start()
    pid = process.pid
else:
    pid = os.fork()
    if pid == 0:
        child()
        os._exit(0)
before = phalanx._engine.usage()[0]
del lock, queue
if {how!r} == "fork":
    # It keeps what its child was given.
    process._target = None
os.write(writer, b"x")
if {how!r} == "fork":
    process.join()
    assert process.exitcode == 0
else:
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
while phalanx._engine.usage()[0] > 2:
    time.sleep(0.01)
"""
    run(code, tmp_path)


SERVER_KILLED = """
import os, signal, sys, time
import phalanx as mp
from multiprocessing import forkserver

def work(go, queue):
    go.wait()
    queue.put(os.getpid())

if __name__ == "__main__":
    context = mp.get_context("forkserver")
    go, queue = context.Event(), context.Queue()
    process = context.Process(target=work, args=(go, queue))
    process.start()
    os.kill(forkserver._forkserver._forkserver_pid, signal.SIGKILL)
    os.waitid(os.P_PID, forkserver._forkserver._forkserver_pid, os.WEXITED | os.WNOWAIT)
    for _ in range(3):
        process.join(0.05)
        assert process.is_alive() and process.exitcode is None, process
    go.set()
    assert queue.get(timeout=30) == process.pid
    process.join(30)
    assert process.exitcode == 255, process
    other = context.Process(target=work, args=(go, queue))
    other.start()
    assert queue.get(timeout=30) == other.pid
    other.join(30)
    assert other.exitcode == 0, other
"""


def test_a_process_whose_fork_server_is_killed_lives_on(tmp_path):
    run(SERVER_KILLED, tmp_path)


SHORT = """
import gc, os, resource, sys, time
import phalanx as mp
from phalanx import _engine

def nothing():
    pass

def children():
    with open(f"/proc/self/task/{os.getpid()}/children") as file:
        return file.read().split()

def descriptors():
    return len(os.listdir("/proc/self/fd"))

if __name__ == "__main__":
    context = mp.get_context("fork")
    process = context.Process(target=nothing)
    process.start()
    process.join()
    process.close()
    most = resource.getrlimit(resource.RLIMIT_NOFILE)
    before, refused = (children(), descriptors(), _engine.usage()[0], len(_engine.processes())), 0
    for room in range(16):
        taken = []
        resource.setrlimit(resource.RLIMIT_NOFILE, (before[1] + 20, most[1]))
        try:
            while True:
                taken.append(os.open("/dev/null", os.O_RDONLY))
        except OSError:
            pass
        for fd in taken[:room]:
            os.close(fd)
        process = context.Process(target=nothing)
        try:
            process.start()
        except OSError:
            refused += 1
        else:
            process.join()
            process.close()
        for fd in taken[room:]:
            os.close(fd)
        resource.setrlimit(resource.RLIMIT_NOFILE, most)
        del process
        gc.collect()
        until = time.monotonic() + 20
        while (now := (children(), descriptors(), _engine.usage()[0], len(_engine.processes()))) != before:
            assert time.monotonic() < until, (room, now, before)
            time.sleep(0.01)
    assert 0 < refused < 16, refused
"""


def test_a_start_without_descriptors_leaves_nothing(tmp_path):
    run(SHORT, tmp_path)


STARTER_DIED = """
import os, time
from multiprocessing import forkserver
import phalanx as mp
from phalanx import _engine

def work():
    time.sleep(600)

def pids():
    return sorted(pid for _, pid, _ in _engine.processes())

if __name__ == "__main__":
    context = mp.get_context("forkserver")
    process = context.Process(target=work)
    process.start()
    process.kill()
    process.join()
    before, blocks = pids(), _engine.usage()[0]
    read = forkserver.read_signed

    def lost(fd):
        # The server said it, and nobody heard.
        read(fd)
        until = time.monotonic() + 30
        while pids() == before and time.monotonic() < until:
            time.sleep(0.01)
        raise EOFError("unexpected EOF")

    forkserver.read_signed = lost
    process = context.Process(target=work)
    try:
        process.start()
    except EOFError:
        pass
    else:
        raise AssertionError("it was started")
    until = time.monotonic() + 30
    while (pids(), _engine.usage()[0]) != (before, blocks):
        assert time.monotonic() < until, (pids(), before, _engine.census())
        time.sleep(0.01)
"""


def test_a_process_whose_start_was_not_reported_ends(tmp_path):
    run(STARTER_DIED, tmp_path)


REFUSED = """
import errno, gc, os, sys, time
import multiprocessing

if __name__ == "__mp_main__":
    # Imported by the server; what is short is told by a file.
    fork = os.fork
    def short():
        if os.path.exists("short"):
            raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        return fork()
    os.fork = short

def nothing(*args):
    pass

def start(*args):
    process = context.Process(target=nothing, args=args)
    process.start()
    process.join()
    assert process.exitcode == 0

def descriptors(pid):
    return len(os.listdir(f"/proc/{pid}/fd"))

if __name__ == "__main__":
    from multiprocessing import forkserver
    import phalanx
    phalanx.install()
    context = multiprocessing.get_context("forkserver")
    start()
    server = forkserver._forkserver._forkserver_pid
    ours, its = descriptors("self"), descriptors(server)
    pool = context.Pool(2)
    assert pool.map(abs, [-1, -2]) == [1, 2]
    open("short", "w").close()
    for argument in (b"", b"x" * 1_000_000):
        try:
            start(argument)
        except OSError as error:
            assert error.errno == errno.EAGAIN and "fork server" in str(error), error
        else:
            raise AssertionError("it started")
    gone = pool.apply_async(os._exit, (3,))
    try:
        gone.get(60)
    except phalanx.WorkerDiedError:
        pass
    assert pool.apply(abs, (-3,)) == 3
    os.remove("short")
    start()
    # A worker that was refused is tried again.
    while len(pool._pool) < 2:
        time.sleep(0.01)
    pool.close()
    pool.join()
    del pool, gone
    gc.collect()
    assert forkserver._forkserver._forkserver_pid == server, "it ended"
    while descriptors(server) > its or descriptors("self") > ours:
        time.sleep(0.01)
"""


def test_a_fork_server_that_may_not_fork_says_so_and_lives_on(tmp_path):
    run(REFUSED, tmp_path)


DIED_EARLY = """
import os
import multiprocessing

if __name__ == "__mp_main__":
    # Imported by the server: the child is dead before it has read what it is to do.
    fork = os.fork
    def early():
        pid = fork()
        if pid == 0:
            os._exit(7)
        return pid
    os.fork = early

if __name__ == "__main__":
    import phalanx
    phalanx.install()
    context = multiprocessing.get_context("forkserver")
    for argument in (b"", b"x" * 1_000_000):
        process = context.Process(target=print, args=(argument,))
        process.start()
        assert process.pid > 0
        process.join()
        assert process.exitcode == 7, process.exitcode
"""


def test_a_process_that_dies_before_it_has_read_its_orders_was_started(tmp_path):
    run(DIED_EARLY, tmp_path)


def test_a_child_forked_during_another_threads_import_can_import_the_same(tmp_path):
    (tmp_path / "slow.py").write_text("import gate\ngate.inside.set()\ngate.go_on.wait(60)\nVALUE = 7\n")
    (tmp_path / "gate.py").write_text(
        "import threading\ninside = threading.Event()\ngo_on = threading.Event()\n"
    )
    code = """
import importlib, threading
import phalanx as mp
import gate

def child(queue):
    gate.go_on.set()
    import slow
    queue.put(slow.VALUE)

if __name__ == "__main__":
    context = mp.get_context("fork")
    queue = context.Queue()
    importer = threading.Thread(target=importlib.import_module, args=("slow",))
    importer.start()
    assert gate.inside.wait(30)
    process = context.Process(target=child, args=(queue,))
    process.start()
    try:
        assert queue.get(timeout=30) == 7
    finally:
        process.kill()
        process.join()
        gate.go_on.set()
        importer.join()
"""
    run(code, tmp_path)
