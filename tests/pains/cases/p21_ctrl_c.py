"""Ctrl-C in the middle of a map: one traceback, and everybody is gone."""

import multiprocessing as mp
import os
import signal
import subprocess
import sys
import time


def work(_):
    time.sleep(30)


def program(method):
    with mp.get_context(method).Pool(4) as workers:
        print("ready", flush=True)
        workers.map(work, range(8))


def check(command):
    """Interrupt a program that has said that it is ready."""
    child = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    assert child.stdout.readline() == "ready\n"
    time.sleep(1.5)
    # As a terminal does it: to the whole group.
    os.killpg(child.pid, signal.SIGINT)
    try:
        _, text = child.communicate(timeout=10)
    finally:
        try:
            os.killpg(child.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
    assert text.count("Traceback (most recent call last)") == 1, text
    assert "KeyboardInterrupt" in text, text


def main(method):
    runner = sys.orig_argv[: sys.orig_argv.index(sys.argv[0])] if sys.argv[0] in sys.orig_argv else [sys.executable]
    runner[0] = sys.executable
    check([*runner, sys.argv[0], method, "program"])


if __name__ == "__main__":
    if sys.argv[2:] == ["program"]:
        program(sys.argv[1])
    else:
        main(sys.argv[1])
        print("good")
