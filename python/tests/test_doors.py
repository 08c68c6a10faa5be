"""The ways a program is started: what it sees of itself and what it prints is as under plain ``python``."""

import subprocess
import sys

import pytest

PROGRAM = """
import sys
import multiprocessing

if __name__ == "__main__":
    import phalanx
    where = globals().get("__file__")
    spec = __spec__ and __spec__.name
    print(where, sys.argv, spec, sys.modules["__main__"].__dict__ is globals(), sorted(globals()))
    print(sys.path[0], phalanx.installed() == (sys.argv[-1] == "ours"), file=sys.stdout)
    process = multiprocessing.get_context("spawn").Process(target=print, args=("from a child",))
    process.start()
    process.join()
    sys.exit(process.exitcode + 3)
"""


def run(args, cwd, **kwargs):
    return subprocess.run([sys.executable, *args], cwd=cwd, capture_output=True, text=True, timeout=60, **kwargs)


def assert_same(plain, ours, cwd, **kwargs):
    """Both print the same but for the last argument, and end the same."""
    expected = run([*plain, "plain"], cwd, **kwargs)
    got = run([*ours, "ours"], cwd, **kwargs)
    assert got.stdout == expected.stdout.replace("'plain'", "'ours'")
    assert got.stderr == expected.stderr
    assert got.returncode == expected.returncode
    return got


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "app.py").write_text(PROGRAM)
    (tmp_path / "no_extension").write_text(PROGRAM)
    package = tmp_path / "package"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "__main__.py").write_text(PROGRAM)
    return tmp_path


@pytest.mark.parametrize("program", [["app.py"], ["no_extension"], ["./app.py"], ["package"], ["-m", "app"], ["-m", "package"]])
@pytest.mark.parametrize("door", [["-m", "phalanx"], ["-m", "phalanx", "run"]])
def test_program_sees_what_it_would(folder, program, door):
    got = assert_same(program, [*door, *program], folder)
    assert got.returncode == 3 and "from a child" in got.stdout, got.stderr


def test_code_on_the_command_line(folder):
    code = "import sys; print(sys.argv, repr(sys.path[0]), __name__)"
    got = assert_same(["-c", code], ["-m", "phalanx", "-c", code], folder)
    assert got.returncode == 0


def test_program_on_standard_input(folder):
    got = assert_same(["-"], ["-m", "phalanx", "-"], folder, input="import sys; print(sys.argv, __name__)")
    assert got.returncode == 0


@pytest.mark.parametrize("code", ["1/0", "raise SystemExit('bye')", "raise KeyboardInterrupt", "import os; os._exit(9)"])
def test_ends_are_those_of_python(folder, code):
    assert_same(["-c", code], ["-m", "phalanx", "-c", code], folder)


def test_a_traceback_shows_the_program_alone(folder):
    (folder / "fails.py").write_text("def f():\n    raise OSError('no')\n\nf()\n")
    got = assert_same(["fails.py"], ["-m", "phalanx", "fails.py"], folder)
    assert "phalanx" not in got.stderr and "OSError: no" in got.stderr


def test_pytest_says_nothing_of_the_package(folder):
    (folder / "test_one.py").write_text("def test_one():\n    pass\n")
    got = run(["-m", "phalanx", "-m", "pytest", "-q", "-W", "error", "-p", "no:cacheprovider", "test_one.py"], folder)
    assert got.returncode == 0 and "warning" not in got.stdout, got.stdout


def test_help_and_mistakes(folder):
    assert "usage:" in run(["-m", "phalanx", "--help"], folder).stdout
    assert run(["-m", "phalanx"], folder).returncode == 2
    assert run(["-m", "phalanx", "-m"], folder).returncode == 2
    assert run(["-m", "phalanx", "--no-such-option"], folder).returncode == 2
    missing = run(["-m", "phalanx", "missing.py"], folder)
    assert missing.returncode == 2 and "can't open file" in missing.stderr


def test_an_ignored_interrupt_stays_ignored(folder):
    code = "import signal; print(signal.getsignal(signal.SIGINT) == signal.SIG_IGN)"
    shell = f"trap '' INT; exec {sys.executable} -m phalanx -c '{code}'"
    done = subprocess.run(["sh", "-c", shell], capture_output=True, text=True, timeout=60)
    assert done.stdout == "True\n", done.stderr
