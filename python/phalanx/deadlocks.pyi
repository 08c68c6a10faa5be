import os
from typing import Any, Literal

from phalanx._engine import ThreadLock as Lock
from phalanx._engine import ThreadRLock as RLock
from phalanx.errors import DeadlockError as DeadlockError

__all__ = [
    "DeadlockError", "Inversion", "Lock", "RLock", "dump", "inversions", "unwatch", "unwatch_order", "watch", "watch_order",
    "watching", "watching_order",
]  # fmt: skip

def watch(
    action: Literal["report", "raise", "abort"] = "report",
    *,
    every: float = 0.2,
    svg: str | os.PathLike[str] | None = None,
    json: str | os.PathLike[str] | None = None,
) -> None: ...
def unwatch() -> None: ...
def watching() -> Literal["report", "raise", "abort"] | None: ...
def watch_order() -> None: ...
def unwatch_order() -> None: ...
def watching_order() -> bool: ...

class Inversion(dict[str, Any]):
    def __init__(self, data: str, text: str) -> None: ...

def inversions() -> list[Inversion]: ...
def dump(pid: int | None = None) -> dict[str, Any]: ...
