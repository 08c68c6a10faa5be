"""A reader of a shared segment ends: the segment is still there for its owner and for others."""

import subprocess
import sys
import time
from multiprocessing.shared_memory import SharedMemory


def main():
    segment = SharedMemory(create=True, size=4096)
    try:
        segment.buf[:5] = b"hello"
        runner = sys.orig_argv[: sys.orig_argv.index(sys.argv[0])] if sys.argv[0] in sys.orig_argv else [sys.executable]
        runner[0] = sys.executable
        read = subprocess.run(
            [*runner, sys.argv[0], segment.name], capture_output=True, text=True, timeout=30
        )
        assert read.stdout.strip() == "hello", read.stderr
        assert "leaked" not in read.stderr, read.stderr
        time.sleep(1)
        SharedMemory(name=segment.name).close()
    finally:
        segment.close()
        segment.unlink()


if __name__ == "__main__":
    if len(sys.argv) == 2 and sys.argv[1].startswith(("psm", "wnsm", "/")):
        other = SharedMemory(name=sys.argv[1])
        print(bytes(other.buf[:5]).decode())
        other.close()
    else:
        main()
        print("good")
