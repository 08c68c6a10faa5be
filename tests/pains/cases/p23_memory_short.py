"""Shared memory beyond what there is: an exception, never a bus error."""

import multiprocessing as mp
import resource
import sys


def main(context):
    resource.setrlimit(resource.RLIMIT_FSIZE, (64 << 20, resource.RLIM_INFINITY))
    import signal

    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        array = context.Array("b", 512 << 20, lock=False)
    except (MemoryError, OSError):
        pass
    else:
        array[-1] = 1
    assert context.Array("b", 1 << 20, lock=False)[-1] == 0


if __name__ == "__main__":
    main(mp.get_context(sys.argv[1]))
    print("good")
