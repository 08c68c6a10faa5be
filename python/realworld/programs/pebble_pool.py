"""pebble: a pool whose tasks have time-outs and can be cancelled, decorated functions, a worker that dies."""

import os
import time
from concurrent.futures import CancelledError, TimeoutError

from pebble import ProcessExpired, ProcessPool, concurrent


@concurrent.process(timeout=20)
def cube(n):
    return n**3


def slow(seconds):
    time.sleep(seconds)
    return seconds


def die(_):
    os._exit(3)


def main():
    print(cube(7).result())
    with ProcessPool(max_workers=2) as pool:
        print(list(pool.map(abs, range(-300, 0), chunksize=10, timeout=20).result())[:5])
        stuck = pool.schedule(slow, args=[60], timeout=0.5)
        fine = pool.schedule(slow, args=[0.01])
        print("fine", fine.result())
        try:
            stuck.result()
        except TimeoutError:
            print("timed out")
        gone = pool.schedule(die, args=[0])
        try:
            gone.result()
        except ProcessExpired as error:
            print("expired", error.exitcode)
        running = pool.schedule(slow, args=[60])
        time.sleep(0.3)
        running.cancel()
        try:
            running.result()
        except CancelledError:
            print("cancelled")
        print(pool.schedule(pow, args=[2, 10]).result())


if __name__ == "__main__":
    main()
