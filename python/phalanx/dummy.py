"""``multiprocessing.dummy``, with this package's classes where it has its own."""

from phalanx._context import mirror

__getattr__, __dir__, __all__ = mirror("dummy")
