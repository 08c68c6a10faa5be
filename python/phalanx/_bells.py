"""Queues in event loops: coroutines that wait for a queue's bell."""

import asyncio
import collections
import weakref

# Of each loop: the coroutines that wait for a bell, by queue and side.
_waiting: "weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, dict]" = weakref.WeakKeyDictionary()


async def rung(queue, writable):
    """Wait until the queue's bell rings: there may be an item, or room. As a condition, it can be somebody else's by then."""
    loop = asyncio.get_running_loop()
    bells = _waiting.setdefault(loop, {})
    key = (id(queue), writable)
    waiters = bells.get(key)
    fd = queue._bell(writable)
    future = loop.create_future()
    if waiters is None:
        waiters = bells[key] = collections.deque()
        loop.add_reader(fd, _wake, queue, waiters, writable)
    waiters.append(future)
    try:
        await future
    finally:
        if future in waiters:
            waiters.remove(future)
        if not waiters and bells.get(key) is waiters:
            del bells[key]
            loop.remove_reader(fd)


def _wake(queue, waiters, writable):
    # The bell may still ring for what somebody else took.
    queue._settle()
    if not (queue._is_full() if writable else queue._len() == 0):
        for future in waiters:
            if not future.done():
                future.set_result(None)
                return
