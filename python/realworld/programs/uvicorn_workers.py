"""uvicorn: a supervisor with two spawned workers, asked for pages, a worker killed and replaced, told to end."""

import os
import signal
import socket
import subprocess
import sys
import time
from http.client import HTTPConnection


async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        while True:
            message = await receive()
            await send({"type": message["type"] + ".complete"})
            if message["type"] == "lifespan.shutdown":
                return
    body = f"hello {scope['path']}\n".encode() if scope["path"] != "/pid" else str(os.getpid()).encode()
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", str(len(body)).encode())]})
    await send({"type": "http.response.body", "body": body})


def fetch(port, path):
    for _ in range(600):
        try:
            connection = HTTPConnection("127.0.0.1", port, timeout=20)
            connection.request("GET", path)
            return connection.getresponse().read().decode().strip()
        except OSError:
            time.sleep(0.05)
    raise SystemExit("nobody listens")


def serve(port):
    import uvicorn

    uvicorn.run("uvicorn_workers:app", port=port, workers=2, log_level="critical")


def main():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # As this program was started itself, with or without a runner before its name.
    runner = ["-m", "phalanx"] if "phalanx" in sys.modules else []
    master = subprocess.Popen([sys.executable, *runner, __file__, "serve", str(port)])
    for n in range(20):
        print(fetch(port, f"/{n}"))
    victim = int(fetch(port, "/pid"))
    os.kill(victim, signal.SIGKILL)
    while victim == int(fetch(port, "/pid")):
        pass
    print(fetch(port, "/again"))
    master.send_signal(signal.SIGTERM)
    print(master.wait(60))


if __name__ == "__main__":
    if sys.argv[1:2] == ["serve"]:
        serve(int(sys.argv[2]))
    else:
        main()
