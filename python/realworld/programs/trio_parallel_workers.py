"""trio-parallel: workers of its own by each method, cancelled, failing and dying."""

import operator
import os
import time

import trio
import trio_parallel


def fail():
    raise ValueError("no")


def die():
    os._exit(7)


async def use(kind):
    async with trio_parallel.open_worker_context(worker_type=kind) as context:
        print(kind.name, await context.run_sync(operator.mul, 6, 7))
        for task in (fail, die):
            try:
                await context.run_sync(task)
            except (ValueError, trio_parallel.BrokenWorkerError) as error:
                print(type(error).__name__)
        squares = []

        async def one(n):
            squares.append(await context.run_sync(pow, n, 2))

        async with trio.open_nursery() as nursery:
            for n in range(10):
                nursery.start_soon(one, n)
        print(sorted(squares))
        with trio.move_on_after(0.3) as scope:
            await context.run_sync(time.sleep, 60, kill_on_cancel=True)
        print(scope.cancelled_caught)


async def main():
    for kind in trio_parallel.WorkerType:
        await use(kind)


if __name__ == "__main__":
    trio.run(main)
