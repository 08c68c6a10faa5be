"""numpy over shared_memory: workers of an executor fill and read one block by name; a manager of blocks; a Value."""

from concurrent.futures import ProcessPoolExecutor
from multiprocessing import Array, Manager, Process, Value
from multiprocessing.managers import SharedMemoryManager
from multiprocessing.shared_memory import ShareableList, SharedMemory

import numpy as np

SIZE = 400_000


def fill(name, begin, end):
    block = SharedMemory(name=name)
    view = np.ndarray((SIZE,), dtype=np.float64, buffer=block.buf)
    view[begin:end] = np.arange(begin, end)
    del view
    block.close()
    return end - begin


def count(value, cells, seen, n):
    for _ in range(n):
        with value.get_lock():
            value.value += 1
    with cells.get_lock():
        cells[n % len(cells)] += n
    seen[n] = n * n


def main():
    block = SharedMemory(create=True, size=SIZE * 8)
    view = np.ndarray((SIZE,), dtype=np.float64, buffer=block.buf)
    with ProcessPoolExecutor(2) as executor:
        step = SIZE // 8
        parts = [executor.submit(fill, block.name, n, n + step) for n in range(0, SIZE, step)]
        print(sum(part.result() for part in parts), float(view.sum()))
    del view
    block.close()
    block.unlink()
    with SharedMemoryManager() as manager:
        words = manager.ShareableList([1, 2.5, "three"])
        again = ShareableList(name=words.shm.name)
        print(list(again))
        again.shm.close()
    value, cells = Value("i", 0), Array("l", 4)
    with Manager() as manager:
        seen = manager.dict()
        children = [Process(target=count, args=(value, cells, seen, n)) for n in (100, 201, 302)]
        for child in children:
            child.start()
        for child in children:
            child.join()
        print(value.value, list(cells), sorted(seen.items()))


if __name__ == "__main__":
    main()
