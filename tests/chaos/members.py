"""The members of a chaos tree: each a process that works until the tree stops, and may be killed at any moment."""

import hashlib
import os
import queue as queues
import signal
import sys
import threading
import time

import phalanx as mp
from world import ACCEPTED, CELLS, ITEMS_MOST, PERMITS, REFUSED, TRIED, Member, is_alive

# What an operation may say where descriptors, memory or processes are short.
SHORT = (OSError, MemoryError)


def is_refusal(error):
    """Tell whether a start was refused: something is short, or its server was killed."""
    if isinstance(error, (EOFError, *SHORT)):
        return True
    # Threads; and workers that found too little to become any.
    return isinstance(error, RuntimeError) and ("new thread" in str(error) or "workers in a row" in str(error))


def main(world, name, role):
    """Be a member: the target of its process."""
    import faulthandler

    faulthandler.register(signal.SIGUSR1, all_threads=True)
    me = Member(world, name)
    try:
        role(me)
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)
    except BaseException as error:
        me.complain(f"{type(error).__name__}: {error}")
        raise


# ---- queues ----


def payload(producer, number):
    """The bytes of an item: most fit the ring, some take pages of their own."""
    size = 200_000 if number % 37 == 36 else number % 300
    return hashlib.blake2b(f"{producer} {number}".encode(), digest_size=16).digest() + b"x" * size


def producer(me):
    index = int(me.name.rsplit("-", 1)[1])
    state = me.world.state[index]
    number = next((at for at in range(ITEMS_MOST) if state[at] == 0), ITEMS_MOST)
    while me.running() and number < ITEMS_MOST:
        item = (index, number, payload(index, number))
        state[number] = TRIED
        with me.within(2, "put"):
            try:
                me.world.queue.put(item, timeout=2)
            except (queues.Full, *SHORT):
                state[number] = REFUSED
                time.sleep(0.01)
            else:
                state[number] = ACCEPTED
        me.done()
        number += 1
        if number % 8 == 0:
            time.sleep(0.002)


def consumer(me):
    while me.running():
        with me.within(1, "get"):
            try:
                item = me.world.queue.get(timeout=1)
            except (queues.Empty, *SHORT):
                continue
        note_item(me, item)
        me.world.queue.task_done()
        me.done()


def note_item(me, item):
    """Note that an item came, and look whether it is whole."""
    index, number, data = item
    if data != payload(index, number):
        me.complain(f"item {number} of producer {index} is torn")
    got = me.world.got[index]
    got[number] += 1
    if got[number] > 1:
        me.complain(f"item {number} of producer {index} came twice")


# ---- locks ----


def critical(me, which, what):
    """Be inside; nobody else who is alive may be."""
    inside = me.world.inside
    other = inside[which]
    if other and other != os.getpid() and is_alive(other):
        me.complain(f"{other} is inside of the {what} as well")
    inside[which] = os.getpid()
    time.sleep(0.0005)
    if inside[which] != os.getpid():
        me.complain(f"{inside[which]} came into the {what}")
    inside[which] = 0


def locker(me):
    world = me.world
    while me.running():
        with me.within(5, "Lock.acquire"):
            taken = world.lock.acquire(timeout=5)
        if taken:
            critical(me, 0, "Lock")
            world.lock.release()
        with me.within(5, "RLock.acquire"):
            taken = world.rlock.acquire(timeout=5)
        if taken:
            world.rlock.acquire()
            critical(me, 1, "RLock")
            world.rlock.release()
            world.rlock.release()
        me.done()
        time.sleep(0.001)


def sitter(me):
    world, turn = me.world, 0
    while me.running():
        with me.within(5, "BoundedSemaphore.acquire"):
            taken = world.semaphore.acquire(timeout=5)
        if taken:
            turn += 1
            world.seated[me.number] = os.getpid() << 24 | turn & 0xFFFFFF
            # Who sat in the same turn at both looks sat all the time between them.
            here = {seat for seat in world.seated if seat and is_alive(seat >> 24)}
            here.intersection_update(list(world.seated))
            if len(here) > PERMITS:
                me.complain(f"{len(here)} hold one of {PERMITS} permits: {sorted(seat >> 24 for seat in here)}")
            time.sleep(0.001)
            world.seated[me.number] = 0
            world.semaphore.release()
        me.done()
        time.sleep(0.001)


def giver(me):
    """Add tickets and tell."""
    world = me.world
    while me.running():
        with me.within(5, "Condition.acquire"):
            taken = world.condition.acquire(timeout=5)
        if taken:
            world.tickets.value += 2
            world.condition.notify(2)
            world.condition.release()
        me.done()
        time.sleep(0.004)


def taker(me):
    """Wait for tickets, and take them."""
    world = me.world
    while me.running():
        with me.within(5, "Condition.acquire"):
            taken = world.condition.acquire(timeout=5)
        if not taken:
            continue
        begun = time.monotonic()
        with me.within(3, "Condition.wait_for"):
            there = world.condition.wait_for(lambda: world.tickets.value > 0 or world.stop.is_set(), timeout=3)
        if world.tickets.value > 10 and time.monotonic() - begun > 2.9:
            me.complain("nobody woke a waiter, and tickets are there")
        if there and world.tickets.value > 0:
            world.tickets.value -= 1
        world.condition.release()
        me.done()


def meeter(me):
    while me.running():
        with me.within(1, "Barrier.wait"):
            try:
                me.world.barrier.wait(timeout=1)
            except threading.BrokenBarrierError:
                time.sleep(0.01)
                with me.within(1, "Barrier.reset"):
                    me.world.barrier.reset()
        me.done()
        time.sleep(0.002)


def ringer(me):
    while me.running():
        with me.within(1, "Event.set"):
            me.world.event.set()
        time.sleep(0.002)
        with me.within(1, "Event.clear"):
            me.world.event.clear()
        me.done()
        time.sleep(0.002)


def hearer(me):
    while me.running():
        with me.within(1, "Event.wait"):
            me.world.event.wait(timeout=1)
        me.done()
        time.sleep(0.001)


# ---- shared data ----


def writer(me):
    world, stamp = me.world, 0
    while me.running():
        lock = world.array.get_lock()
        with me.within(5, "Array's lock"):
            if not lock.acquire(timeout=5):
                continue
        other = world.writer.value
        cells = world.array.get_obj()
        if other == 0 and len(set(cells)) > 1:
            me.complain("the array is not whole, and nobody died while writing it")
        elif other and other != os.getpid() and is_alive(other):
            me.complain(f"{other} writes the array as well")
        world.writer.value = os.getpid()
        stamp += 1
        for half in (range(CELLS // 2), range(CELLS // 2, CELLS)):
            for cell in half:
                cells[cell] = stamp
            time.sleep(0.0005)
        world.writer.value = 0
        lock.release()
        me.done()
        time.sleep(0.002)


def managed(me):
    world, number = me.world, 0
    while me.running():
        number += 1
        try:
            with me.within(5, "a manager's dict and list"):
                world.dict[me.name] = number
                if world.dict[me.name] != number:
                    me.complain("a manager's dict does not hold what was put")
                world.list.append(number)
                if len(world.list) > 50:
                    world.list.pop()
        except (EOFError, IndexError, *SHORT):
            # The manager was killed; the rest of its life nobody answers.
            time.sleep(0.02)
        me.done()
        time.sleep(0.002)


# ---- processes and pools ----


def echo(connection):
    while True:
        try:
            connection.send(connection.recv())
        except (EOFError, OSError):
            return


def caller(me):
    """Start a child again and again, and talk to it."""
    ctx = mp.get_context(me.world.method)
    while me.running():
        try:
            ours, theirs = ctx.Pipe()
            child = ctx.Process(target=echo, args=(theirs,), daemon=True)
            with me.within(20, "Process.start"):
                child.start()
        except Exception as error:
            if not is_refusal(error):
                raise
            time.sleep(0.05)
            continue
        theirs.close()
        with ours:
            for number in range(40):
                try:
                    ours.send(number)
                    with me.within(3, "poll"):
                        there = ours.poll(3)
                    if there and ours.recv() != number:
                        me.complain("a connection brought something else")
                    if not there and not is_alive(child.pid):
                        me.complain("a dead child's connection has no end")
                    if not there:
                        break
                except (EOFError, OSError):
                    break
                me.done()
        with me.within(5, "Process.join"):
            child.join(5)
        if child.exitcode is None:
            child.kill()
            with me.within(5, "Process.join of a killed one"):
                child.join(5)
            if child.exitcode is None:
                me.complain("a killed child does not end")


def square(number):
    if number % 11 == 10:
        time.sleep(0.003)
    return number * number


def locked_square(lock, number):
    with lock:
        return number * number


def oversleep(seconds):
    time.sleep(seconds)


def nested(number):
    with mp.Pool(1) as pool:
        return pool.apply_async(square, (number,)).get(20)


def settle(me, result, expected, seconds=30):
    """Wait for a task; it has one outcome, in time. Returns whether it has a value."""
    try:
        with me.within(seconds, "a task"):
            value = result.get(seconds)
    except (mp.WorkerDiedError, mp.TaskTimeoutError, mp.PoolTerminatedError, *SHORT):
        return False
    except mp.TimeoutError:
        me.complain(f"a task has no outcome after {seconds} s")
        return False
    except RuntimeError as error:
        # The pool broke for want of something.
        if not is_refusal(error):
            raise
        return False
    if value != expected:
        me.complain(f"a task of {expected} gave {value}")
    return True


def boss(me):
    """Have a pool of one's own, and use it in all ways."""
    ctx = mp.get_context(me.world.method)
    while me.running():
        try:
            with me.within(60, "a pool's life"):
                use_pool(me, ctx)
        except mp.WorkerDiedError:
            pass
        except mp.PoolTerminatedError:
            pass
        except Exception as error:
            if not is_refusal(error):
                raise
            time.sleep(0.05)


def use_pool(me, ctx):
    with ctx.Pool(2) as pool:
        for turn in range(12):
            if not me.running():
                return
            results = [pool.apply_async(square, (number,)) for number in range(20)]
            for number, result in enumerate(results):
                settle(me, result, number * number)
                me.done()
            if turn % 4 == 0:
                lock = ctx.Lock()
                settle(me, pool.apply_async(locked_square, (lock, 7)), 49)
            if turn % 4 == 1:
                late = pool.apply_async(oversleep, (60,), timeout=0.05)
                if settle(me, late, None):
                    me.complain("a task outlived its time-out")
            if turn % 4 == 2:
                gone = pool.apply_async(oversleep, (60,))
                time.sleep(0.01)
                gone.cancel()
                try:
                    gone.get(30)
                except (mp.TaskCancelledError, mp.WorkerDiedError, *SHORT):
                    pass
                except mp.TimeoutError:
                    me.complain("a cancelled task has no outcome after 30 s")
            if turn % 12 == 3:
                settle(me, pool.apply_async(nested, (5,)), 25, 60)


def hog(me):
    """Take all descriptors of this process, or all memory of the arena, for a moment; then start something."""
    ctx = mp.get_context(me.world.method)
    while me.running():
        kept = []
        try:
            while len(kept) < 5000:
                kept.append(os.open("/dev/null", os.O_RDONLY))
        except OSError:
            pass
        try_something(me, ctx)
        for fd in kept:
            os.close(fd)
        try:
            fill_memory(me, ctx)
        except SHORT:
            pass
        me.done()
        time.sleep(0.05)


def fill_memory(me, ctx):
    queue = ctx.Queue()
    try:
        for _ in range(64):
            queue.put(b"x" * 2_000_000, timeout=1)
    except (queues.Full, *SHORT):
        try_something(me, ctx)
    while True:
        try:
            queue.get(timeout=0.2)
        except queues.Empty:
            return


def try_something(me, ctx):
    try:
        with me.within(20, "a process without room"):
            child = ctx.Process(target=square, args=(3,))
            child.start()
            child.join(10)
            if child.exitcode is None:
                child.kill()
                child.join(5)
    except Exception as error:
        if not is_refusal(error):
            raise


ROLES = {
    "producer": producer,
    "consumer": consumer,
    "locker": locker,
    "sitter": sitter,
    "giver": giver,
    "taker": taker,
    "meeter": meeter,
    "ringer": ringer,
    "hearer": hearer,
    "writer": writer,
    "managed": managed,
    "caller": caller,
    "boss": boss,
    "hog": hog,
}
