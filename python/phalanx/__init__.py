"""Processes, threads, queues and locks that survive a death: a drop-in for ``multiprocessing``.

Three doors to the same thing: ``import phalanx as mp``; ``phalanx.install()``, after which ``multiprocessing``,
``threading`` and ``queue`` hand out this package's objects, here and in every child; ``python -m phalanx app.py``.
"""

from phalanx._engine import __version__
from phalanx._install import install, installed, uninstall

__all__ = ["__version__", "install", "installed", "uninstall"]
