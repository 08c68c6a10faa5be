//! A descriptor that names a process for good: it cannot come to mean another one when the pid is reused.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::event::{PollFd, PollFlags};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, WaitId, WaitIdOptions};
use rustix::time::Timespec;

use super::clock::Deadline;
use super::signal;

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExitStatus {
    /// It returned from main or called exit with this code.
    Exited(i32),
    /// A signal ended it.
    Signaled {
        /// The signal's number.
        signal: i32,
        /// A core file was written.
        core: bool,
    },
    /// It ended, and somebody else took its status.
    Unknown,
}

impl ExitStatus {
    /// Returns the code as Python counts: the exit code, or the negative number of the signal; `None` when unknown.
    #[must_use]
    pub fn code(self) -> Option<i32> {
        match self {
            Self::Exited(code) => Some(code),
            Self::Signaled { signal, .. } => Some(-signal),
            Self::Unknown => None,
        }
    }
}

impl std::fmt::Display for ExitStatus {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Exited(code) => write!(f, "exited with code {code}"),
            Self::Signaled {
                signal,
                core: false,
            } => write!(f, "was killed by {}", signal::name(*signal)),
            Self::Signaled { signal, core: true } => {
                write!(f, "was killed by {} (core dumped)", signal::name(*signal))
            }
            Self::Unknown => f.write_str("ended in a way nobody saw"),
        }
    }
}

/// What a poll saw.
#[must_use]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Polled {
    /// The process is dead (or the descriptor has something).
    Ready,
    /// The deadline passed.
    TimedOut,
    /// A signal handler ran.
    Interrupted,
}

/// Polls one descriptor for input until `deadline`.
pub(crate) fn poll_input(fd: BorrowedFd<'_>, deadline: Option<Deadline>) -> Polled {
    let timeout = deadline.map(|deadline| {
        let left = deadline.remaining();
        Timespec {
            tv_sec: left.as_secs() as i64,
            tv_nsec: left.subsec_nanos().into(),
        }
    });
    let mut fds = [PollFd::new(&fd, PollFlags::IN)];
    match rustix::event::poll(&mut fds, timeout.as_ref()) {
        Ok(0) => Polled::TimedOut,
        Err(Errno::INTR) => Polled::Interrupted,
        Ok(_) | Err(_) => Polled::Ready,
    }
}

/// See the module's head. The descriptor closes on exec and is inherited by forked children.
#[derive(Debug)]
pub struct PidFd(OwnedFd);

impl PidFd {
    /// Opens the process that has this id now. A zombie is still there.
    ///
    /// # Errors
    ///
    /// `ESRCH` when there is none, `EMFILE` when no descriptor is left.
    pub fn open(pid: u32) -> io::Result<Self> {
        let pid = Pid::from_raw(pid.cast_signed()).ok_or(io::ErrorKind::InvalidInput)?;
        Ok(Self(rustix::process::pidfd_open(pid, PidfdFlags::empty())?))
    }

    /// Takes over a received descriptor.
    #[must_use]
    pub fn from_fd(fd: OwnedFd) -> Self {
        Self(fd)
    }

    /// Returns `true` if the process has ended (a zombie has).
    #[must_use]
    pub fn is_dead(&self) -> bool {
        self.poll(Some(Deadline::at_ns(0))) == Polled::Ready
    }

    /// Blocks until the process has ended.
    pub fn poll(&self, deadline: Option<Deadline>) -> Polled {
        poll_input(self.0.as_fd(), deadline)
    }

    /// Collects the status of a child that has ended, without blocking; `None` while it runs. Only once: the process is
    /// gone for good afterwards. A child whose status somebody else took is [`ExitStatus::Unknown`].
    ///
    /// # Errors
    ///
    /// None that a child of this process can cause.
    pub fn wait_exit(&self) -> io::Result<Option<ExitStatus>> {
        self.status(WaitIdOptions::empty())
    }

    /// Looks at the status of a child that has ended and leaves it to whoever collects it; otherwise as
    /// [`wait_exit`](Self::wait_exit).
    ///
    /// # Errors
    ///
    /// None that a child of this process can cause.
    pub fn peek_exit(&self) -> io::Result<Option<ExitStatus>> {
        self.status(WaitIdOptions::NOWAIT)
    }

    fn status(&self, options: WaitIdOptions) -> io::Result<Option<ExitStatus>> {
        let options = options | WaitIdOptions::EXITED | WaitIdOptions::NOHANG;
        loop {
            return match rustix::process::waitid(WaitId::PidFd(self.0.as_fd()), options) {
                Ok(None) => Ok(None),
                Ok(Some(status)) if status.exited() => {
                    Ok(Some(ExitStatus::Exited(status.exit_status().unwrap_or(0))))
                }
                Ok(Some(status)) => Ok(Some(ExitStatus::Signaled {
                    signal: status.terminating_signal().unwrap_or(0),
                    core: status.dumped(),
                })),
                Err(Errno::INTR) => continue,
                Err(Errno::CHILD) if self.is_dead() => Ok(Some(ExitStatus::Unknown)),
                Err(Errno::CHILD) => Ok(None),
                Err(error) => Err(error.into()),
            };
        }
    }

    /// Sends a signal. A process that has ended already is not an error.
    ///
    /// # Errors
    ///
    /// When this process may not signal that one, or there is no such signal.
    pub fn signal(&self, signal: i32) -> io::Result<()> {
        let signal = signal::from_raw(signal)?;
        match rustix::process::pidfd_send_signal(&self.0, signal) {
            Ok(()) | Err(Errno::SRCH) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

impl AsFd for PidFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
