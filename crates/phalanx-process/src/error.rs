//! What can go wrong with a process, by operation.

use std::io;
use std::time::Duration;

use phalanx_channel::codec::CodecError;
use phalanx_shm::{AllocError, DeadlockError, OpenError, WaitError};
use phalanx_sys::pidfd::ExitStatus;
use phalanx_sys::signal;

use crate::crash::CrashStack;
use crate::task::TaskError;
use phalanx_thread::panics::PanicReport;

/// A process could not be started. Nothing is left of the attempt.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// The function cannot be named in another process.
    #[error(transparent)]
    Task(#[from] TaskError),
    /// The arguments cannot be serialized.
    #[error(transparent)]
    Codec(#[from] CodecError),
    /// No shared memory or process slot is left.
    #[error(transparent)]
    Alloc(#[from] AllocError),
    /// There is no arena and none can be made.
    #[error(transparent)]
    Session(#[from] OpenError),
    /// `main` does not let this program be a worker.
    #[error(
        "this program cannot start itself as a worker: put #[phalanx::main] on its main function (in a test crate: phalanx::test_entry!())"
    )]
    NoEntry,
    /// The system refused.
    #[error("cannot start a process: {0}")]
    Io(#[from] io::Error),
    /// The zygote ended before it answered.
    #[error("the zygote ended while it started a process: {0}")]
    Zygote(String),
}

/// Whether memory ran out when a process died.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[non_exhaustive]
pub enum MemoryVerdict {
    /// Nothing points to it.
    NoSign,
    /// An allocation failed at the process's own memory limit (in bytes).
    OwnLimit(u64),
    /// An allocation failed.
    AllocationFailed,
    /// The kernel's out-of-memory killer was at work in this control group at that time.
    OomKiller,
}

/// All that is known about a process that ended without a result.
///
/// ```
/// use phalanx_process::{ExitStatus, Process, ProcessError};
///
/// fn leave() {
///     eprintln!("no way on");
///     std::process::exit(3)
/// }
///
/// # #[phalanx_macros::main(crate = phalanx_process)]
/// fn main() -> Result<(), Box<dyn std::error::Error>> {
///     let process = Process::builder().capture_stderr().spawn(leave, ())?;
///     let Err(ProcessError::Died(death)) = process.join() else {
///         panic!("it returned")
///     };
///     assert_eq!((death.pid, death.exit), (process.pid(), ExitStatus::Exited(3)));
///     assert!(death.stderr.contains("no way on"));
///     Ok(())
/// }
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Death {
    /// Its name.
    pub name: String,
    /// Its process id.
    pub pid: u32,
    /// How it ended.
    pub exit: ExitStatus,
    /// The task it was running.
    pub task: String,
    /// What it printed last on stderr, if that was captured.
    pub stderr: String,
    /// Where it was when SIGSEGV, SIGBUS, SIGILL, SIGFPE or SIGABRT struck, if it was started by spawn or a zygote, or with a closure.
    pub stack: CrashStack,
    /// Whether memory ran out.
    pub memory: MemoryVerdict,
}

impl std::fmt::Display for Death {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "process {} ({}) {}", self.pid, self.name, self.exit)?;
        if !self.task.is_empty() {
            write!(f, " while it ran {}", self.task)?;
        }
        match self.memory {
            MemoryVerdict::NoSign => {}
            MemoryVerdict::OwnLimit(limit) => {
                write!(f, "; it had reached its memory limit of {limit} bytes")?
            }
            MemoryVerdict::AllocationFailed => f.write_str("; it could not allocate memory")?,
            MemoryVerdict::OomKiller => {
                f.write_str("; the kernel's out-of-memory killer was at work")?
            }
        }
        if !self.stderr.is_empty() {
            write!(f, "; last on stderr: {}", self.stderr.trim_end())?;
        }
        if let Some(advice) = self.advice() {
            write!(f, "; what to do: {advice}")?;
        }
        let lines = self.stack.lines();
        if !lines.is_empty() {
            f.write_str("\n  it was here, the most recent call first:")?;
        }
        lines.iter().try_for_each(|line| write!(f, "\n    {line}"))
    }
}

impl Death {
    /// Says what to do about such a death.
    #[must_use]
    pub fn advice(&self) -> Option<&'static str> {
        match (self.memory, self.exit) {
            (MemoryVerdict::OwnLimit(_), _) => Some("raise memory_limit, or give it less to do"),
            (MemoryVerdict::AllocationFailed | MemoryVerdict::OomKiller, _) => {
                Some("run fewer processes at once, or give each less to do")
            }
            (_, ExitStatus::Exited(_)) => {
                Some("something in it ended the process: return an error instead")
            }
            (_, ExitStatus::Signaled { signal, .. }) => match signal {
                signal::SIGKILL | signal::SIGTERM | signal::SIGHUP | signal::SIGINT => {
                    Some("somebody ended it; a pool's retries run such a task again")
                }
                signal::SIGABRT => Some("it gave up: its stderr says why"),
                signal::SIGSEGV | signal::SIGBUS | signal::SIGFPE => {
                    Some("native or unsafe code crashed: run it alone, under a debugger")
                }
                signal::SIGILL => Some("it was built for another processor, or gave up"),
                _ => None,
            },
            (_, ExitStatus::Unknown) => None,
        }
    }
}

/// A process ended without a value, or could not be waited for.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ProcessError {
    /// It died: killed, crashed, or exited on its own.
    #[error("{0}")]
    Died(Box<Death>),
    /// Its function panicked.
    #[error("{0}")]
    Panicked(Box<PanicReport>),
    /// It refused the task: another binary, an unregistered function, arguments that are not what the function takes.
    #[error(transparent)]
    Task(#[from] TaskError),
    /// Its result cannot be read.
    #[error(transparent)]
    Codec(#[from] CodecError),
    /// It did not end in time; it runs on.
    #[error("process {pid} still runs after {after:?}")]
    TimedOut {
        /// Its process id.
        pid: u32,
        /// The time-out.
        after: Duration,
    },
    /// A signal handler ran in the waiting thread.
    #[error("interrupted by a signal")]
    Interrupted,
    /// The wait could never have ended, and somebody wants such waits to fail.
    #[error(transparent)]
    Deadlock(#[from] DeadlockError),
    /// The caller is that process.
    #[error("a process cannot join itself; join it in the process that started it")]
    Current,
    /// The caller is not the process that started it.
    #[error("process {0} was started by another process; only that one can join it")]
    NotAChild(u32),
    /// The result was taken before.
    #[error("the result of process {0} was taken already")]
    Taken(u32),
}

impl ProcessError {
    pub(crate) fn from_wait(error: WaitError, pid: u32, after: Option<Duration>) -> Self {
        match error {
            WaitError::Interrupted => Self::Interrupted,
            WaitError::Deadlock => Self::Deadlock(DeadlockError::taken()),
            WaitError::TimedOut => Self::TimedOut {
                pid,
                after: after.unwrap_or_default(),
            },
        }
    }
}
