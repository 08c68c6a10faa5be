"""A worker is killed in the middle of a map: its task alone fails, with an error, and every other result arrives."""

import concurrent.futures as cf
import multiprocessing as mp
import os
import signal
import sys
import time


def work(number):
    if number == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(0.01)
    return number * number


def pool(context):
    with context.Pool(2) as workers:
        results = [workers.apply_async(work, (number,)) for number in range(8)]
        check(lambda number: results[number].get(20))


def executor(context):
    with cf.ProcessPoolExecutor(2, mp_context=context) as workers:
        futures = [workers.submit(work, number) for number in range(8)]
        check(lambda number: futures[number].result(20), cf.process.BrokenProcessPool)


def check(get, broken=None):
    errors = {}
    for number in range(8):
        try:
            assert get(number) == number * number
        except Exception as error:
            errors[number] = error
    assert 3 in errors, "the killed task has a result"
    assert not isinstance(errors[3], mp.TimeoutError), "the killed task was never reported"
    # The executor's contract: a death breaks it. Who asks for the other futures is told so at once.
    others = [error for number, error in errors.items() if number != 3]
    assert all(broken and isinstance(error, broken) for error in others), f"other tasks were lost too: {errors}"
    text = str(errors[3])
    assert "SIGKILL" in text and "work" in text, text


if __name__ == "__main__":
    {"pool": pool, "executor": executor}[sys.argv[2]](mp.get_context(sys.argv[1]))
    print("good")
