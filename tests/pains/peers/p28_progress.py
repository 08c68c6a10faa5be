"""mpire: progress is shown."""

import io
import time
from contextlib import redirect_stderr

from _peer import need


def work(number):
    return number


if __name__ == "__main__":
    mpire = need("mpire")
    text = io.StringIO()
    with mpire.WorkerPool(n_jobs=2) as workers, redirect_stderr(text):
        total = 0
        options = {"file": text}
        for number in workers.imap(work, range(200), progress_bar=True, progress_bar_options=options):
            total += number
            if number % 50 == 0:
                time.sleep(0.05)
    assert total == sum(range(200))
    assert "200" in text.getvalue(), "nothing was shown"
    print("good")
