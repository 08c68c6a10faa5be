"""A process ends with a full queue behind it, and may be joined before anybody reads."""

import multiprocessing as mp
import sys


def put_much(queue):
    queue.put(b"y" * 1_000_000)


def main(context):
    queue = context.Queue()
    child = context.Process(target=put_much, args=(queue,), daemon=True)
    child.start()
    child.join(20)
    assert child.exitcode == 0, f"join before get: {child.exitcode}"
    assert queue.get(timeout=5) == b"y" * 1_000_000
    unread = context.Queue()
    unread.put(b"z" * 70_000)


if __name__ == "__main__":
    main(mp.get_context(sys.argv[1]))
    print("good", flush=True)
