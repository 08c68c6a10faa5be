from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor as _StockExecutor
from concurrent.futures.process import BrokenProcessPool as BrokenProcessPool
from multiprocessing.context import BaseContext
from typing import Any

from phalanx.errors import WorkerDiedError

__all__ = ["BrokenWorkerError", "ProcessPoolExecutor"]

class BrokenWorkerError(WorkerDiedError, BrokenProcessPool): ...

class ProcessPoolExecutor(_StockExecutor):
    def __init__(
        self,
        max_workers: int | None = None,
        mp_context: BaseContext | None = None,
        initializer: Callable[..., object] | None = None,
        initargs: Iterable[Any] = (),
        *,
        survive: bool = False,
        task_timeout: float | None = None,
        retries: int = 0,
        memory_limit: int | None = None,
        start_timeout: float | None = None,
        threads_per_worker: int = 1,
        **more: Any,
    ) -> None: ...
