"""Functions in processes of their own: results, exceptions, deaths, time-outs.

Written against the standard library alone.
"""

import multiprocessing
import os
import signal
import sys
import time


def add(results, a, b):
    results.put(a + b)


def divide(a, b):
    return a / b


def crash(words):
    print(words, file=sys.stderr, flush=True)
    os.abort()


class Greeter(multiprocessing.Process):
    """A subclass with attributes of its own, which are there in the child."""

    def __init__(self, whom):
        super().__init__(name="greeter")
        self.whom = whom

    def run(self):
        print(f"hello {self.whom} from {multiprocessing.current_process().name}", flush=True)


def main():
    results = multiprocessing.SimpleQueue()
    process = multiprocessing.Process(target=add, args=(results, 40, 2))
    process.start()
    print("the process says", results.get())
    process.join()

    greeter = Greeter("you")
    greeter.start()
    greeter.join()

    unlucky = multiprocessing.Process(target=divide, args=(1, 0))
    unlucky.start()
    unlucky.join()
    print("an exception ends it with exit code", unlucky.exitcode)

    victim = multiprocessing.Process(target=crash, args=("my last words",), name="victim")
    victim.start()
    victim.join()
    print("a death is told by its signal:", signal.Signals(-victim.exitcode).name)

    slow = multiprocessing.Process(target=time.sleep, args=(3600,), name="sleeper")
    slow.start()
    slow.join(0.05)
    print("it still runs:", slow.is_alive())
    slow.terminate()
    slow.join()
    print("after terminate():", signal.Signals(-slow.exitcode).name)

    # A daemon ends with this process instead of being waited for.
    multiprocessing.Process(target=time.sleep, args=(3600,), daemon=True).start()


if __name__ == "__main__":
    main()
