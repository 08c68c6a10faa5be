"""Data that processes share without a copy: values, arrays, named memory, a manager's objects.

Written against the standard library alone.
"""

import math
import multiprocessing
from multiprocessing import shared_memory


def fill(numbers, part, parts):
    """Each process has a part of its own, and needs no lock."""
    size = len(numbers) // parts
    for index in range(part * size, (part + 1) * size):
        numbers[index] = math.sqrt(index)


def count(counter):
    for _ in range(500):
        with counter.get_lock():
            counter.value += 1


def read_named(name, results):
    memory = shared_memory.SharedMemory(name)
    results.put(bytes(memory.buf[:5]))
    memory.close()


def note(notes, where):
    notes[where] = where * where


def run(target, *argument_lists):
    processes = [multiprocessing.Process(target=target, args=args) for args in argument_lists]
    for process in processes:
        process.start()
    for process in processes:
        process.join()


def main():
    numbers, parts = multiprocessing.RawArray("d", 100_000), 4
    run(fill, *((numbers, part, parts) for part in range(parts)))
    print(f"a hundred thousand square roots, filled by {parts} processes: {sum(numbers):.1f}")

    counter = multiprocessing.Value("L", 0)
    run(count, *[(counter,)] * 3)
    print("counted to", counter.value)

    memory, results = shared_memory.SharedMemory(create=True, size=4096), multiprocessing.SimpleQueue()
    memory.buf[:5] = b"hello"
    run(read_named, (memory.name, results))
    print("another process reads", results.get())
    memory.close()
    memory.unlink()

    with multiprocessing.Manager() as manager:
        notes = manager.dict()
        run(note, *((notes, where) for where in range(4)))
        print("noted by 4 processes:", dict(sorted(notes.items())))


if __name__ == "__main__":
    main()
