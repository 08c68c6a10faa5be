"""Tasks that fail alone: they raise, crash, run away, eat memory, or are not wanted any more."""

import ctypes
import os
import signal
import sys
import time

import phalanx as mp


def fine(x):
    return x


def raises():
    raise ValueError("I do not like this input")


def crashes():
    print("about to crash", file=sys.stderr)
    ctypes.string_at(0)


def runs_away():
    while True:
        time.sleep(1)


def eats_memory(megabytes):
    return len([bytes(1 << 20) for _ in range(megabytes)])


def flaky(runs):
    """Dies in its first two runs."""
    with runs.get_lock():
        runs.value += 1
    if runs.value < 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return runs.value


def show(what, result):
    try:
        print(f"{what}: {result.get()}")
    except Exception as error:
        print(f"{what}: {type(error).__name__}: {error}")


def main():
    with mp.Pool(2, memory_limit=256 << 20) as pool:
        show("an exception", pool.apply_async(raises))
        show("a crash", pool.apply_async(crashes))
        show("a time-out", pool.apply_async(runs_away, timeout=0.1))
        show("too much memory", pool.apply_async(eats_memory, (100_000,)))
        # Any shared object is an ordinary argument.
        show("a flaky task, retried", pool.apply_async(flaky, (mp.Value("i", 0),), retries=5))
        unwanted = pool.apply_async(runs_away)
        time.sleep(0.05)
        unwanted.cancel()
        show("cancelled while it ran", unwanted)
        show("and the pool goes on", pool.map_async(fine, range(5)))


if __name__ == "__main__":
    main()
