"""mpire: its WorkerPool with shared objects, worker state, lazy and unordered maps, over fork and spawn, and an error."""

from mpire import WorkerPool


def prepare(state):
    state["calls"] = 0


def work(table, state, n):
    state["calls"] += 1
    return table[n % len(table)] + n


def finish(state):
    return state["calls"]


def fail(n):
    if n == 7:
        raise ValueError(f"not {n}")
    return n


def square(n):
    return n * n


def main():
    table = list(range(100))
    with WorkerPool(n_jobs=2, shared_objects=table, use_worker_state=True) as pool:
        print(sum(pool.map(work, range(2000), worker_init=prepare, worker_exit=finish)))
        print(sum(pool.get_exit_results()))
    with WorkerPool(n_jobs=2, start_method="spawn") as pool:
        print(sum(pool.imap(square, range(500), chunk_size=20)))
        print(sum(pool.imap_unordered(square, range(500))))
        print(pool.apply(square, 12))
    try:
        with WorkerPool(n_jobs=2) as pool:
            pool.map(fail, range(20))
    except ValueError as error:
        print(type(error).__name__, str(error).splitlines()[-1])


if __name__ == "__main__":
    main()
