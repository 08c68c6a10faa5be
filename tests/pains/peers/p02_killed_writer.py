"""faster-fifo: a killed writer does not wedge the queue."""

import multiprocessing as mp
import os
import signal
import time
from queue import Empty

from _peer import need


def flood(queue):
    while True:
        try:
            queue.put(b"x" * 1_000_000, timeout=10)
        except Exception:
            pass


def put_one(queue):
    queue.put("after", timeout=10)


if __name__ == "__main__":
    faster_fifo = need("faster_fifo")
    for trial in range(8):
        queue = faster_fifo.Queue(8_000_000)
        writer = mp.Process(target=flood, args=(queue,), daemon=True)
        writer.start()
        queue.get(timeout=10)
        time.sleep(0.005 * trial)
        os.kill(writer.pid, signal.SIGKILL)
        writer.join()
        second = mp.Process(target=put_one, args=(queue,), daemon=True)
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
    print("good")
