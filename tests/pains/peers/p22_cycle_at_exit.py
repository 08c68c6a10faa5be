"""loky: a pool in a cycle at exit."""

from _peer import need


class Holder:
    def __init__(self, loky):
        self.me = self
        self.pool = loky.ProcessPoolExecutor(2)
        self.result = self.pool.submit(abs, -1)


if __name__ == "__main__":
    holder = Holder(need("loky"))
    assert holder.result.result(20) == 1
    print("good", flush=True)
