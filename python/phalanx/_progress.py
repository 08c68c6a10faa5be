"""How far a map is: a bar on stderr, or whatever has the interface of ``tqdm``."""

import contextlib
import sys
import time


@contextlib.contextmanager
def bar(progress, total):
    """Yield a function that is told how many more are done."""
    shown = TextBar(total) if progress is True else progress(total=total)
    try:
        yield shown.update
    finally:
        shown.close()


class TextBar:
    """A line on stderr, drawn again ten times a second at most."""

    _WIDTH = 30

    def __init__(self, total, file=None):
        self.total = total
        self.done = 0
        self.file = sys.stderr if file is None else file
        self.began = time.monotonic()
        self.drawn = 0.0

    def update(self, count=1):
        """Count ``count`` more."""
        self.done += count
        now = time.monotonic()
        if now - self.drawn >= 0.1:
            self.draw(now)

    def draw(self, now):
        """Draw the line."""
        self.drawn = now
        rate = self.done / max(now - self.began, 1e-9)
        if self.total:
            filled = self._WIDTH * self.done // self.total
            text = f"[{'#' * filled}{'.' * (self._WIDTH - filled)}] {self.done}/{self.total} {rate:,.0f}/s"
        else:
            text = f"{self.done} {rate:,.0f}/s"
        self.file.write("\r" + text)
        self.file.flush()

    def close(self):
        """Draw the last state and end the line."""
        self.draw(time.monotonic())
        self.file.write("\n")
        self.file.flush()
