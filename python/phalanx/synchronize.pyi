import threading as _threads
from collections.abc import Callable
from typing import Any

from phalanx._engine import OwnerDiedWarning as OwnerDiedWarning
from phalanx._engine import SemLock as _EngineLock
from phalanx._engine import SharedCondition as _EngineCondition
from phalanx._engine import SharedEvent as _EngineEvent

SEM_VALUE_MAX: int
RECURSIVE_MUTEX: int
SEMAPHORE: int

class SemLock(_EngineLock):
    def __init__(self, kind: int, value: int, maxvalue: int, *, ctx: Any = None, name: str | None = None) -> None: ...

class Semaphore(SemLock):
    def __init__(self, value: int = 1, *, ctx: Any = None, name: str | None = None) -> None: ...
    def get_value(self) -> int: ...

class BoundedSemaphore(Semaphore):
    def __init__(self, value: int = 1, *, ctx: Any = None, name: str | None = None) -> None: ...

class Lock(SemLock):
    def __init__(self, *, ctx: Any = None, name: str | None = None) -> None: ...

class RLock(SemLock):
    def __init__(self, *, ctx: Any = None, name: str | None = None) -> None: ...

class Condition(_EngineCondition):
    def __init__(self, lock: Lock | RLock | None = None, *, ctx: Any = None) -> None: ...
    def wait_for(self, predicate: Callable[[], Any], timeout: float | None = None) -> Any: ...

class Event(_EngineEvent):
    def __init__(self, *, ctx: Any = None) -> None: ...

class Barrier(_threads.Barrier):
    def __init__(
        self,
        parties: int,
        action: Callable[[], object] | None = None,
        timeout: float | None = None,
        *,
        ctx: Any = None,
    ) -> None: ...
