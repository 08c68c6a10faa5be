//! External commands, without the ways in which they hang.
//!
//! ```
//! use std::time::Duration;
//! use phalanx_subprocess::{Command, check_output, run};
//!
//! # fn main() -> Result<(), phalanx_subprocess::Error> {
//! // The exit code, and what it means.
//! assert_eq!(run(["sh", "-c", "exit 3"])?.returncode(), 3);
//!
//! // The output, or an error that says how the command failed.
//! assert_eq!(check_output(["echo", "hello"])?, b"hello\n");
//!
//! // Input fed while both outputs are read, all of it within two seconds or not at all.
//! let sorted = Command::new("sort")
//!     .input("pear\napple\n")
//!     .capture_output()
//!     .timeout(Duration::from_secs(2))
//!     .run()?;
//! assert_eq!(sorted.stdout_text(), "apple\npear\n");
//! # Ok(())
//! # }
//! ```
//!
//! The names are those of Python's `subprocess`: [`call`], [`run`], [`check_output`], [`Popen`], [`CompletedProcess`],
//! [`TimeoutExpired`], [`CalledProcessError`].
//!
//! # What a time-out does
//!
//! It bounds the whole call: the start, the transfer of input and output, and the wait for the end. A command with a
//! time-out gets a process group of its own, and when time is up the *group* is killed, so the command's own children
//! end with it. A grandchild that left the group and still holds an output pipe cannot prolong the call. The error
//! carries what was printed until then.
//!
//! # Ctrl-C
//!
//! A terminal sends Ctrl-C to its foreground process group.
//!
//! - A command *without* a time-out stays in the caller's group: both get the signal, as with a shell.
//! - A command *with* a time-out is in a group of its own, so only the caller gets the signal. If the caller dies of it,
//!   the group is killed as well, since such a command dies with its parent unless told otherwise
//!   ([`Command::die_with_parent`]). If the caller handles the signal, the command goes on and so does the call.
//! - A command in a group of its own is in the background of the terminal: it is stopped if it reads from it. Give
//!   a command that talks to the user no time-out, or `.own_group(false)`; then a time-out kills that process alone.
//!
//! # What it does not do
//!
//! Pipelines between commands (use [`Command::shell`], or connect two [`Popen`]s with [`Redirect::File`]), terminals, and
//! asynchronous waiting. It starts no thread, except for one that waits for a process nobody else waits for any more
//! ([`Popen::detach`]).

mod command;
mod communicate;
mod completed;
mod error;
mod os;
mod popen;

use std::ffi::OsString;
use std::process::ExitStatus;

pub use command::{Command, Redirect};
pub use completed::CompletedProcess;
pub use error::{CalledProcessError, Error, SpawnError, TimeoutExpired};
pub use os::Signal;
pub use popen::Popen;

/// Runs a command with this process's own input and output, and returns how it ended.
///
/// # Errors
///
/// When the command cannot be started.
///
/// # Examples
///
/// ```
/// assert!(phalanx_subprocess::call(["true"])?.success());
/// # Ok::<(), phalanx_subprocess::Error>(())
/// ```
pub fn call<A: Into<OsString>>(args: impl IntoIterator<Item = A>) -> Result<ExitStatus, Error> {
    Command::from_args(args).call()
}

/// Runs a command with this process's own input and output, and returns what is known of it.
///
/// # Errors
///
/// When the command cannot be started. A command that fails is not an error; see
/// [`CompletedProcess::check_returncode`].
///
/// # Examples
///
/// ```
/// let missing = phalanx_subprocess::run(["no-such-program"]).unwrap_err();
/// assert_eq!(missing.to_string(), "cannot start `no-such-program`: no such program in PATH");
/// ```
pub fn run<A: Into<OsString>>(
    args: impl IntoIterator<Item = A>,
) -> Result<CompletedProcess, Error> {
    Command::from_args(args).run()
}

/// Runs a command and returns what it wrote to its standard output.
///
/// # Errors
///
/// When the command cannot be started, or ends with another code than zero, or by a signal.
///
/// # Examples
///
/// ```
/// let failed = phalanx_subprocess::check_output(["sh", "-c", "kill -SEGV $$"]).unwrap_err();
/// assert!(failed.to_string().contains("SIGSEGV"));
/// ```
pub fn check_output<A: Into<OsString>>(
    args: impl IntoIterator<Item = A>,
) -> Result<Vec<u8>, Error> {
    Command::from_args(args).check_output()
}
