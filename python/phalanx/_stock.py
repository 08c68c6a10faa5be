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


class _Later(types.ModuleType):
    """Stands for a module in those that import it and hardly use it; whatever is asked of it is asked of the module."""

    def __init__(self, name, **known):
        super().__init__(name)
        self.__dict__.update(known)

    def __getattr__(self, name):
        if name.startswith("__"):
            # What the import system asks of a module.
            raise AttributeError(name)
        return getattr(_real(self.__name__), name)

    def __setattr__(self, name, value):
        setattr(_real(self.__name__), name, value)


def _real(name):
    if isinstance(sys.modules.get(name), _Later):
        del sys.modules[name]
    return importlib.import_module(name)


def _args_from_interpreter_flags():
    return _real("subprocess")._args_from_interpreter_flags()


class Later:
    """While it is entered, an import of certain modules is put off to their first use.

    They bring dozens of others with them, and cost a program that forks a few processes milliseconds in each.
    """

    def __init__(self):
        self._modules = [
            _Later("tempfile", _RandomNameSequence=Names),
            _Later("traceback"),
            _Later("subprocess", _args_from_interpreter_flags=_args_from_interpreter_flags),
        ]
        # Of each entry, innermost last, what it put there.
        self._put = []

    def __enter__(self):
        # What was imported before stays.
        absent = [module for module in self._modules if module.__name__ not in sys.modules]
        for module in absent:
            sys.modules[module.__name__] = module
        self._put.append(absent)

    def __exit__(self, *_):
        for module in self._put.pop():
            if sys.modules.get(module.__name__) is module:
                del sys.modules[module.__name__]


later = Later()
