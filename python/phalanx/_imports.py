"""Imports that another thread was in the middle of when this process was forked."""

import importlib
import os
import sys
import threading


def _forget():
    """Gives up, in a fork's child, the imports of threads that are not here.

    The interpreter renews its global import lock in a child but not those of single modules: who imports such a module
    would wait for a thread that does not exist. Without its lock and its half-made module the import starts anew.
    """
    me = threading.get_ident()
    locks = importlib._bootstrap._module_locks
    for name, reference in list(locks.items()):
        lock = reference()
        if lock is None or getattr(lock, "owner", None) in (None, me):
            continue
        locks.pop(name, None)
        spec = getattr(sys.modules.get(name), "__spec__", None)
        if getattr(spec, "_initializing", False):
            del sys.modules[name]


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
