"""A program with locks forks by hand and ends before its child: it ends at once, without a word about leaks."""

import multiprocessing as mp
import os
import subprocess
import sys


def program(method):
    context = mp.get_context(method)
    locks = [context.Lock() for _ in range(3)]
    if os.fork() == 0:
        # Outlives its parent for a moment, with all its descriptors.
        import time

        time.sleep(8)
        os._exit(0)
    del locks


def main(method):
    runner = sys.orig_argv[: sys.orig_argv.index(sys.argv[0])] if sys.argv[0] in sys.orig_argv else [sys.executable]
    runner[0] = sys.executable
    child = subprocess.Popen(
        [*runner, sys.argv[0], method, "program"], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    # The exit of the program is what counts, not that of the child that has its stderr.
    child.wait(timeout=6)
    assert child.returncode == 0
    _, text = child.communicate(timeout=20)
    assert "leaked" not in text, text


if __name__ == "__main__":
    if sys.argv[2:] == ["program"]:
        program(sys.argv[1])
    else:
        main(sys.argv[1])
        print("good")
