"""What the standard library had before anybody changed it."""

import _thread
import sys


def untouched_threading() -> bool:
    """Tell whether the threads of this process are the system's, and nobody's patch of ``threading`` is in place."""
    builtin = type(_thread.get_ident)
    if not isinstance(_thread.get_ident, builtin) or getattr(_thread.start_new_thread, "__module__", "") != "_thread":
        return False
    threading = sys.modules.get("threading")
    return threading is None or threading._start_new_thread is _thread.start_new_thread or (
        getattr(threading, "_start_joinable_thread", None) is getattr(_thread, "start_joinable_thread", None)
    )
