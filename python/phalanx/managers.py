"""``multiprocessing.managers`` with dicts, lists, values and namespaces that need no server.

A manager's ``dict()``, ``list()``, ``Value()`` and ``Namespace()`` live in the memory that the processes of a tree share: no
message goes to the manager's process. Everything else (queues, locks, pools, registered classes) is served by that process
as before. A manager with an address of its own serves all of it, for its clients may be of other trees.

What is different: such an object lives until its last proxy is gone, also after ``shutdown()``; methods of values run in
the calling process. As before, what a proxy that is put into one stands for lives until its manager ends.
"""

import io as _io
import multiprocessing.managers as _stock
import operator as _operator
import sys as _sys
from multiprocessing.managers import *  # noqa: F403
from multiprocessing.reduction import ForkingPickler as _ForkingPickler

from phalanx import _engine, _install

__all__ = list(_stock.__all__)

_BaseProxy, _SyncManager = _stock.BaseProxy, _stock.SyncManager
_stock_start = _stock.BaseManager.start
_missing = object()


class _Pickler(_ForkingPickler):
    """Notes the proxies of servers that it meets: bytes in shared memory hold nothing in a server."""

    def reducer_override(self, obj):
        if isinstance(obj, _BaseProxy) and not isinstance(obj, _SharedProxy):
            self.met.append(obj)
        return NotImplemented


def _dumps(value):
    buffer = _io.BytesIO()
    pickler = _Pickler(buffer, 5)
    pickler.met = []
    pickler.dump(value)
    for proxy in pickler.met:
        # Its referent must outlive the proxy at hand. A server that is sent a proxy of its own keeps what that stands for; here
        # it comes in the place of an id that nobody looks at.
        connection = proxy._Client(proxy._token.address, authkey=proxy._authkey)
        try:
            _stock.dispatch(connection, proxy, "dummy")
        except _stock.RemoteError:
            # The server cannot make one, having no such class. Nobody can tell when the bytes are gone: never taken back.
            connection.close()
            connection = proxy._Client(proxy._token.address, authkey=proxy._authkey)
            _stock.dispatch(connection, None, "incref", (proxy._id,))
        finally:
            connection.close()
    return buffer.getvalue()


def _rebuild(cls, typeid, number):
    return cls._over(_engine.SharedStore.take(number), typeid)


class _SharedProxy:
    """What the proxies of this module have in common; each is one of the stock kind as well."""

    @classmethod
    def _over(cls, store, typeid, manager=None):
        proxy = cls.__new__(cls)
        names = proxy.__dict__
        names["_store"] = store
        names["_token"] = _stock.Token(typeid, None, f"{store.name():x}")
        names["_id"] = proxy._token.id
        names["_manager"] = manager
        return proxy

    def __init__(self, *args, **kwargs):
        raise TypeError(f"a {type(self).__name__} of shared memory comes from a manager, not from its class")

    def _callmethod(self, methodname, args=(), kwds={}):
        if methodname == "#GETVALUE":
            return self._getvalue()
        if methodname in ("__repr__", "__str__"):
            return repr(self._getvalue())
        return getattr(self, methodname)(*args, **kwds)

    def _getvalue(self):
        raise NotImplementedError

    def _incref(self):
        """Nothing: the store counts its holders itself."""

    def _after_fork(self):
        """Nothing either."""

    def __reduce__(self):
        return _rebuild, (type(self), self._token.typeid, self._store.give(self))

    def __deepcopy__(self, memo):
        return self._getvalue()

    def __str__(self):
        return repr(self._getvalue())

    def __repr__(self):
        return f"<{type(self).__name__} object, typeid {self._token.typeid!r} at {id(self):#x}>"


class _Keys:
    """An iterator over the keys that were there when it began; as a dict's, it ends with an error when some came or went."""

    def __init__(self, store):
        self._store = store
        self._version, keys = store.version(), store.keys()
        self._left = len(keys)
        self._keys = iter(keys)
        self._size = len(keys)

    def __iter__(self):
        return self

    def __next__(self):
        if self._left:
            version = self._store.version()
            if version != self._version and len(self._store) != self._size:
                raise RuntimeError("dictionary changed size during iteration")
            self._version = version
            self._left -= 1
        return next(self._keys)

    def __length_hint__(self):
        return self._left


class DictProxy(_SharedProxy, _stock.DictProxy):
    """A dict that processes share."""

    def _getvalue(self):
        return dict(self._store.items())

    copy = _getvalue

    def __len__(self):
        return len(self._store)

    def __contains__(self, key):
        return self._store.contains(key)

    def __getitem__(self, key):
        return self._store.getitem(key)

    def __setitem__(self, key, value):
        self._store.setitem(key, value)

    def __delitem__(self, key):
        if self._store.take_key(key) is None:
            raise KeyError(key)

    def __iter__(self):
        return _Keys(self._store)

    def get(self, key, default=None, /):
        return self._store.get(key, default)

    def pop(self, key, default=_missing, /):
        found = self._store.take_key(key)
        if found is not None:
            return found[0]
        if default is _missing:
            raise KeyError(key)
        return default

    def popitem(self):
        return self._store.popitem()

    def setdefault(self, key, default=None, /):
        return self._store.setdefault(key, default)

    def keys(self):
        return self._store.keys()

    def values(self):
        return self._store.values()

    def items(self):
        return self._store.items()

    def clear(self):
        self._store.clear()

    def update(self, other=(), /, **kwds):
        for key, value in dict(other, **kwds).items():
            self._store.setitem(key, value)


class ListProxy(_SharedProxy, _stock.ListProxy):
    """A list that processes share."""

    def _getvalue(self):
        return self._store.all()[1]

    def _change(self, change):
        """Have ``change`` rearrange places and values until nobody else changes the list meanwhile."""
        while True:
            version, values = self._store.all()
            order, fresh = change(values)
            if self._store.rearrange(version, order, fresh):
                return

    def __len__(self):
        return len(self._store)

    def __contains__(self, value):
        return value in self._getvalue()

    def __getitem__(self, place):
        if isinstance(place, slice):
            return self._getvalue()[place]
        return self._store.at(_operator.index(place))

    def __setitem__(self, place, value):
        if not isinstance(place, slice):
            self._store.set_at(_operator.index(place), value)
            return
        fresh = list(value)

        def change(values):
            order = list(range(len(values)))
            order[place] = range(-1, -1 - len(fresh), -1)
            return order, fresh

        self._change(change)

    def __delitem__(self, place):
        if not isinstance(place, slice):
            self._store.delete_at(_operator.index(place))
            return

        def change(values):
            order = list(range(len(values)))
            del order[place]
            return order, []

        self._change(change)

    def __add__(self, other):
        return self._getvalue() + _plain(other)

    def __mul__(self, times):
        return self._getvalue() * times

    __rmul__ = __mul__

    def __iadd__(self, other):
        self.extend(other)
        return self

    def __imul__(self, times):
        def change(values):
            if times <= 0:
                return [], []
            fresh = values * (times - 1)
            return [*range(len(values)), *range(-1, -1 - len(fresh), -1)], fresh

        self._change(change)
        return self

    def __reversed__(self):
        return reversed(self._getvalue())

    def append(self, value, /):
        self._store.append(value)

    def extend(self, values, /):
        self._store.extend(list(values))

    def insert(self, place, value, /):
        self._store.insert(_operator.index(place), value)

    def pop(self, place=-1, /):
        return self._store.pop_at(_operator.index(place))

    def remove(self, value, /):
        def change(values):
            order = list(range(len(values)))
            try:
                del order[values.index(value)]
            except ValueError:
                raise ValueError("list.remove(x): x not in list") from None
            return order, []

        self._change(change)

    def count(self, value, /):
        return self._getvalue().count(value)

    def index(self, value, *bounds):
        return self._getvalue().index(value, *bounds)

    def reverse(self):
        self._change(lambda values: (list(range(len(values)))[::-1], []))

    def sort(self, *, key=None, reverse=False):
        def change(values):
            of = values.__getitem__ if key is None else lambda place: key(values[place])
            return sorted(range(len(values)), key=of, reverse=reverse), []

        self._change(change)


def _plain(value):
    return value._getvalue() if isinstance(value, _BaseProxy) else value


class ValueProxy(_SharedProxy, _stock.ValueProxy):
    """A value that processes share."""

    def _getvalue(self):
        typecode, value = self._store.all()[1]
        return _stock.Value(typecode, value)

    def get(self):
        return self._store.at(1)

    def set(self, value):
        self._store.set_at(1, value)

    value = property(get, set)


class NamespaceProxy(_SharedProxy, _stock.NamespaceProxy):
    """Attributes that processes share. Names that begin with an underscore are the proxy's own."""

    def _getvalue(self):
        return _stock.Namespace(**dict(self._store.items()))

    def _callmethod(self, methodname, args=(), kwds={}):
        if methodname == "__getattribute__":
            return self.__getattr__(*args)
        return super()._callmethod(methodname, args, kwds)

    def __getattr__(self, name):
        if name[0] == "_":
            return object.__getattribute__(self, name)
        value = self._store.get(name, _missing)
        if value is _missing:
            raise AttributeError(f"'Namespace' object has no attribute {name!r}")
        return value

    def __setattr__(self, name, value):
        if name[0] == "_":
            object.__setattr__(self, name, value)
        else:
            self._store.setitem(name, value)

    def __delattr__(self, name):
        if name[0] == "_":
            object.__delattr__(self, name)
        elif self._store.take_key(name) is None:
            raise AttributeError(name)


class SyncManager(_SyncManager):
    """A manager whose dicts, lists, values and namespaces are in shared memory."""

    def start(self, *args, **kwargs):
        # Children get their place in the tree, also when nobody called `install()`.
        _install.hook()
        # Somebody who names an address expects clients that are not of this tree.
        ours = self._address is None and self._serializer == "pickle"
        super().start(*args, **kwargs)
        self._in_memory = ours

    _in_memory = False

    def _make(self, cls, typeid, keyed):
        assert self._state.value == _stock.State.STARTED, "server not yet started"
        return cls._over(_engine.SharedStore(keyed), typeid, self)

    def dict(self, /, *args, **kwds):
        if not self._in_memory:
            return super().dict(*args, **kwds)
        made = self._make(DictProxy, "dict", True)
        if args or kwds:
            args = [dict(arg._getvalue()) if isinstance(arg, DictProxy) else arg for arg in args]
            made.update(dict(*args, **kwds))
        return made

    def list(self, /, *args, **kwds):
        if not self._in_memory:
            return super().list(*args, **kwds)
        made = self._make(ListProxy, "list", False)
        if args or kwds:
            made.extend(list(*args, **kwds))
        return made

    def Value(self, typecode, value, lock=True):
        if not self._in_memory:
            return super().Value(typecode, value, lock=lock)
        made = self._make(ValueProxy, "Value", False)
        made._store.extend([typecode, value])
        return made

    def Namespace(self, /, **kwds):
        if not self._in_memory:
            return super().Namespace(**kwds)
        made = self._make(NamespaceProxy, "Namespace", True)
        for name, value in kwds.items():
            made._store.setitem(name, value)
        return made


def _start(self, *args, **kwargs):
    self._registry = {name: _current(entry) for name, entry in self._registry.items()}
    _stock_start(self, *args, **kwargs)


def _current(entry):
    """Return an entry of a registry with the class that its name means by now: a new process looks it up by name."""
    kind = entry[0]
    module = getattr(kind, "__module__", None) or ""
    if module in ("queue", "threading") or module.startswith("multiprocessing."):
        return (getattr(_sys.modules.get(module), getattr(kind, "__qualname__", ""), kind), *entry[1:])
    return entry


def Manager(ctx=None):
    """Return a started manager."""
    made = SyncManager(ctx=ctx)
    made.start()
    return made


PATCHES = [
    ("multiprocessing.managers", "SyncManager", SyncManager),
    # Classes that were registered before they were replaced.
    ("multiprocessing.managers:BaseManager", "start", _start),
]
