//! The door to the operating system: all that this crate asks of `phalanx-sys`, under the names it needs here.

use std::io;
use std::os::fd::AsFd;
use std::process::{Child, Command, Stdio};

use phalanx_sys::clock::Deadline;
pub(crate) use phalanx_sys::command::{Interest, poll};
use phalanx_sys::command::{Leash, Worn};
use phalanx_sys::pidfd::PidFd;
use phalanx_sys::process::kill_group;
pub use phalanx_sys::signal::Signal;
pub(crate) use phalanx_sys::signal::name as signal_name;

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
        none_is_fine(self.0.signal(signal))
    }
}

/// Sends a signal to a process group whose leader nobody has waited for.
pub(crate) fn signal_group(leader: u32, signal: Signal) -> io::Result<()> {
    none_is_fine(kill_group(leader, signal))
}

/// A process that ended before the signal came is no error: that is how such a race ends well.
fn none_is_fine(sent: io::Result<()>) -> io::Result<()> {
    const ESRCH: i32 = 3;
    match sent {
        Err(error) if error.raw_os_error() == Some(ESRCH) => Ok(()),
        sent => sent,
    }
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
