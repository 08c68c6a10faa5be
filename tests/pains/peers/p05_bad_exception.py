"""mpire: an exception that cannot be rebuilt, an exit in a task."""

import sys

from _peer import need


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

if __name__ == "__main__":
    mpire = need("mpire")
    with mpire.WorkerPool(n_jobs=2) as workers:
        results = [workers.apply_async(work, (kind,)) for kind in KINDS]
        for kind, result in zip(KINDS, results):
            try:
                value = result.get(15)
            except TimeoutError:
                raise AssertionError(f"{kind} was never reported") from None
            except BaseException as error:
                assert kind not in ("fine", "good"), f"{kind}: {error!r}"
                if kind == "rebuild":
                    assert "TwoArguments" in f"{error!r} {error.__cause__}", repr(error)
            else:
                assert kind in ("fine", "good") and value == kind
    print("good")
