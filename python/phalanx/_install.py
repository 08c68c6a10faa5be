"""``install()``: puts this package's classes where the standard library's are, here and in every child.

Each module of this package that replaces something lists it in ``PATCHES``: triples of a module's name, an attribute of
it, and what takes its place. What a stock module captured when it was imported is listed there as well.
"""

import importlib
import sys
import threading

# In this order: parents before those who derive from them.
_MODULES: list[str] = [
    "phalanx.pool",
]

_lock = threading.Lock()
# What was there before, newest last: (module, attribute, object).
_saved: list[tuple[object, str, object]] = []
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
        try:
            for name in _MODULES:
                for target, attribute, replacement in importlib.import_module(name).PATCHES:
                    _replace(target, attribute, replacement)
        except BaseException:
            _restore()
            raise
        _installed = True


def uninstall() -> None:
    """Put back what was there before ``install()``, in this process; children started from now on have the stock library.

    Objects made meanwhile stay as they are. Without ``install()`` it does nothing.
    """
    global _installed
    with _lock:
        _restore()
        _installed = False


def _replace(target: str, attribute: str, replacement: object) -> None:
    if target.startswith("?"):
        # Captured by a module at its import: only if that has happened.
        module = sys.modules.get(target[1:])
        if module is None:
            return
    else:
        module = importlib.import_module(target)
    missing = object()
    before = module.__dict__.get(attribute, missing)
    if before is replacement:
        return
    if before is missing:
        raise AttributeError(f"{target} has no {attribute} to replace")
    _saved.append((module, attribute, before))
    setattr(module, attribute, replacement)


def _restore() -> None:
    while _saved:
        module, attribute, before = _saved.pop()
        setattr(module, attribute, before)
