"""Values and arrays in shared memory: the functions and classes of ``multiprocessing.sharedctypes``.

The memory is the arena's, so that they can be sent at any time, also through a queue or as an argument of a pool's task.
"""

import ctypes
from multiprocessing import sharedctypes as _stock
from multiprocessing.reduction import ForkingPickler

from phalanx import _engine
from phalanx.synchronize import RLock

__all__ = ["RawValue", "RawArray", "Value", "Array", "copy", "synchronized"]

typecode_to_type = _stock.typecode_to_type
make_property = _stock.make_property
class_cache = _stock.class_cache

# Those of the exact types: the ones with the other byte order have the same code.
_CODES = {
    type_: type_._type_
    for type_ in (*typecode_to_type.values(), ctypes.c_longlong, ctypes.c_ulonglong)
    if type_._type_ in "bBhHiIlLqQfd"
}


class _Wrapper:
    """Memory of the arena, with the surface of ``heap.BufferWrapper``."""

    def __init__(self, size):
        if size < 0:
            raise ValueError(f"Size {size:n} out of range")
        self._block = _engine.Block(size)

    def create_memoryview(self):
        array = (ctypes.c_char * self._block.size).from_address(self._block.address)
        array._wrapper = self
        return memoryview(array).cast("B")


def _new_value(type_):
    return rebuild_ctype(type_, _Wrapper(ctypes.sizeof(type_)), None)


def RawValue(typecode_or_type, *args):
    """Return a ctypes object in shared memory, without a lock."""
    value = _new_value(typecode_to_type.get(typecode_or_type, typecode_or_type))
    value.__init__(*args)
    return value


def RawArray(typecode_or_type, size_or_initializer):
    """Return a ctypes array in shared memory, without a lock."""
    type_ = typecode_to_type.get(typecode_or_type, typecode_or_type)
    if isinstance(size_or_initializer, int):
        return _new_value(type_ * size_or_initializer)
    array = _new_value(type_ * len(size_or_initializer))
    array.__init__(*size_or_initializer)
    return array


def Value(typecode_or_type, *args, lock=True, ctx=None):
    """Return a value in shared memory that is accessed under a lock."""
    return _locked(RawValue(typecode_or_type, *args), lock, ctx)


def Array(typecode_or_type, size_or_initializer, *, lock=True, ctx=None):
    """Return an array in shared memory that is accessed under a lock."""
    return _locked(RawArray(typecode_or_type, size_or_initializer), lock, ctx)


def _locked(obj, lock, ctx):
    if lock is False:
        return obj
    if lock in (True, None):
        lock = RLock()
    if not hasattr(lock, "acquire"):
        raise AttributeError(f"{lock!r} has no method 'acquire'")
    return synchronized(obj, lock, ctx=ctx)


def copy(obj):
    """Return a copy of a ctypes object, in shared memory of its own."""
    new = _new_value(type(obj))
    ctypes.pointer(new)[0] = obj
    return new


def synchronized(obj, lock=None, ctx=None):
    """Return a wrapper that accesses a ctypes object under a lock."""
    assert not isinstance(obj, (SynchronizedBase, _stock_base)), "object already synchronized"
    if isinstance(obj, ctypes._SimpleCData):
        return Synchronized(obj, lock, ctx)
    if isinstance(obj, ctypes.Array):
        kind = SynchronizedString if obj._type_ is ctypes.c_char else SynchronizedArray
        return kind(obj, lock, ctx)
    cls = type(obj)
    kind = class_cache.get(cls)
    if kind is None or not issubclass(kind, SynchronizedBase):
        fields = {field[0]: make_property(field[0]) for field in cls._fields_}
        kind = class_cache[cls] = type("Synchronized" + cls.__name__, (SynchronizedBase,), fields)
    return kind(obj, lock, ctx)


def reduce_ctype(obj):
    """Say how to pickle a ctypes object in shared memory: by its place, not its value."""
    if isinstance(obj, ctypes.Array):
        return rebuild_ctype, (obj._type_, obj._wrapper, obj._length_)
    return rebuild_ctype, (type(obj), obj._wrapper, None)


def rebuild_ctype(type_, wrapper, length):
    """Return the ctypes object of this type at this place."""
    if length is not None:
        type_ = type_ * length
    ForkingPickler.register(type_, reduce_ctype)
    block = getattr(wrapper, "_block", None)
    if isinstance(block, _engine.Block):
        obj = type_.from_address(block.address)
    else:
        obj = type_.from_buffer(wrapper.create_memoryview())
    obj._wrapper = wrapper
    return obj


def _rebuild_synchronized(type_, wrapper, length, lock):
    return synchronized(rebuild_ctype(type_, wrapper, length), lock)


def _plain(obj):
    block = getattr(getattr(obj, "_wrapper", None), "_block", None)
    if not isinstance(block, _engine.Block) or ctypes.addressof(obj) != block.address:
        return None, 0, None
    if isinstance(obj, ctypes.Array):
        return _CODES.get(obj._type_), len(obj), block
    return _CODES.get(type(obj)), 1, block


_stock_base = _stock.SynchronizedBase


class SynchronizedBase(_engine.SynchronizedBase):
    """A ctypes object and the lock under which it is accessed."""

    def __init__(self, obj, lock=None, ctx=None):
        self._bind(obj, lock or RLock(), *_plain(obj))

    def __reduce__(self):
        obj = self._obj
        if hasattr(obj, "_wrapper"):
            return _rebuild_synchronized, (*reduce_ctype(obj)[1], self._lock)
        return synchronized, (obj, self._lock)


class Synchronized(_engine.Synchronized, SynchronizedBase):
    """One number, character or the like."""


class SynchronizedArray(_engine.SynchronizedArray, SynchronizedBase):
    """An array."""

    def __getslice__(self, start, stop):
        return self[start:stop]

    def __setslice__(self, start, stop, values):
        self[start:stop] = values


class SynchronizedString(SynchronizedArray):
    """An array of bytes, also as a string."""

    value = make_property("value")
    raw = make_property("raw")


PATCHES = [
    ("multiprocessing.sharedctypes", name, globals()[name])
    for name in (
        "_new_value",
        "RawValue",
        "RawArray",
        "Value",
        "Array",
        "copy",
        "synchronized",
        "reduce_ctype",
        "rebuild_ctype",
        "SynchronizedBase",
        "Synchronized",
        "SynchronizedArray",
        "SynchronizedString",
    )
]
