//! The door to the operating system: all that this crate asks of `phalanx-sys`, under the names it needs here.

use std::io;
use std::os::fd::AsFd;
use std::process::{Child, Command, Stdio};

use phalanx_sys::clock::Deadline;
pub(crate) use phalanx_sys::command::{Interest, poll};
use phalanx_sys::command::{Leash, Worn};
use phalanx_sys::pidfd::PidFd;
pub(crate) use phalanx_sys::signal::name as signal_name;

/// A signal by its number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Signal(i32);

impl Signal {
    /// Asks to end.
    pub const TERM: Self = Self(phalanx_sys::signal::SIGTERM);
    /// Ends at once.
    pub const KILL: Self = Self(phalanx_sys::signal::SIGKILL);
    /// Ctrl-C.
    pub const INT: Self = Self(phalanx_sys::signal::SIGINT);

    /// The first of two without a meaning of their own.
    pub const USR1: Self = Self(phalanx_sys::signal::SIGUSR1);
    /// The second.
    pub const USR2: Self = Self(phalanx_sys::signal::SIGUSR2);
    /// The terminal is gone, or: read your configuration again.
    pub const HUP: Self = Self(phalanx_sys::signal::SIGHUP);

    /// Returns the signal of this number; sending one that does not exist is an error.
    #[must_use]
    pub fn from_raw(number: i32) -> Self {
        Self(number)
    }

    /// Returns its number.
    #[must_use]
    pub fn as_raw(self) -> i32 {
        self.0
    }
}

/// A descriptor for a child nobody has waited for, ready to read once the child has ended.
#[derive(Debug)]
pub(crate) struct ProcessFd(PidFd);

impl ProcessFd {
    pub(crate) fn open(pid: u32) -> io::Result<Self> {
        PidFd::open(pid).map(Self)
    }

    pub(crate) fn interest(&self) -> Interest<'_> {
        Interest::Readable(self.0.as_fd())
    }

    /// Blocks until the process has ended or the deadline; returns `true` if it has ended. A signal handler that runs
    /// meanwhile does not end the wait.
    pub(crate) fn wait_end(&self, deadline: Option<Deadline>) -> io::Result<bool> {
        loop {
            let [ended] = poll([Some(self.interest())], deadline)?;
            if ended || deadline.is_some_and(Deadline::has_passed) {
                return Ok(ended);
            }
        }
    }

    pub(crate) fn signal(&self, signal: Signal) -> io::Result<()> {
        self.0.signal(signal.0)
    }
}

/// Sends a signal to a process group whose leader nobody has waited for.
pub(crate) fn signal_group(leader: u32, signal: Signal) -> io::Result<()> {
    phalanx_sys::process::signal_group(leader, signal.0)
}

/// What ends a command when this process ends.
#[derive(Debug)]
pub(crate) struct Tie(Leash);

impl Tie {
    pub(crate) fn new() -> io::Result<Self> {
        Leash::new().map(Self)
    }

    /// Lets the command live when this process ends.
    pub(crate) fn undo(self) {
        self.0.take_off();
    }
}

/// Starts a command, and ties it (or the group it leads) to this process.
pub(crate) fn spawn_tied(
    command: &mut Command,
    tie: Option<&Tie>,
    leads_group: bool,
) -> io::Result<Child> {
    let Some(Tie(leash)) = tie else {
        return command.spawn();
    };
    // A process that another thread starts at this very moment inherits the end as well. That does no harm: it is
    // not the one the kernel is told to kill.
    leash.inherit(true)?;
    let spawned = command.spawn();
    leash.inherit(false)?;
    let mut child = spawned?;
    let pid = child.id();
    let whom = if leads_group {
        Worn::Group(pid)
    } else {
        Worn::Process(pid)
    };
    match leash.put_on(whom) {
        Ok(()) => Ok(child),
        Err(error) => {
            let _ = child.kill();
            let _ = child.wait();
            Err(error)
        }
    }
}

/// Returns this process's standard output, for a command's standard error.
pub(crate) fn own_stdout() -> io::Result<Stdio> {
    Ok(io::stdout().as_fd().try_clone_to_owned()?.into())
}
