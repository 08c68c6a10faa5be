"""A pre-fork HTTP server: the parent listens, workers accept. A worker that crashes is replaced; connections wait in the
listener's backlog meanwhile, and none is lost.

``/`` answers with the worker's process id, ``/crash`` kills the worker that gets it. With ``--requests N`` the program is
its own client: it sends N requests, some of them deadly, and ends.
"""

import argparse
import multiprocessing
import os
import signal
import socket
import sys
import threading
from multiprocessing.connection import wait

# Workers share the listening socket as it is.
fork = multiprocessing.get_context("fork")


def serve(listener):
    while True:
        connection, _ = listener.accept()
        with connection:
            try:
                answer(connection)
            except OSError:
                # A client that went away is no reason to end.
                pass


def answer(connection):
    with connection.makefile("rb") as reader:
        request = reader.readline()
        while reader.readline() not in (b"", b"\r\n"):
            pass
    if request.startswith(b"GET /crash "):
        os.kill(os.getpid(), signal.SIGKILL)
    body = b"hello from worker %d\n" % os.getpid()
    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%s" % (len(body), body))


class Client(threading.Thread):
    """Sends requests, every twentieth of them deadly."""

    def __init__(self, address, count):
        super().__init__(daemon=True)
        self.address, self.count = address, count
        self.answered = self.crashed = 0
        self.lost = None

    def run(self):
        for number in range(1, self.count + 1):
            path = b"/crash" if number % 20 == 0 else b"/"
            response = b""
            try:
                with socket.create_connection(self.address) as connection:
                    connection.sendall(b"GET %s HTTP/1.1\r\nHost: here\r\n\r\n" % path)
                    while chunk := connection.recv(4096):
                        response += chunk
            except ConnectionResetError:
                # The kernel's word for a server that is gone.
                pass
            if path == b"/crash":
                self.crashed += 1
            elif response.startswith(b"HTTP/1.1 200"):
                self.answered += 1
            else:
                self.lost = f"request {number} was lost: {response!r}"
                return


def start(listener, number):
    worker = fork.Process(target=serve, args=(listener,), name=f"worker-{number}", daemon=True)
    worker.start()
    return worker


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, default=0, help="where to listen")
    parser.add_argument("--workers", type=int, default=2, help="worker processes")
    parser.add_argument("--requests", type=int, help="send so many requests to itself, then end")
    args = parser.parse_args()

    with socket.create_server(("127.0.0.1", args.port), backlog=64) as listener:
        address = listener.getsockname()
        print(f"listening on http://{address[0]}:{address[1]} with {args.workers} workers", flush=True)
        workers = [start(listener, number) for number in range(args.workers)]
        client = Client(address, args.requests) if args.requests else None
        if client:
            client.start()
        replaced = 0
        while client is None or client.is_alive():
            # Whoever ends first; now and then a look at the client.
            wait([worker.sentinel for worker in workers], 0.1)
            for number, worker in enumerate(workers):
                if not worker.is_alive():
                    print(f"worker {worker.pid} ended with {worker.exitcode}; it is replaced", file=sys.stderr)
                    workers[number] = start(listener, number)
                    replaced += 1
        if client.lost:
            sys.exit(client.lost)
        print(f"{client.answered} requests answered, {client.crashed} workers crashed on purpose, {replaced} replaced")
        for worker in workers:
            worker.kill()
            worker.join()


if __name__ == "__main__":
    main()
