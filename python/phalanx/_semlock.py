"""The type below every lock and semaphore of ``multiprocessing``, in C there."""

import _multiprocessing  # type: ignore[import-not-found]  # private, and in no stubs

from phalanx import _engine

_stock = getattr(_multiprocessing, "SemLock", None)
if _stock is not None and not issubclass(_stock, _engine.SemLock):
    _engine._set_stock_semlock(_stock)

PATCHES = [("_multiprocessing", "SemLock", _engine.SemLock)]
