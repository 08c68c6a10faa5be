"""What can go wrong with a task, apart from its own exceptions."""

import signal as _signal
from multiprocessing import TimeoutError as _TimeoutError

__all__ = [
    "DeadlockError",
    "PhalanxError",
    "PoolTerminatedError",
    "RemoteError",
    "TaskCancelledError",
    "TaskExitedError",
    "TaskTimeoutError",
    "WorkerDiedError",
]


class PhalanxError(Exception):
    """The base of this package's own exceptions."""


class DeadlockError(PhalanxError, RuntimeError):
    """Threads wait for each other and can never go on; this one was chosen to fail, so that it can let go and begin again.

    ``parties`` says who they are: a list of dicts with ``pid``, ``tid``, ``thread``, ``waits_for``, ``seconds``, ``needs``,
    ``holds`` and ``stack``. ``circle`` is true if each of them needs the next, and the last the first.
    """

    def __init__(self, message="deadlock", data=None):
        super().__init__(message)
        self._data = data

    @property
    def parties(self):
        return self._read().get("parties", [])

    @property
    def circle(self):
        return self._read().get("circle", False)

    def to_json(self):
        """Return all that is known as JSON."""
        return self._data or "{}"

    def to_svg(self):
        """Return a picture."""
        return self._draw("svg")

    def to_dot(self):
        """Return the graph for Graphviz."""
        return self._draw("dot")

    def _read(self):
        import json

        return json.loads(self.to_json())

    def _draw(self, kind):
        from phalanx import _engine

        return _engine._draw(self.to_json(), kind)

    def __reduce__(self):
        return type(self), (self.args[0], self._data)


class WorkerDiedError(PhalanxError, RuntimeError):
    """The process that ran a task died. Only that task failed; the pool goes on with a new worker.

    ``pid``, ``exitcode`` and ``signal`` tell how, ``task`` and ``ran`` (seconds) what it ran, ``attempts`` how often that was
    tried; ``stack`` where it was at a fatal signal, ``stderr`` what it wrote last to ``sys.stderr``, ``oom`` whether the
    kernel's out-of-memory killer was at work.
    """

    def __init__(
        self, message="a worker died", *, pid=None, exitcode=None, task=None, ran=None, attempts=1, stderr="", oom=False, stack=""
    ):
        super().__init__(message)
        self.pid = pid
        self.exitcode = exitcode
        self.task = task
        self.ran = ran
        self.attempts = attempts
        self.stderr = stderr
        self.oom = oom
        self.stack = stack

    @property
    def signal(self):
        """The name of the signal that ended it, ``None`` if it exited."""
        if self.exitcode is None or self.exitcode >= 0:
            return None
        return signal_name(-self.exitcode)

    def __reduce__(self):
        return _rebuild, (type(self), self.args, self.__dict__)


class TaskTimeoutError(PhalanxError, _TimeoutError):
    """A task ran longer than it may, and its worker was killed."""


class TaskCancelledError(PhalanxError):
    """A task was cancelled, before it began or while it ran."""


class TaskExitedError(PhalanxError):
    """A task raised ``SystemExit``, ``KeyboardInterrupt`` or the like; its worker goes on."""

    def __init__(self, message="a task tried to exit", code=None):
        super().__init__(message)
        self.code = code

    def __reduce__(self):
        return type(self), (self.args[0], self.code)


class PoolTerminatedError(PhalanxError):
    """The pool was terminated before the task was done."""


class RemoteError(PhalanxError):
    """A task raised an exception that cannot be rebuilt in this process."""

    def __init__(self, message="", type_name="", text="", traceback=""):
        super().__init__(message)
        self.type_name = type_name
        self.text = text
        self.traceback = traceback

    def __reduce__(self):
        return type(self), (self.args[0], self.type_name, self.text, self.traceback)


def _rebuild(cls, args, state):
    error = cls(*args)
    error.__dict__.update(state)
    return error


def signal_name(number):
    """Name a signal."""
    try:
        return _signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def describe_exit(exitcode):
    """Say how a process ended, from its exit code as ``multiprocessing`` has it."""
    if exitcode is None:
        return "ended in a way nobody saw"
    if exitcode < 0:
        return f"was killed by {signal_name(-exitcode)}"
    return f"exited with code {exitcode}"
