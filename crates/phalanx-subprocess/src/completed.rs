//! What is known of a command that ended.

use std::borrow::Cow;
use std::ffi::OsString;
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;

use crate::error::CalledProcessError;

/// A command that ended, and its output if that was captured.
///
/// ```
/// use phalanx_subprocess::Command;
///
/// let done = Command::shell("echo hello; exit 3").capture_output().run()?;
/// assert_eq!((done.returncode(), done.signal()), (3, None));
/// assert_eq!(done.stdout_text(), "hello\n");
/// assert!(done.check_returncode().is_err());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug)]
pub struct CompletedProcess {
    /// The program and its arguments.
    pub args: Vec<OsString>,
    /// Its process id, which may belong to another process by now.
    pub pid: u32,
    /// How it ended.
    pub status: ExitStatus,
    /// What it wrote to its standard output; empty if that was not captured.
    pub stdout: Vec<u8>,
    /// What it wrote to its standard error; empty if that was not captured.
    pub stderr: Vec<u8>,
}

impl CompletedProcess {
    /// Returns its exit code, or minus the number of the signal that ended it.
    #[must_use]
    pub fn returncode(&self) -> i32 {
        returncode(self.status)
    }

    /// Returns the number of the signal that ended it, if one did.
    #[must_use]
    pub fn signal(&self) -> Option<i32> {
        self.status.signal()
    }

    /// Returns the standard output as text; bytes that are not UTF-8 are replaced.
    #[must_use]
    pub fn stdout_text(&self) -> Cow<'_, str> {
        String::from_utf8_lossy(&self.stdout)
    }

    /// Returns the standard error as text; bytes that are not UTF-8 are replaced.
    #[must_use]
    pub fn stderr_text(&self) -> Cow<'_, str> {
        String::from_utf8_lossy(&self.stderr)
    }

    /// Returns itself if it ended with code zero.
    ///
    /// # Errors
    ///
    /// When it ended otherwise; the error carries the output.
    pub fn check_returncode(self) -> Result<Self, CalledProcessError> {
        if self.status.success() {
            Ok(self)
        } else {
            Err(CalledProcessError(Box::new(self)))
        }
    }
}

/// Returns the exit code, or minus the number of a signal: Python's convention.
pub(crate) fn returncode(status: ExitStatus) -> i32 {
    // A status of a process that ended has either.
    status
        .code()
        .unwrap_or_else(|| -status.signal().unwrap_or_default())
}
