"""Runs CPython's own tests of processes, threads and queues, as the interpreter has them installed, with and without phalanx.

What is ok on the standard library has to be ok with ``phalanx.install()``. Each test class runs in a process of its own, in a
folder of its own; a test that takes too long is killed with everything it started, and the rest of its class goes on. What
failed is run once more alone before it counts.

    python python/conformance/run.py [--quick] [--suite queue,fork] [--method spawn] [--match TestPool]

Tests of the standard library's private parts, which a drop-in need not have, are listed with a reason in ``exclusions.txt``.
"""

import argparse
import fnmatch
import importlib.util
import json
import os
import pathlib
import re
import selectors
import shutil
import signal
import subprocess
import sys
import tempfile
import time

HERE = pathlib.Path(__file__).resolve().parent

METHODS = ("fork", "spawn", "forkserver")

# Each suite: what it is about, and the modules it lies in; `{method}` stands for each start method.
SUITES = {
    "multiprocessing": ["test.test_multiprocessing_{method}"],
    "main_handling": ["test.test_multiprocessing_main_handling"],
    "concurrent_futures": ["test.test_concurrent_futures"],
    "threading": ["test.test_threading"],
    "threading_local": ["test.test_threading_local"],
    "threadsignals": ["test.test_threadsignals"],
    "thread": ["test.test_thread"],
    "queue": ["test.test_queue"],
    "fork": ["test.test_fork1", "test.test_os"],
    "subprocess": ["test.test_subprocess"],
    "consumers": ["test.test_sched", "test.test_socketserver", "test.test_logging"],
}

# Of big modules, the classes that are about processes and threads.
ONLY = {"test.test_os": "ForkTests|PidTests"}

# What `--quick` runs: every kind of object once, each start method, and programs started by each.
QUICK = re.compile(
    r"multiprocessing_fork(\.\w+)*\|(WithProcessesTest(Queue|Lock|Semaphore|Condition|Event|Barrier|Connection|Value|Array"
    r"|SubclassingProcess|PicklingConnections|Pool)|WithManagerTest(Queue|Lock)|TestSimpleQueue|TestStartMethod)$"
    r"|multiprocessing_(spawn|forkserver).*\|(WithProcessesTest(Queue|Event|Value|SubclassingProcess)|TestStartMethod)$"
    r"|main_handling\|ForkServerCmdLineTest$"
    r"|concurrent_futures.*\|ProcessPoolForkserverWaitTest$"
    r"|test_queue\||test_fork1\||test_os\||test_threading\|(Lock|PyRLock|Condition|Event|Semaphore|Barrier)\w*Tests$"
)


class Exclusions:
    """Tests that a drop-in need not pass, and why."""

    def __init__(self, path):
        self.reasons = []
        for line in path.read_text().splitlines():
            pattern, _, reason = line.partition("  ")
            if pattern and not pattern.startswith("#"):
                if not reason.strip():
                    raise SystemExit(f"{path}: {pattern} has no reason")
                self.reasons.append((pattern, reason.strip()))

    def reason(self, name):
        """Return why a test is excluded, ``None`` if it is not. Patterns are of ``Class.test``."""
        short = ".".join(name.split("|")[1:])
        return next((reason for pattern, reason in self.reasons if fnmatch.fnmatchcase(short, pattern)), None)


def stand_ins(folder):
    """Write the modules that some distributions leave out, each of which only calls for the common tests."""
    for method in METHODS:
        name = f"test_multiprocessing_{method}"
        if importlib.util.find_spec(f"test.{name}") or not importlib.util.find_spec("test._test_multiprocessing"):
            continue
        (folder / f"{name}.py").write_text(
            "import unittest\nimport test._test_multiprocessing\n"
            f"test._test_multiprocessing.install_tests_in_module_dict(globals(), {method!r})\n"
            "if __name__ == '__main__':\n    unittest.main()\n"
        )


class Runner:
    def __init__(self, args, folder):
        self.args = args
        self.folder = folder
        self.environment = {**os.environ, "PYTHONPATH": str(folder)}

    def command(self, install, *rest):
        return [sys.executable, str(HERE / "worker.py"), *(["--install"] if install else []), *rest]

    def listed(self, module):
        done = subprocess.run(
            self.command(False, "list", module), capture_output=True, env=self.environment, timeout=120
        )
        if done.returncode != 0:
            print(f"  {module}: cannot be listed: {done.stderr.decode(errors='replace').strip().splitlines()[-1:]}")
            return []
        return json.loads(done.stdout)

    def run_case(self, install, module, case, tests):
        """Run tests of a class, however many processes that takes, and return each one's fate and the reason for it."""
        fates, left = {}, list(tests)
        while left:
            some = self.run_once(install, module, case, left)
            fates.update(some)
            remaining = [test for test in left if test not in some]
            if len(remaining) == len(left):
                # Nothing has even begun.
                fates.update({test: ("crash", "the process ended before its first test") for test in left})
                break
            left = remaining
        return fates

    def run_once(self, install, module, case, tests):
        scratch = tempfile.mkdtemp(dir=self.folder)
        with tempfile.TemporaryFile() as errors:
            process = subprocess.Popen(
                self.command(install, "run", module, case, *tests),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=errors,
                cwd=scratch,
                env={**self.environment, "TMPDIR": scratch},
                start_new_session=True,
            )
            try:
                fates, current = self.follow(process)
            finally:
                self.end(process)
            errors.seek(0)
            said = errors.read().decode(errors="replace")
        shutil.rmtree(scratch, ignore_errors=True)
        if current is not None:
            timed_out = process.returncode == -signal.SIGABRT
            fates[current] = ("timeout" if timed_out else "crash", said[-4000:])
        return fates

    def follow(self, process):
        """Read a worker's notes until it ends or has been silent for too long."""
        fates, current, rest = {}, None, b""
        with selectors.DefaultSelector() as selector:
            selector.register(process.stdout, selectors.EVENT_READ)
            while True:
                if not selector.select(self.args.timeout):
                    process.send_signal(signal.SIGABRT)
                    process.wait()
                    break
                # The end of the pipe is not the worker's: a process that it left may hold it.
                chunk = os.read(process.stdout.fileno(), 65536)
                rest += chunk
                *lines, rest = rest.split(b"\n")
                for line in map(json.loads, lines):
                    if "begin" in line:
                        current = line["begin"]
                    elif "end" in line:
                        fates[line["end"]] = (line["fate"], line["why"])
                        current = None
                    elif "fixture" in line:
                        fates[f"({line['fixture']})"] = (line["fate"], line["why"])
                if not chunk:
                    break
        return fates, current

    def end(self, process):
        """Leave nothing of a worker behind."""
        try:
            process.wait(timeout=self.args.timeout)
        except subprocess.TimeoutExpired:
            process.kill()
        try:
            # Its whole session, which is named after it; it is not collected yet or just was, and nobody has its number.
            os.killpg(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        process.wait()
        process.stdout.close()


def targets(args):
    for suite, names in SUITES.items():
        if args.suite and suite not in args.suite:
            continue
        for name in names:
            for method in METHODS if "{method}" in name else ("",):
                if method and args.method and method not in args.method:
                    continue
                module = name.format(method=method)
                if not importlib.util.find_spec(module):
                    # The stand-in, if there is one.
                    module = module.removeprefix("test.")
                yield suite, method, module


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a part that stands for the whole, in a few minutes")
    parser.add_argument("--suite", type=lambda text: text.split(","), help=", ".join(SUITES))
    parser.add_argument("--method", type=lambda text: text.split(","), help=", ".join(METHODS))
    parser.add_argument("--match", help="only classes whose name contains this")
    parser.add_argument("--timeout", type=float, default=60, help="seconds for a test (default: 60)")
    parser.add_argument("--json", help="write every test's fates to this file")
    args = parser.parse_args()
    for given, known in ((args.suite, SUITES), (args.method, METHODS)):
        for name in given or ():
            if name not in known:
                parser.error(f"there is no {name!r}; there are {', '.join(known)}")

    folder = pathlib.Path(tempfile.mkdtemp(prefix="conformance-"))
    try:
        stand_ins(folder)
        sys.path.insert(0, str(folder))
        lost = go_through(args, Runner(args, folder))
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    raise SystemExit(1 if lost else 0)


def go_through(args, runner):
    exclusions = Exclusions(HERE / "exclusions.txt")
    everything, lost, excluded, missing = {}, {}, {}, []
    totals = {}
    for suite, method, module in targets(args):
        if not importlib.util.find_spec(module):
            missing.append(f"{suite} {method}".strip())
            continue
        for one in runner.listed(module):
            name = f"{one['module']}|{one['case']}"
            if (args.quick and not QUICK.search(name)) or (args.match and args.match not in name):
                continue
            if module in ONLY and not re.fullmatch(ONLY[module], one["case"]):
                continue
            begun = time.monotonic()
            ours, stock = both(runner, one, args.quick)
            for test in sorted({*ours, *stock}):
                full = f"{name}|{test}"
                pair = (stock.get(test, ("", ""))[0], ours.get(test, ("", ""))[0])
                everything[full] = pair
                count = totals.setdefault((suite, method), [0, 0, 0])
                count[0] += 1
                if pair[1] == "ok":
                    count[1] += 1
                elif pair[0] == "ok":
                    reason = exclusions.reason(full)
                    (lost if reason is None else excluded)[full] = ours.get(test, ("missing", ""))
                    count[2] += reason is None
            bad = sum(full.startswith(name + "|") for full in lost)
            print(f"  {name}: {len(ours)} tests, {time.monotonic() - begun:.1f} s{f', LOST {bad}' if bad else ''}", flush=True)
    report(totals, lost, excluded, missing)
    if args.json:
        pathlib.Path(args.json).write_text(json.dumps(everything, indent=1))
    return lost


def both(runner, one, quick):
    """Run a class with the package and without. What is not ok with it gets a second chance, alone."""
    place = one["module"], one["case"]
    ours = runner.run_case(True, *place, one["tests"])
    for test in [test for test, (fate, _) in ours.items() if fate not in ("ok", "skip") and test in one["tests"]]:
        ours.update(runner.run_case(True, *place, [test]))
    doubtful = [test for test in one["tests"] if ours.get(test, ("", ""))[0] != "ok"]
    # In the quick run a test that is ok with the package needs no comparison.
    stock = runner.run_case(False, *place, doubtful if quick else one["tests"]) if doubtful or not quick else {}
    return ours, stock


def report(totals, lost, excluded, missing):
    print(f"\n{'suite':<32} {'tests':>6} {'ok':>6} {'lost':>6}")
    for (suite, method), (tests, fine, bad) in totals.items():
        print(f"{suite + (' ' + method if method else ''):<32} {tests:>6} {fine:>6} {bad:>6}")
    for name in missing:
        print(f"not installed with this interpreter: {name}")
    if excluded:
        print(f"{len(excluded)} more are ok on the standard library and excluded: see exclusions.txt")
    for full, (fate, why) in lost.items():
        print(f"\nLOST {full}: {fate}")
        print("\n".join("    " + line for line in why.strip().splitlines()[-25:]))


if __name__ == "__main__":
    main()
