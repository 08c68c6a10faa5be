"""Named threads, and a pool of them.

Written against the standard library alone.
"""

import threading
from multiprocessing.pool import ThreadPool


class Greeter(threading.Thread):
    def __init__(self, whom):
        super().__init__(name="greeter")
        self.whom = whom

    def run(self):
        self.text = f"hello {self.whom} from {threading.current_thread().name}"


def unlucky():
    raise RuntimeError("no luck")


def main():
    print(f"I am {threading.main_thread().name}, {threading.active_count()} thread runs")

    names = []
    first = threading.Thread(target=lambda: names.append(threading.current_thread().name))
    first.start()
    first.join()
    print("the first is", names[0].split(" ")[0])

    greeter = Greeter("you")
    greeter.start()
    greeter.join()
    print(greeter.text)

    stop = threading.Event()
    waiting = threading.Thread(target=stop.wait, name="waiting")
    waiting.start()
    print("now there are", [thread.name for thread in threading.enumerate()])
    waiting.join(0.01)
    print("it still runs:", waiting.is_alive())
    stop.set()
    waiting.join()

    # What a thread's exception does is the hook's to say.
    hook, threading.excepthook = threading.excepthook, lambda args: print("an exception ends it:", args.exc_value)
    failing = threading.Thread(target=unlucky)
    failing.start()
    failing.join()
    threading.excepthook = hook

    with ThreadPool(2) as pool:
        factor = 3
        print("a pool of threads runs closures:", pool.map(lambda x: x * factor, range(5)))


if __name__ == "__main__":
    main()
