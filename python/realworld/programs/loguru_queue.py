"""loguru: a log written by one thread of the parent from a queue that threads and processes of each kind feed."""

import multiprocessing
import os
import sys
import threading

from loguru import logger


def note(logger, n):
    logger.info("from {} number {}", "process", n)
    logger.complete()


def main():
    lines = []
    logger.remove()
    for method in ("fork", "spawn", "forkserver"):
        context = multiprocessing.get_context(method)
        handler = logger.add(lines.append, format="{level}: {message}", enqueue=True, context=context)
        processes = [context.Process(target=note, args=(logger, n)) for n in range(3)]
        threads = [threading.Thread(target=logger.warning, args=("from a thread",)) for _ in range(2)]
        for one in processes + threads:
            one.start()
        for one in processes + threads:
            one.join()
        logger.complete()
        logger.remove(handler)
        print(method, sorted(line.strip() for line in lines))
        lines.clear()
    logger.add("log.txt", format="{message}", enqueue=True)
    logger.error("the end")
    logger.remove()
    with open("log.txt") as file:
        print(file.read().strip())
    os.remove("log.txt")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
