"""Runs every program of examples/python as a user would, and looks for what it promises to show.

Those that use the standard library alone are run on it as well, and must show the same there.
"""

import os
import pathlib
import signal
import subprocess
import sys

import pytest

HERE = pathlib.Path(__file__).parents[2]
EXAMPLES = HERE / "examples" / "python"

# On the standard library and on phalanx.
BOTH = {
    "commands": ([], ["run: exit code 3", "oh no", "apple", "a time-out"]),
    "fork": ([], ["at-fork hook", "parent: it exited with code 7"]),
    "http_server": (["--requests", "100"], ["95 requests answered, 5 workers crashed on purpose"]),
    "pool": ([], ["apply: 144", "[1024, 81]", "state: 81", "callback: 25", "[1, 4, 9, 16, 25]", "332833500", "not running"]),
    "process": ([], ["says 42", "hello you from greeter", "exit code 1", "SIGABRT", "still runs: True", "SIGTERM"]),
    "queues": ([], ["['a0', 'a1'", "ready first: True", "HELLO", "was killed", "their sum is 55"]),
    "shared_data": ([], ["21081692.7", "counted to 1500", "b'hello'", "{0: 0, 1: 1, 2: 4, 3: 9}"]),
    "start_methods": ([], ["fork: 42", "forkserver: 42", "spawn: 42"]),
    "threads": ([], ["I am MainThread", "the first is Thread-1", "from greeter", "'waiting'", "no luck", "[0, 3, 6, 9, 12]"]),
    "wordcount": (["--workers", "2", str(EXAMPLES)], ["sequential", "threads", "processes x threads", "all agree"]),
}
# With what only phalanx has.
OURS = {
    "coroutines": ["a task: 9", "two tasks: 16 25", "[0, 1, 4, 9]", "one by one: [0, 1, 4, 9]", "three", "given up in time"],
    "failing_tasks": ["I do not like", "SIGSEGV", "TaskTimeoutError", "MemoryError", "retried: 3", "was cancelled", "[0, 1, 2, 3, 4]"],
    "locks": ["4000", "OwnerDiedWarning", "told once: True", "[0, 1, 2]", "never more than 2"],
}
# Run by the tests of the detective, which they are about.
ELSEWHERE = {"deadlock", "deadlock_kinds", "dining_philosophers"}


def run(args):
    program = subprocess.Popen(
        [sys.executable, *args], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        out, err = program.communicate(timeout=100)
    except BaseException:
        os.killpg(program.pid, signal.SIGKILL)
        program.communicate()
        raise
    assert program.returncode == 0, f"{out}\n{err}"
    return out


@pytest.mark.parametrize("door", [[], ["-m", "phalanx"]], ids=["stdlib", "phalanx"])
@pytest.mark.parametrize("name", BOTH)
def test_an_example_of_the_standard_librarys_api(name, door):
    args, promises = BOTH[name]
    shown = run([*door, str(EXAMPLES / f"{name}.py"), *args])
    for promise in promises:
        assert promise in shown, shown


@pytest.mark.parametrize("name", OURS)
def test_an_example_of_what_is_more(name):
    shown = run([str(EXAMPLES / f"{name}.py")])
    for promise in OURS[name]:
        assert promise in shown, shown


def test_every_example_is_run_and_has_its_rust_twin():
    here = {path.stem for path in EXAMPLES.glob("*.py")}
    assert here - ELSEWHERE == {*BOTH, *OURS}
    twins = {"queues" if path.stem == "queue" else path.stem for path in (HERE / "examples/rust/src/bin").glob("*.rs")}
    assert here - ELSEWHERE == twins - ELSEWHERE
