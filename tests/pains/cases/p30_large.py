"""2.5 GB in one message arrive through a queue."""

import multiprocessing as mp
import os
import sys

SIZE = 2_500_000_000


def send(queue):
    queue.put(bytearray(SIZE))


def main(context):
    queue = context.Queue()
    child = context.Process(target=send, args=(queue,), daemon=True)
    child.start()
    item = queue.get(timeout=100)
    assert len(item) == SIZE and item[-1] == 0
    child.join(20)


if __name__ == "__main__":
    room = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if room < 4 * SIZE:
        print(f"skipped: {room >> 20} MiB are free, {4 * SIZE >> 20} are needed")
        sys.exit(0)
    main(mp.get_context(sys.argv[1]))
    print("good")
