"""A pool of more workers than Windows lets one call wait for."""

import multiprocessing as mp
import sys


def square(number):
    return number * number


if __name__ == "__main__":
    if sys.platform != "win32":
        # Elsewhere no call waits for handles one by one.
        sys.exit(print("skipped: a limit of Windows") or 0)
    with mp.get_context(sys.argv[1]).Pool(64) as pool:
        assert pool.map(square, range(200)) == [number * number for number in range(200)]
    print("good")
