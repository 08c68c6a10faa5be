"""Connections, ``Pipe``, ``Listener``, ``Client`` and ``wait``: the standard library's wire format, read and written in one go.

A connection is a socket or a pipe, so its ``fileno()`` works wherever descriptors do, and the other end may be any program that
speaks the standard library's protocol.
"""

import os
import selectors
import socket
import time
from multiprocessing import connection as _stock
from multiprocessing import reduction

from phalanx import _engine
from phalanx.queues import Queue, SimpleQueue, _Reader

__all__ = ["Client", "Connection", "Listener", "Pipe", "wait"]

_StockConnection = _stock.Connection
_StockListener = _stock.Listener
_stock_client = _stock.Client

# Who overrides one of these wants the standard library's methods, which call them.
_HOOKS = ("_send", "_recv", "_send_bytes", "_recv_bytes", "_poll")
_METHODS = ("fileno", "send", "send_bytes", "recv", "recv_bytes", "poll")


class Connection(_engine.Connection, _StockConnection):
    """One end of a connection over a descriptor, which it owns."""

    def __init_subclass__(cls, **kwargs):
        super().__init_subclass__(**kwargs)
        if any(getattr(cls, name) is not getattr(Connection, name) for name in _HOOKS):
            for name in _METHODS:
                if getattr(cls, name) is getattr(Connection, name):
                    setattr(cls, name, getattr(_StockConnection, name))


def Pipe(duplex=True):
    """Return the two ends of a pipe; without ``duplex`` the first receives and the second sends."""
    if duplex:
        left, right = socket.socketpair()
        left.setblocking(True)
        right.setblocking(True)
        return Connection(left.detach()), Connection(right.detach())
    reader, writer = os.pipe()
    return Connection(reader, writable=False), Connection(writer, readable=False)


def _ours(connection):
    # Without install() the standard library's code makes its own kind of connection.
    if type(connection) is not _StockConnection:
        return connection
    handle, connection._handle = connection._handle, None
    return Connection(handle, connection.readable, connection.writable)


class Listener(_StockListener):
    """A bound socket that waits for connections."""

    def accept(self):
        """Wait for a connection, and return it once the other side has proved that it knows the key."""
        return _ours(super().accept())


def Client(address, family=None, authkey=None):
    """Connect to a ``Listener``."""
    return _ours(_stock_client(address, family=family, authkey=authkey))


def wait(object_list, timeout=None):
    """Wait until one of the objects is ready, and return those that are.

    The objects are connections, sockets, descriptors, sentinels of processes, and queues.
    """
    objects = list(object_list)
    fds = []
    queues = {}
    for place, thing in enumerate(objects):
        if isinstance(thing, (Queue, SimpleQueue)):
            thing = thing._reader
        # As the standard library's: an object that has a descriptor, or the number of one.
        fds.append(selectors._fileobj_to_fd(thing))
        if type(thing) is _Reader:
            queues[place] = thing._queue
    if timeout is not None:
        deadline = time.monotonic() + timeout
    while True:
        places = _engine.poll(fds, timeout)
        if not queues:
            return [objects[place] for place in places]
        # A queue's bell stays rung when somebody else took the item.
        ready = [objects[place] for place in places if place not in queues or queues[place]._settle()]
        if ready or not places:
            return ready
        if timeout is not None:
            timeout = deadline - time.monotonic()


# By exact type: without it a connection would travel as a mere number.
reduction.register(Connection, _stock.reduce_connection)

PATCHES = [
    ("multiprocessing.connection", "Connection", Connection),
    ("multiprocessing.connection", "Pipe", Pipe),
    ("multiprocessing.connection", "wait", wait),
    ("?multiprocessing.pool", "wait", wait),
]
