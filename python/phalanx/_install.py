"""``install()``: puts this package's classes where the standard library's are, here and in every child.

Each module of this package that replaces something lists it in ``PATCHES``: triples of a module's name, an attribute of
it, and what takes its place. What a stock module captured when it was imported is listed there as well.
"""

import copyreg
import functools
import importlib
import operator
import sys
import threading
import types

from phalanx import _engine
from phalanx._stock import PATCHERS, later

# Ours, and the stock module it is about: replaced there now if that is imported, else as soon as it is. In this order:
# parents before those who derive from them.
_MODULES: dict[str, str] = {
    "phalanx.futures": "concurrent.futures.process",
    "phalanx.threading": "threading",
    "phalanx.queue": "queue",
    "phalanx._semlock": "_multiprocessing",
    "phalanx.synchronize": "multiprocessing.synchronize",
    "phalanx.queues": "multiprocessing.queues",
    "phalanx.sharedctypes": "multiprocessing.sharedctypes",
    "phalanx.shared_memory": "multiprocessing.shared_memory",
    "phalanx.connection": "multiprocessing.connection",
    "phalanx.pool": "multiprocessing.pool",
    "phalanx.managers": "multiprocessing.managers",
}
# Imported at once by a program: a second copy of the module they are about may be the first to be imported
# (`import_fresh_module("queue")`), and the first copy is the one that counts. A child does without, and starts sooner.
_AT_ONCE = ("phalanx.threading", "phalanx.queue")

_lock = threading.RLock()
_ABSENT = object()
# What was there before, newest last: (object, attribute, value).
_saved: list[tuple[object, str, object]] = []
_hooked: list[tuple[object, str, object]] = []
_installed = False


def installed() -> bool:
    """Tell whether this process's standard library hands out phalanx's objects."""
    return _installed


def install() -> None:
    """Replace what ``multiprocessing``, ``threading`` and ``queue`` hand out, in this process and its children.

    A second call does nothing. Objects made before stay as they are and work beside the new ones.
    """
    install_with(_AT_ONCE)


def install_with(at_once: tuple[str, ...] = ()) -> None:
    """As :func:`install`; what is not imported yet is replaced as it is imported, but for the modules named."""
    global _installed
    with _lock:
        if _installed:
            return
        hook()
        try:
            _pending.update(_MODULES)
            sys.meta_path.insert(0, _finder)
            for name in at_once:
                importlib.import_module(name)
            _catch_up()
        except BaseException:
            _undo()
            raise
        _installed = True


def uninstall() -> None:
    """Put back what was there before ``install()``, in this process; children started from now on have the stock library.

    Objects made meanwhile stay as they are, and still reach the children. Without ``install()`` it does nothing.
    """
    global _installed
    with _lock:
        if not _installed:
            return
        _undo()
        _installed = False


def hook() -> None:
    """Let children started from now on find this process's shared objects, whichever the start method."""
    with _lock:
        if _hooked:
            return
        from phalanx import _start

        for target, attribute, replacement in _start.hooks():
            _replace(target, attribute, replacement, _hooked)


def patches(stock: str) -> list[tuple[str, str, object]]:
    """Return what ``install()`` puts in place of what, of the modules about ``stock``."""
    return [
        patch for name, about in _MODULES.items() if about == stock for patch in importlib.import_module(name).PATCHES
    ]


# Those of `_MODULES` that have not been put in place yet.
_pending: dict[str, str] = {}


def _ready(name: str):
    """Return the module if it is imported, and not in the middle of it."""
    module = sys.modules.get(name)
    if module is None or getattr(module.__spec__, "_initializing", False) and name not in _done:
        return None
    return module


# Modules whose code has run, although their import has not returned yet.
_done: set[str] = set()


def _catch_up() -> None:
    for name, stock in list(_pending.items()):
        if name not in _pending or _ready(stock) is None:
            continue
        ours = sys.modules.get(name) or importlib.import_module(name)
        # Without: it is being imported, and is put in place at the end of that.
        if hasattr(ours, "PATCHES") and _pending.pop(name, None):
            for target, attribute, replacement in ours.PATCHES:
                _replace(target, attribute, replacement, _saved)


class _Inside(threading.local):
    """How many modules, ours and those we are about, this thread is in the middle of."""

    depth = 0


_inside = _Inside()


class _bases:
    """While a stock module is imported that derives from another one's class: the stock class, not ours."""

    def __init__(self, name):
        wanted = (threading, "Barrier") if name == "multiprocessing.synchronize" else None
        self._swaps = [one for one in _saved if one[:2] == wanted]

    def __enter__(self):
        self._ours = [getattr(holder, attribute) for holder, attribute, _ in self._swaps]
        for holder, attribute, before in self._swaps:
            setattr(holder, attribute, before)

    def __exit__(self, *_):
        for (holder, attribute, _), ours in zip(self._swaps, self._ours):
            setattr(holder, attribute, ours)


class _Loader:
    """Loads a module as its own loader does, and puts ours in place at the end."""

    def __init__(self, loader):
        self._loader = loader

    def __getattr__(self, name):
        return getattr(self._loader, name)

    def create_module(self, spec):
        return self._loader.create_module(spec)

    def exec_module(self, module):
        module.__spec__.loader = module.__loader__ = self._loader
        _inside.depth += 1
        try:
            with _bases(module.__name__), later:
                self._loader.exec_module(module)
        finally:
            _inside.depth -= 1
        _done.add(module.__name__)
        # Not in the middle of another such module, which may want the names of this one: at its end.
        if not _inside.depth:
            with _lock:
                _catch_up()


class _Finder:
    """Finds the modules that are waited for, by way of the other finders."""

    def find_spec(self, name, path=None, target=None):
        if name in PATCHERS:
            # Theirs is to come in place of what was there, not of ours: a wait of ours would stop all of their threads.
            with _lock:
                _give_back("threading", "queue", "multiprocessing.dummy")
            return None
        if not _pending or not name.startswith("phalanx.") and name not in _pending.values():
            return None
        for finder in sys.meta_path:
            spec = None
            if finder is not self and hasattr(finder, "find_spec"):
                spec = finder.find_spec(name, path, target)
            if spec is not None:
                if spec.loader is not None:
                    spec.loader = _Loader(spec.loader)
                return spec
        return None


_finder = _Finder()


def _undo() -> None:
    if _finder in sys.meta_path:
        sys.meta_path.remove(_finder)
    _pending.clear()
    _restore(_saved)
    _unhook()


def _unhook() -> None:
    # With a session there may be shared objects, which have to go on reaching the children.
    if not _engine.has_session():
        _restore(_hooked)


def _replace(target: str, attribute: str, replacement: object, saved: list[tuple[object, str, object]]) -> None:
    name, _, inside = target.lstrip("?").partition(":")
    # Captured by a module at its import: only if that has happened.
    holder: object = _ready(name) if target.startswith("?") else importlib.import_module(name)
    if holder is None:
        return
    if inside:
        holder = getattr(holder, inside)
    before = vars(holder).get(attribute, _ABSENT)
    if before is replacement or replacement is None:
        # None: there was nothing to derive ours from when it was looked at.
        return
    # A module that has it only when asked (`concurrent.futures`) is not asked, which would import what is replaced.
    if before is _ABSENT and not hasattr(holder, "__getattr__"):
        raise AttributeError(f"{target} has no {attribute} to replace")
    saved.append((holder, attribute, before))
    setattr(holder, attribute, replacement)
    if isinstance(before, type) and before.__module__ == name and name in _PICKLED:
        copyreg.pickle(before, _reduce_stock)
        if name in _INHERITED and "__reduce_ex__" not in vars(before):
            before.__reduce_ex__ = _reduce_derived


# Modules whose objects travel. Those made of a class that was replaced since name it in the child as what was there before.
_PICKLED = ("multiprocessing.synchronize", "multiprocessing.queues", "multiprocessing.shared_memory")
# Those of them whose parts are told to stock classes only: also what derives from these is in the child what it was here.
_INHERITED = ("multiprocessing.synchronize",)


def _reduce_stock(obj):
    return _reduce_as_before(type(obj), obj.__reduce_ex__(2))


def _reduce_derived(obj, protocol):
    return _reduce_as_before(type(obj), object.__reduce_ex__(obj, max(protocol, 2)))


def _reduce_as_before(cls, reduced):
    if isinstance(reduced, str) or reduced[0] not in (cls, copyreg.__newobj__):
        # Done already, or told in a way of its own.
        return reduced
    make, args, *rest = reduced
    args = tuple(arg for arg in args if arg is not cls)
    return (_stock_again, (cls.__module__, cls.__qualname__, make is cls, args), *rest)


def _stock_again(module, name, call, args):
    holder = importlib.import_module(module)
    befores = [before for known, attribute, before in _saved if known is holder and attribute == name]
    cls = befores[0] if befores else _as_before(operator.attrgetter(name)(holder))
    return cls(*args) if call else cls.__new__(cls, *args)


# Classes of this process's modules, as they would be had ours not been in place when they were made.
_twins: dict[type, type] = {}


def _as_before(cls: type) -> type:
    """Return a class over the stock library's: itself, or one with the same body if it derives from ours."""
    for holder, attribute, before in _saved:
        if isinstance(before, type) and vars(holder).get(attribute) is cls:
            return before
    if cls in _twins:
        return _twins[cls]
    bases = tuple(map(_as_before, cls.__bases__))
    if bases == cls.__bases__:
        return cls
    cell = types.CellType()
    body = {name: _with_class(value, cell) for name, value in vars(cls).items() if name not in ("__dict__", "__weakref__")}
    # `isinstance` holds.
    body["__class__"] = property(lambda self: cls)
    twin = _twins[cls] = type(cls)(cls.__name__, bases, body)
    cell.cell_contents = twin
    return twin


def _with_class(value, cell):
    """Return a function of a class's body with another class in it, the one that `super()` asks for."""
    if isinstance(value, (staticmethod, classmethod)):
        return type(value)(_with_class(value.__func__, cell))
    if isinstance(value, property):
        return property(*(_with_class(one, cell) for one in (value.fget, value.fset, value.fdel)), value.__doc__)
    if not isinstance(value, types.FunctionType) or "__class__" not in value.__code__.co_freevars:
        return value
    cells = [cell if name == "__class__" else old for name, old in zip(value.__code__.co_freevars, value.__closure__)]
    made = types.FunctionType(value.__code__, value.__globals__, value.__name__, value.__defaults__, tuple(cells))
    made.__kwdefaults__ = value.__kwdefaults__
    return functools.update_wrapper(made, value)


def _give_back(*modules: str) -> None:
    for one in reversed(_saved.copy()):
        if getattr(one[0], "__name__", None) in modules:
            _saved.remove(one)
            _restore([one])


def _restore(saved: list[tuple[object, str, object]]) -> None:
    while saved:
        holder, attribute, before = saved.pop()
        if isinstance(before, type) and copyreg.dispatch_table.get(before) is _reduce_stock:
            del copyreg.dispatch_table[before]
        if isinstance(before, type) and vars(before).get("__reduce_ex__") is _reduce_derived:
            del before.__reduce_ex__
        if before is _ABSENT:
            delattr(holder, attribute)
        else:
            setattr(holder, attribute, before)
