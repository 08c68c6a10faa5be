"""loky: a script without a main guard."""

from _peer import need

# No `if __name__ == "__main__"` here: that is the point.
loky = need("loky")
with loky.ProcessPoolExecutor(2) as workers:
    assert workers.submit(abs, -1).result(15) == 1
print("good")
