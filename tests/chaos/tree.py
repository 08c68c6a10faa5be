"""One round of chaos: a tree of processes under load, a killer, and a check of every promise at the end.

    python tests/chaos/tree.py --seed 7 --seconds 8 --method fork --limit none

Ends with a line of JSON and code 0 if nothing was broken. `chaos.py` runs many of these and watches over them.
"""

import argparse
import collections
import concurrent.futures as cf
import faulthandler
import gc
import json
import os
import pathlib
import random
import resource
import signal
import sys
import threading
import time
import traceback
import warnings

import phalanx as mp
from members import ROLES, SHORT, is_refusal, main, note_item, square
from phalanx import _engine
from world import ACCEPTED, PARTIES, PERMITS, PRODUCERS, REFUSED, TASKS_MOST, TRIED, Member, World, is_alive

FAULTS = (
    (signal.SIGKILL, 45),
    (signal.SIGSTOP, 20),
    (signal.SIGSEGV, 10),
    (signal.SIGTERM, 10),
    (signal.SIGINT, 15),
)

CROWD = {
    "producer": PRODUCERS,
    "consumer": 2,
    "locker": 2,
    "sitter": 3,
    "giver": 1,
    "taker": 2,
    "meeter": PARTIES,
    "ringer": 1,
    "hearer": 1,
    "writer": 2,
    "managed": 2,
    "caller": 1,
    "boss": 1,
}


def stat_of(pid):
    """Return state, parent and session of a process, ``None`` if it is gone."""
    try:
        fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    except (OSError, IndexError):
        return None
    return fields[0], int(fields[1]), int(fields[3])


def is_foreign(pid):
    """Tell whether a process is the standard library's own helper, which no promise is made about."""
    try:
        return b"resource_tracker" in pathlib.Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return True


def family():
    """Return the pids of this tree but the root's, zombies not counted."""
    root = os.getpid()
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdigit() and int(entry) != root:
            stat = stat_of(entry)
            if stat and stat[2] == root and stat[0] not in "ZX" and not is_foreign(entry):
                found.append(int(entry))
    return sorted(found)


class Killer(threading.Thread):
    """Sends signals to random members. What it decides depends on the seed alone; whom it meets, on the moment."""

    def __init__(self, seed, pause):
        super().__init__(name="killer", daemon=True)
        self.dice = random.Random(seed)
        self.pause = pause
        self.over = threading.Event()
        self.sent = collections.Counter()
        self.stopped = []

    def run(self):
        kinds, weights = zip(*FAULTS)
        while True:
            wait, kind = self.dice.uniform(0.2, 1.8) * self.pause, self.dice.choices(kinds, weights)[0]
            whom, rest = self.dice.random(), self.dice.uniform(0.01, 0.3)
            if self.over.wait(wait):
                break
            self.wake(time.monotonic())
            members = family()
            if not members:
                continue
            pid = members[int(whom * len(members))]
            try:
                os.kill(pid, kind)
            except ProcessLookupError:
                continue
            self.sent[kind.name] += 1
            if kind == signal.SIGSTOP:
                self.stopped.append((time.monotonic() + rest, pid))
        self.wake(float("inf"))

    def wake(self, now):
        for due, pid in list(self.stopped):
            if due <= now:
                self.stopped.remove((due, pid))
                try:
                    os.kill(pid, signal.SIGCONT)
                except ProcessLookupError:
                    pass


class Crowd:
    """The members, started again when they die."""

    def __init__(self, ctx, world, names):
        self.ctx = ctx
        self.world = world
        self.processes = dict.fromkeys(names)
        self.ends = collections.Counter()
        self.refused = 0

    def start(self, name):
        role = ROLES[name.rsplit("-", 1)[0]]
        process = self.ctx.Process(target=main, args=(self.world, name, role), name=name)
        self.processes[name] = process
        process.start()

    def tend(self):
        """Collect the dead and start others."""
        for name, process in self.processes.items():
            if process is not None and process.exitcode is None:
                continue
            if process is not None:
                self.ends[name.rsplit("-", 1)[0]] += 1
                process.join()
                process.close()
                self.processes[name] = None
            try:
                self.start(name)
            except Exception as error:
                if not is_refusal(error):
                    raise
                self.processes[name] = None
                self.refused += 1

    def dismiss(self, me, seconds):
        """Wait for all to end by themselves."""
        until = time.monotonic() + seconds
        for name, process in self.processes.items():
            if process is None:
                continue
            process.join(max(until - time.monotonic(), 0.1))
            if process.exitcode is None:
                me.complain(f"{name} ({process.pid}) does not end")
                os.kill(process.pid, signal.SIGUSR1)
                time.sleep(1)
                process.kill()
                process.join(10)
            process.close()
        self.processes.clear()


class Tasks:
    """The root's own pool and executor: each task has one outcome, and runs at most once."""

    def __init__(self, ctx, world, me):
        self.world = world
        self.me = me
        self.pool = ctx.Pool(2)
        self.executor = mp.ProcessPoolExecutor(2, mp_context=ctx, survive=True)
        self.called = bytearray(TASKS_MOST)
        self.results = {}
        self.futures = {}
        self.outcomes = collections.Counter()
        self.next = 0

    def submit(self):
        if self.next + 16 > TASKS_MOST or len(self.results) > 400:
            return
        for number in range(self.next, self.next + 8):
            try:
                self.results[number] = self.pool.apply_async(
                    run_once, (self.world.ran, number), callback=self.tell(number), error_callback=self.tell(number)
                )
            except SHORT:
                self.outcomes["refused"] += 1
        for number in range(self.next + 8, self.next + 16):
            try:
                future = self.futures[number] = self.executor.submit(run_once, self.world.ran, number)
                future.add_done_callback(self.tell(number))
            except Exception as error:
                if not is_refusal(error):
                    raise
                self.outcomes["refused"] += 1
        self.next += 16

    def tell(self, number):
        def told(_):
            self.called[number] += 1

        return told

    def settle(self, wait):
        """Look at those that are done; at the end wait for all."""
        for number, result in list(self.results.items()):
            if wait or result.ready():
                self.read(number, lambda: result.get(60))
                del self.results[number]
        for number, future in list(self.futures.items()):
            if wait or future.done():
                self.read(number, lambda: future.result(60))
                del self.futures[number]

    def read(self, number, get):
        try:
            with self.me.within(60, "a task of the root"):
                value = get()
        except mp.WorkerDiedError:
            self.outcomes["died"] += 1
        except (mp.TimeoutError, cf.TimeoutError):
            self.me.complain(f"task {number} has no outcome after 60 s: {self.pool._office.crew!r}")
        except SHORT:
            self.outcomes["short"] += 1
        else:
            self.outcomes["value"] += 1
            if value != number * number or self.world.ran[number] != 1:
                self.me.complain(f"task {number} gave {value} and ran {self.world.ran[number]} times")
        if self.world.ran[number] > 1:
            self.me.complain(f"task {number} ran {self.world.ran[number]} times")

    def end(self):
        self.settle(True)
        self.pool.close()
        with self.me.within(30, "Pool.join"):
            self.pool.join()
        with self.me.within(30, "Executor.shutdown"):
            self.executor.shutdown()
        twice = [number for number, times in enumerate(self.called) if times > 1]
        done = self.outcomes["value"] + self.outcomes["died"] + self.outcomes["short"]
        if twice or sum(self.called) != done:
            self.me.complain(f"callbacks: {sum(self.called)} for {done} outcomes, twice: {twice[:5]}")


def run_once(ran, number):
    ran[number] += 1
    return square(number)


# ---- what must be as before ----


class Level:
    """How much this process has of what leaks."""

    def __init__(self):
        self.descriptors = sorted(_targets())
        self.threads = sorted(thread.name for thread in threading.enumerate())
        self.tasks = len(os.listdir("/proc/self/task"))
        self.children = [
            int(entry)
            for entry in os.listdir("/proc")
            if entry.isdigit() and (stat := stat_of(entry)) and stat[1] == os.getpid() and not is_foreign(entry)
        ]
        # This process's own tables grow with the handles it has at once, and stay. Whose the others are does not matter: a server
        # that was killed has a successor.
        me = _engine.slot()
        self.blocks = collections.Counter(
            f"{kind} of {'a process' if holder < 65_000 else 'an object'}"
            for kind, holder in _engine.census()
            if not (holder == me and kind in ("Holds", "Waits", "Place"))
        )
        self.shm = sorted(os.listdir("/dev/shm"))

    def differences(self, other, options):
        found = []
        if len(self.descriptors) > len(other.descriptors):
            gone = collections.Counter(_kind(target) for target in other.descriptors)
            now = collections.Counter(_kind(target) for target in self.descriptors)
            found.append(f"descriptors: more {dict(now - gone)}, fewer {dict(gone - now)}")
        if self.threads != other.threads:
            found.append(f"threads: {self.threads}, were {other.threads}")
        if self.tasks > other.tasks:
            found.append(f"threads of the system: {self.tasks}, were {other.tasks}")
        if len(self.children) > len(other.children):
            found.append(f"children: {[(pid, stat_of(pid)) for pid in self.children]}, were {len(other.children)}")
        more, fewer = self.blocks - other.blocks, other.blocks - self.blocks
        # A fork server that was killed, and not needed since, has no successor yet that notes what it waits for.
        del fewer["Waits of a process"]
        if more or fewer:
            found.append(f"blocks of the arena: more {dict(more)}, fewer {dict(fewer)}")
            found.append(f"in the table: {[(pid, parent, is_alive(pid)) for _, pid, parent in _engine.processes()]}")
        if options.own_shm and self.shm != other.shm:
            found.append(f"/dev/shm: {self.shm}, was {other.shm}")
        strangers = [pid for pid in family() if pid not in self.children and stat_of(pid)]
        # The fork server and what it has under way.
        if strangers and options.method != "forkserver":
            found.append(f"processes: {strangers}")
        return found


def _targets():
    for fd in os.listdir("/proc/self/fd"):
        try:
            yield os.readlink(f"/proc/self/fd/{fd}")
        except OSError:
            pass


def _kind(target):
    return target.split(":")[0]


def settled_level():
    """The level once nothing has changed for a while."""
    before, calm = None, 0
    until = time.monotonic() + 5
    while calm < 10 and time.monotonic() < until:
        gc.collect()
        now = Level()
        same = before is not None and vars(now) == vars(before)
        calm = calm + 1 if same else 0
        before = now
        time.sleep(0.02)
    return before


# ---- the check ----


def drain(me, world):
    """Take what is left; every accepted item came, or was lost with whoever had taken it."""
    while True:
        try:
            item = world.queue.get(timeout=0.5)
        except mp.queues.Empty:
            break
        note_item(me, item)
        world.queue.task_done()
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        with me.within(10, "JoinableQueue.join"):
            world.queue.join()
    reported = sum(int(str(one.message).split()[0]) for one in told if "lost" in str(one.message))
    figures = collections.Counter()
    for state, got in zip(world.state, world.got):
        for at, got_at in zip(state, got):
            figures["accepted"] += at == ACCEPTED
            figures["refused"] += at == REFUSED
            figures["in doubt"] += at == TRIED
            figures["delivered"] += got_at > 0
            figures["lost"] += at == ACCEPTED and got_at == 0
            if at == REFUSED and got_at:
                me.complain("a refused item came")
    figures["reported lost"] = reported
    return figures


def locks_are_free(me, world):
    """Take everything once: whoever held it and died holds nothing any more."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name, lock in (
            ("Lock", world.lock),
            ("RLock", world.rlock),
            ("Condition", world.condition),
            ("Array's lock", world.array.get_lock()),
        ):
            if not lock.acquire(timeout=10):
                me.complain(f"the {name} is not free: {lock!r}")
            else:
                lock.release()
        taken = sum(world.semaphore.acquire(timeout=10) for _ in range(PERMITS))
        if taken != PERMITS:
            me.complain(f"{taken} of {PERMITS} permits are left")
        if world.semaphore.acquire(block=False):
            me.complain("there is a permit too many")
            taken += 1
        for _ in range(taken):
            try:
                world.semaphore.release()
            except ValueError:
                pass
    world.event.clear()
    world.event.set()
    if not world.event.wait(5):
        me.complain("the event is not set")


def play(options):
    """One round; returns its figures."""
    ctx = mp.get_context(options.method)
    # Once in peace: what stays for good (modules, tables, servers) is there then.
    live(options, ctx, 0.3, None)
    level = settled_level()
    killer = Killer(options.seed, options.pause)
    figures = live(options, ctx, options.seconds, killer)
    gc.collect()
    until = time.monotonic() + 20
    while True:
        now = Level()
        differences = now.differences(level, options)
        if not differences or time.monotonic() > until:
            break
        gc.collect()
        time.sleep(0.05)
    figures["leaks"] = differences
    return figures


def live(options, ctx, seconds, killer):
    crowd_of = dict(CROWD, hog=1) if options.limit in ("descriptors", "memory") else CROWD
    names = ["root"] + [f"{role}-{number}" for role, count in crowd_of.items() for number in range(count)]
    world = World(ctx, names, options.grace)
    me = Member(world, "root")
    manager = ctx.Manager()
    world.dict, world.list = manager.dict(), manager.list()
    crowd = Crowd(ctx, world, names[1:])
    tasks = Tasks(ctx, world, me)
    crowd.tend()
    if killer is not None:
        killer.start()
        print("up", flush=True)
        bound_processes(options, killer.dice.randrange(4))
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        crowd.tend()
        tasks.submit()
        tasks.settle(False)
        time.sleep(0.02)
    if killer is not None:
        killer.over.set()
        killer.join()
        bound_processes(options, None)
    world.stop.set()
    with world.condition:
        world.condition.notify_all()
    crowd.dismiss(me, 60)
    tasks.end()
    items = drain(me, world)
    locks_are_free(me, world)
    # A start that failed may have got as far as a process that ran for a moment.
    deaths = {role: crowd.ends[role] + crowd.refused for role in ("producer", "consumer")}
    if items["in doubt"] > deaths["producer"]:
        me.complain(f"{items['in doubt']} items in doubt of {deaths['producer']} dead producers")
    if items["lost"] > items["reported lost"] or items["reported lost"] > deaths["consumer"]:
        me.complain(f"{items['lost']} lost, {items['reported lost']} reported, {deaths['consumer']} consumers died")
    manager_lived = is_alive(manager._process.pid)
    with me.within(10, "Manager.shutdown"):
        manager.shutdown()
    figures = {
        "signals": dict(killer.sent) if killer else {},
        "items": dict(items),
        "tasks": dict(tasks.outcomes),
        "operations": {name: int(count) for name, count in zip(names, world.counts) if count},
        "deaths": dict(crowd.ends),
        "manager lived": manager_lived,
        "worst delay": round(max(world.late), 3),
        "broken": int(sum(world.broken)),
    }
    return figures


def bound_processes(options, room):
    """Let there be so many processes and threads more than now, and no others; `None`: any number."""
    if options.group is not None:
        now = int((options.group / "pids.current").read_text())
        (options.group / "pids.max").write_text("max" if room is None else str(now + room))


def limit(options):
    """Narrow what this tree may have."""
    if options.group is not None:
        (options.group / "cgroup.procs").write_text(str(os.getpid()))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if options.limit == "descriptors":
        resource.setrlimit(resource.RLIMIT_NOFILE, (160, 160))


def entry():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=8)
    parser.add_argument("--method", choices=["fork", "spawn", "forkserver"], default="fork")
    parser.add_argument("--limit", choices=["none", "descriptors", "memory", "processes"], default="none")
    parser.add_argument("--pause", type=float, default=0.08, help="seconds between two signals, on average")
    parser.add_argument("--grace", type=float, default=10, help="seconds by which an operation may outlast its time-out")
    parser.add_argument("--own-shm", action="store_true", help="/dev/shm is this tree's alone")
    parser.add_argument("--group", type=pathlib.Path, help="a control group that bounds processes, for --limit=processes")
    options = parser.parse_args()
    faulthandler.register(signal.SIGUSR1, all_threads=True)
    limit(options)
    try:
        figures = play(options)
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        # At once: an exit would wait for the members, whom nobody tells to stop.
        os._exit(2)
    print(json.dumps(figures), flush=True)
    sys.exit(1 if figures["broken"] or figures["leaks"] else 0)


if __name__ == "__main__":
    entry()
