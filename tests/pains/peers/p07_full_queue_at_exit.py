"""faster-fifo: exit and join with a full queue."""

import multiprocessing as mp

from _peer import need


def put_much(queue):
    queue.put(b"y" * 1_000_000)


if __name__ == "__main__":
    faster_fifo = need("faster_fifo")
    queue = faster_fifo.Queue(2_000_000)
    child = mp.Process(target=put_much, args=(queue,), daemon=True)
    child.start()
    child.join(20)
    assert child.exitcode == 0, f"join before get: {child.exitcode}"
    assert queue.get(timeout=5) == b"y" * 1_000_000
    unread = faster_fifo.Queue()
    unread.put(b"z" * 70_000)
    print("good", flush=True)
