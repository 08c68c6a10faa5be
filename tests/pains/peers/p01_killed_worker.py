"""Pebble: a killed worker costs its task only, and is reported."""

import os
import signal
import time

from _peer import need


def work(number):
    if number == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(0.01)
    return number * number


if __name__ == "__main__":
    pebble = need("pebble")
    with pebble.ProcessPool(2) as workers:
        futures = [workers.schedule(work, args=[number]) for number in range(8)]
        for number, future in enumerate(futures):
            try:
                assert future.result(20) == number * number
            except pebble.ProcessExpired as error:
                assert number == 3 and error.exitcode == -signal.SIGKILL, repr(error)
            else:
                assert number != 3
    print("good")
