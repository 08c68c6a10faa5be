"""Runs rounds of chaos and watches over them: each round is a tree of processes in a session of its own.

    cargo xtask chaos --minutes 1 --seed 7
    python tests/chaos/chaos.py --minutes 1 --seed 7 --face python

A tree uses the Python face (`tree.py`) or the Rust face (`src/main.rs`, given by `--rust-tree`); both by turns.
The seed decides every round: start method, what is short, how fast the signals come, and each signal. A round that hangs is
looked at (each process's state and stacks) before it is ended. Whatever is left of a round counts against it. The end is a
table of what was done, lost and found; the exit code is 1 if a promise was broken.
"""

import argparse
import collections
import json
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time

HERE = pathlib.Path(__file__).resolve().parent
METHODS = (("fork", 5), ("forkserver", 3), ("spawn", 2))
LIMITS = (("none", 6), ("descriptors", 2), ("memory", 2), ("processes", 2))
# Seconds that a round may need beyond its own, for its start and its end, before it counts as hung.
PATIENCE = 180
ARENA_SHORT = 32 << 20


def session_of(pid):
    """Return the pids of the session `pid`, zombies not counted."""
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                fields = pathlib.Path(f"/proc/{entry}/stat").read_text().rsplit(")", 1)[1].split()
            except (OSError, IndexError):
                continue
            if int(fields[3]) == pid and fields[0] not in "ZX":
                found.append(int(entry))
    return sorted(found)


def end_all(pids):
    for pid in pids:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            pass


# ---- looking at a hang ----


def read(path):
    try:
        return pathlib.Path(path).read_text().strip()
    except OSError as error:
        return f"({error.strerror})"


def catches(pid, number):
    """Tell whether a process has a handler for a signal: asking the others for their stacks would end them."""
    for line in read(f"/proc/{pid}/status").splitlines():
        if line.startswith("SigCgt:"):
            return bool(int(line.split()[1], 16) >> (number - 1) & 1)
    return False


def look_at(pids, log):
    """Print what each process does: state and place in the kernel of its threads, and its stacks where they can be had."""
    for pid in pids:
        print(f"---- {pid}: {read(f'/proc/{pid}/cmdline').replace(chr(0), ' ')[:120]}")
        try:
            threads = os.listdir(f"/proc/{pid}/task")
        except OSError:
            continue
        for thread in threads:
            at = f"/proc/{pid}/task/{thread}"
            state = read(f"{at}/stat").rsplit(")", 1)[-1].split()[:1]
            print(f"  {thread} {read(f'{at}/comm')}: {state}, {read(f'{at}/wchan')}, call {read(f'{at}/syscall')[:60]}")
        if catches(pid, signal.SIGUSR1):
            before = log.stat().st_size
            os.kill(pid, signal.SIGUSR1)
            time.sleep(0.5)
            with open(log, errors="replace") as text:
                text.seek(before)
                print("  " + text.read().replace("\n", "\n  "))
    debugger = shutil.which("gdb")
    for pid in pids[:6] if debugger else ():
        command = [debugger, "-p", str(pid), "-batch", "-ex", "thread apply all backtrace 20"]
        try:
            shown = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=60)
            lines = [line for line in shown.stdout.splitlines() if line.startswith(("#", "Thread"))]
            print(f"---- {pid} by gdb\n  " + "\n  ".join(lines))
        except subprocess.TimeoutExpired:
            print(f"---- {pid}: gdb does not answer")
    sys.stdout.flush()


# ---- a round ----


def own_shm():
    """The words before a command that give it a /dev/shm of its own, if this system lets us."""
    script = 'mount -t tmpfs tmpfs /dev/shm && exec "$@"'
    words = ["unshare", "--mount", "sh", "-c", script, "sh"]
    try:
        works = subprocess.run([*words, "true"], capture_output=True, timeout=20).returncode == 0
    except OSError:
        works = False
    return words if works else []


class Group:
    """A control group that bounds how many processes and threads there are; falsy where none can be made."""

    def __init__(self):
        self.path = None
        for root in (pathlib.Path("/sys/fs/cgroup/pids"), pathlib.Path("/sys/fs/cgroup")):
            path = root / f"phalanx-chaos-{os.getpid()}"
            try:
                path.mkdir()
            except OSError:
                continue
            if (path / "pids.max").exists() and os.access(path / "pids.max", os.W_OK):
                self.path = path
                return
            path.rmdir()

    def __bool__(self):
        return self.path is not None

    def open(self):
        """Let there be any number again, whatever the last round left."""
        if self.path is not None:
            (self.path / "pids.max").write_text("max")

    def close(self):
        if self.path is not None:
            try:
                self.path.rmdir()
            except OSError:
                pass


def choose(dice, weighted):
    names, weights = zip(*weighted)
    return dice.choices(names, weights)[0]


class Round:
    """One round: what its seed decided, and what came of it."""

    def __init__(self, seed, seconds, group, face, tree):
        dice = random.Random(seed)
        self.seed = seed
        self.face = face
        self.tree = tree
        self.method = choose(dice, METHODS)
        self.limit = choose(dice, LIMITS)
        self.behead = dice.random() < 0.15
        self.pause = dice.choice([0.03, 0.06, 0.12])
        self.seconds = seconds
        self.beheaded_after = dice.uniform(0.2, seconds)
        if self.limit == "processes" and not group:
            self.limit = "none"
        self.figures = {}
        self.complaint = ""

    def command(self):
        return [
            *self.tree,
            f"--seed={self.seed}",
            f"--seconds={self.seconds}",
            f"--method={self.method}",
            f"--limit={self.limit}",
            f"--pause={self.pause}",
        ]

    def run(self, shm, group, log):
        command = [*shm, *self.command()]
        if shm:
            command.append("--own-shm")
        env = dict(os.environ)
        if self.limit == "memory":
            env["PHALANX_ARENA_BYTES"] = str(ARENA_SHORT)
        if self.limit == "processes":
            command.append(f"--group={group.path}")
        begun = time.monotonic()
        with open(log, "w") as errors:
            child = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                env=env,
                start_new_session=True,
            )
        try:
            if self.behead:
                child.stdout.readline()
                time.sleep(self.beheaded_after)
                child.kill()
                child.wait()
            else:
                self.watch(child, log)
        finally:
            self.clear(child)
        self.took = time.monotonic() - begun

    def watch(self, child, log):
        try:
            text, _ = child.communicate(timeout=self.seconds + PATIENCE)
        except subprocess.TimeoutExpired:
            print(f"round {self.seed} hangs:")
            look_at(session_of(child.pid), log)
            self.complaint = "hangs"
            return
        try:
            self.figures = json.loads(text.splitlines()[-1])
        except (IndexError, ValueError):
            self.complaint = f"ended with {child.returncode} and no figures"
            return
        if self.figures["broken"]:
            self.complaint = f"{self.figures['broken']} promises broken"
        if self.figures["leaks"]:
            self.complaint += " left behind: " + "; ".join(self.figures["leaks"])

    def clear(self, child):
        """Whoever was tied to the root has a moment to end with it."""
        if not self.complaint:
            until = time.monotonic() + 10
            while session_of(child.pid) and time.monotonic() < until:
                time.sleep(0.02)
        left = session_of(child.pid)
        if left and not self.complaint:
            what = [read(f"/proc/{pid}/cmdline").replace("\0", " ")[:80] for pid in left]
            self.complaint = f"{len(left)} processes left: {what[:4]}"
        end_all(left)
        if child.returncode is None:
            child.kill()
            child.wait()
        child.stdout.close()


def add(total, figures):
    for name, value in figures.items():
        if isinstance(value, dict):
            add(total.setdefault(name, {}), value)
        elif isinstance(value, bool):
            total[name] = total.get(name, 0) + value
        elif name.startswith("worst"):
            total[name] = max(total.get(name, 0), value)
        elif isinstance(value, (int, float)):
            total[name] = total.get(name, 0) + value


def report(face, total, rounds, seconds, seed):
    kinds = collections.Counter()
    for one in rounds:
        kinds[f"{one.method}, short of {one.limit}" if one.limit != "none" else one.method] += 1
    beheaded = sum(one.behead for one in rounds)
    print(f"\nchaos table: {face} face, seed {seed}: {len(rounds)} rounds, {seconds / 60:.1f} minutes, {beheaded} with the root killed")
    print("  rounds: " + ", ".join(f"{name} {count}" for name, count in sorted(kinds.items())))
    for name in ("signals", "items", "tasks", "deaths", "operations"):
        values = total.get(name, {})
        if name in ("operations",):
            merged = collections.Counter()
            for member, count in values.items():
                merged[member.rsplit("-", 1)[0]] += count
            values = merged
        print(f"  {name}: {sum(values.values())}: " + ", ".join(f"{key} {count}" for key, count in sorted(values.items())))
    print(f"  worst delay beyond a time-out: {total.get('worst delay', 0):.2f} s")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=1)
    parser.add_argument("--seed", type=int, help="replays a run's decisions; random without")
    parser.add_argument("--round-seconds", type=float, default=6)
    parser.add_argument("--python", default=sys.executable)
    parser.add_argument("--face", choices=["rust", "python", "both"], default="python")
    parser.add_argument("--rust-tree", help="the program phalanx-chaos, for --face rust or both")
    parser.add_argument("--keep-going", action="store_true", help="do not stop at the first broken promise")
    options = parser.parse_args()
    seed = options.seed if options.seed is not None else random.SystemRandom().randrange(1_000_000)
    faces = {"python": ["Python"], "rust": ["Rust"], "both": ["Rust", "Python"]}[options.face]
    if "Rust" in faces and not options.rust_tree:
        parser.error("--face rust and both need --rust-tree")
    trees = {"Python": [options.python, str(HERE / "tree.py")], "Rust": [options.rust_tree]}
    shm, group = own_shm(), Group()
    print(f"chaos: seed {seed}, {options.minutes} minutes")
    if not shm:
        print("  no /dev/shm of one's own here: what is left in it is not looked at")
    if not group:
        print("  no control group here: nothing runs short of processes (RLIMIT_NPROC does not bind root)")
    begun, rounds, totals, bad = time.monotonic(), [], {face: {} for face in faces}, []
    with tempfile.TemporaryDirectory(prefix="chaos-") as folder:
        # Each face at least once.
        while len(rounds) < len(faces) or time.monotonic() - begun < options.minutes * 60:
            number = len(rounds)
            face = faces[number % len(faces)]
            one = Round(seed * 1000 + number, options.round_seconds, group, face, trees[face])
            log = pathlib.Path(folder) / f"{one.seed}.log"
            group.open()
            one.run(shm, group, log)
            rounds.append(one)
            add(totals[face], one.figures)
            signals = sum(one.figures.get("signals", {}).values())
            what = one.complaint or ("root killed, nobody left" if one.behead else f"{signals} signals, nothing broken")
            print(f"  {one.seed} {face:6} {one.method:10} {one.limit:11} {one.took:5.1f} s  {what}", flush=True)
            if one.complaint:
                bad.append(one)
                print("    again: " + " ".join(one.command()))
                print("    " + read(log)[-6000:].replace("\n", "\n    "), flush=True)
                if not options.keep_going:
                    break
            log.unlink()
    group.close()
    for face in faces:
        mine = [one for one in rounds if one.face == face]
        report(face, totals[face], mine, sum(one.took for one in mine), seed)
    print(f"\n{len(rounds) - len(bad)} rounds good, {len(bad)} broken")
    return 1 if bad else 0


if __name__ == "__main__":
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        # Started in the background of a shell: the programs run from here would be deaf to Ctrl-C as well.
        signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.exit(main())
