"""The stubs say what the modules have."""

import subprocess
import sys
from pathlib import Path

import pytest

import phalanx

HERE = Path(__file__).resolve().parent

USE = '''
import phalanx as mp
from phalanx.pool import ApplyResult
from phalanx.queues import Queue

def double(n: int) -> str:
    return str(2 * n)

async def wait(result: ApplyResult[str], queue: Queue[int]) -> tuple[str, int]:
    return await result, await queue.get_async()

with mp.Pool(2, task_timeout=5.0, retries=1) as pool:
    reveal_type(pool)
    reveal_type(pool.map(double, [1, 2], timeout=1.0, progress=True))
    reveal_type(pool.apply_async(double, (1,), retries=2).cancel())
    pool.map(double, ["a"])
    pool.imap(double, [1], buffer=3)
reveal_type(mp.get_context("spawn").Queue())
reveal_type(mp.ProcessPoolExecutor(2, survive=True).submit(double, 1).result())
'''


def run(*command, cwd):
    return subprocess.run([sys.executable, *command], cwd=cwd, capture_output=True, text=True, timeout=110)


def test_stubs_are_those_of_the_modules(tmp_path):
    pytest.importorskip("mypy")
    found = run(
        "-m", "mypy.stubtest", "phalanx",
        "--mypy-config-file", str(HERE / "stubs.ini"),
        "--allowlist", str(HERE / "stubs_allowed.txt"),
        "--ignore-missing-stub", "--ignore-unused-allowlist",
        cwd=tmp_path,
    )  # fmt: skip
    assert found.returncode == 0, found.stdout + found.stderr


def test_a_type_checker_sees_what_is_more_than_the_stdlib(tmp_path):
    pytest.importorskip("mypy")
    (tmp_path / "use.py").write_text(USE)
    found = run("-m", "mypy", "--strict", "use.py", cwd=tmp_path)
    shown = [line.partition("Revealed type is ")[2].strip('"') for line in found.stdout.splitlines() if "Revealed" in line]
    short = [line.replace("builtins.", "") for line in shown]
    assert short == ["phalanx.pool.Pool", "list[str]", "bool", "phalanx.queues.Queue[Any]", "str"], found.stdout
    errors = [line for line in found.stdout.splitlines() if ": error:" in line]
    assert len(errors) == 2 and "arg-type" in errors[0] + errors[1] and "buffer" in errors[0] + errors[1], found.stdout


def test_every_public_class_says_what_it_is():
    missing = []
    for module in (phalanx.pool, phalanx.queues, phalanx.synchronize, phalanx.shared_memory, phalanx.connection, phalanx.managers):
        for name, value in vars(module).items():
            if isinstance(value, type) and value.__module__.startswith("phalanx") and not name.startswith("_") and not value.__doc__:
                missing.append(f"{module.__name__}.{name}")
    assert not missing


def test_the_modules_use_no_name_that_they_do_not_have():
    pytest.importorskip("pyflakes", reason="python/requirements.txt was not installed")
    package = Path(phalanx.__file__).parent
    said = run("-m", "pyflakes", *sorted(map(str, package.glob("*.py"))), cwd=HERE)
    assert not [line for line in said.stdout.splitlines() if ": undefined name " in line]
