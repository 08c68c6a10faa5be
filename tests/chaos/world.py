"""What all members of a chaos tree share, and what each of them notes there.

Notes are plain cells of shared memory, one writer each, so that they outlive whoever is killed in the middle of a line.
"""

import contextlib
import os
import sys
import time

# States of an item, as its producer notes them.
NOTHING, TRIED, ACCEPTED, REFUSED = range(4)

ITEMS_MOST = 60_000
TASKS_MOST = 40_000
PRODUCERS = 2
PERMITS = 2
PARTIES = 3
CELLS = 512


def is_alive(pid):
    """Tell whether a process is there and no zombie."""
    try:
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().rsplit(")", 1)[1].split()[0] not in "ZX"
    except OSError:
        return False


class World:
    """The shared objects of one tree."""

    def __init__(self, ctx, members, grace):
        self.method = ctx.get_start_method()
        self.grace = grace
        self.members = members
        self.stop = ctx.Event()
        # Queues: what was put, what came.
        self.queue = ctx.JoinableQueue(64)
        self.state = [ctx.RawArray("B", ITEMS_MOST) for _ in range(PRODUCERS)]
        self.got = [ctx.RawArray("B", ITEMS_MOST) for _ in range(PRODUCERS)]
        # Tasks of the root's pool: how often each ran.
        self.ran = ctx.RawArray("B", TASKS_MOST)
        # Locks, and who is inside.
        self.lock = ctx.Lock()
        self.rlock = ctx.RLock()
        self.inside = ctx.RawArray("q", 2)
        self.semaphore = ctx.BoundedSemaphore(PERMITS)
        self.seated = ctx.RawArray("q", len(members))
        # A condition with tickets.
        self.condition = ctx.Condition()
        self.tickets = ctx.RawValue("q", 0)
        self.event = ctx.Event()
        self.barrier = ctx.Barrier(PARTIES)
        # An array that its lock keeps whole: all cells are equal, unless a writer died.
        self.array = ctx.Array("q", CELLS)
        self.writer = ctx.RawValue("q", 0)
        # What each member notes: operations, the worst delay beyond a time-out, broken promises.
        self.counts = ctx.RawArray("Q", len(members))
        self.late = ctx.RawArray("d", len(members))
        self.broken = ctx.RawArray("Q", len(members))
        self.dict = None
        self.list = None

    def number(self, name):
        """Return the cell of a member."""
        return self.members.index(name)


class Member:
    """One member's own view of the world."""

    def __init__(self, world, name):
        self.world = world
        self.name = name
        self.number = world.number(name)

    def running(self):
        return not self.world.stop.is_set()

    def complain(self, text):
        """Note a broken promise."""
        self.world.broken[self.number] += 1
        sys.stderr.write(f"BROKEN {self.name} ({os.getpid()}): {text}\n")
        sys.stderr.flush()

    def done(self):
        self.world.counts[self.number] += 1

    @contextlib.contextmanager
    def within(self, seconds, what):
        """Note by how much an operation outlasted its time-out."""
        begun = time.monotonic()
        try:
            yield
        finally:
            late = time.monotonic() - begun - seconds
            if late > self.world.late[self.number]:
                self.world.late[self.number] = late
            if late > self.world.grace:
                self.complain(f"{what} took {late:.1f} s longer than its {seconds} s")
