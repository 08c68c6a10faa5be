"""The Python tables: the standard library, its peers and phalanx, interleaved in one run.

    python bench.py [--group NAME] [--rounds N] [--quick]

Every figure is of a fresh process; the contenders take turns within a round, the median over the rounds is shown. For
phalanx the very code of the standard library runs, after ``phalanx.install()``. Two workers throughout.
"""

# Children of spawn import this file again: what is heavy is imported where it is used.
import argparse
import os
import sys
import time

if os.environ.get("PHALANX_BENCH_NUMPY"):
    import numpy  # noqa: F401  a main module with a heavy import is what is measured

MEGABYTE = 1 << 20
WORKERS = 2
# Seconds for one figure.
PATIENCE = 60


def trivial(n):
    return n


def total(array, n=0):
    return float(array[n]) + len(array)


def make(n):
    import numpy

    return numpy.ones(n)


def clock(action):
    begun = time.perf_counter()
    action()
    return time.perf_counter() - begun


# Pools. Figures are microseconds per task.


def pool_row(use):
    def run(mp, n):
        with mp.Pool(WORKERS) as pool:
            pool.map(trivial, range(200))
            return clock(lambda: use(pool, n)) / n * 1e6

    return run


def executor_row(mp, n):
    from concurrent.futures import ProcessPoolExecutor

    with ProcessPoolExecutor(WORKERS) as executor:
        list(executor.map(trivial, range(20)))
        return clock(lambda: list(executor.map(trivial, range(n)))) / n * 1e6


def submit_row(mp, n):
    from concurrent.futures import ProcessPoolExecutor

    with ProcessPoolExecutor(WORKERS) as executor:
        list(executor.map(trivial, range(20)))
        return clock(lambda: [one.result() for one in [executor.submit(trivial, k) for k in range(n)]]) / n * 1e6


def loky_map(chunk):
    def run(n):
        import loky

        executor = loky.get_reusable_executor(WORKERS)
        list(executor.map(trivial, range(20)))
        return clock(lambda: list(executor.map(trivial, range(n), chunksize=chunk))) / n * 1e6

    return run


def joblib_map(batch):
    def run(n):
        from joblib import Parallel, delayed

        with Parallel(WORKERS, batch_size=batch) as parallel:
            parallel(delayed(trivial)(k) for k in range(20))
            return clock(lambda: parallel(delayed(trivial)(k) for k in range(n))) / n * 1e6

    return run


def mpire_map(name, **options):
    def run(n):
        import mpire

        with mpire.WorkerPool(WORKERS, keep_alive=True) as pool:
            pool.map(trivial, range(200))
            return clock(lambda: list(getattr(pool, name)(trivial, range(n), **options))) / n * 1e6

    return run


def pebble_map(chunk):
    def run(n):
        import pebble

        with pebble.ProcessPool(WORKERS) as pool:
            list(pool.map(trivial, range(20), chunksize=10).result())
            return clock(lambda: list(pool.map(trivial, range(n), chunksize=chunk).result())) / n * 1e6

    return run


# Queues. Figures are microseconds per item.


def send(queue, n, ready):
    ready.wait()
    for k in range(n):
        queue.put(k)


def take(queue, n, ready):
    ready.wait()
    for _ in range(n):
        queue.get()


def echo(inward, outward, n):
    for _ in range(n):
        outward.put(inward.get())


def flow(sides):
    def run(mp, n, queue=None):
        import multiprocessing

        queue = mp.Queue() if queue is None else queue
        ready = multiprocessing.Event()
        jobs = [(send, n // sides)] * sides + [(take, n // sides)] * sides
        children = [mp.Process(target=job, args=(queue, count, ready)) for job, count in jobs]
        for child in children:
            child.start()
        time.sleep(0.2)

        def work():
            ready.set()
            for child in children:
                child.join()

        return clock(work) / n * 1e6

    return run


def ping_pong(mp, n, queues=None):
    there, back = queues or (mp.Queue(), mp.Queue())
    child = mp.Process(target=echo, args=(there, back, n + 10))
    child.start()

    def work(rounds):
        for k in range(rounds):
            there.put(k)
            back.get()

    work(10)
    seconds = clock(lambda: work(n))
    child.join()
    return seconds / n * 1e6


def put_get(mp, n, queue=None):
    queue = mp.Queue() if queue is None else queue

    def work():
        for k in range(n):
            queue.put(k)
            queue.get()

    return clock(work) / n * 1e6


def fifo(run, count=1):
    def with_fifo(n):
        import multiprocessing

        import faster_fifo

        queues = [faster_fifo.Queue(16 * MEGABYTE) for _ in range(count)]
        return run(multiprocessing, n, queues[0] if count == 1 else queues)

    return with_fifo


# Arrays of 100 MB. Figures are milliseconds.


def median_of(action, rounds=3):
    times = sorted(clock(action) for _ in range(rounds))
    return times[rounds // 2] * 1e3


def memcpy(n):
    import numpy

    source, warm = make(n), make(n)
    return median_of(lambda: numpy.copyto(warm, source), 5)


def through_queue(mp, n):
    array, queue, back = make(n), mp.Queue(), mp.Queue()
    child = mp.Process(target=lengths, args=(queue, back))
    child.start()
    queue.put(array[:10])
    back.get()

    def work():
        queue.put(array)
        back.get()

    work()
    found = median_of(work)
    queue.put(None)
    child.join()
    return found


def lengths(queue, back):
    while (array := queue.get()) is not None:
        back.put(len(array))


def as_argument(mp, n):
    array = make(n)
    with mp.Pool(WORKERS) as pool:
        pool.apply(total, (array,))
        return median_of(lambda: pool.apply(total, (array,)))


def eight_hundred(mp, n):
    """In copies by numpy of as much: the second transfer."""
    array = make(n)
    with mp.Pool(1) as pool:
        pool.apply(total, (array,))
        seconds = clock(lambda: pool.apply(total, (array,)))
    return seconds * 1e3 / memcpy(n)


def joblib_eight_hundred(n):
    from joblib import Parallel, delayed

    array = make(n)
    with Parallel(1 + 1) as parallel:
        parallel([delayed(total)(array, 0)])
        seconds = clock(lambda: parallel([delayed(total)(array, 0)]))
    return seconds * 1e3 / memcpy(n)


kept = None


def keep(n):
    global kept
    kept = make(n)


def give(_):
    return kept


def as_result(mp, n):
    with mp.Pool(1, initializer=keep, initargs=(n,)) as pool:
        pool.apply(give, (0,))
        return median_of(lambda: pool.apply(give, (0,)))


def to_twenty(mp, n):
    array = make(n)
    with mp.Pool(WORKERS) as pool:
        pool.map(trivial, range(4))
        return clock(lambda: pool.starmap(total, [(array, k) for k in range(20)])) * 1e3


def joblib_to(tasks):
    def run(n):
        from joblib import Parallel, delayed

        array = make(n)
        with Parallel(WORKERS) as parallel:
            parallel(delayed(trivial)(k) for k in range(4))
            return clock(lambda: parallel(delayed(total)(array, k) for k in range(tasks))) * 1e3

    return run


def loky_argument(n):
    import loky

    array, executor = make(n), loky.get_reusable_executor(WORKERS)
    executor.submit(total, array).result()
    return median_of(lambda: executor.submit(total, array).result())


# Locks and the rest. Figures are nanoseconds per pair, microseconds per round.


def plain(name):
    def run(mp, n):
        lock = getattr(mp, name)()
        acquire, release = lock.acquire, lock.release

        def work():
            for _ in range(n):
                acquire()
                release()

        return clock(work) / n * 1e9

    return run


def inside_with(name):
    def run(mp, n):
        lock = getattr(mp, name)()

        def work():
            for _ in range(n):
                with lock:
                    pass

        return clock(work) / n * 1e9

    return run


def event_rounds(mine, other, n):
    for _ in range(n):
        mine.wait()
        mine.clear()
        other.set()


def condition_rounds(condition, turn, me, n):
    for _ in range(n):
        with condition:
            while turn[0] != me:
                condition.wait()
            turn[0] = 1 - me
            condition.notify()


def barrier_rounds(barrier, n):
    for _ in range(n):
        barrier.wait()


def semaphore_rounds(mine, other, n):
    for _ in range(n):
        mine.acquire()
        other.release()


def second(start, target, arguments, n):
    def work():
        partner = start(target=target, args=(*arguments[1], n))
        partner.start()
        target(*arguments[0], n)
        partner.join()

    few = clock(lambda: work()) / n * 1e6
    return few


def by_processes(what):
    def run(mp, n):
        return rounds_of(what, mp, mp.Process, lambda: mp.RawArray("i", 1), n)

    return run


def by_threads(what):
    def run(mp, n):
        import threading

        return rounds_of(what, threading, threading.Thread, lambda: [0], n)

    return run


def rounds_of(what, source, start, cell, n):
    if what == "Event":
        one, two = source.Event(), source.Event()
        one.set()
        return second(start, event_rounds, ((one, two), (two, one)), n)
    if what == "Condition":
        condition, turn = source.Condition(), cell()
        return second(start, condition_rounds, ((condition, turn, 0), (condition, turn, 1)), n)
    if what == "Semaphore":
        one, two = source.Semaphore(1), source.Semaphore(0)
        return second(start, semaphore_rounds, ((one, two), (two, one)), n)
    barrier = source.Barrier(2)
    return second(start, barrier_rounds, ((barrier,), (barrier,)), n)


def thread_queue(mp, n):
    import queue
    import threading

    line = queue.Queue()
    sender = threading.Thread(target=lambda: [line.put(k) for k in range(n)])

    def work():
        sender.start()
        for _ in range(n):
            line.get()
        sender.join()

    return clock(work) / n * 1e6


def thread_put_get(mp, n):
    import queue

    return put_get(mp, n, queue.Queue())


def manager_dict(mp, n):
    with mp.Manager() as manager:
        shared = manager.dict()

        def work():
            for k in range(n):
                shared[k & 63] = k
                shared[k & 63]

        work()
        return clock(work) / n / 2 * 1e6


def value_row(mp, n):
    value = mp.Value("q", 0)

    def work():
        for _ in range(n):
            with value.get_lock():
                value.value += 1

    return clock(work) / n * 1e9


# Starts. Figures are milliseconds.


def nothing():
    pass


def start_of(method):
    def run(mp, n):
        context = mp.get_context(method)

        def work():
            child = context.Process(target=nothing)
            child.start()
            child.join()

        # The server of forkserver is started once.
        work()
        times = sorted(clock(work) for _ in range(n))
        return times[n // 2] * 1e3

    return run


def first_result(method):
    def run(mp, n):
        pools = []

        def work():
            pools.append(mp.get_context(method).Pool(WORKERS))
            pools[0].apply(trivial, (1,))

        seconds = clock(work)
        pools[0].terminate()
        pools[0].join()
        return seconds * 1e3

    return run


def import_of(name):
    def run(n):
        return clock(lambda: __import__(name)) * 1e3

    return run


# Memory. The figure is the PSS of the tree with the array, over that of array and idle workers.


def pss():
    pages, tree = 0, {os.getpid()}
    parents = {}
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{name}/stat") as file:
                parents[int(name)] = int(file.read().rpartition(")")[2].split()[1])
        except OSError:
            continue
    grew = True
    while grew:
        more = {pid for pid, parent in parents.items() if parent in tree} - tree
        tree |= more
        grew = bool(more)
    for pid in tree:
        try:
            with open(f"/proc/{pid}/smaps_rollup") as file:
                pages += next(int(line.split()[1]) for line in file if line.startswith("Pss:"))
        except (OSError, StopIteration):
            continue
    return pages * 1024


def hold(array, n):
    # Long enough for the look at the tree while every worker has the array.
    time.sleep(1.5)
    return total(array, n)


def broadcast_memory(mp, n):
    with mp.Pool(8) as pool:
        pool.map(time.sleep, [0.05] * 8, chunksize=1)
        idle = pss()
        array = make(n)
        pending = pool.starmap_async(hold, [(array, k) for k in range(8)], chunksize=1)
        most = 0
        while not pending.ready():
            most = max(most, pss())
            time.sleep(0.1)
        pending.get()
        return most / (idle + array.nbytes)


def joblib_memory(n):
    from joblib import Parallel, delayed

    with Parallel(8) as parallel:
        parallel(delayed(time.sleep)(0.05) for _ in range(8))
        idle = pss()
        array = make(n)
        import threading

        done = []
        work = threading.Thread(target=lambda: done.append(parallel(delayed(hold)(array, k) for k in range(8))))
        work.start()
        most = 0
        while work.is_alive():
            most = max(most, pss())
            time.sleep(0.1)
        return most / (idle + array.nbytes)


TWINS = ("multiprocess", "billiard")
HUNDRED = 100 * MEGABYTE // 8


class Row:
    """A line of a table: what runs on the standard library, on phalanx and on those with its API, and who else."""

    def __init__(self, group, title, unit, limit, count, run, twins=(), peers=None, numpy=False, once=False):
        self.group, self.title, self.unit, self.limit, self.count = group, title, unit, limit, count
        self.numpy, self.once = numpy, once
        self.contenders = {"stdlib": run, "phalanx": run} if run else {}
        self.contenders.update({name: run for name in twins})
        self.contenders.update(peers or {})


def rows():
    """Return the tables. A limit names how many times faster than the standard library, or how many memcpys."""
    found = [
        Row("pool", "Pool.map, chunks of 1", "µs/task", "10 x", 20_000, pool_row(lambda pool, n: pool.map(trivial, range(n), 1)), TWINS,
            {"loky": loky_map(1), "joblib": joblib_map(1), "mpire": mpire_map("map", chunk_size=1), "pebble": pebble_map(1)}),
        Row("pool", "Pool.map, own chunks", "µs/task", "1 x", 100_000, pool_row(lambda pool, n: pool.map(trivial, range(n))), TWINS,
            {"joblib": joblib_map("auto"), "mpire": mpire_map("map")}),
        Row("pool", "apply_async, one by one", "µs/task", "5 x", 10_000,
            pool_row(lambda pool, n: [one.get() for one in [pool.apply_async(trivial, (k,)) for k in range(n)]]), TWINS),
        Row("pool", "imap_unordered", "µs/task", "8 x", 20_000, pool_row(lambda pool, n: list(pool.imap_unordered(trivial, range(n)))), TWINS,
            {"mpire": mpire_map("imap_unordered", chunk_size=1)}),
        Row("pool", "imap", "µs/task", "8 x", 20_000, pool_row(lambda pool, n: list(pool.imap(trivial, range(n)))), TWINS),
        Row("executor", "ProcessPoolExecutor.map", "µs/task", "10 x", 5_000, executor_row, (), {"loky": loky_map(1), "pebble": pebble_map(1)}),
        Row("executor", "ProcessPoolExecutor.submit", "µs/task", "5 x", 5_000, submit_row),
        Row("queue", "Queue, 1 to 1", "µs/item", "10 x", 60_000, flow(1), TWINS, {"faster-fifo": fifo(flow(1))}),
        Row("queue", "Queue, 2 to 2", "µs/item", "10 x", 60_000, flow(2), TWINS, {"faster-fifo": fifo(flow(2))}),
        Row("queue", "Queue, ping-pong", "µs/round", "3 x", 4_000, ping_pong, TWINS, {"faster-fifo": fifo(ping_pong, 2)}),
        Row("queue", "Queue, put and get", "µs/pair", "10 x", 30_000, put_get, TWINS, {"faster-fifo": fifo(put_get)}),
        Row("arrays", "one memcpy of 100 MB", "ms", "", HUNDRED, None, (), {"numpy": memcpy}),
        Row("arrays", "100 MB through a Queue", "ms", "1.5 memcpy", HUNDRED, through_queue, TWINS),
        Row("arrays", "100 MB as an argument", "ms", "1.5 memcpy", HUNDRED, as_argument, TWINS, {"loky": loky_argument, "joblib": joblib_to(1)}),
        Row("arrays", "800 MB to one worker", "copies", "1.5", 8 * HUNDRED, eight_hundred, (), {"joblib": joblib_eight_hundred}, once=True),
        Row("arrays", "100 MB as a result", "ms", "1.5 memcpy", HUNDRED, as_result, TWINS),
        Row("arrays", "100 MB to 20 tasks", "ms", "1.5 memcpy", HUNDRED, to_twenty, (), {"joblib": joblib_to(20)}, once=True),
        Row("arrays", "memory, 200 MB to 8 workers", "ratio", "1.1", 2 * HUNDRED, broadcast_memory, (), {"joblib": joblib_memory}, once=True),
        Row("manager", "Manager().dict(), get or set", "µs", "10 x", 3_000, manager_dict, ("multiprocess",)),
        Row("locks", "Value, += under its lock", "ns", "3 x", 100_000, value_row, TWINS),
    ]
    for name in ("Lock", "RLock", "Semaphore"):
        found += [
            Row("locks", f"{name}, acquire and release", "ns", "1 x", 200_000, plain(name), TWINS),
            Row("locks", f"{name}, with", "ns", "3 x", 200_000, inside_with(name), TWINS),
        ]
    for name in ("Event", "Condition", "Barrier", "Semaphore"):
        found += [
            Row("rounds", f"{name}, rounds of 2 processes", "µs", "3 x", 3_000, by_processes(name), TWINS),
            Row("threads", f"threading.{name}, rounds", "µs", "2 x", 5_000, by_threads(name)),
        ]
    found += [
        Row("threads", "queue.Queue, put and get", "µs", "2 x", 100_000, thread_put_get),
        Row("threads", "queue.Queue, 2 threads", "µs/item", "2 x", 50_000, thread_queue),
    ]
    for method, limit in (("fork", "1 x"), ("forkserver", "1 x"), ("spawn", "1 x")):
        for heavy in (False, True):
            after = ", main imports numpy" if heavy else ""
            found.append(Row("start", f"Process, {method}{after}", "ms", limit, 7, start_of(method), numpy=heavy))
        found.append(Row("start", f"Pool(2) to a result, {method}", "ms", "2 x", 1, first_result(method)))
    found.append(Row("start", "import", "ms", "1.3", 1, None, (), {"stdlib": import_of("multiprocessing"), "phalanx": import_of("phalanx")}))
    return found


def one(title, who, count):
    """Measure one figure in this process and print it."""
    import importlib

    row = next(row for row in rows() if row.title == title)
    run = row.contenders[who]
    if who in ("stdlib", "phalanx", *TWINS) and run.__code__.co_argcount > 1:
        if who == "phalanx":
            import phalanx

            phalanx.install()
        library = importlib.import_module(who if who in TWINS else "multiprocessing")
        print(f"figure {run(library, count)}")
    else:
        print(f"figure {run(count)}")


def figure(row, who, count):
    """Return a figure, or the reason why there is none."""
    import signal
    import subprocess

    surroundings = {**os.environ, "PYTHONWARNINGS": "ignore"}
    if row.numpy:
        surroundings["PHALANX_BENCH_NUMPY"] = "1"
    command = [sys.executable, __file__, "--one", row.title, who, str(count)]
    child = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=surroundings, start_new_session=True
    )
    try:
        out, err = child.communicate(timeout=PATIENCE)
    except subprocess.TimeoutExpired:
        return "hangs"
    finally:
        # What it started is in its session; nothing of that may run beside the next figure. Trackers are given the time to
        # take away what they know of.
        until = time.monotonic() + 3
        try:
            while child.returncode is not None and time.monotonic() < until:
                os.killpg(child.pid, 0)
                time.sleep(0.02)
            os.killpg(child.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        child.wait()
    for line in out.splitlines():
        if line.startswith("figure "):
            return float(line.removeprefix("figure "))
    return (err.strip().splitlines() or [f"exit code {child.returncode}"])[-1]


def show(number):
    return f"{number:.0f}" if number >= 100 else f"{number:.1f}" if number >= 10 else f"{number:.2f}"


def present(contender):
    """Tell whether a contender is installed."""
    from importlib.util import find_spec

    names = {"stdlib": "multiprocessing", "faster-fifo": "faster_fifo"}
    return find_spec(names.get(contender, contender)) is not None


def measure(row, rounds, quick):
    from statistics import median

    count = max(1, row.count // 20) if quick and not row.numpy else row.count
    figures = {who: [] for who in row.contenders if present(who)}
    reasons = {}
    order = list(figures)
    for turn in range(1 if row.once else rounds):
        for who in order if turn % 2 == 0 else order[::-1]:
            if who in reasons:
                continue
            found = figure(row, who, count)
            if isinstance(found, str):
                reasons[who] = found
            else:
                figures[who].append(found)
    return {who: median(found) for who, found in figures.items() if found}, reasons


def main():
    arguments = argparse.ArgumentParser(description="measure phalanx beside the standard library and its peers")
    arguments.add_argument("--group", action="append", default=[], choices=sorted({row.group for row in rows()}))
    arguments.add_argument("--rounds", type=int, default=3, help="figures of each contender; their median is shown")
    arguments.add_argument("--quick", action="store_true", help="few items, one round: that it runs, not how fast")
    arguments.add_argument("--one", nargs=3, metavar=("ROW", "WHO", "COUNT"), help=argparse.SUPPRESS)
    options = arguments.parse_args()
    if options.one:
        title, who, count = options.one
        return one(title, who, int(count))
    rounds = 1 if options.quick else options.rounds
    print(f"CPython {sys.version.split()[0]}, {os.cpu_count()} cores, {WORKERS} workers, median of {rounds}\n")
    print("| what | unit | stdlib | phalanx | times | limit | others |\n|---|---|---|---|---|---|---|", flush=True)
    copy, failures, slower = None, [], []
    for row in rows():
        if options.group and row.group not in options.group:
            continue
        found, reasons = measure(row, rounds, options.quick)
        failures += [f"{row.title}, {who}: {reason}" for who, reason in reasons.items()]
        others = {who: number for who, number in found.items() if who not in ("stdlib", "phalanx")}
        copy = others.get("numpy", copy)
        stock, ours = found.get("stdlib"), found.get("phalanx")
        times = f"{stock / ours:.2f}" if stock and ours else "—"
        if ours and copy and row.limit.endswith("memcpy"):
            times += f" ({ours / copy:.2f} memcpy)"
            met = ours / copy <= float(row.limit.split()[0])
        elif ours and row.limit.endswith(" x"):
            met = bool(stock) and stock / ours >= float(row.limit.split()[0])
        elif ours and row.unit in ("ratio", "copies"):
            met = ours <= float(row.limit)
        else:
            met = not ours or not stock or ours / stock <= float(row.limit or 1)
        if not met:
            slower.append(row.title)
        cells = [row.title, row.unit, show(stock) if stock else "—", show(ours) if ours else "—", times]
        cells += [row.limit if met else f"**{row.limit}**", ", ".join(f"{who} {show(number)}" for who, number in others.items())]
        print("| " + " | ".join(cells) + " |", flush=True)
    print(f"\nA limit in bold was not met: {len(slower)} of the rows." if slower else "\nEvery limit was met.")
    for line in failures:
        print(f"No figure: {line}")
    return 1 if any("phalanx:" in line for line in failures) else 0


if __name__ == "__main__":
    sys.exit(main())
