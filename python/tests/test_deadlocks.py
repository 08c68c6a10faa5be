"""The detective's Python face: each kind of deadlock is found, and nothing else is."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parents[2] / "examples" / "python"
METHODS = ("fork", "spawn", "forkserver")


def run(*args, code=0, timeout=60, cwd=None):
    done = subprocess.run([sys.executable, *map(str, args)], capture_output=True, text=True, timeout=timeout, cwd=cwd)
    assert done.returncode == code, (done.returncode, done.stdout, done.stderr)
    return done


def program(tmp_path, text):
    path = tmp_path / "program.py"
    path.write_text(text)
    return path


@pytest.mark.parametrize("kind", ["threads", "processes", "queue", "join", "pool"])
def test_each_example_goes_on_when_one_party_fails(kind):
    done = run("-m", "phalanx", "--deadlocks=raise", EXAMPLES / "deadlock.py", kind)
    assert "DeadlockError" in done.stdout, done.stderr


@pytest.mark.parametrize("kind", ["threads", "processes", "queue", "join", "pool"])
def test_each_example_is_reported_and_aborted(kind, tmp_path):
    svg, data = tmp_path / "found.svg", tmp_path / "found.json"
    done = run(
        "-m", "phalanx", "--deadlocks=abort", "--deadlocks-svg", svg, f"--deadlocks-json={data}",
        EXAMPLES / "deadlock.py", kind, code=-signal.SIGABRT,
    )  # fmt: skip
    assert "phalanx: deadlock: " in done.stderr
    assert "deadlock.py" in done.stderr, "stacks are shown"
    assert svg.read_text().startswith("<svg")
    found = json.loads(data.read_text())
    assert len(found["parties"]) >= 2
    assert found["circle"] == (kind in ("threads", "processes", "join"))


KINDS_OF_THREADS = [
    "event", "condition", "semaphore", "bounded semaphore", "barrier", "empty queue", "full queue", "join of a queue",
    "join of a thread", "lock", "rlock", "result of an executor of threads",
]  # fmt: skip
KINDS_OF_PROCESSES = [
    "event", "condition", "semaphore", "bounded semaphore", "barrier", "queue", "full queue", "join of a queue",
    "simple queue", "join of a process", "lock", "rlock", "result of a pool", "result of a map", "lazy map",
    "result of an executor",
]  # fmt: skip


@pytest.mark.parametrize("kind", KINDS_OF_THREADS)
def test_each_kind_of_wait_of_threads_can_be_given_up(kind):
    done = run("-m", "phalanx", "--deadlocks=raise", EXAMPLES / "deadlock_kinds.py", "threads", kind)
    assert done.stdout == f"{kind}: DeadlockError, one of 2\n", done.stderr


@pytest.mark.parametrize("method", METHODS)
def test_each_kind_of_wait_of_processes_can_be_given_up(method):
    done = run("-m", "phalanx", "--deadlocks=raise", EXAMPLES / "deadlock_kinds.py", "processes", method, timeout=150)
    said = done.stdout.splitlines()
    assert [line.split(":")[0] for line in said] == KINDS_OF_PROCESSES
    assert all("DeadlockError, one of " in line for line in said), done.stdout


MIXED = """
import multiprocessing, threading, sys, time

def child(a, b, ready):
    with b:
        ready.set()
        with a:
            pass

if __name__ == "__main__":
    ctx = multiprocessing.get_context(sys.argv[1])
    a, b, ready = ctx.Lock(), ctx.Lock(), ctx.Event()
    inner = threading.Lock()
    held = threading.Event()

    def between():
        with inner:
            held.set()
            with b:
                pass

    process = ctx.Process(target=child, args=(a, b, ready))
    with a:
        process.start()
        ready.wait()
        thread = threading.Thread(target=between, name="between")
        thread.start()
        held.wait()
        # So that this one comes last, and is the one that fails.
        time.sleep(0.3)
        try:
            with inner:
                pass
        except RuntimeError as error:
            parties = error.parties
            print(len(parties), len({party["pid"] for party in parties}), error.circle)
            print(sorted(party["waits_for"]["kind"] for party in parties))
            assert all(party["stack"] for party in parties), error
            assert all(held["place"] for party in parties for held in party["holds"]), error
    thread.join()
    process.join()
    print(process.exitcode)
"""


@pytest.mark.parametrize("method", METHODS)
def test_threads_and_processes_in_one_circle(method, tmp_path):
    path = program(tmp_path, MIXED)
    done = run("-m", "phalanx", "--deadlocks=raise", path, method)
    assert done.stdout.splitlines() == ["3 2 True", "['Lock', 'Lock', 'Lock']", "0"], done.stderr


@pytest.mark.parametrize("method", METHODS)
def test_the_join_of_a_process_that_waits_for_us(method, tmp_path):
    path = program(
        tmp_path,
        """
import multiprocessing, sys

def child(lock):
    with lock:
        pass

if __name__ == "__main__":
    ctx = multiprocessing.get_context(sys.argv[1])
    lock = ctx.Lock()
    process = ctx.Process(target=child, args=(lock,))
    with lock:
        process.start()
        try:
            process.join()
        except RuntimeError as error:
            print(type(error).__name__, sorted(party["waits_for"]["kind"] for party in error.parties))
    process.join()
    print("over")
""",
    )
    done = run("-m", "phalanx", "--deadlocks=raise", path, method)
    # Either of the two may be the youngest waiter.
    assert "DeadlockError" in done.stdout + done.stderr
    assert done.stdout.endswith("over\n")


def test_an_rlock_a_named_lock_and_the_places_are_in_the_report(tmp_path):
    path = program(
        tmp_path,
        """
import threading
from phalanx import deadlocks

one, other = deadlocks.RLock(name="accounts"), threading.RLock()
met = threading.Barrier(2)

def cross(first, second):
    with first:
        met.wait()
        with second:
            pass

thread = threading.Thread(target=cross, args=(other, one), name="crosser")
thread.start()
try:
    cross(one, other)
except deadlocks.DeadlockError as error:
    print(error)
thread.join()
""",
    )
    # Whoever fails, the other one goes on.
    done = run("-m", "phalanx", "--deadlocks=raise", path)
    text = done.stdout + done.stderr
    assert 'RLock "accounts"' in text or "DeadlockError" in text
    assert "taken at program.py:9" in text, text
    assert "made at program.py:5" in text, text


INNOCENT = {
    "a wait for a thread that computes": """
import threading, time
lock = threading.Lock()
def work():
    with lock:
        end = time.monotonic() + 1.5
        while time.monotonic() < end:
            pass
threads = [threading.Thread(target=work) for _ in range(3)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
""",
    "a lock that another thread frees": """
import threading, time
lock = threading.Lock()
lock.acquire()
def free():
    time.sleep(1.5)
    lock.release()
threading.Thread(target=free).start()
lock.acquire()
""",
    "an event that a timer sets": """
import threading
event = threading.Event()
threading.Timer(1.5, event.set).start()
event.wait()
""",
    "a queue that a child fills": """
import multiprocessing, time
def put(queue):
    time.sleep(1.5)
    queue.put(1)
queue = multiprocessing.Queue()
process = multiprocessing.Process(target=put, args=(queue,))
process.start()
queue.get()
process.join()
""",
    "a queue that a spawned child fills": """
import multiprocessing, time
def put(queue):
    time.sleep(1.0)
    queue.put(1)
if __name__ == "__main__":
    ctx = multiprocessing.get_context("spawn")
    queue = ctx.Queue()
    process = ctx.Process(target=put, args=(queue,))
    process.start()
    queue.get()
    process.join()
""",
    "a handler that a signal runs": """
import signal, threading
event = threading.Event()
signal.signal(signal.SIGALRM, lambda *_: event.set())
signal.setitimer(signal.ITIMER_REAL, 1.5)
event.wait()
""",
    "a forked child that nobody has heard of yet": """
import multiprocessing, os, time
event = multiprocessing.Event()
pid = os.fork()
if not pid:
    time.sleep(1.5)
    event.set()
    os._exit(0)
event.wait()
os.waitpid(pid, 0)
""",
    "waits with time-outs in a circle": """
import threading
a, b = threading.Lock(), threading.Lock()
met = threading.Barrier(2)
def cross(first, second):
    with first:
        met.wait()
        if second.acquire(timeout=1.5):
            second.release()
thread = threading.Thread(target=cross, args=(b, a))
thread.start()
cross(a, b)
thread.join()
""",
    "a pool whose workers sleep": """
import multiprocessing, time
if __name__ == "__main__":
    with multiprocessing.Pool(2) as pool:
        pool.map(time.sleep, [0.8] * 4)
""",
    "a process that a subprocess keeps waiting": """
import subprocess, sys, threading
lock = threading.Lock()
def run():
    with lock:
        subprocess.run([sys.executable, "-c", "import time; time.sleep(1.5)"], check=True)
thread = threading.Thread(target=run)
thread.start()
with lock:
    pass
thread.join()
""",
}


@pytest.mark.parametrize("about", INNOCENT)
def test_nobody_is_accused_of(about, tmp_path):
    path = program(tmp_path, INNOCENT[about])
    done = run("-m", "phalanx", "--deadlocks=abort", path)
    assert "deadlock" not in done.stderr


def test_dump_shows_a_running_program(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-m", "phalanx", "--deadlocks", str(EXAMPLES / "deadlock.py"), "processes"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        for line in process.stderr:
            if "-->" in line:
                break
        done = run("-m", "phalanx", "dump", process.pid)
        assert done.stdout.count("waits for Lock") >= 2, done.stdout
        assert "deadlock: 2 threads wait for each other in a circle" in done.stdout
        data = json.loads(run("-m", "phalanx", "dump", process.pid, "--json").stdout)
        assert len(data["processes"]) == 2
        assert len(data["deadlocks"]) == 1
    finally:
        process.kill()
        process.wait()
        process.stderr.close()


DUMPED = """
import multiprocessing, sys, threading

def child(lock, ready, pipe):
    mine = threading.Lock()
    threading.Thread(target=pipe.recv, name="receiver", daemon=True).start()
    with lock:
        ready.set()
        with mine:
            threading.Event().wait()

if __name__ == "__main__":
    ctx = multiprocessing.get_context(sys.argv[1])
    lock, ready = ctx.Lock(), ctx.Event()
    here, there = ctx.Pipe()
    process = ctx.Process(target=child, args=(lock, ready, there), name="holder", daemon=True)
    process.start()
    ready.wait()
    print("ready", flush=True)
    with lock:
        pass
"""


def dumped(pid, enough):
    """Dump the tree until it is as far as it is to be."""
    for _ in range(400):
        data = json.loads(run("-m", "phalanx", "dump", pid, "--json").stdout)
        threads = [thread for process in data["processes"] for thread in process["threads"]]
        if enough(threads):
            return threads
        time.sleep(0.02)
    raise AssertionError(data)


@pytest.mark.parametrize("watched", [True, False], ids=["watched", "unwatched"])
@pytest.mark.parametrize("method", METHODS)
def test_dump_shows_each_thread_of_the_tree(method, watched, tmp_path):
    options = ["--deadlocks"] if watched else []
    process = subprocess.Popen(
        [sys.executable, "-m", "phalanx", *options, str(program(tmp_path, DUMPED)), method],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout.readline() == "ready\n"
        threads = dumped(process.pid, lambda threads: sum(bool(one["waits_for"]) for one in threads) == 2)
        main, holder = sorted((one for one in threads if one["waits_for"]), key=lambda one: one["name"] == "holder")
        assert (main["waits_for"]["kind"], holder["waits_for"]["kind"]) == ("Lock", "event")
        assert main["needs"][1] == holder["tid"]
        assert main["waits_for"]["name"] in [held["name"] for held in holder["holds"]]
        if watched:
            assert "with lock:" in main["stack"]
            assert "threading.Event().wait()" in holder["stack"]
            assert all(held["place"].startswith("program.py:") for held in holder["holds"])
            assert len(holder["holds"]) == 2
        if holder["outside"] or any(one["outside"] for one in threads):
            assert [one["outside"].split(" (")[0][:18] for one in threads if one["outside"]] == ["read of descriptor"]
        if method == "forkserver":
            # Its fork server is no party.
            assert any(one["helper"] and one["name"].startswith("python") for one in threads), threads
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def test_a_dump_of_what_is_not_there_or_not_ours_says_so():
    assert "it does not use phalanx" in run("-m", "phalanx", "dump", 1, code=1).stderr or os.getuid() != 0
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    assert "there is no such process" in run("-m", "phalanx", "dump", ended.pid, code=1).stderr
    if os.getuid() == 0 and shutil.which("setpriv"):
        done = subprocess.run(
            ["setpriv", "--reuid=65534", "--clear-groups", sys.executable, "-m", "phalanx", "dump", "1"],
            capture_output=True,
            text=True,
            timeout=60,
        )
        # That user may not even read the interpreter's files.
        assert done.returncode == 1
        assert "not yours to look into" in done.stderr or "phalanx" not in done.stderr, done.stderr
    assert run("-m", "phalanx", "dump", code=2).stderr


def test_a_wrong_option_is_refused():
    assert "report, raise or abort" in run("-m", "phalanx", "--deadlocks=maybe", "-c", "0", code=2).stderr
    assert "no option" in run("-m", "phalanx", "--deadlocks-png", "x", "-c", "0", code=2).stderr


def test_the_pytest_plugin_makes_a_failure_of_a_hang(tmp_path):
    (tmp_path / "test_hang.py").write_text(
        """
import multiprocessing
import threading


def cross(first, second, met):
    with first:
        met.wait()
        with second:
            pass


def test_threads():
    a, b, met = threading.Lock(), threading.Lock(), threading.Barrier(2)
    other = threading.Thread(target=cross, args=(b, a, met), daemon=True)
    other.start()
    cross(a, b, met)
    other.join()


def test_processes():
    a, b, met = multiprocessing.Lock(), multiprocessing.Lock(), multiprocessing.Barrier(2)
    other = multiprocessing.Process(target=cross, args=(b, a, met), daemon=True)
    other.start()
    cross(a, b, met)
    other.join()


def test_nothing():
    with threading.Lock(), multiprocessing.Lock():
        pass
"""
    )
    done = run("-m", "pytest", "-p", "no:cacheprovider", "--phalanx-deadlocks", tmp_path, code=1, cwd=tmp_path)
    assert re.search(r"2 failed, 1 passed", done.stdout), done.stdout
    assert done.stdout.count("2 threads wait for each other in a circle") >= 2, done.stdout


def test_watching_begins_and_ends(tmp_path):
    path = program(
        tmp_path,
        """
import threading
import phalanx
from phalanx import deadlocks

stock = threading.Lock, threading.RLock, threading.Thread.join
assert deadlocks.watching() is None
deadlocks.watch("raise", every=0.05)
assert deadlocks.watching() == "raise"
lock = threading.Lock(name="mine")
deadlocks.unwatch()
assert deadlocks.watching() is None
assert (threading.Lock, threading.RLock, threading.Thread.join) == stock
with lock:
    pass
try:
    deadlocks.watch("maybe")
except ValueError:
    print("refused")
me = deadlocks.dump()
assert [process["pid"] for process in me["processes"]] == [__import__("os").getpid()]
""",
    )
    assert run(path).stdout == "refused\n"


def test_a_party_that_is_killed_in_the_middle_leaves_no_circle(tmp_path):
    path = program(
        tmp_path,
        """
import multiprocessing, os, signal, threading, time

def child(a, b, ready):
    with b:
        ready.set()
        with a:
            pass

if __name__ == "__main__":
    for delay in (0.0, 0.15, 0.25, 0.35, 0.45):
        a, b, ready = multiprocessing.Lock(), multiprocessing.Lock(), multiprocessing.Event()
        process = multiprocessing.Process(target=child, args=(a, b, ready))
        with a:
            process.start()
            ready.wait()
            threading.Timer(delay, os.kill, (process.pid, signal.SIGKILL)).start()
            with b:
                pass
        process.join()
    print("done")
""",
    )
    done = run("-W", "ignore", "-m", "phalanx", "--deadlocks", path)
    assert done.stdout == "done\n", done.stderr


def test_crossings_in_a_row_are_all_survived(tmp_path):
    path = program(
        tmp_path,
        """
import threading, time
from phalanx import deadlocks

deadlocks.watch("raise", every=0.02)
found = 0

def cross(first, second, met):
    global found
    try:
        with first:
            met.wait()
            with second:
                pass
    except deadlocks.DeadlockError:
        found += 1

for _ in range(40):
    a, b, met = threading.Lock(), threading.Lock(), threading.Barrier(2)
    other = threading.Thread(target=cross, args=(b, a, met))
    other.start()
    cross(a, b, met)
    other.join()
print(found)
""",
    )
    assert run(path).stdout == "40\n"
