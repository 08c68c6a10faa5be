"""The three ways to start a process, timed: a fork of this one, a fork of a server, an interpreter started anew.

Written against the standard library alone.
"""

import multiprocessing
import time


def double(results, x):
    results.put(2 * x)


def main():
    for method in ["fork", "forkserver", "spawn"]:
        context = multiprocessing.get_context(method)
        results = context.SimpleQueue()
        # The first start of a fork server is its own.
        for x in (1, 21):
            begun = time.perf_counter()
            process = context.Process(target=double, args=(results, x))
            process.start()
            answer = results.get()
            took = time.perf_counter() - begun
            process.join()
        print(f"{method}: {answer} after {took * 1000:.1f} ms")


if __name__ == "__main__":
    main()
