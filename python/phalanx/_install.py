"""``install()``: puts this package's classes where the standard library's are, here and in every child.

Each module of this package that replaces something lists it in ``PATCHES``: triples of a module's name, an attribute of
it, and what takes its place. What a stock module captured when it was imported is listed there as well.
"""

import importlib
import sys
import threading

from phalanx import _engine
# In this order: parents before those who derive from them.
_MODULES: list[str] = [
    "phalanx.pool",
    "phalanx.futures",
]

# In this order: parents before those who derive from them.
_MODULES: list[str] = [
    "phalanx.threading",
    "phalanx.queue",
    "phalanx.synchronize",
    "phalanx.queues",
    "phalanx.sharedctypes",
    "phalanx.shared_memory",
    "phalanx.connection",
    "phalanx.pool",
    "phalanx.futures",
    "phalanx.managers",
    "phalanx.pool",
]

_lock = threading.RLock()
# What was there before, newest last: (object, attribute, value).
_saved: list[tuple[object, str, object]] = []
_hooked: list[tuple[object, str, object]] = []
_installed = False


def installed() -> bool:
    """Tell whether this process's standard library hands out phalanx's objects."""
    return _installed


def install() -> None:
    """Replace what ``multiprocessing``, ``threading`` and ``queue`` hand out, in this process and its children.

    A second call does nothing. Objects made before stay as they are and work beside the new ones.
    """
    global _installed
    with _lock:
        if _installed:
            return
        hook()
        try:
            for target, attribute, replacement in patches():
                _replace(target, attribute, replacement, _saved)
        except BaseException:
            _restore(_saved)
            _unhook()
            raise
        _installed = True


def uninstall() -> None:
    """Put back what was there before ``install()``, in this process; children started from now on have the stock library.

    Objects made meanwhile stay as they are, and still reach the children. Without ``install()`` it does nothing.
    """
    global _installed
    with _lock:
        if not _installed:
            return
        _restore(_saved)
        _unhook()
        _installed = False


def hook() -> None:
    """Let children started from now on find this process's shared objects, whichever the start method."""
    with _lock:
        if _hooked:
            return
        from phalanx import _start

        for target, attribute, replacement in _start.hooks():
            _replace(target, attribute, replacement, _hooked)


def patches() -> list[tuple[str, str, object]]:
    """Return what ``install()`` puts in place of what, in order."""
    return [patch for name in _MODULES for patch in importlib.import_module(name).PATCHES]


def _unhook() -> None:
    # With a session there may be shared objects, which have to go on reaching the children.
    if not _engine.has_session():
        _restore(_hooked)


def _replace(target: str, attribute: str, replacement: object, saved: list[tuple[object, str, object]]) -> None:
    name, _, inside = target.lstrip("?").partition(":")
    # Captured by a module at its import: only if that has happened.
    holder: object = sys.modules.get(name) if target.startswith("?") else importlib.import_module(name)
    if holder is None:
        return
    if inside:
        holder = getattr(holder, inside)
    missing = object()
    before = vars(holder).get(attribute, missing)
    if before is missing and hasattr(holder, "__getattr__"):
        # Loaded on first use, as `concurrent.futures` does: then it is there.
        getattr(holder, attribute, None)
        before = vars(holder).get(attribute, missing)
    if before is replacement:
        return
    if before is missing:
        raise AttributeError(f"{target} has no {attribute} to replace")
    saved.append((holder, attribute, before))
    setattr(holder, attribute, replacement)


def _restore(saved: list[tuple[object, str, object]]) -> None:
    while saved:
        holder, attribute, before = saved.pop()
        setattr(holder, attribute, before)
