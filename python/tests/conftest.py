"""What every test gets: a watchdog, and a look at what it left behind."""

import faulthandler
import os
import signal

import pytest

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # Started in the background of a shell: the programs of the tests would be deaf to Ctrl-C as well.
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Seconds; a test that needs more hangs. The whole run ends then, with every thread's stack on stderr.
_PATIENCE = 120


@pytest.fixture(autouse=True)
def watchdog():
    faulthandler.dump_traceback_later(_PATIENCE, exit=True)
    yield
    faulthandler.cancel_dump_traceback_later()


@pytest.fixture(autouse=True, scope="session")
def nothing_left_in_shm():
    before = set(os.listdir("/dev/shm"))
    yield
    left = [name for name in os.listdir("/dev/shm") if name not in before and name.startswith("phalanx")]
    assert not left, f"left in /dev/shm: {left}"
