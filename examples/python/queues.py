"""Queues and pipes: bounded, joinable, duplex, waited for together.

Written against the standard library alone. (Its Rust twin is called ``queue``; a script of that name would hide the
standard library's module.)
"""

import multiprocessing
from multiprocessing.connection import wait


def produce(queue, name):
    for number in range(3):
        queue.put(f"{name}{number}")


def echo(pipe):
    while True:
        try:
            pipe.send(pipe.recv().upper())
        except EOFError:
            return


def work(jobs, done):
    while True:
        job = jobs.get()
        with done.get_lock():
            done.value += job
        jobs.task_done()


def main():
    queue = multiprocessing.Queue(2)
    producers = [multiprocessing.Process(target=produce, args=(queue, name)) for name in "ab"]
    for producer in producers:
        producer.start()
    print("received", sorted(queue.get() for _ in range(6)))
    for producer in producers:
        producer.join()

    ours, theirs = multiprocessing.Pipe()
    quiet, _other = multiprocessing.Pipe()
    process = multiprocessing.Process(target=echo, args=(theirs,))
    process.start()
    theirs.close()
    ours.send("hello")
    print("ready first:", wait([quiet, ours], timeout=20) == [ours])
    print("the pipe answers", ours.recv())
    process.kill()
    try:
        ours.recv()
    except EOFError:
        print("the other end was killed: that is the end of the pipe")
    process.join()

    jobs, done = multiprocessing.JoinableQueue(), multiprocessing.Value("i", 0)
    worker = multiprocessing.Process(target=work, args=(jobs, done), daemon=True)
    worker.start()
    for job in range(1, 11):
        jobs.put(job)
    jobs.join()
    print("all jobs are done, their sum is", done.value)


if __name__ == "__main__":
    main()
