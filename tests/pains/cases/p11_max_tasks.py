"""Workers that are replaced after some tasks: all tasks are done."""

import concurrent.futures as cf
import multiprocessing as mp
import sys


def work(number):
    return number


def pool(context):
    with context.Pool(1, maxtasksperchild=2) as workers:
        assert [workers.apply_async(work, (n,)).get(20) for n in range(10)] == list(range(10))


def executor(context):
    if context.get_start_method() == "fork":
        # The executor refuses the combination by its documentation.
        context = mp.get_context("spawn")
    with cf.ProcessPoolExecutor(1, mp_context=context, max_tasks_per_child=2) as workers:
        futures = [workers.submit(work, n) for n in range(10)]
        assert [future.result(20) for future in futures] == list(range(10))


if __name__ == "__main__":
    {"pool": pool, "executor": executor}[sys.argv[2]](mp.get_context(sys.argv[1]))
    print("good")
