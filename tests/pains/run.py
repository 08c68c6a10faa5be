"""Runs each pain's program on the standard library and on phalanx, and says what happened.

    python tests/pains/run.py                      # phalanx and the stdlib, every case and variant; prints the table
    python tests/pains/run.py --engine phalanx --only p01,p07
    python tests/pains/run.py --engine all         # and the best peer, where one is installed (peers/requirements.txt)
    python tests/pains/run.py --json pains.json

A case is a program in cases/, written against the plain standard library. It ends with the line "good" and code 0 when the
pain does not hurt. Here it runs as `python CASE …` and as `python -m phalanx CASE …`, in a session of its own with a limit;
whatever is left of it afterwards is ended and counts against it.

Where another package treats the pain, or comes nearest to it, peers/ has a program of the same name that asks the same of it, once,
with what that package starts processes by.
"""

import argparse
import json
import os
import pathlib
import signal
import subprocess
import sys
import time
from dataclasses import asdict, dataclass

HERE = pathlib.Path(__file__).resolve().parent
METHODS = ("fork", "spawn", "forkserver")
KINDS = ("pool", "executor")


@dataclass(frozen=True)
class Case:
    """One program and the arguments it is run with."""

    name: str
    what: str
    by_method: bool = True
    by_kind: bool = False
    methods: tuple[str, ...] = METHODS
    limit: float = 40
    # It runs both engines by turns and compares them: a pain of speed.
    compares: bool = False
    # The package whose program in peers/ asks the same.
    peer: str = ""
    # With its own words why the standard library is not expected to hurt here, if so.
    cured: str = ""

    def variants(self):
        for method in self.methods if self.by_method else ("",):
            for kind in KINDS if self.by_kind else ("",):
                yield tuple(word for word in (method, kind) if word)


CASES = [
    Case("p01_killed_worker", "a killed worker costs its task only, and is reported", by_kind=True, peer="Pebble"),
    Case("p02_killed_writer", "a killed writer does not wedge the queue", peer="faster-fifo"),
    Case("p03_dead_owner", "a dead owner's lock is free", peer="billiard"),
    Case("p04_dead_waiter", "a dead waiter holds up nobody", peer="billiard"),
    Case("p05_bad_exception", "an exception that cannot be rebuilt, an exit in a task", by_kind=True, peer="mpire"),
    Case("p06_bad_initializer", "a bad initializer breaks the pool once", by_kind=True, peer="loky"),
    Case("p07_full_queue_at_exit", "exit and join with a full queue", peer="faster-fifo"),
    Case("p08_fork_with_threads", "workers start while threads hold locks", methods=("forkserver", "spawn"),
         cured="spawn and forkserver do not copy the lock; fork by request does, in any library"),
    Case("p09_deadline", "a deadline and a cancel end one task", peer="Pebble"),
    Case("p10_orphans", "a killed parent leaves no workers", by_kind=True, peer="Pebble"),
    Case("p11_max_tasks", "workers replaced after some tasks", by_kind=True, peer="Pebble"),
    Case("p12_lazy_map", "a lazy map takes a window of its input", peer="mpire"),
    Case("p13_reader_unlinks", "a reader's end does not remove the owner's segment", by_method=False),
    Case("p14_tracker", "no tracker that holds up the end or nags"),
    Case("p15_crash_report", "a crash is reported with process, signal and task", by_kind=True, peer="loky"),
    Case("p16_large_arrays", "large arrays at memory's speed: 1.5 times the standard library's at least", compares=True, limit=150),
    Case("p17_start_up", "costly imports are not repeated: starts in half the time at most", methods=("forkserver",), compares=True, limit=150),
    Case("p18_lambda", "lambdas and closures", peer="loky"),
    Case("p18_no_guard", "a script without a main guard", methods=("spawn", "forkserver"), peer="loky"),
    Case("p19_lock_as_argument", "locks and queues as arguments", peer="billiard"),
    Case("p20_nested", "a pool in a pool", peer="loky"),
    Case("p21_ctrl_c", "Ctrl-C: one traceback, all gone", peer="joblib"),
    Case("p22_cycle_at_exit", "a pool in a cycle at exit", peer="loky"),
    Case("p23_memory_short", "memory short: an error, no bus error"),
    Case("p24_no_semaphores", "no semaphores, no shared memory files"),
    Case("p25_many_workers", "more than 61 workers on Windows", methods=("spawn",)),
    Case("p26_manager", "a manager's dict is no server: 3 times the standard library's speed at least", compares=True, limit=150),
    Case("p28_progress", "progress is shown", peer="mpire"),
    Case("p30_large", "2.5 GB in one message", methods=("fork",), limit=150),
]


@dataclass
class Outcome:
    """What became of one run."""

    case: str
    variant: str
    engine: str
    verdict: str
    seconds: float
    detail: str = ""


def session_of(pid):
    """Return the pids of the session `pid`, zombies not counted."""
    found = []
    for entry in pathlib.Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            fields = (entry / "stat").read_text().rsplit(")", 1)[1].split()
        except OSError:
            continue
        if int(fields[3]) == pid and fields[0] != "Z":
            found.append(int(entry.name))
    return found


def end_session(pid):
    """End what is left of a session; return how many processes that were."""
    left = session_of(pid)
    for other in left:
        try:
            os.kill(other, signal.SIGKILL)
        except ProcessLookupError:
            pass
    return len(left)


def run(case, variant, engine, python=sys.executable, limit=None):
    """Run one case once."""
    door = ["-m", "phalanx"] if engine == "phalanx" else []
    folder = "peers" if engine == "peer" else "cases"
    command = [python, *door, str(HERE / folder / f"{case.name}.py"), *variant]
    begun = time.monotonic()
    with subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
    ) as child:
        try:
            text, _ = child.communicate(timeout=limit or case.limit)
            verdict = "good" if child.returncode == 0 and text.rstrip().endswith("good") else "fails"
            if child.returncode == 0 and text.startswith("skipped"):
                verdict = "skipped"
            # What ends with its parent has a second for it.
            until = time.monotonic() + (1 if verdict == "good" else 0.2)
            while session_of(child.pid) and time.monotonic() < until:
                time.sleep(0.02)
            left = end_session(child.pid)
            if left and verdict == "good":
                verdict, text = "leaves processes", f"{left} processes left"
        except subprocess.TimeoutExpired:
            end_session(child.pid)
            # A pipe may be held by somebody who left the session: do not wait for its end.
            verdict, text = "hangs", ""
    return Outcome(
        case.name, " ".join(variant), engine, verdict, round(time.monotonic() - begun, 1), text[-1500:]
    )


def table(outcomes):
    """Return the outcomes as a Markdown table, a line a case."""
    with_peers = any(outcome.engine == "peer" for outcome in outcomes)
    engines = ("stdlib", "peer", "phalanx") if with_peers else ("stdlib", "phalanx")
    heads = ["pain", "what must happen", "stdlib", *(["nearest peer"] if with_peers else []), "phalanx"]
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    for case in CASES:
        cells = []
        for engine in engines:
            mine = [outcome for outcome in outcomes if outcome.case == case.name and outcome.engine == engine]
            if case.compares and engine == "stdlib":
                cells.append("slower")
                continue
            if engine == "peer":
                cells.append(f"{case.peer}: {mine[0].verdict}" if mine else "")
                continue
            verdicts = {}
            for outcome in mine:
                verdicts.setdefault(outcome.verdict, []).append(outcome.variant or "run")
            if len(verdicts) == 1:
                cells.append(next(iter(verdicts)))
            else:
                cells.append("; ".join(f"{verdict}: {', '.join(names)}" for verdict, names in sorted(verdicts.items())))
        if any(cells[1:]) or (cells[0] and not case.compares):
            lines.append("| " + " | ".join([case.name[1:3].lstrip("0"), case.what, *cells]) + " |")
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--engine", choices=["stdlib", "phalanx", "both", "peers", "all"], default="both")
    parser.add_argument("--only", default="", help="prefixes of case names, separated by commas")
    parser.add_argument("--python", default=sys.executable)
    parser.add_argument("--limit", type=float, help="seconds for each run instead of the case's own")
    parser.add_argument("--json", type=pathlib.Path)
    options = parser.parse_args()
    engines = {
        "both": ("stdlib", "phalanx"),
        "peers": ("peer",),
        "all": ("stdlib", "peer", "phalanx"),
    }.get(options.engine, (options.engine,))
    wanted = tuple(options.only.split(",")) if options.only else ("",)
    outcomes = []
    for case in CASES:
        if not case.name.startswith(wanted):
            continue
        for turn, variant in enumerate(case.variants()):
            for engine in engines:
                if case.compares and engine == "stdlib":
                    continue
                if engine == "peer":
                    if not case.peer or turn:
                        continue
                    variant_of_it = ()
                else:
                    variant_of_it = variant
                outcome = run(case, variant_of_it, engine, options.python, options.limit)
                outcomes.append(outcome)
                print(f"{case.name:24} {outcome.variant:20} {engine:8} {outcome.verdict:10} {outcome.seconds:6.1f} s", flush=True)
                if case.compares and outcome.verdict == "good":
                    print("    " + outcome.detail.splitlines()[0], flush=True)
                if engine != "stdlib" and outcome.verdict not in ("good", "skipped"):
                    print("    " + outcome.detail.replace("\n", "\n    "), flush=True)
    print()
    print(table(outcomes))
    if options.json:
        options.json.write_text(json.dumps([asdict(outcome) for outcome in outcomes], indent=1) + "\n")
    bad = [outcome for outcome in outcomes if outcome.engine == "phalanx" and outcome.verdict not in ("good", "skipped")]
    good = [outcome for outcome in outcomes if outcome.engine == "phalanx" and outcome.verdict == "good"]
    print(f"\n{len(good)} passed, {len(bad)} failed")
    return 1 if bad else 0


if __name__ == "__main__":
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        # Started in the background of a shell: the programs run from here would be deaf to Ctrl-C as well.
        signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.exit(main())
