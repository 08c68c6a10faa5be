"""A process is killed while it puts large items: the queue goes on for everybody else, and get(timeout=) keeps its time."""

import multiprocessing as mp
import os
import signal
import sys
import time
from queue import Empty


def flood(queue):
    while True:
        queue.put(b"x" * 1_000_000)


def put_one(queue):
    queue.put("after")


def main(context):
    for trial in range(8):
        queue = context.Queue()
        writer = context.Process(target=flood, args=(queue,), daemon=True)
        writer.start()
        queue.get(timeout=10)
        time.sleep(0.005 * trial)
        os.kill(writer.pid, signal.SIGKILL)
        writer.join()
        second = context.Process(target=put_one, args=(queue,), daemon=True)
        second.start()
        until = time.monotonic() + 10
        while True:
            try:
                item = queue.get(timeout=1)
            except Empty:
                assert time.monotonic() < until, f"trial {trial}: the item never came"
                continue
            if item == "after":
                break
            assert item == b"x" * 1_000_000, "a torn item"
        second.join(10)


if __name__ == "__main__":
    main(mp.get_context(sys.argv[1]))
    print("good")
