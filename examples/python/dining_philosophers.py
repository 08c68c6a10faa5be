"""Five philosophers at a table, each a process, each taking the left fork first.

Sooner or later all of them have one fork and wait for the next. On the standard library that is the end of the evening:

    python examples/python/dining_philosophers.py                            # hangs
    python -m phalanx --deadlocks=raise examples/python/dining_philosophers.py   # who came last puts its fork down
"""

import multiprocessing
import sys
import time

MEALS = 5


def dine(name, left, right, table):
    table.wait()
    eaten = gave_way = 0
    while eaten < MEALS:
        try:
            with left:
                # Long enough for the neighbour to take its left fork, too.
                time.sleep(0.01)
                with right:
                    eaten += 1
        except RuntimeError:
            gave_way += 1
            # Who takes the fork again at once has it before the neighbour is awake.
            time.sleep(0.01)
    print(f"{name} ate {eaten} times and gave way {gave_way} times", flush=True)


if __name__ == "__main__":
    method = sys.argv[1] if len(sys.argv) > 1 else None
    ctx = multiprocessing.get_context(method)
    names = ["Plato", "Hypatia", "Confucius", "Avicenna", "Arendt"]
    forks = [ctx.Lock() for _ in names]
    table = ctx.Barrier(len(names))
    philosophers = [
        ctx.Process(target=dine, args=(name, forks[i], forks[(i + 1) % len(forks)], table), name=name, daemon=True)
        for i, name in enumerate(names)
    ]
    for philosopher in philosophers:
        philosopher.start()
    for philosopher in philosophers:
        philosopher.join()
    print("all have eaten")
