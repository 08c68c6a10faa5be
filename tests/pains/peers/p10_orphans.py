"""Pebble: a killed parent leaves no workers."""

import os
import sys
import time

from _peer import case, need


def pids(_):
    time.sleep(0.2)
    return os.getpid()


def parent(pebble):
    workers = pebble.ProcessPool(2)
    found = list(workers.map(pids, range(4)).result())
    print(*sorted(set(found)), flush=True)
    time.sleep(60)


if __name__ == "__main__":
    pebble = need("pebble")
    if sys.argv[1:] == ["parent"]:
        parent(pebble)
    else:
        case("p10_orphans").check([sys.executable, __file__, "parent"])
        print("good")
