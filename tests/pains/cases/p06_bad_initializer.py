"""An initializer that raises breaks the pool with that exception, once."""

import concurrent.futures as cf
import multiprocessing as mp
import sys


def bad():
    raise ValueError("no such database")


def work(number):
    return number


def pool(context):
    workers = context.Pool(2, initializer=bad)
    try:
        workers.map_async(work, range(4)).get(15)
    except mp.TimeoutError:
        raise AssertionError("the pool starts workers for ever") from None
    except Exception as error:
        assert "no such database" in f"{error} {error.__cause__}", repr(error)
    else:
        raise AssertionError("a pool without workers has results")
    finally:
        workers.terminate()
        workers.join()


def executor(context):
    with cf.ProcessPoolExecutor(2, mp_context=context, initializer=bad) as workers:
        try:
            workers.submit(work, 1).result(15)
        except cf.process.BrokenProcessPool:
            pass
        else:
            raise AssertionError("a pool without workers has results")


if __name__ == "__main__":
    {"pool": pool, "executor": executor}[sys.argv[2]](mp.get_context(sys.argv[1]))
    print("good")
