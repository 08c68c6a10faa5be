"""billiard: a dead owner's lock is free."""

import os

from _peer import need


def take_and_die(lock):
    lock.acquire()
    os._exit(9)


if __name__ == "__main__":
    billiard = need("billiard")
    for make in (billiard.Lock, billiard.RLock):
        lock = make()
        child = billiard.Process(target=take_and_die, args=(lock,))
        child.start()
        child.join()
        assert lock.acquire(True, 5), f"{make.__name__} stays taken"
        lock.release()
    print("good")
