"""Exceptions that cannot be rebuilt, and exits in a task: that task fails with an error that says so, nothing else does."""

import concurrent.futures as cf
import multiprocessing as mp
import sys


class TwoArguments(Exception):
    def __init__(self, first, second):
        super().__init__(first)


def work(kind):
    if kind == "rebuild":
        raise TwoArguments("the first", "the second")
    if kind == "exit":
        sys.exit(3)
    if kind == "base":
        raise KeyboardInterrupt
    return kind


KINDS = ["fine", "rebuild", "exit", "base", "good"]


def check(get):
    for position, kind in enumerate(KINDS):
        try:
            value = get(position)
        except mp.TimeoutError:
            raise AssertionError(f"{kind} was never reported") from None
        except BaseException as error:
            assert kind not in ("fine", "good"), f"{kind}: {error!r}"
            if kind == "rebuild":
                assert "TwoArguments" in f"{error!r} {error.__cause__}", repr(error)
        else:
            assert kind in ("fine", "good") and value == kind


def pool(context):
    with context.Pool(2) as workers:
        results = [workers.apply_async(work, (kind,)) for kind in KINDS]
        check(lambda position: results[position].get(15))


def executor(context):
    with cf.ProcessPoolExecutor(2, mp_context=context) as workers:
        futures = [workers.submit(work, kind) for kind in KINDS]
        check(lambda position: futures[position].result(15))


if __name__ == "__main__":
    {"pool": pool, "executor": executor}[sys.argv[2]](mp.get_context(sys.argv[1]))
    print("good")
