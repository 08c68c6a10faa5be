"""aiomultiprocess: coroutines in processes of their own, and its pool of them."""

import asyncio

from aiomultiprocess import Pool, Process, Worker


async def square(n):
    await asyncio.sleep(0)
    return n * n


async def refuse(n):
    raise ValueError(n)


async def main():
    process = Process(target=square, args=(3,))
    process.start()
    await process.join()
    print(process.exitcode)
    worker = Worker(target=square, args=(12,))
    worker.start()
    await worker.join()
    print(worker.result)
    async with Pool(processes=2) as pool:
        print(await pool.map(square, range(20)))
        print(await pool.apply(square, (9,)))
        print([value async for value in pool.map(square, range(5))])
        try:
            await pool.apply(refuse, (1,))
        except Exception as error:
            print(type(error).__name__)


if __name__ == "__main__":
    asyncio.run(main())
