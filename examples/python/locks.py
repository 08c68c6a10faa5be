"""Locks across processes: they know their owner and survive its death."""

import os
import signal
import time
import warnings

import phalanx as mp


def add(lock, total, times):
    for _ in range(times):
        with lock:
            total.value += 1


def die_holding(lock):
    lock.acquire()
    os.kill(os.getpid(), signal.SIGKILL)


def meet(barrier, go, met):
    go.wait()
    met.put(barrier.wait())


def use_seat(seats, now, most):
    with seats:
        with now.get_lock():
            now.value += 1
            most.value = max(most.value, now.value)
        time.sleep(0.005)
        with now.get_lock():
            now.value -= 1


def run(target, *args, copies=1):
    processes = [mp.Process(target=target, args=args) for _ in range(copies)]
    for process in processes:
        process.start()
    return processes


def join(processes):
    for process in processes:
        process.join()


def main():
    lock, total = mp.Lock(), mp.RawValue("L", 0)
    join(run(add, lock, total, 1000, copies=4))
    print("4 processes added 1000 each:", total.value)

    join(run(die_holding, lock))
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        with lock:
            print("the next one has it, and is told:", told[0].category.__name__, "-", told[0].message)
        with lock:
            print("told once:", len(told) == 1)

    barrier, go, met = mp.Barrier(3), mp.Event(), mp.Queue()
    parties = run(meet, barrier, go, met, copies=3)
    go.set()
    print("met at the barrier:", sorted(met.get() for _ in range(3)))
    join(parties)

    seats, now, most = mp.Semaphore(2), mp.Value("i", 0), mp.RawValue("i", 0)
    join(run(use_seat, seats, now, most, copies=6))
    print(f"6 guests, 2 seats, never more than {most.value} at once")


if __name__ == "__main__":
    main()
