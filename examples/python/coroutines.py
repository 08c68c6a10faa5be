"""Results and queues in coroutines: a task's result is awaited, a queue is read with ``async for``."""

import asyncio
import time

import phalanx as mp


def slow_square(x):
    time.sleep(0.02)
    return x * x


def answer(queue):
    for text in ["one", "two", "three"]:
        time.sleep(0.005)
        queue.put(text)
    queue.put(None)


async def main():
    with mp.Pool(2) as pool:
        print("a task:", await pool.apply_async(slow_square, (3,)))
        one, two = pool.apply_async(slow_square, (4,)), pool.apply_async(slow_square, (5,))
        print("two tasks:", await one, await two)
        print("a map:", await pool.map_async(slow_square, range(4)))
        print("one by one:", [square async for square in pool.imap(slow_square, range(4))])

        queue = mp.Queue()
        process = mp.Process(target=answer, args=(queue,), daemon=True)
        process.start()
        async for text in queue:
            if text is None:
                break
            print("from the queue:", text)
        process.join()

        try:
            await asyncio.wait_for(pool.apply_async(time.sleep, (60,)), 0.05)
        except asyncio.TimeoutError:
            print("given up in time")


if __name__ == "__main__":
    asyncio.run(main())
