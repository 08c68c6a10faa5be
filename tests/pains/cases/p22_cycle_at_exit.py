"""A pool in a reference cycle that nobody closed: the program ends."""

import multiprocessing as mp
import sys


class Holder:
    def __init__(self, context):
        self.me = self
        self.pool = context.Pool(2)
        self.result = self.pool.map_async(abs, range(1000))


if __name__ == "__main__":
    holder = Holder(mp.get_context(sys.argv[1]))
    assert holder.result.get(20)[0] == 0
    print("good", flush=True)
