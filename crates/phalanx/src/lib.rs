//! Processes, threads, queues and locks that survive a death: what Python's `multiprocessing` and `threading` give, typed,
//! without their hangs.
//!
//! | for | see |
//! |---|---|
//! | a function in a process of its own, with a typed result | [`Process`] |
//! | many tasks in worker processes | [`Pool`] |
//! | the same in threads | [`ThreadPool`] |
//! | sending values between processes | [`Queue`], [`SimpleQueue`], [`pipe`], [`wait`] |
//! | locks, in this process or across processes | [`Lock`], [`RLock`], [`Semaphore`], [`BoundedSemaphore`], [`Condition`], [`Event`], [`Barrier`] |
//! | shared data | [`Shared`], [`SharedSlice`], [`SharedMemory`] |
//! | named threads | [`thread`] |
//! | threads and processes that wait for each other in a circle | [`watch`] |
//! | external commands | [`subprocess`] |
//! | a plain fork | [`fork()`], [`at_fork`] |
//!
//! A program that starts processes has [`#[phalanx::main]`](macro@main) on its `main`: a process that is started as a
//! worker of this program becomes one there.
//!
//! ```
//! use phalanx::prelude::*;
//!
//! fn count(text: String) -> usize {
//!     text.split_whitespace().count()
//! }
//!
//! #[phalanx::main]
//! fn main() -> phalanx::Result<()> {
//!     let one = Process::spawn(count, "a function in a process".to_owned())?;
//!     assert_eq!(one.join()?, 5);
//!
//!     let pool = Pool::builder().workers(2).retries(1).build()?;
//!     let texts = ["one", "one two", "one two three"].map(str::to_owned);
//!     assert_eq!(pool.map(count, texts)?, [1, 2, 3]);
//!     Ok(())
//! }
//! ```
//!
//! # What happens when
//!
//! - **a process dies**: what it held is free again. The next owner of a lock it held gets [`OwnerDied`] with the guard, a
//!   receiver whose sender is gone gets an error, its tasks are retried or reported, its memory is returned. Nobody hangs.
//! - **this process dies**, however: its children end within moments, and nothing is left of the shared memory.
//! - **memory is short**: an error with the numbers.
//! - **Ctrl-C**: workers of a pool ignore it; all other processes get it from the terminal as ever.
//!
//! # Tests
//!
//! A test program starts itself as a worker too: put `phalanx::test_entry!()` once at the root of each test crate.
#![warn(missing_docs)]

mod error;

pub use error::{Error, Result};
pub use phalanx_channel::{
    Bounds, Closed, Connection, CreateError, GetError, JoinError, Loan, Message, PutError,
    PutErrorKind, Queue, QueueBuilder, RawGetError, RawPutError, RawQueue, Received, SimpleQueue,
    TaskDoneError, Waitable, pipe, wait,
};
pub use phalanx_macros::{main, task};
pub use phalanx_pool::{
    BuildError, Imap, ImapUnordered, JoinPoolError, MapHandle, Pool, PoolBuilder, PoolError,
    PoolStats, Progress, SubmitError, TaskHandle, TaskOptions, ThreadImap, ThreadImapUnordered,
    ThreadMapHandle, ThreadPool, ThreadPoolBuilder, ThreadTask, ThreadTaskError, WorkerDeath,
    WorkerId, WorkerStats, current_worker, with_thread_state, worker_state,
};
pub use phalanx_prim::Spin;
pub use phalanx_process::{
    ActiveChild, Builder as ProcessBuilder, CrashStack, Death, ExitStatus, Fork, ForkedChild,
    MemoryVerdict, PanicReport, Process, ProcessError, StartError, StartMethod, TaskError, TaskFn,
    When, Zygote, active_children, at_fork, enter, fork, leave_children, parent_pid, registry,
    test_entry,
};
pub use phalanx_shm::{SessionOptions, session_options};
pub use phalanx_subprocess as subprocess;
pub use phalanx_sync::{
    Barrier, BarrierError, BoundedSemaphore, Condition, DeadlockError, Event, Local, Lock,
    LockError, LockGuard, LockOwner, OverRelease, OwnerDied, Patience, Permit, Plain, RLock,
    RLockGuard, Semaphore, Shared, SharedGuard, SharedMemory, SharedScope, SharedSlice,
    SharedSliceGuard, WaitError,
};
pub use phalanx_thread as thread;
pub use phalanx_watch as watch;
/// Bytes that are serialized as bytes: a `Vec<u8>` is a sequence of numbers to serde, and slow.
///
/// ```
/// use phalanx::{ByteBuf, Queue};
///
/// let queue = Queue::new()?;
/// queue.put(ByteBuf::from(vec![7; 100]))?;
/// assert_eq!(*queue.get()?, [7; 100]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub use serde_bytes::ByteBuf;

// Every process of a program can be asked to look, from its first moment on.
phalanx_process::__private::inventory::submit! {
    phalanx_process::__private::AtEnter(phalanx_watch::install)
}

/// What most programs use.
pub mod prelude {
    pub use crate::{
        Barrier, BoundedSemaphore, Condition, Connection, Event, Lock, Pool, Process, Queue, RLock,
        Semaphore, Shared, SharedMemory, SharedSlice, SimpleQueue, StartMethod, TaskOptions,
        ThreadPool, pipe, wait,
    };
    pub use std::time::Duration;
}

/// What the macros' output names.
#[doc(hidden)]
pub mod __private {
    pub use phalanx_process::__private::*;
}
