"""The parent is killed: its workers are gone within moments."""

import concurrent.futures as cf
import multiprocessing as mp
import os
import signal
import subprocess
import sys
import time


def pids(_):
    time.sleep(0.2)
    return os.getpid()


def parent(method, kind):
    context = mp.get_context(method)
    if kind == "pool":
        workers = context.Pool(2)
        found = workers.map(pids, range(4), chunksize=1)
    else:
        workers = cf.ProcessPoolExecutor(2, mp_context=context)
        found = list(workers.map(pids, range(4)))
    print(*sorted(set(found)), flush=True)
    time.sleep(60)


def alive(pid):
    try:
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def check(command):
    """Kill the parent, which prints its workers."""
    child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
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


def main(method, kind):
    runner = sys.orig_argv[: sys.orig_argv.index(sys.argv[0])] if sys.argv[0] in sys.orig_argv else [sys.executable]
    check([*runner, os.path.abspath(sys.argv[0]), method, kind, "parent"])


if __name__ == "__main__":
    if sys.argv[3:] == ["parent"]:
        parent(sys.argv[1], sys.argv[2])
    else:
        main(sys.argv[1], sys.argv[2])
        print("good")
