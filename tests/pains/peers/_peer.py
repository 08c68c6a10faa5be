"""What the peers' programs have in common."""

import importlib
import importlib.util
import pathlib
import sys


def need(name):
    """Import a peer, or say that it is not here."""
    try:
        return importlib.import_module(name)
    except ImportError:
        sys.exit(print(f"skipped: {name} is not installed") or 0)


def case(name):
    """Import the case of this name, for what a peer's program does as it does."""
    path = pathlib.Path(__file__).parents[1] / "cases" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"case_{name}", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module
