from collections.abc import AsyncIterator, Callable, Generator, Iterable, Mapping
from multiprocessing import pool as _stock
from multiprocessing.context import BaseContext
from typing import Any, Generic, TypeVar

__all__ = ["ApplyResult", "AsyncResult", "IMapIterator", "IMapUnorderedIterator", "MapResult", "Pool", "ThreadPool"]

_S = TypeVar("_S")
_T = TypeVar("_T")
# ``True`` draws a bar on stderr; a callable is called as ``tqdm.tqdm`` is.
_Progress = bool | Callable[..., Any] | None

class ApplyResult(_stock.ApplyResult[_T], Generic[_T]):
    def ready(self) -> bool: ...
    def successful(self) -> bool: ...
    def wait(self, timeout: float | None = None) -> None: ...
    def get(self, timeout: float | None = None) -> _T: ...
    def cancel(self) -> bool: ...
    def cancelled(self) -> bool: ...
    def __await__(self) -> Generator[Any, None, _T]: ...

AsyncResult = ApplyResult

class MapResult(ApplyResult[list[_T]]): ...

class IMapIterator(_stock.IMapIterator[_T], Generic[_T]):
    def __iter__(self) -> IMapIterator[_T]: ...
    def next(self, timeout: float | None = None) -> _T: ...
    def __next__(self, timeout: float | None = None) -> _T: ...
    def cancel(self) -> None: ...
    def __aiter__(self) -> AsyncIterator[_T]: ...
    async def __anext__(self) -> _T: ...

class IMapUnorderedIterator(IMapIterator[_T]): ...

class Pool(_stock.Pool):
    def __init__(
        self,
        processes: int | None = None,
        initializer: Callable[..., object] | None = None,
        initargs: Iterable[Any] = (),
        maxtasksperchild: int | None = None,
        context: BaseContext | None = None,
        *,
        task_timeout: float | None = None,
        retries: int = 0,
        memory_limit: int | None = None,
        start_timeout: float | None = None,
        threads_per_worker: int = 1,
    ) -> None: ...
    def apply(
        self,
        func: Callable[..., _T],
        args: Iterable[Any] = (),
        kwds: Mapping[str, Any] = {},
        *,
        timeout: float | None = None,
        retries: int | None = None,
    ) -> _T: ...
    def apply_async(
        self,
        func: Callable[..., _T],
        args: Iterable[Any] = (),
        kwds: Mapping[str, Any] = {},
        callback: Callable[[_T], object] | None = None,
        error_callback: Callable[[BaseException], object] | None = None,
        *,
        timeout: float | None = None,
        retries: int | None = None,
    ) -> ApplyResult[_T]: ...
    def map(
        self,
        func: Callable[[_S], _T],
        iterable: Iterable[_S],
        chunksize: int | None = None,
        *,
        timeout: float | None = None,
        retries: int | None = None,
        progress: _Progress = None,
    ) -> list[_T]: ...
    def starmap(
        self,
        func: Callable[..., _T],
        iterable: Iterable[Iterable[Any]],
        chunksize: int | None = None,
        *,
        timeout: float | None = None,
        retries: int | None = None,
        progress: _Progress = None,
    ) -> list[_T]: ...
    def map_async(  # type: ignore[override]
        self,
        func: Callable[[_S], _T],
        iterable: Iterable[_S],
        chunksize: int | None = None,
        callback: Callable[[list[_T]], object] | None = None,
        error_callback: Callable[[BaseException], object] | None = None,
        *,
        timeout: float | None = None,
        retries: int | None = None,
    ) -> MapResult[_T]: ...
    def starmap_async(  # type: ignore[override]
        self,
        func: Callable[..., _T],
        iterable: Iterable[Iterable[Any]],
        chunksize: int | None = None,
        callback: Callable[[list[_T]], object] | None = None,
        error_callback: Callable[[BaseException], object] | None = None,
        *,
        timeout: float | None = None,
        retries: int | None = None,
    ) -> MapResult[_T]: ...
    def imap(
        self,
        func: Callable[[_S], _T],
        iterable: Iterable[_S],
        chunksize: int | None = 1,
        *,
        timeout: float | None = None,
        retries: int | None = None,
        buffersize: int | None = None,
        progress: _Progress = None,
    ) -> IMapIterator[_T]: ...
    def imap_unordered(
        self,
        func: Callable[[_S], _T],
        iterable: Iterable[_S],
        chunksize: int | None = 1,
        *,
        timeout: float | None = None,
        retries: int | None = None,
        buffersize: int | None = None,
        progress: _Progress = None,
    ) -> IMapIterator[_T]: ...
    def stats(self) -> list[dict[str, float]]: ...

class ThreadPool(_stock.ThreadPool): ...
