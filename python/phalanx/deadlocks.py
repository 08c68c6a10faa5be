"""Find deadlocks, across threads and processes.

``watch()`` lets every process of the tree look for threads that wait for each other and can never go on; what is found is
printed (``"report"``), raised as a :class:`DeadlockError` in the youngest waiter (``"raise"``), or ends the program
(``"abort"``). ``python -m phalanx --deadlocks app.py`` does the same for a program that knows nothing of it.
"""

import contextlib
import json as _json
import os
import threading
import traceback

from phalanx import _engine, _install
from phalanx.errors import DeadlockError

__all__ = [
    "DeadlockError", "Inversion", "Lock", "RLock", "dump", "inversions", "unwatch", "unwatch_order", "watch", "watch_order",
    "watching", "watching_order",
]  # fmt: skip

# Locks of this process's threads that take part whenever somebody looks, with names: ``Lock(name="accounts")``.
Lock, RLock = _engine.ThreadLock, _engine.ThreadRLock

ACTIONS = ("report", "raise", "abort")

_saved: list[tuple[object, str, object]] = []


def watch(action="report", *, every=0.2, svg=None, json=None):
    """Look for deadlocks from now on, in this process and all others of its tree.

    ``action`` says what to do with one. Waiters look every ``every`` seconds. ``svg`` and ``json`` name files for a picture
    and for the data. Locks that are made from now on take part: those of ``multiprocessing`` and, as this calls
    ``phalanx.install()``, those of ``threading``.
    """
    if action not in ACTIONS:
        raise ValueError(f"the action is one of {', '.join(ACTIONS)}, not {action!r}")
    for variable, path in ("PHALANX_DEADLOCKS_SVG", svg), ("PHALANX_DEADLOCKS_JSON", json):
        if path is not None:
            # The process that finds the deadlock may be any, and may stand in another folder.
            os.environ[variable] = os.path.abspath(path)
    _install.install()
    _engine._watch(action, every, True)
    _patch()


def unwatch():
    """Look no more, in any process of the tree. Locks made meanwhile stay as they are."""
    _engine._watch("", 1.0, False)
    if not watching_order():
        _install._restore(_saved)
    for variable in "PHALANX_DEADLOCKS_SVG", "PHALANX_DEADLOCKS_JSON":
        os.environ.pop(variable, None)


def watching():
    """Tell what is done with a deadlock, ``None`` if nobody looks for one."""
    now = _engine._watching()
    return None if now is None or now[0] == "hint" else now[0]


def watch_order():
    """Note in which order threads take locks from now on, in this process and all others of its tree.

    Two orders that can end in a deadlock are printed to standard error, though none has happened: ``a`` then ``b`` here, ``b``
    then ``a`` there. Meant for tests. Independent of :func:`watch`; the same locks take part.
    """
    _install.install()
    _engine._watch_order(True)
    _patch()


def unwatch_order():
    """Note the order of locks no more, in any process of the tree."""
    _engine._watch_order(False)
    if watching() is None:
        _install._restore(_saved)


def watching_order():
    """Tell whether the order of locks is noted."""
    return _engine._watching_order()


class Inversion(dict):
    """Locks that threads take in different orders, as data; ``str()`` describes them."""

    def __init__(self, data, text):
        super().__init__(_json.loads(data))
        self._text = text

    def __str__(self):
        return self._text


def inversions():
    """Return what :func:`watch_order` has found so far in any process of the tree; 64 at most."""
    return [Inversion(data, text) for data, text in _engine._inversions()]


def dump(pid=None):
    """Return what every thread of a process's tree waits for and holds, as data; by default of this process's."""
    return _json.loads(_engine._dump(os.getpid() if pid is None else pid)[1])


def arrive():
    """In a child that was started anew: take part if the tree is watched."""
    now = _engine._watching()
    if now is not None and now[0] != "hint":
        _install.install()
        _engine._watch(*now, True)
        _patch()
    if watching_order():
        watch_order()


_OWN = os.path.dirname(os.path.abspath(__file__))


def _stack():
    """Return the calling thread's stack as lines, without what runs and starts programs."""
    frames = traceback.extract_stack()
    kept = [
        frame
        for frame in frames
        if not frame.filename.startswith((_OWN, "<frozen"))
        and not (frame.name in ("_bootstrap", "_bootstrap_inner") and frame.filename.endswith("threading.py"))
    ]
    # A forked process begins where it was forked: what its parent was in the middle of is not its own.
    begins = [place for place, frame in enumerate(kept) if frame.name == "_bootstrap" and "multiprocessing" in frame.filename]
    return traceback.format_list(kept[begins[-1] + 1 :] if begins else kept)


def _patch():
    if _saved:
        return
    for target, attribute, replacement in (
        ("threading", "Lock", _engine.ThreadLock),
        ("threading", "RLock", _engine.ThreadRLock),
        ("threading:Thread", "join", _join),
    ):
        _install._replace(target, attribute, replacement, _saved)


_stock_join = threading.Thread.join


@contextlib.contextmanager
def noted(kind, number):
    """Note a wait that is made of short ones: call ``looks()`` before each look for the end, ``sleeps()`` after it."""
    wait = _engine.Noted(kind, number)
    try:
        yield wait
    finally:
        wait.ends()


def interval():
    """Return how long a short wait may be, ``None`` if nobody looks."""
    now = _engine._watching()
    return None if now is None or now[0] == "hint" else now[1]


def _join(self, timeout=None):
    """Wait until the thread has ended."""
    every = interval() if timeout is None else None
    number = self.native_id if self._initialized and self._started.is_set() else None
    if every is None or number is None or self is threading.current_thread():
        return _stock_join(self, timeout)
    with noted("thread", number) as wait:
        while True:
            wait.looks()
            if not self.is_alive():
                return None
            wait.sleeps()
            _stock_join(self, every)


_join.__name__, _join.__qualname__ = "join", "Thread.join"
