"""A thread holds a lock most of the time while workers start: with the default start method no task gets stuck on it."""

import multiprocessing as mp
import sys
import threading
import time

LOCK = threading.Lock()


def hold():
    while True:
        with LOCK:
            time.sleep(0.2)


def work(number):
    with LOCK:
        return number


def main(context):
    threading.Thread(target=hold, daemon=True).start()
    time.sleep(0.05)
    with context.Pool(2) as workers:
        assert workers.map_async(work, range(4)).get(15) == [0, 1, 2, 3]


if __name__ == "__main__":
    main(mp.get_context(sys.argv[1]))
    print("good")
