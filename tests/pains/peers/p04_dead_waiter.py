"""billiard: a dead waiter holds up nobody."""

import os
import signal
import threading
import time

from _peer import need


def wait_event(event, ready):
    ready.release()
    event.wait()


def wait_condition(condition, ready):
    with condition:
        ready.release()
        condition.wait()


def wait_barrier(barrier, ready):
    ready.release()
    try:
        barrier.wait()
    except threading.BrokenBarrierError:
        pass


def killed_waiter(context, target, thing):
    ready = context.Semaphore(0)
    child = context.Process(target=target, args=(thing, ready), daemon=True)
    child.start()
    assert ready.acquire(timeout=20)
    time.sleep(0.3)
    os.kill(child.pid, signal.SIGKILL)
    child.join()


def main(context):
    event = context.Event()
    killed_waiter(context, wait_event, event)
    event.set()
    assert event.is_set()

    condition = context.Condition()
    killed_waiter(context, wait_condition, condition)
    with condition:
        condition.notify_all()

    barrier = context.Barrier(3)
    killed_waiter(context, wait_barrier, barrier)
    begun = time.monotonic()
    try:
        barrier.wait(timeout=2)
    except threading.BrokenBarrierError:
        pass
    else:
        raise AssertionError("a barrier of three passed with one")
    assert time.monotonic() - begun < 5, "the barrier's time-out does not hold"


if __name__ == "__main__":
    main(need("billiard"))
    print("good")
