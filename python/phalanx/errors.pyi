from multiprocessing import TimeoutError as _TimeoutError
from typing import Any

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

class PhalanxError(Exception): ...

class DeadlockError(PhalanxError, RuntimeError):
    def __init__(self, message: str = "deadlock", data: str | None = None) -> None: ...
    @property
    def parties(self) -> list[dict[str, Any]]: ...
    @property
    def circle(self) -> bool: ...
    def to_json(self) -> str: ...
    def to_svg(self) -> str: ...
    def to_dot(self) -> str: ...

class WorkerDiedError(PhalanxError, RuntimeError):
    pid: int | None
    exitcode: int | None
    task: Any
    ran: float | None
    attempts: int
    stderr: str
    oom: bool
    stack: str
    def __init__(
        self,
        message: str = "a worker died",
        *,
        pid: int | None = None,
        exitcode: int | None = None,
        task: Any = None,
        ran: float | None = None,
        attempts: int = 1,
        stderr: str = "",
        oom: bool = False,
        stack: str = "",
    ) -> None: ...
    @property
    def signal(self) -> str | None: ...

class TaskTimeoutError(PhalanxError, _TimeoutError): ...
class TaskCancelledError(PhalanxError): ...

class TaskExitedError(PhalanxError):
    code: Any
    def __init__(self, message: str = "a task tried to exit", code: Any = None) -> None: ...

class PoolTerminatedError(PhalanxError): ...

class RemoteError(PhalanxError):
    type_name: str
    text: str
    traceback: str
    def __init__(self, message: str = "", type_name: str = "", text: str = "", traceback: str = "") -> None: ...

def signal_name(number: int) -> str: ...
def describe_exit(exitcode: int | None) -> str: ...
