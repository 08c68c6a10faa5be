"""A map shows its progress while its consumer is slow."""

import io
import multiprocessing as mp
import sys
import time
from contextlib import redirect_stderr


def work(number):
    return number


def main(context):
    text = io.StringIO()
    with context.Pool(2) as workers, redirect_stderr(text):
        total = 0
        for number in workers.imap(work, range(200), progress=True):
            total += number
            if number % 50 == 0:
                time.sleep(0.05)
    assert total == sum(range(200))
    assert "200" in text.getvalue(), "nothing was shown"


if __name__ == "__main__":
    main(mp.get_context(sys.argv[1]))
    print("good")
