"""Others' programs, unchanged, on the standard library and by ``python -m phalanx``: the same output, or a difference.

    python run.py [--only NAME] [--rounds N]

Each program runs in a folder and a session of its own. Afterwards nothing of it may be left: no process, no name in
/dev/shm. Time-outs are of the runner, so a hang is a failure with a name.
"""

import argparse
import os
import re
import shutil
import signal
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

HERE = Path(__file__).resolve().parent
# Seconds of one run; the slowest program needs a few.
PATIENCE = 120
# Seconds in which daemon children and trackers may end after their program has.
GRACE = 3


@dataclass
class Program:
    """A program: a script of this folder, or a module of an installed package with arguments."""

    name: str
    uses: str
    args: list[str] = field(default_factory=list)
    prepare: Callable[[Path], None] | None = None
    # Steps after the first, e.g. the report on what a run collected. They run on the standard library.
    then: list[list[str]] = field(default_factory=list)
    # Lines come in the order in which workers finish.
    sort: bool = False
    # A file whose content is part of the outcome.
    result: str | None = None

    def line(self) -> list[str]:
        return self.args or [str(HERE / "programs" / f"{self.name}.py")]


@dataclass
class Outcome:
    """What a run did, as far as it must be the same."""

    code: int | None
    out: list[str]
    err: list[str]
    seconds: float
    left: list[str]


def stdlib_package(*names: str) -> Callable[[Path], None]:
    """Return a preparation that puts packages of the interpreter there, as sources to work on."""

    def prepare(folder: Path) -> None:
        for name in names:
            source = Path(sysconfig.get_path("stdlib"), name)
            shutil.copytree(source, folder / "source" / name, ignore=shutil.ignore_patterns("__pycache__"))

    return prepare


def documents(folder: Path) -> None:
    pages = [f"page{number}" for number in range(24)]
    (folder / "docs").mkdir()
    (folder / "docs" / "conf.py").write_text("project = 'pages'\nextensions = []\nhtml_theme = 'basic'\n")
    (folder / "docs" / "index.rst").write_text("Index\n=====\n\n.. toctree::\n\n" + "".join(f"   {page}\n" for page in pages))
    for number, page in enumerate(pages):
        text = f"{page}\n{'=' * 8}\n\nSee :doc:`page{(number + 1) % len(pages)}`.\n\n.. code-block:: python\n\n   print({number})\n"
        (folder / "docs" / f"{page}.rst").write_text(text)


def tests(folder: Path) -> None:
    (folder / "test_many.py").write_text(
        "import multiprocessing, pytest\n\n"
        "def double(n):\n    return 2 * n\n\n"
        "@pytest.mark.parametrize('n', range(40))\n"
        "def test_plain(n):\n    assert double(n) == n + n\n\n"
        "@pytest.mark.parametrize('n', range(4))\n"
        "def test_pool(n):\n"
        "    with multiprocessing.Pool(2) as pool:\n"
        "        assert pool.map(double, range(n, n + 50)) == list(range(2 * n, 2 * n + 100, 2))\n"
    )


def shop(folder: Path) -> None:
    """Write a Django project whose tests run in parallel, a few of them failing."""
    (folder / "settings.py").write_text(
        "SECRET_KEY = 'x'\n"
        "INSTALLED_APPS = ['django.contrib.auth', 'django.contrib.contenttypes', 'shop']\n"
        "DATABASES = {'default': {'ENGINE': 'django.db.backends.sqlite3', 'NAME': 'db.sqlite3'}}\n"
        "USE_TZ, DEFAULT_AUTO_FIELD = True, 'django.db.models.AutoField'\n"
    )
    (folder / "manage.py").write_text(
        "import os, sys\n"
        "os.environ['DJANGO_SETTINGS_MODULE'] = 'settings'\n"
        "if __name__ == '__main__':\n"
        "    from django.core.management import execute_from_command_line\n"
        "    execute_from_command_line(sys.argv)\n"
    )
    (folder / "shop" / "tests").mkdir(parents=True)
    (folder / "shop" / "__init__.py").touch()
    (folder / "shop" / "tests" / "__init__.py").touch()
    for number in range(4):
        (folder / "shop" / "tests" / f"test_{number}.py").write_text(
            "from django.contrib.auth.models import User\n"
            "from django.test import TestCase\n\n"
            f"class Users{number}(TestCase):\n"
            "    def test_one(self):\n"
            "        User.objects.create(username='one')\n"
            "        self.assertEqual(User.objects.count(), 1)\n\n"
            f"    def test_{'none' if number else 'bad'}(self):\n"
            f"        self.assertEqual(User.objects.count(), {0 if number else 1})\n\n"
            "    def test_parts(self):\n"
            "        for n in range(3):\n"
            "            with self.subTest(n=n):\n"
            "                self.assertLess(n, 3)\n"
        )


def coverage_settings(folder: Path) -> None:
    shutil.copy(HERE / "programs" / "coverage_child.py", folder / "measured.py")
    (folder / ".coveragerc").write_text("[run]\nconcurrency = multiprocessing\nparallel = true\nsigterm = true\n")


PROGRAMS = [
    Program("joblib_parallel", "loky's executor, Pool subclass, ThreadPool"),
    Program("tqdm_maps", "ProcessPoolExecutor, a lock through an initializer"),
    Program("mpire_pool", "Process, queues, Value, Condition; fork and spawn"),
    Program("pebble_pool", "Process, Pipe, locks; kills its workers"),
    Program("dask_scheduler", "ProcessPoolExecutor over spawn and fork, threads"),
    Program("emcee_sampler", "Pool, hundreds of tiny maps"),
    Program("pathos_beside", "a copy of the stock library beside it, Queue"),
    Program("gunicorn_workers", "Process, os.fork twice over, signals"),
    Program("luigi_tasks", "Process subclass, Queue"),
    Program("shared_arrays", "shared_memory, its manager, Value, Array, Manager"),
    Program("log_queue", "Queue, JoinableQueue, Pool, ThreadPool, os.fork"),
    Program("sklearn_search", "joblib below a library: loky, Pool, ThreadPool"),
    Program("pandarallel_apply", "Pool with an initializer, Manager's queue, frames through a Pool"),
    Program("asyncio_executors", "ProcessPoolExecutor by every method under asyncio, subprocess"),
    Program("uvicorn_workers", "Process by spawn, Pipe, signals; a worker killed"),
    Program("gevent_patched", "threading and queue patched by others, Pipe, Lock, Value"),
    Program("aiomultiprocess_pool", "Process and Queue by spawn under asyncio"),
    Program("loguru_queue", "SimpleQueue, Lock and Event by every method"),
    Program("distributed_cluster", "Process by spawn and Queue under asyncio; workers that die"),
    Program("trio_parallel_workers", "Process, Pipe and sentinels by every method under trio"),
    Program("whoosh_index", "Process subclass, JoinableQueue"),
    Program("pypeln_stages", "Process, Queue, Event, Manager's Namespace"),
    Program("tornado_forks", "os.fork of servers with loops"),
    Program("timeout_decorators", "Process with a Queue or a Pipe each, killed"),
    Program(
        "black",
        "ProcessPoolExecutor and Manager under asyncio",
        ["-m", "black", "--workers", "2", "--no-cache", "source"],
        prepare=stdlib_package("json", "concurrent"),
        sort=True,
    ),
    Program(
        "flake8",
        "Pool subclass with an initializer",
        ["-m", "flake8", "--jobs", "2", "source"],
        prepare=stdlib_package("json", "concurrent", "email"),
    ),
    Program(
        "isort",
        "Pool, imap",
        ["-m", "isort", "--jobs", "2", "--check-only", "source"],
        prepare=stdlib_package("json", "concurrent", "email", "asyncio"),
        sort=True,
    ),
    Program(
        "pylint",
        "ProcessPoolExecutor with an initializer by value",
        ["-m", "pylint", "--jobs", "2", "--disable=all", "--enable=E,unused-import", "--score=no", "source"],
        prepare=stdlib_package("json", "concurrent"),
        sort=True,
    ),
    Program(
        "xdist",
        "execnet's processes and threads, Pool inside them",
        ["-m", "pytest", "-q", "-n", "2", "--color=no", "-p", "no:cacheprovider", "test_many.py"],
        prepare=tests,
        sort=True,
    ),
    Program(
        "django_tests",
        "Pool with an initializer, Value, databases cloned for its workers",
        ["manage.py", "test", "--parallel", "2", "shop"],
        prepare=shop,
        sort=True,
    ),
    Program(
        "sphinx",
        "Process by fork, Pipe, wait",
        ["-m", "sphinx", "-q", "-j", "2", "-b", "text", "docs", "built"],
        prepare=documents,
        result="built/page7.txt",
    ),
    Program(
        "coverage",
        "replaces Process._bootstrap; Pool, Queue",
        ["-m", "coverage", "run", "measured.py"],
        prepare=coverage_settings,
        then=[["-m", "coverage", "combine", "--quiet"], ["-m", "coverage", "report", "-m"]],
    ),
    Program(
        "compileall",
        "ProcessPoolExecutor behind a module of the standard library",
        ["-m", "compileall", "-q", "-j", "2", "source"],
        prepare=stdlib_package("json", "email", "asyncio"),
    ),
]


def run(program: Program, phalanx: bool) -> Outcome:
    folder = Path(tempfile.mkdtemp(prefix="phalanx-realworld-"))
    try:
        if program.prepare:
            program.prepare(folder)
        front = [sys.executable, *(["-m", "phalanx"] if phalanx else [])]
        shm = set(os.listdir("/dev/shm"))
        begun = time.perf_counter()
        code, out, err, left = call([*front, *program.line()], folder)
        seconds = time.perf_counter() - begun
        for step in program.then:
            more_code, more_out, more_err, more_left = call([sys.executable, *step], folder)
            code, out, err, left = code or more_code, out + more_out, err + more_err, left + more_left
        if program.result and code == 0:
            out += (folder / program.result).read_text()
        names = {name for name in os.listdir("/dev/shm") if name not in shm and mine(name)}
        if names:
            # Others' may be there for a moment, with nobody who maps them yet.
            time.sleep(GRACE)
            left += [f"/dev/shm/{name}" for name in names & set(os.listdir("/dev/shm"))]
        lines = [plain(line, folder) for line in out.splitlines()]
        return Outcome(code, sorted(lines) if program.sort else lines, complaints(err, folder), seconds, left)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def call(command: list[str], folder: Path) -> tuple[int | None, str, str, list[str]]:
    """Run a command in a session of its own and return its exit code, what it printed, and what it left running."""
    surroundings = {**os.environ, "PYTHONHASHSEED": "0", "PYTHONDONTWRITEBYTECODE": "1"}
    # Files, not pipes: a child left behind would keep a pipe open and the reader waiting.
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        process = subprocess.Popen(
            command, cwd=folder, env=surroundings, stdin=subprocess.DEVNULL, stdout=out, stderr=err, start_new_session=True
        )
        try:
            code = process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            code = None
            for pid in in_session(process.pid):
                print(f"    {pid}: {describe(pid)}", file=sys.stderr)
        left = sweep(process.pid, GRACE if code is not None else 0)
        process.wait()
        out.seek(0)
        err.seek(0)
        return code, out.read().decode(errors="replace"), err.read().decode(errors="replace"), left if code is not None else []


def in_session(leader: int) -> list[int]:
    """Return the living processes of a session."""
    found = []
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            fields = Path("/proc", name, "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[3]) == leader and fields[0] not in "ZX":
            found.append(int(name))
    return found


def describe(pid: int) -> str:
    try:
        command = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        place = Path(f"/proc/{pid}/wchan").read_text()
    except OSError as error:
        return str(error)
    return f"{command[:120].strip()} [{place}]"


def sweep(leader: int, grace: float) -> list[str]:
    """Wait for a session to empty, end what stays, and return what that was."""
    until = time.monotonic() + grace
    while (alive := in_session(leader)) and time.monotonic() < until:
        time.sleep(0.02)
    left = [f"{pid}: {describe(pid)}" for pid in alive]
    for pid in alive:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
    return left


def mine(name: str) -> bool:
    """Tell whether a new name in /dev/shm was left by the program, and is not one that others use meanwhile."""
    try:
        if os.stat(f"/dev/shm/{name}").st_uid != os.getuid():
            return False
    except OSError:
        return False
    for maps in Path("/proc").glob("[0-9]*/maps"):
        try:
            if f"/dev/shm/{name}" in maps.read_text():
                return False
        except OSError:
            continue
    return name.startswith(("phalanx", "psm_", "sem.", "joblib", "torch_"))


def plain(line: str, folder: Path) -> str:
    """Return a line without what differs from run to run: folders, times, process ids."""
    line = line.replace(str(folder), "<folder>").replace("/private<folder>", "<folder>")
    line = re.sub(r"\b\d+\.\d+ ?s(econds)?\b", "<time>", line)
    line = re.sub(r"\bpid[ =:]?\d+", "pid <n>", line)
    line = re.sub(r"\b(gw)\d+", r"\1<n>", line)
    return re.sub(r"0x[0-9a-f]+", "<address>", line)


def complaints(err: str, folder: Path) -> list[str]:
    """Return the lines of stderr but for progress bars, without numbers: ids, times and counts of lines differ."""
    lines = [plain(line.strip(), folder) for line in re.split(r"[\r\n]", err)]
    return [re.sub(r"\d+", "<n>", line) for line in lines if line and not re.search(r"\d+%\||\bit/s\b|\d+it \[", line)]


def differences(program: Program, stock: Outcome, ours: Outcome) -> list[str]:
    found = []
    if stock.code is None or ours.code is None:
        found += [f"{who} did not end in {PATIENCE} s" for who, one in (("stdlib", stock), ("phalanx", ours)) if one.code is None]
    elif stock.code != ours.code:
        found.append(f"exit code {ours.code} instead of {stock.code}")
    if stock.out != ours.out:
        found.append("output differs")
        found += [f"    - {line}" for line in stock.out if line not in ours.out][:8]
        found += [f"    + {line}" for line in ours.out if line not in stock.out][:8]
    extra = [line for line in ours.err if line not in stock.err]
    if extra:
        found.append("extra lines on stderr")
        found += [f"    + {line}" for line in extra[-16:]]
    return found + [f"left behind: {what}" for what in ours.left]


def main() -> int:
    arguments = argparse.ArgumentParser(description="run others' programs on the standard library and on phalanx")
    arguments.add_argument("--only", action="append", default=[], metavar="NAME", help="a program by its name; may be repeated")
    arguments.add_argument("--rounds", type=int, default=3, help="runs of each, alternating; the medians are shown")
    options = arguments.parse_args()
    unknown = set(options.only) - {program.name for program in PROGRAMS}
    if unknown:
        arguments.error(f"no program named {', '.join(sorted(unknown))}")
    chosen = [program for program in PROGRAMS if not options.only or program.name in options.only]

    print(f"{'program':<18}{'stdlib s':>9}{'phalanx s':>10}{'ratio':>7}  same  uses", flush=True)
    wrong: dict[str, list[str]] = {}
    for program in chosen:
        times: tuple[list[float], list[float]] = ([], [])
        for turn in range(max(1, options.rounds)):
            # Who begins alternates, so that neither has the warm files to itself.
            pair: dict[bool, Outcome] = {}
            for phalanx in (False, True) if turn % 2 == 0 else (True, False):
                pair[phalanx] = run(program, phalanx)
                times[phalanx].append(pair[phalanx].seconds)
            for line in differences(program, pair[False], pair[True]):
                if line not in wrong.setdefault(program.name, []):
                    wrong[program.name].append(line)
            if wrong.get(program.name):
                break
        stock, ours = (statistics.median(one) for one in times)
        same = "NO" if program.name in wrong else "yes"
        print(f"{program.name:<18}{stock:>9.2f}{ours:>10.2f}{ours / stock:>7.2f}  {same:<4}  {program.uses}", flush=True)
    for name, lines in wrong.items():
        print(f"\n{name}:", *(f"  {line}" for line in lines), sep="\n")
    print(f"\n{len(chosen) - len(wrong)} of {len(chosen)} the same")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
