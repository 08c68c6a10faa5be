"""dask.distributed: its own cluster, worker processes by spawn under nannies that start them again when they die."""

import os

from distributed import Client, LocalCluster


def square(n):
    return n * n


def die_once(path):
    if os.path.exists(path):
        return "again"
    open(path, "w").close()
    os._exit(1)


def main():
    with (
        LocalCluster(n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None) as cluster,
        Client(cluster) as client,
    ):
        print(sum(client.gather(client.map(square, range(100)))))
        print(client.submit(die_once, os.path.abspath("died"), retries=2).result())
        print(len(set(client.run(os.getpid).values())))


if __name__ == "__main__":
    main()
