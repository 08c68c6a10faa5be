"""gunicorn: a master that forks two workers by os.fork, asked for pages, told to end."""

import multiprocessing
import os
import signal
import socket
import time
from http.client import HTTPConnection

from gunicorn.app.base import BaseApplication


def page(environ, start_response):
    body = f"hello {environ['PATH_INFO']}\n".encode()
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", str(len(body)))])
    return [body]


class Application(BaseApplication):
    def __init__(self, port):
        self.port = port
        super().__init__()

    def load_config(self):
        self.cfg.set("bind", f"127.0.0.1:{self.port}")
        self.cfg.set("workers", 2)
        self.cfg.set("loglevel", "error")

    def load(self):
        return page


def serve(port):
    Application(port).run()


def fetch(port, path):
    for _ in range(300):
        try:
            connection = HTTPConnection("127.0.0.1", port, timeout=20)
            connection.request("GET", path)
            return connection.getresponse().read().decode().strip()
        except ConnectionRefusedError:
            time.sleep(0.05)
    raise SystemExit("nobody listens")


def main():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    master = multiprocessing.Process(target=serve, args=(port,))
    master.start()
    for n in range(20):
        print(fetch(port, f"/{n}"))
    os.kill(master.pid, signal.SIGTERM)
    master.join()
    print(master.exitcode)


if __name__ == "__main__":
    main()
