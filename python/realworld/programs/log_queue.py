"""The logging cookbook's way: workers send records through a Queue to one listener, with Pool, ThreadPool, os.fork."""

import logging
import logging.handlers
import os
import sys
from multiprocessing import JoinableQueue, Pool, Process, Queue
from multiprocessing.pool import ThreadPool


def configure(queue):
    root = logging.getLogger()
    root.handlers[:] = [logging.handlers.QueueHandler(queue)]
    root.setLevel(logging.INFO)


def speak(n):
    logging.getLogger(f"worker.{n % 3}").info("task %d", n)
    return n


def drain(queue):
    while queue.get() is not None:
        queue.task_done()
    queue.task_done()


def main():
    queue = Queue()
    lines = []

    class Keep(logging.Handler):
        def emit(self, record):
            lines.append(f"{record.name}: {record.getMessage()}")

    listener = logging.handlers.QueueListener(queue, Keep())
    listener.start()
    with Pool(2, initializer=configure, initargs=(queue,)) as pool:
        print(sum(pool.map(speak, range(200), chunksize=3)))
        pool.close()
        pool.join()
    listener.stop()
    print(len(lines), sorted(lines)[:3])
    with ThreadPool(4) as threads:
        print(threads.map(len, ["a" * n for n in range(10)]))
    work = JoinableQueue()
    reader = Process(target=drain, args=(work,))
    reader.start()
    for n in range(500):
        work.put("x" * (n % 50))
    work.put(None)
    work.join()
    reader.join()
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        with Pool(2) as pool:
            os._exit(0 if pool.map(abs, [-1, -2, -3]) == [1, 2, 3] else 9)
    print(reader.exitcode, os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))


if __name__ == "__main__":
    main()
