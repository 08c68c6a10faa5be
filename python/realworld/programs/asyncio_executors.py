"""asyncio: calls in a process pool and a thread pool by run_in_executor, subprocesses and a queue of the event loop beside them."""

import asyncio
import multiprocessing
import os
import sys
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor


def square(n):
    return n * n


def fail(n):
    raise ValueError(f"no {n}")


async def child(n):
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-S", "-c", f"print({n} ** 3)", stdout=asyncio.subprocess.PIPE
    )
    out, _ = await process.communicate()
    return int(out), process.returncode


async def main():
    loop = asyncio.get_running_loop()
    for method in ("fork", "spawn", "forkserver"):
        with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context(method)) as processes, ThreadPoolExecutor(2) as threads:
            calls = [loop.run_in_executor(processes, square, n) for n in range(20)]
            calls += [loop.run_in_executor(threads, square, n) for n in range(20)]
            children = [child(n) for n in range(3)]
            print(method, sum(await asyncio.gather(*calls)), await asyncio.gather(*children))
            try:
                await loop.run_in_executor(processes, fail, 7)
            except ValueError as error:
                print(error, type(error.__cause__).__name__)
            done, pending = await asyncio.wait([loop.run_in_executor(processes, os.getpid) for _ in range(4)], timeout=60)
            print(len(done), len(pending), os.getpid() not in {one.result() for one in done})
    print(await asyncio.to_thread(square, 9))


if __name__ == "__main__":
    asyncio.run(main())
