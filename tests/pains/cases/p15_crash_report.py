"""A task crashes: the error names process, signal and task, and the other tasks go on."""

import concurrent.futures as cf
import ctypes
import multiprocessing as mp
import re
import sys
import time


def crash(number):
    if number == 2:
        ctypes.string_at(0)
    time.sleep(0.01)
    return number


def check(get, broken=None):
    lost = {}
    for number in range(6):
        try:
            assert get(number) == number
        except Exception as error:
            lost[number] = error
    # The executor's contract: a death breaks it, and the other futures say so.
    others = [error for number, error in lost.items() if number != 2]
    assert 2 in lost and all(broken and isinstance(error, broken) for error in others), f"lost: {lost}"
    text = str(lost[2])
    assert "SIGSEGV" in text and "crash" in text and re.search(r"\d{2,}", text), text


def pool(context):
    with context.Pool(2) as workers:
        results = [workers.apply_async(crash, (n,)) for n in range(6)]
        check(lambda n: results[n].get(20))


def executor(context):
    with cf.ProcessPoolExecutor(2, mp_context=context) as workers:
        futures = [workers.submit(crash, n) for n in range(6)]
        check(lambda n: futures[n].result(20), cf.process.BrokenProcessPool)


if __name__ == "__main__":
    {"pool": pool, "executor": executor}[sys.argv[2]](mp.get_context(sys.argv[1]))
    print("good")
