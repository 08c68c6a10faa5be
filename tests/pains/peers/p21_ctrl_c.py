"""joblib: Ctrl-C, one traceback, all gone."""

import os
import signal
import subprocess
import sys
import time

from _peer import need


def work(_):
    time.sleep(30)


def program(joblib):
    print("ready", flush=True)
    joblib.Parallel(n_jobs=4)(joblib.delayed(work)(number) for number in range(8))


def main():
    child = subprocess.Popen(
        [sys.executable, __file__, "program"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
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


if __name__ == "__main__":
    joblib = need("joblib")
    if sys.argv[1:] == ["program"]:
        program(joblib)
    else:
        main()
        print("good")
