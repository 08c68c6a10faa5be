"""``import phalanx as mp``: the names of ``multiprocessing``, and what its contexts make."""

import multiprocessing
import subprocess
import sys

import pytest

import phalanx as mp


def test_names_are_those_of_multiprocessing():
    assert set(multiprocessing.__all__) <= set(mp.__all__)
    for name in mp.__all__:
        assert getattr(mp, name) is not None
    assert set(mp.__all__) <= set(dir(mp))
    with pytest.raises(AttributeError):
        mp.no_such_name


@pytest.mark.parametrize("name", sorted(set(mp._SUBMODULES) - {"deadlocks"}))
def test_submodules_show_what_multiprocessing_has(name):
    import importlib

    stock = importlib.import_module(f"multiprocessing.{name}")
    ours = importlib.import_module(f"phalanx.{name}")
    for public in stock.__all__ if hasattr(stock, "__all__") else ():
        assert hasattr(ours, public)
    with pytest.raises(AttributeError):
        ours.no_such_name


def test_start_method_is_one_for_both():
    code = (
        "import multiprocessing, phalanx as mp\n"
        "mp.set_start_method('spawn')\n"
        "assert multiprocessing.get_start_method() == mp.get_start_method() == 'spawn'\n"
        "assert type(mp.get_context()).__name__ == 'SpawnContext'\n"
        "assert mp.get_context('fork').get_start_method() == 'fork'\n"
        "assert mp.get_all_start_methods() == multiprocessing.get_all_start_methods()\n"
        "try: mp.set_start_method('fork')\n"
        "except RuntimeError: pass\n"
        "else: raise AssertionError\n"
        "try: mp.get_context('horse')\n"
        "except ValueError: pass\n"
        "else: raise AssertionError\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def square(number):
    return number * number


def answer(queue, lock, value):
    with lock:
        value.value += 1
    queue.put(value.value)


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_contexts_make_what_works_in_their_children(method):
    context = mp.get_context(method)
    queue, lock, value = context.Queue(), context.Lock(), context.Value("i", 4)
    process = context.Process(target=answer, args=(queue, lock, value))
    process.start()
    assert queue.get(timeout=60) == 5
    process.join()
    assert process.exitcode == 0
    with context.Pool(2) as pool:
        assert pool.map(square, range(5)) == [0, 1, 4, 9, 16]
