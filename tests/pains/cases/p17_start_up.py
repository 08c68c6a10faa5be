"""A process of a program with costly imports starts without importing them again."""

import multiprocessing as mp
import sys
import time

# What the main module imports, each child of the standard library's servers imports again.
import asyncio  # noqa: F401
import decimal  # noqa: F401
import email.message  # noqa: F401
import http.client  # noqa: F401
import sqlite3  # noqa: F401
import unittest.mock  # noqa: F401
import xml.dom.minidom  # noqa: F401

from _speed import compare


def answer(queue):
    queue.put(1)


def measure(method):
    context = mp.get_context(method)
    queue = context.SimpleQueue()

    def start():
        process = context.Process(target=answer, args=(queue,))
        process.start()
        assert queue.get() == 1
        process.join()

    start()
    begun = time.perf_counter()
    for _ in range(8):
        start()
    print(time.perf_counter() - begun)


if __name__ == "__main__":
    if sys.argv[1] == "measure":
        measure(sys.argv[2])
    else:
        compare(__file__, 2, sys.argv[1])
