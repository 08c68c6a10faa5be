"""Connections: the wire format, mixed waits, deaths and bad input."""

import array
import gc
import multiprocessing as mp
import os
import pickle
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from multiprocessing import connection as stock
from multiprocessing import reduction

import pytest

import phalanx
from phalanx import connection, queues

fork = mp.get_context("fork")


@pytest.fixture(autouse=True, scope="module")
def in_place():
    phalanx.install()
    yield
    phalanx.uninstall()


def run(target, *args):
    process = fork.Process(target=target, args=args)
    process.start()
    return process


@pytest.fixture(params=["socket", "pipe"])
def ends(request):
    reader, writer = connection.Pipe(duplex=request.param == "socket")
    yield reader, writer
    reader.close()
    writer.close()


@pytest.mark.parametrize("value", [None, 0, "text", b"", b"x" * 16380, b"x" * 16390, [1, {"a": (2,)}], "y" * 1_000_000])
def test_round_trip(ends, value):
    reader, writer = ends
    thread = threading.Thread(target=writer.send, args=(value,))
    thread.start()
    assert reader.recv() == value
    thread.join()


@pytest.mark.parametrize("size", [0, 1, 16380, 16384, 16385, 70_000, 10_000_000])
def test_bytes_round_trip(ends, size):
    reader, writer = ends
    data = os.urandom(size)
    thread = threading.Thread(target=writer.send_bytes, args=(data,))
    thread.start()
    assert reader.poll(30)
    assert reader.recv_bytes() == data
    thread.join()


def test_speaks_with_the_standard_library():
    left, right = socket.socketpair()
    ours = connection.Connection(left.detach())
    theirs = stock.Connection(right.detach()) if stock.Connection is connection._StockConnection else connection._StockConnection(right.detach())
    assert type(theirs) is connection._StockConnection
    for value in (1, "a", b"z" * 50_000, [None, {"k": 1.5}]):
        ours.send(value)
        assert theirs.recv() == value
        theirs.send(value)
        assert ours.recv() == value
    ours.send_bytes(b"")
    assert theirs.recv_bytes() == b""
    theirs.send_bytes(b"")
    assert ours.poll() and ours.recv_bytes() == b""
    ours.close()
    theirs.close()


def test_the_wire_is_what_it_was():
    left, right = socket.socketpair()
    ours = connection.Connection(left.detach())
    ours.send_bytes(b"abc")
    assert right.recv(100) == b"\0\0\0\3abc"
    ours.send([1])
    head = right.recv(4)
    data = right.recv(100)
    assert struct.unpack("!i", head)[0] == len(data)
    assert data == bytes(reduction.ForkingPickler.dumps([1]))
    right.sendall(struct.pack("!iQ", -1, 3) + b"xyz")
    assert ours.recv_bytes() == b"xyz"
    ours.close()
    right.close()


def test_slices_and_other_buffers(ends):
    reader, writer = ends
    writer.send_bytes(b"0123456789", 3)
    assert reader.recv_bytes() == b"3456789"
    writer.send_bytes(bytearray(b"0123456789"), 3, 4)
    assert reader.recv_bytes() == b"3456"
    numbers = array.array("i", [1, 2, 3])
    writer.send_bytes(numbers, 4)
    assert reader.recv_bytes() == numbers.tobytes()[4:]
    for offset, size in ((-1, None), (11, None), (0, -1), (8, 3)):
        with pytest.raises(ValueError):
            writer.send_bytes(b"0123456789", offset, size)
    into = bytearray(10)
    writer.send_bytes(b"abc")
    assert reader.recv_bytes_into(into, 2) == 3 and into[2:5] == b"abc"
    writer.send_bytes(b"x" * 11)
    with pytest.raises(mp.BufferTooShort) as caught:
        reader.recv_bytes_into(into)
    assert caught.value.args == (b"x" * 11,)


def test_closed_and_one_way():
    reader, writer = connection.Pipe(duplex=False)
    with pytest.raises(OSError, match="write-only"):
        writer.recv()
    with pytest.raises(OSError, match="read-only"):
        reader.send(1)
    assert (reader.readable, reader.writable, writer.readable, writer.writable) == (True, False, False, True)
    writer.close()
    assert reader.poll(30)
    with pytest.raises(EOFError):
        reader.recv()
    reader.close()
    assert reader.closed
    for use in (reader.recv, reader.recv_bytes, reader.fileno, reader.poll, lambda: reader.send(1)):
        with pytest.raises(OSError, match="handle is closed"):
            use()
    reader.close()
    for bad in (-1, 1.5):
        with pytest.raises((ValueError, AttributeError)):
            connection.Connection(bad)


def test_descriptor_is_closed_with_the_last_reference():
    reader, writer = connection.Pipe()
    fd = writer.fileno()
    del writer
    gc.collect()
    with pytest.raises(OSError):
        os.fstat(fd)
    with reader:
        assert reader.poll(10)
    assert reader.closed


@pytest.mark.parametrize("timeout", [0, 0.02, -1])
def test_poll_times_out(ends, timeout):
    assert not ends[0].poll(timeout)
    with pytest.raises(ValueError):
        ends[0].poll(float("nan"))


# --- bad input


def raw():
    left, right = socket.socketpair()
    return connection.Connection(left.detach()), right


@pytest.mark.parametrize("size", [-2, -(2**31)])
def test_negative_length(size):
    ours, other = raw()
    other.sendall(struct.pack("!i", size) + b"x" * 10)
    with pytest.raises(OSError, match="bad message length"):
        ours.recv_bytes()
    other.close()


@pytest.mark.parametrize("size", [2**63, 2**64 - 1])
def test_absurd_length(size):
    ours, other = raw()
    other.sendall(struct.pack("!iQ", -1, size))
    with pytest.raises(OSError, match="bad message length"):
        ours.recv()
    other.close()


def test_length_beyond_memory():
    ours, other = raw()
    other.sendall(struct.pack("!iQ", -1, 2**60) + b"x" * 100)
    other.close()
    with pytest.raises((MemoryError, OSError)):
        ours.recv()


def test_length_over_the_limit():
    ours, other = raw()
    other.sendall(struct.pack("!i", 100) + b"x" * 100)
    with pytest.raises(ValueError, match="negative maxlength"):
        ours.recv_bytes(-1)
    with pytest.raises(OSError, match="bad message length"):
        ours.recv_bytes(50)
    assert not ours.readable and ours.writable
    other.close()


def test_cut_off_in_the_middle():
    for sent in (b"\0\0", struct.pack("!i", 10) + b"abc"):
        ours, other = raw()
        other.sendall(sent)
        other.close()
        with pytest.raises(OSError, match="got end of file during message"):
            ours.recv_bytes()


def test_garbage():
    ours, other = raw()
    other.sendall(struct.pack("!i", 8) + b"nonsense")
    with pytest.raises(pickle.UnpicklingError):
        ours.recv()
    other.sendall(struct.pack("!i", 1) + b".")
    with pytest.raises((pickle.UnpicklingError, IndexError)):
        ours.recv()
    ours.close()
    other.close()


def listen(listener, results):
    try:
        with listener.accept() as accepted:
            results.append(accepted.recv())
    except Exception as error:
        results.append(error)


def serve(authkey):
    listener = connection.Listener(authkey=authkey)
    results = []
    thread = threading.Thread(target=listen, args=(listener, results))
    thread.start()
    return listener, results, thread


def test_right_key():
    listener, results, thread = serve(b"secret")
    with connection.Client(listener.address, authkey=b"secret") as client:
        assert type(client) is connection.Connection
        client.send("hello")
        thread.join(30)
    listener.close()
    assert results == ["hello"]


def test_wrong_key():
    listener, results, thread = serve(b"secret")
    with pytest.raises(mp.AuthenticationError):
        connection.Client(listener.address, authkey=b"guess")
    thread.join(30)
    listener.close()
    assert isinstance(results[0], mp.AuthenticationError)


@pytest.mark.parametrize("sent", [b"", b"GET / HTTP/1.0\r\n\r\n" * 20, struct.pack("!iQ", -1, 2**40), struct.pack("!i", 2**30)])
def test_strangers_at_the_door(sent):
    listener, results, thread = serve(b"secret")
    with socket.socket(socket.AF_UNIX) as stranger:
        stranger.connect(listener.address)
        stranger.sendall(sent)
        stranger.shutdown(socket.SHUT_WR)
        thread.join(30)
    listener.close()
    assert not thread.is_alive()
    assert isinstance(results[0], (OSError, EOFError, mp.AuthenticationError)), results


# --- waiting, travelling, dying


def test_wait_for_whatever_there_is():
    reader, writer = connection.Pipe(duplex=False)
    left, right = socket.socketpair()
    queue = queues.Queue(ctx=fork)
    simple = queues.SimpleQueue(ctx=fork)
    fd_in, fd_out = os.pipe()
    process = run(time.sleep, 60)
    everything = [reader, left, queue, simple._reader, fd_in, process.sentinel]
    assert connection.wait(everything, 0.01) == []
    assert connection.wait([], 0.01) == []
    writer.send(1)
    assert connection.wait(everything, 30) == [reader]
    reader.recv()
    right.send(b"x")
    assert connection.wait(everything) == [left]
    left.recv(1)
    queue.put(1)
    assert connection.wait(iter(everything)) == [queue]
    assert queue.get() == 1
    simple.put(2)
    assert connection.wait(everything) == [simple._reader]
    assert simple._reader.recv() == 2
    os.write(fd_out, b"x")
    assert connection.wait(everything) == [fd_in]
    os.read(fd_in, 1)
    process.kill()
    assert connection.wait(everything) == [process.sentinel]
    process.join(30)
    queue.put(1)
    writer.send(1)
    assert set(map(id, connection.wait([reader, queue, left], 30))) == {id(reader), id(queue)}
    with pytest.raises(ValueError):
        connection.wait([-1])
    for one in (left, right, reader, writer):
        one.close()
    os.close(fd_in)
    os.close(fd_out)


def test_a_connection_travels():
    reader, writer = connection.Pipe(duplex=False)
    queue = queues.Queue(ctx=fork)

    def child():
        queue.get().send("from the child")

    process = run(child)
    queue.put(writer)
    assert reader.poll(30) and reader.recv() == "from the child"
    process.join(30)
    assert process.exitcode == 0


def test_a_killed_sender_is_an_end_of_file():
    reader, writer = connection.Pipe(duplex=False)

    def child():
        reader.close()
        while True:
            writer.send_bytes(b"x" * 100_000)

    process = run(child)
    writer.close()
    assert reader.recv_bytes() == b"x" * 100_000
    os.kill(process.pid, signal.SIGKILL)
    with pytest.raises((EOFError, OSError)):
        while True:
            assert reader.recv_bytes() == b"x" * 100_000
    process.join(30)
    reader.close()


def test_a_gone_receiver_is_a_broken_pipe(ends):
    reader, writer = ends
    reader.close()
    with pytest.raises(OSError):
        for _ in range(100):
            writer.send("x" * 10_000)


def test_signals_run_and_end_waits():
    code = """
import os, signal, threading, phalanx
phalanx.install()
import multiprocessing as mp
reader, writer = mp.Pipe(duplex=False)
seen = []
signal.signal(signal.SIGUSR1, lambda *_: (seen.append(1), writer.send("woken")))
threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGUSR1)).start()
print(reader.recv(), seen)
threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT)).start()
try:
    reader.poll(None)
except KeyboardInterrupt:
    print("interrupted")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "woken [1]\ninterrupted\n", "")


class Loud(connection.Connection):
    """Overrides what the standard library's methods are built on."""

    sent = 0

    def _send(self, buf, *args):
        Loud.sent += len(buf)
        return super()._send(buf, *args)


def test_overridden_insides_are_called():
    left, right = socket.socketpair()
    loud, plain = Loud(left.detach()), connection.Connection(right.detach())
    loud.send_bytes(b"abc")
    assert Loud.sent == 7 and plain.recv_bytes() == b"abc"
    plain.send(5)
    assert loud.poll(10) and loud.recv() == 5
