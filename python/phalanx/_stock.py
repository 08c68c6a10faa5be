"""What the standard library had before anybody changed it."""

import _thread
import importlib
import sys
import types


# Modules that are imported to replace what `threading` and `queue` have.
PATCHERS = ("gevent.monkey", "eventlet.patcher")


def untouched_threading() -> bool:
    """Tell whether the threads of this process are the system's: no patch of ``threading`` is in place or about to be."""
    if any(name in sys.modules for name in PATCHERS):
        return False
    builtin = type(_thread.get_ident)
    if not isinstance(_thread.get_ident, builtin) or getattr(_thread.start_new_thread, "__module__", "") != "_thread":
        return False
    threading = sys.modules.get("threading")
    if threading is None:
        return True
    # The one name until 3.12, the other from then on.
    return any(
        getattr(threading, f"_{name}", None) is getattr(_thread, name, _thread)
        for name in ("start_new_thread", "start_joinable_thread")
    )


class Names:
    """The random names of ``tempfile``, which is imported for the first of them."""

    _names = None

    def __iter__(self):
        return self

    def __next__(self):
        if self._names is None:
            import tempfile

            self._names = tempfile._RandomNameSequence()
        return next(self._names)


class LaterTempfile(types.ModuleType):
    """Stands for ``tempfile`` in modules that import it and hardly use it: it brings a dozen others, and they cost milliseconds."""

    _RandomNameSequence = Names

    def __init__(self):
        super().__init__("tempfile")

    def __enter__(self):
        # From here to the exit `import tempfile` finds this one, unless it was imported before.
        sys.modules.setdefault("tempfile", self)

    def __exit__(self, *_):
        if sys.modules.get("tempfile") is self:
            del sys.modules["tempfile"]

    def __getattr__(self, name):
        if name.startswith("__"):
            # What the import system asks of a module.
            raise AttributeError(name)
        self.__exit__()
        return getattr(importlib.import_module("tempfile"), name)
