"""Locks taken in different orders are told before anybody waits for anybody; orders that cannot end in a deadlock are not."""

import re
import subprocess
import sys

import pytest

METHODS = ("fork", "spawn", "forkserver")


def run(*args, code=0, cwd=None):
    done = subprocess.run([sys.executable, *map(str, args)], capture_output=True, text=True, timeout=60, cwd=cwd)
    assert done.returncode == code, (done.returncode, done.stdout, done.stderr)
    return done


def ordered(tmp_path, text, code=0):
    path = tmp_path / "program.py"
    path.write_text(text)
    return run("-m", "phalanx", "--lock-order", path, code=code)


def told(done):
    return done.stderr.count("phalanx: lock order: ")


BEGIN = """\
import threading
import multiprocessing

def in_turn(*bodies):
    for number, body in enumerate(bodies):
        thread = threading.Thread(target=body, name=f"number {number}")
        thread.start()
        thread.join()

"""


def test_two_threads_one_after_the_other(tmp_path):
    done = ordered(
        tmp_path,
        BEGIN
        + """\
a, b = threading.Lock(), threading.RLock()

def there():
    with a:
        with b:  # line 14
            pass

def back():
    b.acquire()
    a.acquire()  # line 19
    a.release()
    b.release()

for _ in range(3):
    in_turn(there, back)
""",
    )
    assert told(done) == 1, done.stderr
    assert re.search(
        r'thread "number 0"\n +has Lock made at program.py:10 \(taken at program.py:13\)\n'
        r" +and takes RLock made at program.py:10 \(2\) at program.py:14",
        done.stderr,
    ), done.stderr
    assert "has RLock made at program.py:10 (2) (taken at program.py:18)" in done.stderr
    assert "takes Lock made at program.py:10 at program.py:19" in done.stderr


@pytest.mark.parametrize("method", METHODS)
def test_two_processes(tmp_path, method):
    done = ordered(
        tmp_path,
        f"""\
import multiprocessing

def there(a, b):
    with a:
        with b:
            pass

if __name__ == "__main__":
    context = multiprocessing.get_context({method!r})
    a, b = context.Lock(), context.RLock()
    child = context.Process(target=there, args=(a, b))
    child.start()
    child.join()
    assert child.exitcode == 0
    with b:
        with a:
            pass
    from phalanx import deadlocks
    (found,) = deadlocks.inversions()
    assert len({{step["pid"] for step in found["steps"]}}) == 2, found
    assert {{step["takes"]["place"] for step in found["steps"]}} == {{"program.py:5", "program.py:16"}}, found
""",
    )
    assert told(done) == 1, done.stderr


def test_a_child_that_closes_the_circle_tells_its_parent(tmp_path):
    done = ordered(
        tmp_path,
        """\
import multiprocessing

def back(a, b):
    with b, a:
        pass

if __name__ == "__main__":
    a, b = multiprocessing.Lock(), multiprocessing.Lock()
    with a, b:
        pass
    child = multiprocessing.get_context("spawn").Process(target=back, args=(a, b))
    child.start()
    child.join()
    from phalanx import deadlocks
    assert len(deadlocks.inversions()) == 1
""",
    )
    assert told(done) == 1, done.stderr


def test_a_circle_of_three_in_both_scopes(tmp_path):
    done = ordered(
        tmp_path,
        BEGIN
        + """\
a, b, c = threading.Lock(), multiprocessing.Lock(), multiprocessing.RLock()

def nested(first, second):
    def run():
        with first, second:
            pass
    return run

in_turn(nested(a, b), nested(b, c), nested(c, a))
""",
    )
    assert told(done) == 1, done.stderr
    assert "3 locks are taken in different orders" in done.stderr


QUIET = {
    "a gate": "in_turn(nested(gate, a, b), nested(gate, b, a))",
    "one thread": "in_turn(lambda: (nested(a, b)(), nested(b, a)()))",
    "tries": "in_turn(nested(a, b), tries(b, a))",
    "again": "in_turn(nested(r, b, r), nested(r, b, r))",
    "in turn": "in_turn(nested(a, b), nested(b), nested(a))",
    "gone": """
for turn in range(6):
    x = threading.Lock()
    in_turn(nested(a, x) if turn % 2 else nested(x, a))
    del x
""",
    "a signal": "in_turn(nested(a, b), signals(b, a))",
    "a condition": "in_turn(waits(threading.Condition(a), threading.Lock()), nested(a, b), waits(threading.Condition(b), a))",
}


@pytest.mark.parametrize("kind", QUIET)
@pytest.mark.parametrize("make", ["threading", "multiprocessing"])
def test_nothing_is_told_of(tmp_path, kind, make):
    if kind == "a condition" and make == "multiprocessing":
        return _shared_condition(tmp_path)
    done = ordered(
        tmp_path,
        BEGIN
        + f"""\
import {make} as make
a, b, gate, r = make.Lock(), make.Lock(), make.Lock(), make.RLock()

def nested(*locks):
    def run():
        for lock in locks:
            lock.acquire()
        for lock in reversed(locks):
            lock.release()
    return run

def tries(first, second):
    def run():
        with first:
            assert second.acquire(False)
            second.release()
            assert second.acquire(timeout=10) if make is threading else second.acquire(True, 10)
            second.release()
    return run

def signals(first, second):
    def run():
        # Freed by another thread: not held from then on.
        first.acquire()
        thread = threading.Thread(target=first.release)
        thread.start()
        thread.join()
        with second:
            pass
    return run

def waits(condition, other):
    def run():
        # Not held while it waits, nor after it.
        with condition:
            condition.wait(0.01)
        with other:
            pass
    return run

{QUIET[kind]}
""",
    )
    assert told(done) == 0, done.stderr


def _shared_condition(tmp_path):
    done = ordered(
        tmp_path,
        BEGIN
        + """\
a, b = multiprocessing.Lock(), multiprocessing.Lock()
condition = multiprocessing.Condition(a)

def waits():
    with condition:
        condition.wait(0.01)
    with b:
        pass

def there():
    with a, b:
        pass

in_turn(waits, there)
""",
    )
    assert told(done) == 0, done.stderr


@pytest.mark.parametrize("make", ["threading", "multiprocessing"])
def test_a_condition_takes_its_lock_again(tmp_path, make):
    done = ordered(
        tmp_path,
        BEGIN
        + f"""\
import {make} as make
a, b = make.Lock(), make.Lock()
condition = make.Condition(a)

def there():
    with a, b:
        pass

def waits():
    with condition, b:
        condition.wait(0.01)

in_turn(there, waits)
""",
    )
    assert told(done) == 1, done.stderr


def test_without_the_option_nothing_is_noted(tmp_path):
    path = tmp_path / "program.py"
    path.write_text(BEGIN + "a, b = threading.Lock(), threading.Lock()\n")
    with path.open("a") as file:
        file.write(
            "def nested(x, y):\n    with x, y:\n        pass\n"
            "in_turn(lambda: nested(a, b), lambda: nested(b, a))\n"
            "from phalanx import deadlocks\nassert deadlocks.inversions() == [] and not deadlocks.watching_order()\n"
        )
    assert told(run("-m", "phalanx", path)) == 0


def test_beside_a_look_for_deadlocks(tmp_path):
    path = tmp_path / "program.py"
    path.write_text("from phalanx import deadlocks\nprint(deadlocks.watching(), deadlocks.watching_order())\n")
    assert run("-m", "phalanx", "--lock-order", "--deadlocks=raise", path).stdout == "raise True\n"
    assert run("-m", "phalanx", "--deadlocks", path).stdout == "report False\n"


def test_the_plugin_fails_the_test_that_closes_the_circle(tmp_path):
    (tmp_path / "test_it.py").write_text(
        BEGIN
        + """\
a, b = threading.Lock(), threading.Lock()

def nested(first, second):
    with first, second:
        pass

def test_there():
    in_turn(lambda: nested(a, b))

def test_back():
    in_turn(lambda: nested(b, a))

def test_more():
    in_turn(lambda: nested(b, a))
"""
    )
    done = run("-m", "pytest", "-q", "-p", "no:cacheprovider", "--phalanx-lock-order", tmp_path, code=1, cwd=tmp_path)
    assert "1 failed, 2 passed" in done.stdout, done.stdout
    assert "FAILED" in done.stdout and "test_back" in done.stdout
    assert "2 locks are taken in different orders" in done.stdout
