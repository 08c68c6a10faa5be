"""Programs that wait for themselves. On the standard library each hangs; with phalanx each is found.

    python examples/python/deadlock.py threads                    # hangs
    python -m phalanx --deadlocks examples/python/deadlock.py threads        # says who, for what, and where
    python -m phalanx --deadlocks=raise examples/python/deadlock.py threads  # one of them fails, the program ends

Kinds: threads (two locks, two threads), processes (the same in two processes), queue (a queue and a lock), join (a thread
that joins one which joins it), pool (a task that waits for a task of its own full pool).
"""

import multiprocessing
import sys
import threading


def _both(name, first, second, met):
    try:
        with first:
            met.wait()
            with second:
                print(f"{name} has both")
    except RuntimeError as error:
        print(f"{name} gives up: {type(error).__name__}")


def threads():
    accounts, ledger = threading.Lock(), threading.Lock()
    met = threading.Barrier(2)
    other = threading.Thread(target=_both, args=("the other", ledger, accounts, met), name="other", daemon=True)
    other.start()
    _both("the main thread", accounts, ledger, met)
    other.join()


def processes():
    accounts, ledger = multiprocessing.Lock(), multiprocessing.Lock()
    met = multiprocessing.Barrier(2)
    other = multiprocessing.Process(target=_both, args=("the other", ledger, accounts, met), name="other", daemon=True)
    other.start()
    _both("the main process", accounts, ledger, met)
    other.join()


def _put_under(lock, queue):
    try:
        with lock:
            queue.put("news")
    except RuntimeError as error:
        print(f"the other does without the lock: {type(error).__name__}")
        queue.put("news all the same")


def queue():
    lock, news = multiprocessing.Lock(), multiprocessing.Queue()
    other = multiprocessing.Process(target=_put_under, args=(lock, news), name="other", daemon=True)
    try:
        with lock:
            other.start()
            # The other needs the lock to put, and we keep it until it has.
            print("got", news.get())
    except RuntimeError as error:
        print(f"the main process lets go of the lock: {type(error).__name__}")
        print("got", news.get())
    other.join()


def join():
    begun = threading.Event()

    def one():
        begun.wait()
        try:
            second.join()
        except RuntimeError as error:
            print(f"the first gives up: {type(error).__name__}")

    def other():
        begun.set()
        try:
            first.join()
        except RuntimeError as error:
            print(f"the second gives up: {type(error).__name__}")

    first = threading.Thread(target=one, name="first", daemon=True)
    second = threading.Thread(target=other, name="second", daemon=True)
    first.start()
    second.start()
    first.join()
    second.join()


def pool():
    from concurrent.futures import ThreadPoolExecutor

    def outer():
        # The only worker is busy with this.
        inner = workers.submit(sum, [40, 2])
        try:
            return inner.result()
        except RuntimeError as error:
            return type(error).__name__

    with ThreadPoolExecutor(1) as workers:
        print("the task says", workers.submit(outer).result())


KINDS = {kind.__name__: kind for kind in (threads, processes, queue, join, pool)}

if __name__ == "__main__":
    if len(sys.argv) != 2 or sys.argv[1] not in KINDS:
        sys.exit(f"usage: deadlock.py {'|'.join(KINDS)}")
    KINDS[sys.argv[1]]()
