"""A manager's dict, list, Value and Namespace: beside the stock ones, in children, nested, and with processes killed inside."""

import copy
import enum
import multiprocessing
import multiprocessing.managers as stock
import os
import pickle
import signal
import subprocess
import sys
import threading
import time

import pytest

import phalanx.managers as ours

METHODS = ["fork", "spawn", "forkserver"]


@pytest.fixture(scope="module")
def manager():
    made = ours.Manager()
    yield made
    made.shutdown()


@pytest.fixture(scope="module")
def like():
    made = stock.SyncManager()
    made.start()
    yield made
    made.shutdown()


def run_script(path):
    done = subprocess.run([sys.executable, path], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


def outcome(call):
    try:
        return call()
    except Exception as error:
        return type(error), str(error).splitlines()[-1:] if isinstance(error, KeyError) else None


class Point:
    def __init__(self, x):
        self.x = x

    def __eq__(self, other):
        return isinstance(other, Point) and self.x == other.x

    def __hash__(self):
        return hash(self.x)

    def __repr__(self):
        return f"Point({self.x})"


class Colour(enum.IntEnum):
    RED = 1


DICT_STEPS = [
    lambda d: d.update({"a": 1, "b": [2]}, c=(3,)),
    lambda d: d.__setitem__(1, "int"),
    lambda d: d.__setitem__(True, "bool"),
    lambda d: d.__setitem__(1.0, "float"),
    lambda d: d[1],
    lambda d: d["nobody"],
    lambda d: d.get("nobody"),
    lambda d: d.get("nobody", 7),
    lambda d: "a" in d and "z" not in d,
    lambda d: d.setdefault("a", 9),
    lambda d: d.setdefault("new"),
    lambda d: d.__setitem__((1, (2.0, None)), b"bytes"),
    lambda d: d[(True, (2, None))],
    lambda d: d.__setitem__(frozenset([1, 2]), "odd"),
    lambda d: d.__setitem__(frozenset([2, 1]), "odder"),
    lambda d: d.__setitem__(10**30, 10**31),
    lambda d: d.__setitem__([], 1),
    lambda d: d.pop(frozenset([1, 2])),
    lambda d: d.pop("nobody"),
    lambda d: d.pop("nobody", 3),
    lambda d: d.__delitem__("b"),
    lambda d: d.__delitem__("b"),
    lambda d: d.popitem(),
    lambda d: list(d.keys()),
    lambda d: list(d.values()),
    lambda d: list(d.items()),
    lambda d: list(d),
    lambda d: len(d),
    lambda d: d.copy(),
    lambda d: str(d),
    lambda d: copy.deepcopy(d) if isinstance(d, stock.BaseProxy) else dict(d),
    lambda d: d.clear(),
    lambda d: d.popitem(),
    lambda d: len(d),
]


def test_dict_does_what_a_dict_does(manager):
    shared, plain = manager.dict(z=0), dict(z=0)
    for number, step in enumerate(DICT_STEPS):
        assert outcome(lambda: step(shared)) == outcome(lambda: step(plain)), f"step {number}"
        assert list(shared.items()) == list(plain.items()), f"after step {number}"


def test_keys_that_are_equal_are_one_key(manager):
    shared = manager.dict()
    shared[1] = "one"
    assert shared[Colour.RED] == "one" and shared[True] == "one" and shared[1.0] == "one"
    shared[Colour.RED] = "red"
    assert shared.keys() == [1] and type(shared.keys()[0]) is int
    shared[Point(3)] = "point"
    assert shared[Point(3)] == "point" and Point(4) not in shared
    numpy = pytest.importorskip("numpy")
    assert shared[numpy.int64(1)] == "red"


LIST_STEPS = [
    lambda l: l.extend([5, 3, 9, 1]),
    lambda l: l.append("x"),
    lambda l: l.insert(0, "first"),
    lambda l: l.insert(-1, "before last"),
    lambda l: l.insert(100, "last"),
    lambda l: l[2],
    lambda l: l[-1],
    lambda l: l[100],
    lambda l: l[1:4],
    lambda l: l[::-2],
    lambda l: l.__setitem__(0, "changed"),
    lambda l: l.__setitem__(50, 1),
    lambda l: l.__setitem__(slice(1, 3), [10, 11, 12, 13]),
    lambda l: l.__setitem__(slice(0, 4, 2), "ab"),
    lambda l: l.__setitem__(slice(0, 4, 2), "abc"),
    lambda l: l.__delitem__(0),
    lambda l: l.__delitem__(slice(0, 2)),
    lambda l: l.__delitem__(77),
    lambda l: l.pop(),
    lambda l: l.pop(0),
    lambda l: l.pop(1),
    lambda l: l.pop(50),
    lambda l: l.remove("x"),
    lambda l: l.remove("nobody"),
    lambda l: l.count(13),
    lambda l: l.index(13),
    lambda l: l.index("nobody"),
    lambda l: 13 in l,
    lambda l: l + [1],
    lambda l: l * 2,
    lambda l: 2 * l,
    lambda l: l.reverse(),
    lambda l: list(reversed(l)),
    lambda l: l.sort(key=str),
    lambda l: l.sort(key=str, reverse=True),
    lambda l: l.sort(),
    lambda l: l.__imul__(3) is l,
    lambda l: [item for item in l],
    lambda l: str(l),
    lambda l: len(l),
    lambda l: l.__imul__(0) is l,
    lambda l: l.pop(),
]


def test_list_does_what_a_list_does(manager):
    shared, plain = manager.list([7]), [7]
    for number, step in enumerate(LIST_STEPS):
        mine, right = outcome(lambda: step(shared)), outcome(lambda: step(plain))
        assert mine == right, f"step {number}"
        assert list(shared) == plain, f"after step {number}"
    shared += (1, 2)
    assert list(shared) == [1, 2]


def test_list_as_a_queue_of_many(manager):
    shared = manager.list()
    for number in range(2000):
        shared.append(number)
        if number % 3:
            shared.pop(0)
    assert list(shared) == list(range(1333, 2000))


@pytest.mark.parametrize("kind", ["dict", "list", "Value", "Namespace"])
def test_is_of_the_stock_kind_and_looks_like_it(manager, like, kind):
    args = {"dict": ({1: 2},), "list": ([1],), "Value": ("i", 5), "Namespace": ()}[kind]
    mine, right = getattr(manager, kind)(*args), getattr(like, kind)(*args)
    assert isinstance(mine, type(right)) and isinstance(mine, stock.BaseProxy)
    assert str(mine) == str(right)
    assert repr(mine).split(" at ")[0] == repr(right).split(" at ")[0]
    assert repr(mine._getvalue()) == repr(right._getvalue())


def test_value_and_namespace(manager):
    value = manager.Value("d", 1.5)
    value.value += 1
    assert value.get() == 2.5
    value.set("anything")
    assert value.value == "anything" and str(value) == "Value('d', 'anything')"
    space = manager.Namespace(x=1)
    space.y = [2]
    space._own = 3
    assert (space.x, space.y, space._own) == (1, [2], 3) and str(space) == "Namespace(x=1, y=[2])"
    del space.x
    with pytest.raises(AttributeError):
        space.x
    with pytest.raises(AttributeError):
        del space.x


def test_nested_and_of_any_picklable_type(manager):
    outer = manager.dict()
    outer["list"] = manager.list([1])
    outer["list"].append(manager.dict(k="v"))
    assert outer["list"][1]["k"] == "v"
    outer["list"][1]["k"] = "w"
    assert outer["list"][1].copy() == {"k": "w"}
    outer["point"] = Point(4)
    assert outer["point"] == Point(4)
    outer["long"] = b"x" * 100_000
    assert len(outer["long"]) == 100_000
    with pytest.raises((pickle.PicklingError, AttributeError)):
        outer["bad"] = lambda: 0
    assert "bad" not in outer
    # What a server serves lives on although its only proxy here is gone, and does not count as an object that somebody has.
    before = manager._number_of_objects()
    outer["queue"] = manager.Queue()
    assert manager._number_of_objects() == before
    outer["queue"].put(5)
    assert outer["queue"].get(timeout=20) == 5


def test_iterating_notices_what_comes_and_goes(manager):
    shared = manager.dict({1: 1, 2: 2})
    keys = iter(shared)
    assert next(keys) == 1
    shared[3] = 3
    with pytest.raises(RuntimeError, match="changed size"):
        next(keys)


def test_outlives_its_manager_and_refuses_before_its_start():
    made = ours.SyncManager()
    with pytest.raises(AssertionError, match="server not yet started"):
        made.dict()
    made.start()
    shared = made.dict(a=1)
    made.shutdown()
    assert shared["a"] == 1


def test_a_manager_with_an_address_serves_everybody():
    made = ours.SyncManager(address=("127.0.0.1", 0), authkey=b"key")
    made.start()
    try:
        shared = made.dict(a=1)
        assert not isinstance(shared, ours.DictProxy) and shared["a"] == 1
        client = ours.SyncManager(address=made.address, authkey=b"key")
        client.connect()
        assert client.list([1])[0] == 1
    finally:
        made.shutdown()


def work(shared, numbers, space, value, number):
    shared[number] = os.getpid()
    for _ in range(50):
        numbers.append(number)
    space.seen = True
    value.value = shared
    own = shared["nested"]
    own.append(number)


@pytest.mark.parametrize("method", METHODS)
def test_children_share_it(method):
    context = multiprocessing.get_context(method)
    made = ours.Manager(context)
    try:
        shared, numbers = made.dict(), made.list()
        space, value = made.Namespace(), made.Value("O", None)
        shared["nested"] = made.list()
        children = [context.Process(target=work, args=(shared, numbers, space, value, n)) for n in range(3)]
        for child in children:
            child.start()
        for child in children:
            child.join(60)
            assert child.exitcode == 0
        assert [shared[n] for n in range(3)] == [child.pid for child in children]
        assert sorted(numbers) == sorted([0, 1, 2] * 50)
        assert space.seen and value.value["nested"][:].sort() is None
        assert sorted(shared["nested"]) == [0, 1, 2]
    finally:
        made.shutdown()


def change_for_ever(shared, numbers):
    number = 0
    while True:
        number += 1
        shared[number % 50] = "x" * (number % 300)
        shared.pop((number * 7) % 50, None)
        numbers.append(number)
        if len(numbers) > 20:
            numbers.pop(0)
            numbers.pop()
            numbers.insert(3, -number)
            numbers.reverse()


def test_killed_in_the_middle_again_and_again():
    context = multiprocessing.get_context("fork")
    made = ours.Manager(context)
    try:
        shared, numbers = made.dict(), made.list()
        for round in range(20):
            child = context.Process(target=change_for_ever, args=(shared, numbers))
            child.start()
            time.sleep(0.02 + round * 0.002)
            os.kill(child.pid, signal.SIGKILL)
            child.join(60)
            items = shared.items()
            assert len(items) == len(shared) and all(shared[key] == value for key, value in items)
            assert all(set(value) <= {"x"} for _, value in items)
            shared["mine"] = "x" * round
            # Each killed between its append and its pops leaves one more for good.
            assert len(numbers) == len(list(numbers)) <= 22 + round
    finally:
        made.shutdown()


def test_registered_before_install_and_started_after(tmp_path):
    text = """
import multiprocessing, queue, threading
from multiprocessing.managers import BaseManager
class Mine(BaseManager): pass
made = queue.Queue, threading.Event
Mine.register("event", threading.Event)
Mine.register("queue", queue.Queue)
import phalanx; phalanx.install()
if __name__ == "__main__":
    assert (queue.Queue, threading.Event) != made
    for method in ("fork", "spawn"):
        with Mine(ctx=multiprocessing.get_context(method)) as manager:
            event, queue = manager.event(), manager.queue()
            event.set()
            queue.put(event.is_set())
            print(queue.get())
        with multiprocessing.get_context(method).Manager() as manager:
            shared = manager.dict(lock=manager.Lock())
            with shared["lock"]:
                print(type(shared).__module__)
"""
    script = tmp_path / "script.py"
    script.write_text(text)
    assert run_script(str(script)) == "True\nphalanx.managers\n" * 2


def test_threads_share_one_proxy(manager):
    shared = manager.dict(n=0)
    lock = threading.Lock()

    def add():
        for _ in range(500):
            with lock:
                shared["n"] += 1

    threads = [threading.Thread(target=add) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert shared["n"] == 2000


def test_memory_comes_back(manager):
    from phalanx import _engine

    def use():
        shared = manager.dict()
        inner = manager.list(range(100))
        for number in range(500):
            shared[number % 10] = [inner, "x" * 5000]
        shared.clear()

    use()
    before = _engine.usage()[0]
    for _ in range(5):
        use()
    assert _engine.usage()[0] <= before + 2
