"""tornado: a server that forks its workers by hand, each with a loop of its own on one socket."""

import asyncio
import glob
import os
import signal
import time
import urllib.request

import tornado.httpserver
import tornado.netutil
import tornado.process
import tornado.web


class Handler(tornado.web.RequestHandler):
    def get(self):
        self.write("ok")


async def serve(sockets):
    tornado.httpserver.HTTPServer(tornado.web.Application([("/", Handler)])).add_sockets(sockets)
    done = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, done.set)
    open(f"ready{os.getpid()}", "w").close()
    await done.wait()


def main():
    sockets = tornado.netutil.bind_sockets(0, "127.0.0.1")
    port = sockets[0].getsockname()[1]
    if os.fork() == 0:
        tornado.process.fork_processes(2, max_restarts=0)
        asyncio.run(serve(sockets))
        os._exit(0)
    while len(glob.glob("ready*")) < 2:
        time.sleep(0.02)
    print([urllib.request.urlopen(f"http://127.0.0.1:{port}/").read() for _ in range(5)])
    for name in glob.glob("ready*"):
        os.kill(int(name[5:]), signal.SIGTERM)
    print(os.waitstatus_to_exitcode(os.wait()[1]))


if __name__ == "__main__":
    main()
