"""Starting processes: a place in the engine's tree for each, whichever the start method.

The standard library starts, talks to and collects its processes as ever. Around that, the parent reserves a place in the
tree (``_engine.Ward``), and the child takes it before anything of the user's runs in it: by the fork itself, or, where an
interpreter is started, by the first entry of the preparation data, which imports this package there.
"""

import os
import signal
import sys
import time

from phalanx import _engine, _imports  # noqa: F401 - forks' children give up halves of imports
from phalanx._stock import later

with later:
    from multiprocessing import context, process, util

# The folder this package lies in; a child may unpickle its first object before it knows the parent's ``sys.path``.
_FOLDER = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

_ARRIVE = """\
import sys
if folder not in sys.path:
    sys.path.append(folder)
from phalanx._start import arrive
arrive(arena, line, slot, identity, installed)
"""

# Where the place of a process under way is noted, on its Popen object.
_WARD = "_phalanx_ward"


class Passport:
    """First entry of a child's preparation data: its place in the tree, and whether to install there."""

    def __init__(self, installed: bool):
        self._installed = installed

    def __reduce__(self):
        popen = context.get_spawning_popen()
        if popen is None:
            # Somebody looks at the data, nobody starts a process with it.
            return Passport, (self._installed,)
        ward = _engine.Ward()
        arena, line, slot, identity = ward.orders()
        names = {
            "arena": _passed(popen, arena),
            "line": _passed(popen, line),
            "folder": _FOLDER,
            "slot": slot,
            "identity": identity,
            "installed": self._installed,
        }
        setattr(popen, _WARD, ward)
        return exec, (_ARRIVE, names)


def _passed(popen, fd):
    """Pass a descriptor on: its number in the child where that is known, else what has it there."""
    fd = popen.duplicate_for_child(fd)
    # Anything but a number makes the child import the starter's side.
    return fd if popen.method == "spawn" else popen.DupFd(fd)


def arrive(arena, line, slot: int, identity: int, installed: bool) -> None:
    """Take this process's place in the tree: the first thing that happens in a child."""
    from phalanx import _install

    arena, line = (fd if isinstance(fd, int) else fd.detach() for fd in (arena, line))
    _engine.enter(arena, line, slot, identity)
    if installed:
        _install.install_with()
    else:
        # A warm server may have it although the starter has not, or not any more.
        _install.uninstall()
        _install.hook()
    now = _engine._watching()
    if now is not None and now[0] != "hint" or _engine._watching_order():
        from phalanx import deadlocks

        deadlocks.arrive()


class Placed:
    """Mixed into each ``Popen``: the process has its place from before its start until its end was seen."""

    _phalanx_swept = False

    def _launch(self, process_obj):
        try:
            super()._launch(process_obj)
            ward = self.__dict__.pop(_WARD, None)
            if ward is not None:
                ward.started(self.pid)
        except BaseException:
            self._phalanx_undo()
            raise

    def _phalanx_undo(self):
        """End what was started by a start that failed: nobody would have a handle on it."""
        self.__dict__.pop(_WARD, None)
        if getattr(self, "pid", None) is None:
            return
        try:
            os.kill(self.pid, signal.SIGKILL)
            self.wait()
        except Exception:
            # Collected already, or somebody else's to collect.
            pass
        finalizer = getattr(self, "finalizer", None)
        if finalizer is not None:
            finalizer()

    def wait(self, timeout=None):
        now = _engine._watching() if timeout is None and self.returncode is None else None
        if now is None or now[0] == "hint":
            return super().wait(timeout)
        from phalanx import deadlocks

        with deadlocks.noted("process", self.pid) as wait:
            while True:
                wait.looks()
                code = self.poll()
                if code is not None:
                    return code
                wait.sleeps()
                super().wait(now[1])

    def poll(self, flag=os.WNOHANG):
        if flag == 0 and self.returncode is None:
            # The engine's thread sleeps on, and what the process held is free again as soon as it has ended.
            _engine.await_ward(self.pid)
        code = super().poll(flag)
        if code is not None and not self._phalanx_swept:
            self._phalanx_swept = True
            # What the process held is free again before anybody hears that it has ended.
            _engine.ward_ended(self.pid, code)
        return code


class _Served:
    """Mixed into the fork server's ``Popen``: a process whose server was killed lives on, and ends when it does."""

    _phalanx_orphaned = False

    def wait(self, timeout=None):
        if timeout is None:
            return super().wait()
        from multiprocessing.connection import wait

        until = time.monotonic() + timeout
        while self.returncode is None:
            left = until - time.monotonic()
            # What is ready may be the server's end, not the process's.
            ready = wait([self.sentinel], max(left, 0))
            if self.poll(os.WNOHANG) is None and (not ready or left <= 0):
                return None
        return self.returncode

    def poll(self, flag=os.WNOHANG):
        while self.returncode is None and not self._phalanx_orphaned:
            from multiprocessing import forkserver
            from multiprocessing.connection import wait

            if not wait([self.sentinel], 0 if flag == os.WNOHANG else None):
                return None
            try:
                self.returncode = forkserver.read_signed(self.sentinel)
            except (OSError, EOFError):
                # From now on the sentinel says what the process does.
                descriptor = _engine.ward_descriptor(self.pid)
                self._phalanx_orphaned = True
                if descriptor is not None:
                    os.dup2(descriptor, self.sentinel, inheritable=False)
                    os.close(descriptor)
        # Nobody is told its exit code any more: this is the standard library's for that.
        return super().poll(flag)


def _asked(stock: type) -> type:
    """Make the fork server's ``Popen`` one that hears of a refusal."""
    from multiprocessing import forkserver

    class Asked(stock):
        def _launch(self, process_obj):
            try:
                super()._launch(process_obj)
                answer = self.pid
            except BrokenPipeError:
                # Refused before all of it was written; or the server is gone; or the process is, and was started all the same.
                answer = self.pid = forkserver.read_signed(self.sentinel)
            if answer < 0:
                self.pid = None
                raise OSError(-answer, f"the fork server cannot fork: {os.strerror(-answer)}")

    return Asked


def _popen(method: str) -> type:
    if method == "fork":
        from multiprocessing import popen_fork as stock

        class Forked(stock.Popen):
            def _launch(self, process_obj):
                ward = _engine.Ward()
                setattr(self, _WARD, ward)
                # As the standard library's, which leaves its pipes open when the second or the fork is refused.
                pipes = []
                try:
                    pipes += os.pipe()
                    pipes += os.pipe()
                    ward.fork_next()
                    self.pid = os.fork()
                except BaseException:
                    util.close_fds(*pipes)
                    raise
                parent_r, child_w, child_r, parent_w = pipes
                if self.pid == 0:
                    code = 1
                    # From 3.13 on.
                    exits = getattr(stock, "atexit", None)
                    try:
                        if exits is not None:
                            exits._clear()
                            exits.register(util._exit_function)
                        util.close_fds(parent_r, parent_w)
                        code = process_obj._bootstrap(parent_sentinel=child_r)
                    finally:
                        if exits is not None:
                            exits._run_exitfuncs()
                        os._exit(code)
                util.close_fds(child_w, child_r)
                self.finalizer = util.Finalize(self, util.close_fds, (parent_r, parent_w))
                self.sentinel = parent_r

        class Popen(Placed, Forked):
            pass

    elif method == "spawn":
        from multiprocessing import popen_spawn_posix as stock

        class Popen(Placed, stock.Popen):
            pass

    else:
        from multiprocessing import popen_forkserver as stock

        from phalanx import _forkserver

        _forkserver.warm()

        class Popen(_Served, Placed, _asked(stock.Popen)):
            pass

    Popen.__qualname__ = f"{method}_Popen"
    return Popen


_popens: dict[str, type] = {}


def start(method: str, process_obj):
    """Start a process by one of the three methods; its ``Popen`` object is returned."""
    popen = _popens.get(method)
    if popen is None:
        popen = _popens[method] = _popen(method)
    return popen(process_obj)


def _fork_popen(process_obj):
    return start("fork", process_obj)


def _spawn_popen(process_obj):
    return start("spawn", process_obj)


def _forkserver_popen(process_obj):
    return start("forkserver", process_obj)


class _Preparation:
    """Stands for ``spawn.get_preparation_data``; calls what was there."""

    def __init__(self, before):
        self.before = before
        self.__name__ = "get_preparation_data"
        self.__doc__ = before.__doc__

    def __call__(self, name):
        from phalanx import _install

        # First: it is unpickled before the rest, and the main module is imported after it.
        return {"phalanx": Passport(_install.installed()), **self.before(name)}


# The methods are static there; a plain function in its place would get the process as ``self``.
_POPENS = [
    ("multiprocessing.context:ForkProcess", "_Popen", staticmethod(_fork_popen)),
    ("multiprocessing.context:SpawnProcess", "_Popen", staticmethod(_spawn_popen)),
    ("multiprocessing.context:ForkServerProcess", "_Popen", staticmethod(_forkserver_popen)),
]


def hooks() -> list[tuple[str, str, object]]:
    """What must be in place for children to find the tree, installed or not; in the form of ``PATCHES``."""
    from multiprocessing import spawn

    return [("multiprocessing.spawn", "get_preparation_data", _Preparation(spawn.get_preparation_data)), *_POPENS]
