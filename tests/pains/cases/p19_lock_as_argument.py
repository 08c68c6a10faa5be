"""Locks and queues travel as arguments of pool tasks, through queues and pipes, and keep their identity."""

import multiprocessing as mp
import sys


def work(lock, queue, number):
    with lock:
        queue.put(number)


def main(context):
    with context.Pool(2) as workers:
        lock, queue = context.Lock(), context.Queue()
        workers.starmap(work, [(lock, queue, number) for number in range(4)])
        assert sorted(queue.get(timeout=5) for _ in range(4)) == [0, 1, 2, 3]
        ours, theirs = context.Pipe()
        ours.send(lock)
        same = theirs.recv()
        with lock:
            assert not same.acquire(block=False), "another lock arrived"


if __name__ == "__main__":
    main(mp.get_context(sys.argv[1]))
    print("good")
