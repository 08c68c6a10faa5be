//! What can go wrong with a pool and its tasks.

use std::time::Duration;

use phalanx_channel::codec::CodecError;
use phalanx_process::{Death, PanicReport, StartError, TaskError};
use phalanx_shm::{AllocError, DeadlockError};
use phalanx_sync::CreateError;

/// A pool could not be made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BuildError {
    /// A number makes no sense.
    #[error("{0}")]
    Invalid(String),
    /// This process is a worker itself, and the tree has as many processes as it may.
    #[error(
        "a nested pool of {wanted} workers would bring the tree to {total} processes, its budget is {budget}; use fewer workers, or raise PHALANX_PROCESS_BUDGET"
    )]
    Budget {
        /// Workers that were asked for.
        wanted: usize,
        /// Processes there would be.
        total: usize,
        /// Processes there may be.
        budget: usize,
    },
    /// The initializer cannot be named or its arguments do not serialize.
    #[error(transparent)]
    Task(#[from] TaskError),
    /// The initializer's arguments do not serialize.
    #[error(transparent)]
    Codec(#[from] CodecError),
    /// Shared memory is short.
    #[error(transparent)]
    Create(#[from] CreateError),
    /// A worker could not be started.
    #[error(transparent)]
    Start(#[from] StartError),
}

/// A task was not submitted. Its arguments were not changed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SubmitError {
    /// The pool was closed.
    #[error("the pool is closed; submit before close()")]
    Closed,
    /// The pool cannot run anything any more.
    #[error("the pool is broken: {0}")]
    Broken(String),
    /// A crew of this size is not possible, or the system refuses what it needs.
    #[error("{0}")]
    Crew(String),
    /// The function cannot be named in a worker.
    #[error(transparent)]
    Task(#[from] TaskError),
    /// The arguments do not serialize.
    #[error(transparent)]
    Codec(#[from] CodecError),
    /// Shared memory is short.
    #[error(transparent)]
    Alloc(#[from] AllocError),
    /// The pool belongs to the process that made it.
    #[error("this pool was made by process {0}; make one of your own in a forked child")]
    NotOwner(u32),
}

/// A worker died while it ran a task.
///
/// ```
/// use phalanx_pool::{Pool, PoolError};
///
/// fn crash() {
///     std::process::abort()
/// }
///
/// # #[phalanx_macros::main(crate = phalanx_process)]
/// fn main() -> Result<(), Box<dyn std::error::Error>> {
///     let pool = Pool::new(1)?;
///     let Err(PoolError::Died(report)) = pool.apply(crash, ()) else {
///         panic!("it lives")
///     };
///     assert!(report.task.ends_with("crash"));
///     assert!(report.to_string().contains("SIGABRT"));
///     Ok(())
/// }
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct WorkerDeath {
    /// What is known of the process: pid, exit, last words, memory.
    pub death: Death,
    /// The task.
    pub task: String,
    /// Its arguments as they were sent: the size, and the first bytes as text. They are serialized without names or types, so that
    /// strings can be read in it, and numbers guessed at best. Empty if there were none.
    pub arguments: String,
    /// How long it had run.
    pub ran: Duration,
    /// How often it was tried.
    pub attempts: u32,
}

impl std::fmt::Display for WorkerDeath {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut death = self.death.clone();
        death.task = String::new();
        write!(f, "the worker that ran {}", self.task)?;
        if !self.arguments.is_empty() {
            write!(f, " ({})", self.arguments)?;
        }
        write!(f, " for {:?}", self.ran)?;
        if self.attempts > 1 {
            write!(f, " (attempt {})", self.attempts)?;
        }
        write!(f, " died: {death}")
    }
}

/// Most bytes of arguments that a report shows.
const ARGUMENTS_SHOWN: usize = 48;

/// Describes serialized arguments, of which nothing is known but that they are bytes.
pub(crate) fn describe_arguments(bytes: &[u8]) -> String {
    match bytes.len() {
        0 => String::new(),
        1..=ARGUMENTS_SHOWN => format!("{} bytes: \"{}\"", bytes.len(), bytes.escape_ascii()),
        len => format!(
            "{len} bytes: \"{}…\"",
            bytes[..ARGUMENTS_SHOWN].escape_ascii()
        ),
    }
}

/// A task ended without a value, or could not be waited for.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PoolError {
    /// It was not submitted.
    #[error(transparent)]
    Submit(#[from] SubmitError),
    /// It panicked.
    #[error("{0}")]
    Panicked(Box<PanicReport>),
    /// Its worker died.
    #[error("{0}")]
    Died(Box<WorkerDeath>),
    /// It took longer than it may; its worker was killed.
    #[error("{task} was ended after its time-out of {limit:?} (attempt {attempts})")]
    TimedOut {
        /// The task.
        task: String,
        /// Its time-out.
        limit: Duration,
        /// How often it was tried.
        attempts: u32,
    },
    /// It was cancelled.
    #[error("the task was cancelled")]
    Cancelled,
    /// The pool was terminated before it was done.
    #[error("the pool was terminated before the task was done")]
    Terminated,
    /// The pool broke before it was done.
    #[error("the pool is broken: {0}")]
    Broken(String),
    /// The worker refused it: not its function, not its arguments.
    #[error(transparent)]
    Task(#[from] TaskError),
    /// Its result is not of the expected type.
    #[error(transparent)]
    Codec(#[from] CodecError),
    /// It is not done yet, and runs on.
    #[error("not done after {0:?}; the task goes on")]
    NotDone(Duration),
    /// A signal handler ran in the waiting thread.
    #[error("interrupted by a signal while waiting for a task")]
    Interrupted,
    /// The wait could never have ended, and somebody wants such waits to fail.
    #[error(transparent)]
    Deadlock(#[from] DeadlockError),
}
