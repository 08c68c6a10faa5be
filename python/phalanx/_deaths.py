"""What is said of a task whose worker died: what it was, how long it ran, where it was, its last words, and what to do.

A worker's stderr stays what it is. What is written to it by way of ``sys.stderr`` is noted beside, in a file in memory that
outlives the worker; there the fault handler, unless the program uses it itself, puts the stack at a fatal signal.
"""

import faulthandler
import io
import itertools
import os
import pickle
import reprlib
import sys
import time

from phalanx import _engine
from phalanx.errors import TaskTimeoutError, WorkerDiedError, describe_exit, signal_name

# ---- what the task was ----


class _Kind(type):
    """Classes that stand for those of a pickle that is described."""

    def __repr__(cls):
        return cls.__qualname__


class _Stand(metaclass=_Kind):
    """Stands for an object that is described and not made: unpickling can run anything, and kill as it killed the worker."""

    def __new__(cls, *args, **kwds):
        self = object.__new__(cls)
        self._said = _call(cls.__qualname__, args, kwds) if args or kwds else f"{cls.__qualname__}(...)"
        return self

    def __init__(self, *args, **kwds):
        pass

    def __call__(self, *args, **kwds):
        return self

    def __repr__(self):
        return self._said

    def __setstate__(self, state):
        # Of a plain object its attributes, of one with slots as well.
        for part in state if type(state) is tuple else (state,):
            if type(part) is dict and part:
                self._said = _call(type(self).__qualname__, (), part)

    def append(self, item):
        pass

    extend = add = append

    def __setitem__(self, key, value):
        pass


class _Array(_Stand):
    """An array, of which not even the arguments of its maker are shown."""

    def __new__(cls, *args, **kwds):
        return super().__new__(cls)

    def __setstate__(self, state):
        pass


# Functions that make an object, and what that is.
_MAKERS = {"_reconstruct": "ndarray", "_frombuffer": "ndarray", "open_shared": "ndarray"}


class _Describer(pickle.Unpickler):
    def find_class(self, module, name):
        if module.startswith(("numpy", "phalanx")) and name in _MAKERS:
            return _Kind(name, (_Array,), {"__qualname__": _MAKERS[name]})
        return _Kind(name, (_Stand,), {"__module__": module, "__qualname__": name})

    def persistent_load(self, pid):
        return _Stand()


_repr = reprlib.Repr()
_repr.maxstring = _repr.maxother = 60


def _short(value):
    try:
        text = _repr.repr(value)
    except Exception as error:
        text = f"<{type(value).__name__} that cannot be shown: {type(error).__name__}>"
    return text if len(text) <= 60 else text[:57] + "..."


def _call(name, args, kwds):
    shown = [_short(value) for value in itertools.islice(args, 9)]
    if len(args) > 9:
        shown.append("...")
    shown += [f"{key}={_short(value)}" for key, value in itertools.islice(kwds.items(), 9)]
    return f"{name}({', '.join(shown)})"


def summary(function, call):
    """Describe a call in one line. ``call`` is what the engine says of it, ``None`` if nothing is known."""
    try:
        name = function.__qualname__
    except Exception:
        name = None
    if type(name) is not str:
        name = _short(function)
    if call is None:
        return f"{name}(...)"
    try:
        how, inside, pickled, value = call
        if pickled:
            value = _Describer(io.BytesIO(value), buffers=itertools.repeat(b"")).load()
        if inside is not None:
            value = value[inside]
        args, kwds = value if how == "(" else (value, {}) if how == "*" else ((value,), {})
        return _call(name, tuple(args), dict(kwds))
    except Exception:
        return f"{name}(...)"


# ---- last words, the worker's side ----

# The descriptor that the fault handler writes to.
_fault_file = -1
_watches_forks = False


def listen(pid, words_fd, number):
    """Note from now on what this process says on stderr, and where it is when a fatal signal comes."""
    global _fault_file, _watches_forks
    at = _engine.Words.part(number)
    ring_at, ring, fault_at = _engine.Words.PLACES
    try:
        # A description of its own, with its own place to write.
        words = os.open(f"/proc/{pid}/fd/{words_fd}", os.O_RDWR | os.O_CLOEXEC)
        os.lseek(words, at + fault_at, os.SEEK_SET)
    except OSError:
        return
    if not faulthandler.is_enabled():
        faulthandler.enable(words)
    _note_writes(sys.stderr, words, at, ring_at, ring)
    _fault_file = words
    if not _watches_forks:
        _watches_forks = True
        os.register_at_fork(after_in_child=_forget)


def _forget():
    """A process forked in a task says nothing in its parent's name."""
    global _fault_file
    if _fault_file >= 0:
        # The handler may be the program's by now: it is left alone, and ours writes to nobody.
        nobody = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
        os.dup2(nobody, _fault_file, inheritable=False)
        os.close(nobody)
        _fault_file = -1


def _note_writes(stream, words, at, ring_at, ring):
    write = getattr(stream, "write", None)
    if write is None:
        return
    said = 0
    owner = os.getpid()

    def noted(text):
        nonlocal said
        if os.getpid() == owner:
            try:
                data = text.encode("utf-8", "backslashreplace")[-ring:]
                place = said % ring
                os.pwrite(words, data[: ring - place], at + ring_at + place)
                os.pwrite(words, data[ring - place :], at + ring_at)
                said += len(data)
                os.pwrite(words, said.to_bytes(8, "little"), at)
            except Exception:
                # What cannot be noted is written all the same.
                pass
        return write(text)

    try:
        stream.write = noted
    except (AttributeError, TypeError):
        # A stream that lets nobody in.
        pass


# ---- last words, the parent's side ----


class Listener:
    """What the workers of a pool said before they ended."""

    def __init__(self, workers):
        self.owner = os.getpid()
        self.oom = None
        self.oom_seen = 0.0
        try:
            self.words = _engine.Words(workers)
        except OSError:
            self.words = None

    def address(self):
        """Return what a worker needs to be heard: arguments of :func:`listen` but for its number."""
        return (self.owner, self.words.fileno()) if self.words is not None else None

    def begin(self):
        """Look at what is only worth something if it is more later."""
        self.oom = _engine.oom_kills()

    def report(self, number, pid, exitcode):
        """Return what is to be said of a worker that ended."""
        said, fault = self.words.take(number) if self.words is not None else (b"", b"")
        return {
            "pid": pid,
            "exitcode": exitcode,
            "stderr": said.decode("utf-8", "replace"),
            "stack": _stack(fault.decode("utf-8", "replace")),
            "oom": exitcode == -9 and self._oom_killer(),
        }

    def _oom_killer(self):
        kills = _engine.oom_kills()
        if kills is not None and self.oom is not None and kills > self.oom:
            self.oom, self.oom_seen = kills, time.monotonic()
        # It may have ended several at once, of whom we hear one after the other.
        return self.oom_seen != 0.0 and time.monotonic() - self.oom_seen < 2.0


def _stack(fault):
    """Return the lines of the thread that the signal struck, without those of the pool."""
    lines = fault.splitlines()
    begin = next((at for at, line in enumerate(lines) if line.startswith("Current thread ")), None)
    if begin is None:
        return ""
    stack = []
    for line in lines[begin + 1 :]:
        if not line.startswith("  ") or "/phalanx/_office.py" in line:
            break
        stack.append(line.strip())
    return "\n".join(stack)


# ---- the exceptions ----

_LINES = 12

_CRASHED = "native code crashed, not Python: look at what the innermost line calls; run the task alone under python -X faulthandler"
_ADVICE = {
    "SIGSEGV": _CRASHED,
    "SIGBUS": _CRASHED,
    "SIGILL": "native code met an instruction this processor does not have, or gave up: is it built for this machine?",
    "SIGFPE": _CRASHED,
    "SIGABRT": "native code gave up and says why on stderr, often for lack of memory",
    "SIGKILL": "somebody killed it: a person, a scheduler, or a guard against too much memory; retries= runs such a task again",
    "SIGTERM": "somebody asked it to end; retries= runs such a task again",
    "SIGXCPU": "it used up its processor time (ulimit -t)",
    "SIGPIPE": "it wrote to a pipe that nobody reads",
}
_OOM = "use fewer workers or smaller tasks, or set memory_limit=, so that the task gets a MemoryError instead"
_EXITED = "something called os._exit() or C's exit() in the task: raise an exception instead"


def _advice(exitcode, oom):
    if oom:
        return _OOM
    if exitcode is None:
        return ""
    return _EXITED if exitcode >= 0 else _ADVICE.get(signal_name(-exitcode), "")


def _indented(head, text):
    lines = text.strip("\n").splitlines()
    left_out = len(lines) - _LINES
    shown = lines[-_LINES:]
    return f"\n  {head}" + (f" ({left_out} lines before)" if left_out > 0 else "") + "".join(f"\n    {line}" for line in shown)


def death(report, task, ran, attempts):
    """Make the exception of a task whose worker died."""
    exitcode, pid = report.get("exitcode"), report.get("pid")
    stderr, stack, oom = report.get("stderr", ""), report.get("stack", ""), report.get("oom", False)
    again = f", {attempts} attempts" if attempts > 1 else ""
    text = f"worker {pid} {describe_exit(exitcode)} while it ran {task} for {ran:.3g} s{again}"
    if oom:
        text += "; the kernel's out-of-memory killer was at work"
    if stack:
        lines = stack.splitlines()
        shown = "\n".join(lines[:_LINES])
        text += _indented("it was here, the most recent call first:", shown)
    if stderr.strip():
        text += _indented("last on its stderr:", stderr)
    advice = _advice(exitcode, oom)
    if advice:
        text += f"\n  what to do: {advice}"
    return WorkerDiedError(
        text, pid=pid, exitcode=exitcode, task=task, ran=ran, attempts=attempts, stderr=stderr, oom=oom, stack=stack
    )


def late(report, task, ran, attempts):
    """Make the exception of a task that was stopped at its time-out."""
    again = f", {attempts} attempts" if attempts > 1 else ""
    text = f"{task} was stopped after {ran:.3g} s: worker {report.get('pid')} was killed{again}"
    if report.get("stderr", "").strip():
        text += _indented("last on its stderr:", report["stderr"])
    return TaskTimeoutError(text)
