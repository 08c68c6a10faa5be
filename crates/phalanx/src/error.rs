//! One error for programs that pass everything up.

use crate::{
    BarrierError, BuildError, CreateError, DeadlockError, GetError, JoinError, JoinPoolError,
    LockError, OverRelease, OwnerDied, PoolError, ProcessError, PutError, PutErrorKind, StartError,
    SubmitError, TaskDoneError, ThreadTaskError, WaitError,
};

/// Any error of this crate, for `?` in programs that only report it. Each operation has a smaller one of its own.
///
/// ```
/// use phalanx::{Pool, Queue};
///
/// fn work() -> phalanx::Result<u64> {
///     let queue = Queue::new()?;
///     queue.put(5)?;
///     Ok(queue.get()?)
/// }
///
/// assert_eq!(work()?, 5);
/// assert!(matches!(Pool::new(0), Err(phalanx::BuildError::Invalid(_))));
/// # Ok::<(), phalanx::Error>(())
/// ```
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A shared object was not made.
    #[error(transparent)]
    Create(#[from] CreateError),
    /// A process was not started.
    #[error(transparent)]
    Start(#[from] StartError),
    /// A process ended without a value.
    #[error(transparent)]
    Process(#[from] ProcessError),
    /// A pool was not made.
    #[error(transparent)]
    Build(#[from] BuildError),
    /// A task was not submitted.
    #[error(transparent)]
    Submit(#[from] SubmitError),
    /// A task ended without a value.
    #[error(transparent)]
    Pool(#[from] PoolError),
    /// A task of a pool of threads ended without a value.
    #[error(transparent)]
    ThreadTask(#[from] ThreadTaskError),
    /// A thread ended without a value.
    #[error(transparent)]
    Thread(#[from] crate::thread::JoinError),
    /// A pool was not joined.
    #[error(transparent)]
    JoinPool(#[from] JoinPoolError),
    /// An item was not put.
    #[error(transparent)]
    Put(PutErrorKind),
    /// No item was had.
    #[error(transparent)]
    Get(#[from] GetError),
    /// A queue's items are not all done.
    #[error(transparent)]
    Join(#[from] JoinError),
    /// `task_done` without an item.
    #[error(transparent)]
    TaskDone(#[from] TaskDoneError),
    /// A barrier is broken.
    #[error(transparent)]
    Barrier(#[from] BarrierError),
    /// A semaphore was released too often.
    #[error(transparent)]
    OverRelease(#[from] OverRelease),
    /// A wait ended without what it waited for.
    #[error(transparent)]
    Wait(WaitError),
    /// A wait could never have ended; [`watch::deadlock_in`](crate::watch::deadlock_in) says who takes part.
    #[error(transparent)]
    Deadlock(#[from] DeadlockError),
    /// A lock was not had in time, or its owner died (it was released again by passing this error up).
    #[error("{0}")]
    Lock(String),
    /// An external command.
    #[error(transparent)]
    Subprocess(#[from] phalanx_subprocess::Error),
    /// The system.
    #[error(transparent)]
    Io(#[from] std::io::Error),
}

/// A result whose error is any of this crate's.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl<T> From<PutError<T>> for Error {
    fn from(error: PutError<T>) -> Self {
        Self::Put(error.kind)
    }
}

impl<G> From<OwnerDied<G>> for Error {
    fn from(error: OwnerDied<G>) -> Self {
        Self::Lock(error.to_string())
    }
}

impl<G> From<LockError<G>> for Error {
    fn from(error: LockError<G>) -> Self {
        match error {
            LockError::Deadlock(deadlock) => Self::Deadlock(deadlock),
            error => Self::Lock(error.to_string()),
        }
    }
}

impl From<WaitError> for Error {
    /// Takes the deadlock along, if that is the reason.
    fn from(error: WaitError) -> Self {
        match error {
            WaitError::Deadlock => Self::Deadlock(DeadlockError::taken()),
            error => Self::Wait(error),
        }
    }
}
