"""Pebble: a killed parent leaves no workers."""

import os
import signal
import subprocess
import sys
import time

from _peer import need


def pids(_):
    time.sleep(0.2)
    return os.getpid()


def parent(pebble):
    workers = pebble.ProcessPool(2)
    found = list(workers.map(pids, range(4)).result())
    print(*sorted(set(found)), flush=True)
    time.sleep(60)


def alive(pid):
    try:
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def main():
    child = subprocess.Popen([sys.executable, __file__, "parent"], stdout=subprocess.PIPE, text=True)
    try:
        workers = [int(word) for word in child.stdout.readline().split()]
        assert workers
        os.kill(child.pid, signal.SIGKILL)
        until = time.monotonic() + 5
        while any(alive(pid) for pid in workers) and time.monotonic() < until:
            time.sleep(0.02)
        left = [pid for pid in workers if alive(pid)]
        for pid in left:
            os.kill(pid, signal.SIGKILL)
        assert not left, f"{len(left)} of {len(workers)} workers outlive their parent"
    finally:
        child.kill()
        child.wait()


if __name__ == "__main__":
    pebble = need("pebble")
    if sys.argv[1:] == ["parent"]:
        parent(pebble)
    else:
        main()
        print("good")
