"""The system has no named semaphores and no shared memory files: pools and locks work all the same."""

import _multiprocessing
import errno
import sys

import _posixshmem


def refuse(*_, **__):
    raise OSError(errno.ENOSYS, "Function not implemented")


if type(_multiprocessing.SemLock).__module__ == "builtins" and "phalanx" not in sys.modules:
    # What the system says where these calls are missing.
    class SemLock:
        SEM_VALUE_MAX = 2**31 - 1
        __init__ = refuse

    _multiprocessing.SemLock = SemLock
_posixshmem.shm_open = refuse

import multiprocessing as mp


def work(number):
    return number


if __name__ == "__main__":
    context = mp.get_context(sys.argv[1])
    with context.Lock():
        pass
    with context.Pool(2) as workers:
        assert workers.map_async(work, range(4)).get(20) == [0, 1, 2, 3]
    print("good")
