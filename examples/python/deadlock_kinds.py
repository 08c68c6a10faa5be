"""Every kind of wait that can fail when it could never end: the main thread has a lock that the other party wants, and waits
for something itself.

    python -m phalanx --deadlocks=raise examples/python/deadlock_kinds.py threads         # the other party is a thread
    python -m phalanx --deadlocks=raise examples/python/deadlock_kinds.py processes       # it is a process
    python -m phalanx --deadlocks=raise examples/python/deadlock_kinds.py processes spawn queue    # one kind, a start method

On the standard library the first of them hangs.
"""

import concurrent.futures
import contextlib
import multiprocessing
import queue
import sys
import threading
import time


def take(lock, begun):
    begun.set()
    with lock:
        pass


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


def both(second, met, first):
    with second:
        met.set()
        with first:
            pass


def result_of(executor):
    return lambda _: executor.submit(threading.Event().wait).result()


THREADS = {
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


def threads(wanted):
    for kind, wait in THREADS.items():
        if wanted and kind != wanted:
            continue
        lock, begun = threading.Lock(), threading.Event()
        other = threading.Thread(target=take, args=(lock, begun), name="other")
        with lock:
            other.start()
            begun.wait()
            give_up(kind, wait, other)
        other.join()
    for kind, make in {"lock": threading.Lock, "rlock": threading.RLock}.items():
        if wanted and kind != wanted:
            continue
        first, second, met = make(), make(), threading.Event()
        other = threading.Thread(target=both, args=(second, met, first), name="other")
        with first:
            other.start()
            met.wait()
            give_up(kind, lambda _: second.acquire(), other)
        other.join()
    kind = "result of an executor of threads"
    if not wanted or kind == wanted:
        lock, begun = threading.Lock(), threading.Event()
        with concurrent.futures.ThreadPoolExecutor(1) as executor:
            with lock:
                future = executor.submit(take, lock, begun)
                begun.wait()
                give_up(kind, lambda _: future.result(), None)


def processes(wanted, ctx):
    kinds = {
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
    for kind, wait in kinds.items():
        if wanted and kind != wanted:
            continue
        lock, begun = ctx.Lock(), ctx.Event()
        other = ctx.Process(target=take, args=(lock, begun), name="other")
        with lock:
            other.start()
            begun.wait()
            give_up(kind, wait, other)
        other.join()
    for kind, make in {"lock": ctx.Lock, "rlock": ctx.RLock}.items():
        if wanted and kind != wanted:
            continue
        first, second, met = make(), make(), ctx.Event()
        other = ctx.Process(target=both, args=(second, met, first), name="other")
        with first:
            other.start()
            met.wait()
            give_up(kind, lambda _: second.acquire(), other)
        other.join()
    pools = {
        "result of a pool": lambda pool: pool.apply_async(reach).get(),
        "result of a map": lambda pool: pool.map(reach_with, [0]),
        "lazy map": lambda pool: next(pool.imap(reach_with, [0])),
    }
    for kind, wait in pools.items():
        if wanted and kind != wanted:
            continue
        lock, begun = ctx.Lock(), ctx.Event()
        with ctx.Pool(1, keep, (lock, begun)) as pool:
            with lock:
                give_up(kind, wait, pool)
    kind = "result of an executor"
    if not wanted or kind == wanted:
        lock, begun = ctx.Lock(), ctx.Event()
        with concurrent.futures.ProcessPoolExecutor(1, ctx, keep, (lock, begun)) as pool:
            with lock:
                give_up(kind, lambda _: pool.submit(reach).result(), None)


KEPT = []


def keep(*locks):
    KEPT[:] = locks


def reach():
    take(*KEPT)


def reach_with(_):
    take(*KEPT)


if __name__ == "__main__":
    with contextlib.suppress(IndexError):
        method, wanted = "fork", None
        scope = sys.argv[1]
        if scope == "processes" and len(sys.argv) > 2:
            method = sys.argv[2]
        wanted = sys.argv[3] if len(sys.argv) > 3 else None
        if scope == "threads":
            threads(sys.argv[2] if len(sys.argv) > 2 else None)
        elif scope == "processes":
            processes(wanted, multiprocessing.get_context(method))
        sys.exit()
    sys.exit("usage: deadlock_kinds.py threads [KIND] | processes [METHOD [KIND]]")
