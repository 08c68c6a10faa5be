import os
from typing import Any, Literal

from phalanx._engine import ThreadLock as Lock
from phalanx._engine import ThreadRLock as RLock
from phalanx.errors import DeadlockError as DeadlockError

__all__ = ["DeadlockError", "Lock", "RLock", "dump", "unwatch", "watch", "watching"]

def watch(
    action: Literal["report", "raise", "abort"] = "report",
    *,
    every: float = 0.2,
    svg: str | os.PathLike[str] | None = None,
    json: str | os.PathLike[str] | None = None,
) -> None: ...
def unwatch() -> None: ...
def watching() -> Literal["report", "raise", "abort"] | None: ...
def dump(pid: int | None = None) -> dict[str, Any]: ...
