"""What the peers' programs have in common."""

import importlib
import sys


def need(name):
    """Import a peer, or say that it is not here."""
    try:
        return importlib.import_module(name)
    except ImportError:
        sys.exit(print(f"skipped: {name} is not installed") or 0)
