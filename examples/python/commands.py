"""External commands: output, exit codes, time-outs. The standard library's ``subprocess``, which works beside the engine."""

import os
import signal
import subprocess


def main():
    print("call:", subprocess.call(["true"]))
    print("run: exit code", subprocess.run(["sh", "-c", "exit 3"]).returncode)
    print("check_output:", subprocess.check_output(["echo", "hello"]))
    try:
        subprocess.run(["sh", "-c", "echo oh no >&2; exit 1"], check=True, capture_output=True, text=True)
    except subprocess.CalledProcessError as error:
        print(f"a failure: {error} {error.stderr.strip()}")
    ordered = subprocess.run(["sort"], input="pear\napple\n", capture_output=True, text=True)
    print("with input:", repr(ordered.stdout))
    # The shell's own child would live on; a group of its own can be ended as one.
    with subprocess.Popen(["sh", "-c", "sleep 3600 & sleep 3600"], start_new_session=True) as slow:
        try:
            slow.wait(timeout=0.1)
        except subprocess.TimeoutExpired as error:
            os.killpg(slow.pid, signal.SIGKILL)
            print("a time-out:", error)


if __name__ == "__main__":
    main()
