from multiprocessing import (
    AuthenticationError as AuthenticationError,
    BufferTooShort as BufferTooShort,
    Process as Process,
    ProcessError as ProcessError,
    TimeoutError as TimeoutError,
    active_children as active_children,
    current_process as current_process,
    parent_process as parent_process,
    reducer as reducer,
)

from phalanx import _context
from phalanx._install import install as install, installed as installed, uninstall as uninstall
from phalanx.errors import (
    PhalanxError as PhalanxError,
    PoolTerminatedError as PoolTerminatedError,
    RemoteError as RemoteError,
    TaskCancelledError as TaskCancelledError,
    TaskExitedError as TaskExitedError,
    TaskTimeoutError as TaskTimeoutError,
    WorkerDiedError as WorkerDiedError,
)
from phalanx.futures import ProcessPoolExecutor as ProcessPoolExecutor
from phalanx.pool import ThreadPool as ThreadPool
from phalanx.synchronize import OwnerDiedWarning as OwnerDiedWarning

__version__: str
__all__: list[str]

# The methods of the context in use.
_default: _context.DefaultContext
Array = _default.Array
Barrier = _default.Barrier
BoundedSemaphore = _default.BoundedSemaphore
Condition = _default.Condition
Event = _default.Event
JoinableQueue = _default.JoinableQueue
Lock = _default.Lock
Manager = _default.Manager
Pipe = _default.Pipe
Pool = _default.Pool
Queue = _default.Queue
RLock = _default.RLock
RawArray = _default.RawArray
RawValue = _default.RawValue
Semaphore = _default.Semaphore
SimpleQueue = _default.SimpleQueue
Value = _default.Value
allow_connection_pickling = _default.allow_connection_pickling
cpu_count = _default.cpu_count
freeze_support = _default.freeze_support
get_all_start_methods = _default.get_all_start_methods
get_context = _default.get_context
get_logger = _default.get_logger
get_start_method = _default.get_start_method
log_to_stderr = _default.log_to_stderr
set_executable = _default.set_executable
set_forkserver_preload = _default.set_forkserver_preload
set_start_method = _default.set_start_method
