"""gevent: everything patched before anything else is imported, then greenlets, threads that are greenlets, queues, a pipe."""

from gevent import monkey

monkey.patch_all()

import multiprocessing  # noqa: E402
import queue  # noqa: E402
import threading  # noqa: E402

import gevent  # noqa: E402
from gevent.pool import Pool as GreenPool  # noqa: E402


def work(jobs, results, lock):
    while True:
        job = jobs.get()
        if job is None:
            return
        with lock:
            gevent.sleep(0)
            results.append(job * 2)


def double(n):
    return 2 * n


def main():
    jobs, results, lock = queue.Queue(), [], threading.RLock()
    threads = [threading.Thread(target=work, args=(jobs, results, lock)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for n in range(30):
        jobs.put(n)
    for _ in threads:
        jobs.put(None)
    for thread in threads:
        thread.join()
    print(sorted(results) == [2 * n for n in range(30)])

    event, seen = threading.Event(), []
    waiting = [gevent.spawn(lambda: seen.append(event.wait(20))) for _ in range(3)]
    gevent.sleep(0)
    event.set()
    gevent.joinall(waiting)
    print(seen, GreenPool(4).map(double, range(6)))

    condition = threading.Condition()

    def notify():
        with condition:
            condition.notify_all()

    with condition:
        gevent.spawn(notify)
        print(condition.wait(20))

    receiver, sender = multiprocessing.Pipe(duplex=False)
    with multiprocessing.Lock():
        sender.send([double(n) for n in range(5)])
    print(receiver.recv(), multiprocessing.Value("i", 3).value)


if __name__ == "__main__":
    main()
