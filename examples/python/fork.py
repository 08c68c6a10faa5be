"""A plain fork: returns twice. The standard library's, at any time."""

import os


def main():
    os.register_at_fork(after_in_child=lambda: print("at-fork hook: I am process", os.getpid(), flush=True))
    print("before: I am process", os.getpid(), flush=True)
    child = os.fork()
    if child == 0:
        print("child: my parent is", os.getppid(), flush=True)
        os._exit(7)
    print("parent: my child is", child)
    _, status = os.waitpid(child, 0)
    print("parent: it exited with code", os.waitstatus_to_exitcode(status))


if __name__ == "__main__":
    main()
