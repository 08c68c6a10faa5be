"""The warm fork server: it has the main module's imports done, so that a start costs a fork and little else.

The protocol, the loop and the object (``multiprocessing.forkserver._forkserver``) are the standard library's. What differs
is how the server comes to life: in the engine's tree, with this package and the main module imported once, where the
standard library lets each child import the main module again. And a fork that the system refuses does not end it: the client
is sent the error in place of a process id.
"""

import errno
import gc
import importlib
import os
import socket
import sys
import threading

from phalanx import _engine
from phalanx._stock import later

with later:
    from multiprocessing import connection, forkserver, process, resource_tracker, spawn, util

# What each worker of a pool runs.
_OFFICE = "phalanx._office"

# What of the preparation data the server needs to import the main module as its children would.
_MAIN_KEYS = ("sys_path", "sys_argv", "dir", "orig_dir", "init_main_from_name", "init_main_from_path")


class ForkServer(forkserver.ForkServer):
    """The standard library's, with a server that is warm."""

    def ensure_running(self):
        """Make sure that a fork server is running; started by this process if its parents have none."""
        with self._lock:
            resource_tracker.ensure_running()
            if self._forkserver_pid is not None:
                pid, status = os.waitpid(self._forkserver_pid, os.WNOHANG)
                if not pid:
                    return
                _engine.ward_ended(pid, os.waitstatus_to_exitcode(status))
                os.close(self._forkserver_alive_fd)
                self._forkserver_address = None
                self._forkserver_alive_fd = None
                self._forkserver_pid = None
            with socket.socket(socket.AF_UNIX) as listener:
                address = connection.arbitrary_address("AF_UNIX")
                listener.bind(address)
                if not util.is_abstract_socket_namespace(address):
                    os.chmod(address, 0o600)
                listener.listen()
                self._start(listener, address)

    def _start(self, listener, address):
        from phalanx import _install
        from phalanx._start import _FOLDER

        data = spawn.get_preparation_data("ignore")
        main = {key: data[key] for key in _MAIN_KEYS if key in data}
        ward = _engine.Ward()
        orders = ward.orders()
        # Clients hold the write end; the read end is ready when the last of them is gone.
        alive_r, alive_w = os.pipe()
        try:
            command = (
                f"import sys; sys.path[:] = {[*data['sys_path'], _FOLDER]!r}; "
                "from phalanx._forkserver import main; "
                f"main({listener.fileno()}, {alive_r}, {self._preload_modules!r}, {main!r}, {orders!r}, "
                f"{_install.installed()!r}, {_OFFICE in sys.modules!r})"
            )
            executable = spawn.get_executable()
            args = [executable, *util._args_from_interpreter_flags(), "-c", command]
            pid = util.spawnv_passfds(executable, args, [listener.fileno(), alive_r, *orders[:2]])
        except BaseException:
            os.close(alive_w)
            raise
        finally:
            os.close(alive_r)
        self._forkserver_address = address
        self._forkserver_alive_fd = alive_w
        self._forkserver_pid = pid
        ward.started(pid)


def warm() -> None:
    """Let the standard library's fork server of this process be a warm one from its next start."""
    server = forkserver._forkserver
    # Where the protocol is another one than the one known here, the standard library's server serves.
    if type(server) is forkserver.ForkServer and sys.version_info < (3, 14):
        server.__class__ = ForkServer
        forkserver.ensure_running = server.ensure_running


def main(listener_fd, alive_r, preload, main_data, orders, installed, for_pools):
    """Run the server."""
    from phalanx import _install

    _engine.enter(*orders)
    _engine.serve_forks()
    if installed:
        _install.install()
    else:
        _install.hook()
    warm()
    # Children unpickle their Popen's relatives and run this; better here once.
    import multiprocessing.popen_forkserver
    import multiprocessing.queues
    import multiprocessing.synchronize  # noqa: F401

    if for_pools:
        importlib.import_module(_OFFICE)
    if "__main__" in preload and not _import_main(main_data):
        _serve_cold(listener_fd, alive_r, preload)
    forkserver.os = _Os()
    gc.collect()
    gc.freeze()
    util._flush_std_streams()
    # It forks when a process asks it to, and tells of a child's end: nobody waits for what it does by itself.
    _engine._mark_helper()
    forkserver.main(listener_fd, alive_r, [name for name in preload if name != "__main__"])


class _Os:
    """Stands for the module ``os`` in the server's loop: there a fork is refused to the client, not to the server."""

    def __getattr__(self, name):
        return getattr(os, name)

    def fork(self):
        """Fork as the loop asks for it."""
        try:
            pid = os.fork()
        except OSError as error:
            _refuse(error, sys._getframe(1).f_locals)
            # So the loop says that a client is gone, and goes on.
            raise OSError(errno.ECONNABORTED, os.strerror(errno.ECONNABORTED)) from None
        if pid == 0:
            forkserver.os = os
        return pid


def _refuse(error, loop):
    """Tell the client whose request the loop has in its hands, and let go of all that came with it."""
    try:
        forkserver.write_signed(loop["child_w"], -(error.errno or errno.EAGAIN))
    except OSError:
        # It has gone.
        pass
    util.close_fds(loop["child_r"], loop["child_w"], *loop["fds"])


def _import_main(data) -> bool:
    """Import the main module as a child does. What it complains of, the first child will meet and show.

    Returns ``False`` if that started threads: a process with threads must not serve.
    """
    before = sys.modules["__main__"]
    threads = threading.active_count()
    current = process.current_process()
    # Processes must not be started from here, as in any child that imports its main module.
    current._inheriting = True
    try:
        spawn.prepare({**data, "start_method": "forkserver"})
    except BaseException:
        sys.modules["__main__"] = before
        sys.modules.pop("__mp_main__", None)
    finally:
        del current._inheriting
    return threading.active_count() == threads


def _serve_cold(listener_fd, alive_r, preload):
    util._flush_std_streams()
    names = [name for name in preload if name != "__main__"]
    command = f"from multiprocessing.forkserver import main; main({listener_fd}, {alive_r}, {names!r})"
    executable = spawn.get_executable()
    os.execv(executable, [executable, *util._args_from_interpreter_flags(), "-c", command])
