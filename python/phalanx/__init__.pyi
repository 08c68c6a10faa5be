from collections.abc import Sequence
from multiprocessing.context import AuthenticationError as AuthenticationError
from multiprocessing.context import BufferTooShort as BufferTooShort
from multiprocessing.context import Process as Process
from multiprocessing.context import ProcessError as ProcessError
from multiprocessing.context import TimeoutError as TimeoutError
from multiprocessing.process import active_children as active_children
from multiprocessing.process import current_process as current_process
from multiprocessing.process import parent_process as parent_process
from types import ModuleType

from phalanx import _context
from phalanx._engine import __version__ as __version__
from phalanx._install import install as install
from phalanx._install import installed as installed
from phalanx._install import uninstall as uninstall
from phalanx.errors import DeadlockError as DeadlockError
from phalanx.errors import PhalanxError as PhalanxError
from phalanx.errors import PoolTerminatedError as PoolTerminatedError
from phalanx.errors import RemoteError as RemoteError
from phalanx.errors import TaskCancelledError as TaskCancelledError
from phalanx.errors import TaskExitedError as TaskExitedError
from phalanx.errors import TaskTimeoutError as TaskTimeoutError
from phalanx.errors import WorkerDiedError as WorkerDiedError
from phalanx.futures import BrokenWorkerError as BrokenWorkerError
from phalanx.futures import ProcessPoolExecutor as ProcessPoolExecutor
from phalanx.pool import ThreadPool as ThreadPool
from phalanx.synchronize import OwnerDiedWarning as OwnerDiedWarning

# The methods of the context in use.
Array = _context.default.Array
Barrier = _context.default.Barrier
BoundedSemaphore = _context.default.BoundedSemaphore
Condition = _context.default.Condition
Event = _context.default.Event
JoinableQueue = _context.default.JoinableQueue
Lock = _context.default.Lock
Manager = _context.default.Manager
Pipe = _context.default.Pipe
Pool = _context.default.Pool
Queue = _context.default.Queue
RLock = _context.default.RLock
RawArray = _context.default.RawArray
RawValue = _context.default.RawValue
Semaphore = _context.default.Semaphore
SimpleQueue = _context.default.SimpleQueue
Value = _context.default.Value
allow_connection_pickling = _context.default.allow_connection_pickling
cpu_count = _context.default.cpu_count
freeze_support = _context.default.freeze_support
get_all_start_methods = _context.default.get_all_start_methods
get_context = _context.default.get_context
get_logger = _context.default.get_logger
get_start_method = _context.default.get_start_method
log_to_stderr = _context.default.log_to_stderr
set_executable = _context.default.set_executable
set_forkserver_preload = _context.default.set_forkserver_preload
set_start_method = _context.default.set_start_method
reducer: ModuleType

__all__: Sequence[str]
