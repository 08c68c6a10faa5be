"""pandarallel: a data frame's apply and groupby in two processes, by pipe and by memory file; then a Pool of our own on chunks."""

import multiprocessing

import numpy as np
import pandas as pd
from pandarallel import pandarallel


def both(row):
    return row.a * 2 + row.b


def mean_of(group):
    return group.b.mean()


def total(frame):
    return frame.assign(sum=frame.a + frame.b)


def main():
    frame = pd.DataFrame({"a": np.arange(2000), "b": np.arange(2000) % 7, "key": np.arange(2000) % 5})
    for memory in (False, True):
        pandarallel.initialize(nb_workers=2, progress_bar=False, use_memory_fs=memory, verbose=0)
        print(int(frame.parallel_apply(both, axis=1).sum()), frame.a.parallel_map(lambda n: n % 3).value_counts().sort_index().tolist())
    print(frame.groupby("key")[["a", "b"]].parallel_apply(mean_of).round(6).to_dict())
    parts = [frame.iloc[start::4] for start in range(4)]
    with multiprocessing.Pool(2) as pool:
        print(int(pd.concat(pool.map(total, parts))["sum"].sum()))


if __name__ == "__main__":
    main()
