"""What the standard library had before anybody changed it."""

import _thread
import sys


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
