"""The owner of a lock dies: the next one gets it."""

import multiprocessing as mp
import os
import sys


def take_and_die(lock):
    lock.acquire()
    os._exit(9)


def main(context):
    for make in (context.Lock, context.RLock):
        lock = make()
        child = context.Process(target=take_and_die, args=(lock,))
        child.start()
        child.join()
        assert lock.acquire(timeout=5), f"{make.__name__} stays taken"
        lock.release()


if __name__ == "__main__":
    main(mp.get_context(sys.argv[1]))
    print("good")
