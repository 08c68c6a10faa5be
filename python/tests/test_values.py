"""Values and arrays in shared memory, and named segments."""

import ctypes
import gc
import multiprocessing as mp
import os
import pickle
import subprocess
import sys
from multiprocessing import shared_memory, sharedctypes

import pytest

import phalanx
from phalanx import _engine

METHODS = ["fork", "spawn", "forkserver"]


@pytest.fixture(autouse=True, scope="module")
def installed():
    phalanx.install()
    yield
    phalanx.uninstall()


class Point(ctypes.Structure):
    _fields_ = [("x", ctypes.c_double), ("y", ctypes.c_int)]


def script(code, *args):
    return subprocess.run([sys.executable, "-c", code, *args], capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize("code", "bBhHiIlLqQ")
def test_integers_of_every_size_wrap_as_in_c(code):
    value, raw = mp.Value(code), sharedctypes.typecode_to_type[code]()
    for number in (0, 1, -1, 127, 200, 70_000, 2**31 - 1, -(2**31), 2**40 + 5, 2**63, True):
        value.value = number
        raw.value = number
        assert value.value == raw.value
    with pytest.raises(TypeError):
        value.value = 1.5
    with pytest.raises(TypeError):
        value.value = "1"


@pytest.mark.parametrize("code", "fd")
def test_floats(code):
    value, raw = mp.Value(code), sharedctypes.typecode_to_type[code]()
    for number in (0.0, 1.1, -2.5, 3, 1e300 if code == "d" else 1e30):
        value.value = number
        raw.value = number
        assert value.value == raw.value and type(value.value) is float
    with pytest.raises(TypeError):
        value.value = None


def test_the_other_byte_order_and_structures_go_through_ctypes():
    swapped = mp.Value(ctypes.c_int.__ctype_be__, 5)
    swapped.value += 1
    assert swapped.value == 6
    point = mp.Value(Point, 1.5, 2)
    point.x += 1
    assert (point.x, point.get_obj().x, point.y) == (2.5, 2.5, 2)
    character = mp.Value("c", b"x")
    assert character.value == b"x"
    text = mp.Array("c", b"hello")
    text.value = b"hi"
    assert (text.value, text.raw, text[0]) == (b"hi", b"hi\0lo", b"h")


def test_arrays_index_and_slice_as_lists():
    array = mp.Array("i", range(5))
    assert (array[0], array[-1], array[1:3], len(array), list(array)) == (0, 4, [1, 2], 5, [0, 1, 2, 3, 4])
    array[-1] = 9
    array[:2] = [7, 8]
    assert array[:] == [7, 8, 2, 3, 9]
    for index in (5, -6):
        with pytest.raises(IndexError):
            array[index]
        with pytest.raises(IndexError):
            array[index] = 1
    with pytest.raises(TypeError):
        array[0] = "1"
    assert mp.Array("d", 0)[:] == []
    assert mp.RawArray("i", 3)[:] == [0, 0, 0]


def test_locks_are_the_callers_choice():
    assert isinstance(mp.Value("i", lock=False), ctypes.c_int)
    lock = mp.Lock()
    value = mp.Value("i", 3, lock=lock)
    assert value.get_lock() is lock and isinstance(value.get_obj(), ctypes.c_int)
    with value:
        assert not lock.acquire(False)
    with pytest.raises(AttributeError, match="acquire"):
        mp.Value("i", lock="navalue")
    with mp.Value("i").get_lock() as had:
        assert had is True
    assert sharedctypes.copy(value.get_obj()).value == 3
    assert "wrapper for c_int(3)" in repr(value)


def test_numpy_sees_the_memory_itself():
    np = pytest.importorskip("numpy", reason="it is numpy's view that is tested")
    array = mp.Array("d", 4)
    view = np.frombuffer(array.get_obj())
    view[2] = 5.0
    assert array[2] == 5.0
    del array
    gc.collect()
    assert view[2] == 5.0


def add(value, array, raw, times):
    for _ in range(times):
        with value.get_lock():
            value.value += 1
        with array:
            array[1] += 1
    raw.value = 7


@pytest.mark.parametrize("method", METHODS)
def test_they_reach_a_child(method):
    ctx = mp.get_context(method)
    value, array, raw = ctx.Value("i"), ctx.Array("q", 3), ctx.RawValue("d")
    processes = [ctx.Process(target=add, args=(value, array, raw, 500)) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    assert (value.value, array[:], raw.value) == (1000, [0, 1000, 0], 7.0)


def test_they_are_pickled_by_place_at_any_time():
    value, array, point = mp.Value("i", 1), mp.Array("d", 2), mp.Value(Point, 1, 2)
    others = pickle.loads(pickle.dumps([value, array, point]))
    others[0].value = 5
    others[1][1] = 2.5
    others[2].y = 9
    assert (value.value, array[1], point.y) == (5, 2.5, 9)
    assert others[0].get_lock().acquire()


def test_memory_is_given_back():
    def make():
        return [mp.Value("i"), mp.Array("d", 1000), mp.RawArray("b", 10), mp.Value(Point)]

    make()
    gc.collect()
    before = _engine.usage()[0]
    for _ in range(50):
        made = make()
        pickle.loads(pickle.dumps(made[:2]))
    del made
    gc.collect()
    assert _engine.usage()[0] - before <= 2


def test_more_than_there_is_is_an_error():
    with pytest.raises((MemoryError, OSError)):
        mp.RawArray("b", 1 << 50)
    with pytest.raises(OSError):
        shared_memory.SharedMemory(create=True, size=1 << 50)


ATTACH = """
import phalanx, sys
phalanx.install()
from multiprocessing import shared_memory
memory = shared_memory.SharedMemory(sys.argv[1])
print(memory.buf[0])
memory.close()
if len(sys.argv) > 2:
    memory.unlink()
"""


def test_a_reader_that_exits_leaves_the_segment():
    memory = shared_memory.SharedMemory(create=True, size=10, track=True)
    try:
        memory.buf[0] = 42
        done = script(ATTACH, memory.name)
        assert (done.stdout, done.stderr) == ("42\n", "")
        shared_memory.SharedMemory(memory.name, track=False).close()
    finally:
        memory.close()
        memory.unlink()


def test_who_is_not_the_creator_may_unlink():
    memory = shared_memory.SharedMemory(create=True, size=10)
    done = script(ATTACH, memory.name, "unlink")
    assert (done.stdout, done.stderr) == ("0\n", "")
    memory.close()
    with pytest.raises(FileNotFoundError):
        memory.unlink()
    # So that the tracker of this process knows that it is gone.
    from multiprocessing import resource_tracker

    resource_tracker.unregister(memory._name, "shared_memory")
    phalanx.shared_memory._created.pop(memory._name)


def test_a_forgotten_segment_is_removed_without_a_word():
    code = """
import phalanx
phalanx.install()
from multiprocessing import shared_memory
memory = shared_memory.SharedMemory(create=True, size=10)
print(memory.name)
"""
    done = script(code)
    assert done.stderr == ""
    assert not os.path.exists(f"/dev/shm/{done.stdout.strip()}")


def test_a_shareable_list_is_made_of_ours():
    made = shared_memory.ShareableList([1, "a", 2.5])
    try:
        assert type(made.shm) is phalanx.shared_memory.SharedMemory
        assert list(pickle.loads(pickle.dumps(made))) == [1, "a", 2.5]
    finally:
        made.shm.close()
        made.shm.unlink()
