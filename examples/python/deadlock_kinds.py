"""Every kind of wait that can fail when it could never end: the main thread has a lock that the other party wants, and waits
for something itself.

    python -m phalanx --deadlocks=raise examples/python/deadlock_kinds.py threads         # the other party is a thread
    python -m phalanx --deadlocks=raise examples/python/deadlock_kinds.py processes       # it is a process
    python -m phalanx --deadlocks=raise examples/python/deadlock_kinds.py processes spawn queue    # one kind, a start method

On the standard library the first of them hangs.
"""

import multiprocessing
import queue
import sys
import threading
import time
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor


def take(lock, begun):
    begun.set()
    with lock:
        pass


def take_both(second, met, first):
    with second:
        met.set()
        with first:
            pass


KEPT = []


def keep(*both):
    KEPT[:] = both


def reach(_=None):
    take(*KEPT)


def give_up(kind, wait, other):
    # The other waits already: we are the youngest.
    time.sleep(0.3)
    try:
        wait(other)
    except RuntimeError as error:
        print(f"{kind}: {type(error).__name__}, one of {len(getattr(error, 'parties', ()))}")
    else:
        print(f"{kind}: goes on")


def twice(lock):
    with lock:
        lock.acquire()


def condition(condition):
    with condition:
        condition.wait()


def full(queue):
    queue.put(1)
    queue.put(2)


def unfinished(queue):
    queue.put(1)
    queue.join()


def show(waits, scope, start, wanted):
    """The other party waits for a lock of ours, and we for what never comes; then each for the other's lock."""
    for kind, wait in waits.items():
        if wanted in (None, kind):
            lock, begun = scope.Lock(), scope.Event()
            with lock:
                other = start(target=take, args=(lock, begun), name="other")
                other.start()
                begun.wait()
                give_up(kind, wait, other)
            other.join()
    for kind, make in {"lock": scope.Lock, "rlock": scope.RLock}.items():
        if wanted in (None, kind):
            first, second, met = make(), make(), scope.Event()
            with first:
                other = start(target=take_both, args=(second, met, first), name="other")
                other.start()
                met.wait()
                give_up(kind, lambda _: second.acquire(), other)
            other.join()


def threads(wanted=None):
    waits = {
        "event": lambda _: threading.Event().wait(),
        "condition": lambda _: condition(threading.Condition()),
        "semaphore": lambda _: threading.Semaphore(0).acquire(),
        "bounded semaphore": lambda _: twice(threading.BoundedSemaphore(1)),
        "barrier": lambda _: threading.Barrier(2).wait(),
        "empty queue": lambda _: queue.Queue().get(),
        "full queue": lambda _: full(queue.Queue(1)),
        "join of a queue": lambda _: unfinished(queue.Queue()),
        "join of a thread": lambda other: other.join(),
    }
    show(waits, threading, threading.Thread, wanted)
    kind = "result of an executor of threads"
    if wanted in (None, kind):
        lock, begun = threading.Lock(), threading.Event()
        with ThreadPoolExecutor(1) as executor, lock:
            future = executor.submit(take, lock, begun)
            begun.wait()
            give_up(kind, lambda _: future.result(), None)


def processes(method="fork", wanted=None):
    ctx = multiprocessing.get_context(method)
    waits = {
        "event": lambda _: ctx.Event().wait(),
        "condition": lambda _: condition(ctx.Condition()),
        "semaphore": lambda _: ctx.Semaphore(0).acquire(),
        "bounded semaphore": lambda _: twice(ctx.BoundedSemaphore(1)),
        "barrier": lambda _: ctx.Barrier(2).wait(),
        "queue": lambda _: ctx.Queue().get(),
        "full queue": lambda _: full(ctx.Queue(1)),
        "join of a queue": lambda _: unfinished(ctx.JoinableQueue()),
        "simple queue": lambda _: ctx.SimpleQueue().get(),
        "join of a process": lambda other: other.join(),
    }
    show(waits, ctx, ctx.Process, wanted)
    pools = {
        "result of a pool": lambda pool: pool.apply_async(reach).get(),
        "result of a map": lambda pool: pool.map(reach, [0]),
        "lazy map": lambda pool: next(pool.imap(reach, [0])),
        "result of an executor": lambda executor: executor.submit(reach).result(),
    }
    for kind, wait in pools.items():
        if wanted in (None, kind):
            both = ctx.Lock(), ctx.Event()
            executor = "executor" in kind
            made = ProcessPoolExecutor(1, ctx, keep, both) if executor else ctx.Pool(1, keep, both)
            with made as pool, both[0]:
                give_up(kind, wait, pool)


if __name__ == "__main__":
    scope, *rest = sys.argv[1:] or [None]
    if scope == "threads" and len(rest) <= 1:
        threads(*rest)
    elif scope == "processes" and len(rest) <= 2:
        processes(*rest)
    else:
        sys.exit("usage: deadlock_kinds.py threads [KIND] | processes [METHOD [KIND]]")
