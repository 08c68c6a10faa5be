"""loky: a crash is reported with process, signal and task."""

import ctypes
import re
import time

from _peer import need


def crash(number):
    if number == 2:
        ctypes.string_at(0)
    time.sleep(0.01)
    return number


if __name__ == "__main__":
    loky = need("loky")
    with loky.ProcessPoolExecutor(2) as workers:
        futures = [workers.submit(crash, n) for n in range(6)]
        lost = {}
        for number, future in enumerate(futures):
            try:
                assert future.result(20) == number
            except loky.BrokenProcessPool as error:
                lost[number] = error
        text = str(lost[2])
        assert "SIGSEGV" in text and "crash" in text and re.search(r"\d{2,}", text), text
    print("good")
