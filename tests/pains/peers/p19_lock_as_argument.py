"""billiard: locks and queues as arguments."""

from _peer import need


def work(lock, queue, number):
    with lock:
        queue.put(number)


if __name__ == "__main__":
    billiard = need("billiard")
    workers = billiard.Pool(2)
    try:
        lock, queue = billiard.Lock(), billiard.Queue()
        workers.starmap(work, [(lock, queue, number) for number in range(4)])
        assert sorted(queue.get(timeout=5) for _ in range(4)) == [0, 1, 2, 3]
    finally:
        workers.terminate()
        workers.join()
    print("good")
