"""A script without a main guard that makes a pool by spawn ends with one clear message instead of starting for ever."""

import multiprocessing as mp
import sys

# No `if __name__ == "__main__"` here: that is the point.
context = mp.get_context(sys.argv[1] if len(sys.argv) > 1 else "spawn")
with context.Pool(2) as workers:
    try:
        workers.map_async(abs, [-1]).get(15)
    except mp.TimeoutError:
        print("the pool starts workers for ever")
        raise SystemExit(1) from None
    except Exception as error:
        assert "main" in f"{error}", repr(error)
print("good")
