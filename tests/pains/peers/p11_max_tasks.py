"""Pebble: workers replaced after some tasks."""

from _peer import need


def work(number):
    return number


if __name__ == "__main__":
    pebble = need("pebble")
    with pebble.ProcessPool(1, max_tasks=2) as workers:
        assert [workers.schedule(work, args=[n]).result(20) for n in range(10)] == list(range(10))
    print("good")
