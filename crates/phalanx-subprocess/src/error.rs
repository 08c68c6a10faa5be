//! What goes wrong with a command.

use std::error;
use std::ffi::OsString;
use std::fmt;
use std::io;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::command::shown;
use crate::completed::CompletedProcess;
use crate::os::signal_name;

/// Why a command gave no result.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// It could not be started.
    #[error(transparent)]
    Spawn(#[from] SpawnError),
    /// The time was up; it was killed.
    #[error(transparent)]
    TimeoutExpired(#[from] TimeoutExpired),
    /// It ended with another code than zero, or by a signal, and that was to be an error.
    #[error(transparent)]
    CalledProcess(#[from] CalledProcessError),
    /// The exchange with it failed; it was killed.
    #[error("lost touch with `{command}` (pid {pid}): {source}")]
    Lost {
        /// The command, as one would type it.
        command: String,
        /// Its process id.
        pid: u32,
        /// What failed.
        source: io::Error,
    },
}

/// A command could not be started.
#[derive(Debug)]
pub struct SpawnError {
    /// The program and its arguments.
    pub args: Vec<OsString>,
    /// The directory it was to run in, unless this process's own.
    pub cwd: Option<PathBuf>,
    /// What the system said.
    pub source: io::Error,
}

impl SpawnError {
    pub(crate) fn new(args: &[OsString], cwd: Option<&Path>, source: io::Error) -> Self {
        Self {
            args: args.to_vec(),
            cwd: cwd.map(Path::to_owned),
            source,
        }
    }

    /// Returns what is missing when the system only says that something is.
    fn missing(&self) -> Option<String> {
        if self.source.kind() != io::ErrorKind::NotFound {
            return None;
        }
        if let Some(cwd) = self.cwd.as_deref().filter(|cwd| !cwd.is_dir()) {
            return Some(format!("no such directory to run it in: {}", cwd.display()));
        }
        let program = Path::new(self.args.first()?);
        Some(
            if program.components().count() == 1 && !program.is_absolute() {
                "no such program in PATH".to_owned()
            } else if self
                .cwd
                .as_deref()
                .unwrap_or(Path::new(""))
                .join(program)
                .exists()
            {
                "the file is there, but the interpreter or loader it names is not".to_owned()
            } else {
                "no such file".to_owned()
            },
        )
    }
}

impl fmt::Display for SpawnError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let program = self.args.get(..1).unwrap_or_default();
        write!(f, "cannot start `{}`: ", shown(program))?;
        match self.missing() {
            Some(missing) => f.write_str(&missing),
            None => self.source.fmt(f),
        }
    }
}

impl error::Error for SpawnError {
    fn source(&self) -> Option<&(dyn error::Error + 'static)> {
        Some(&self.source)
    }
}

/// A command did not end in time and was killed, with its process group if it had its own.
///
/// ```
/// use std::time::Duration;
///
/// use phalanx_subprocess::{Command, Error};
///
/// let late = Command::new("sleep").arg("3600").timeout(Duration::from_millis(20)).run();
/// assert!(matches!(late, Err(Error::TimeoutExpired(_))));
/// ```
#[derive(Clone, Debug)]
pub struct TimeoutExpired {
    /// The program and its arguments.
    pub args: Vec<OsString>,
    /// Its process id, which may belong to another process by now.
    pub pid: u32,
    /// The time it had.
    pub timeout: Duration,
    /// `true` if the command itself had ended, and what it had started still held its output open.
    pub output_held_open: bool,
    /// What it wrote to its standard output until then, if that was captured.
    pub stdout: Vec<u8>,
    /// What it wrote to its standard error until then, if that was captured.
    pub stderr: Vec<u8>,
}

impl fmt::Display for TimeoutExpired {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { pid, timeout, .. } = self;
        write!(f, "`{}` (pid {pid}) ", shown(&self.args))?;
        if self.output_held_open {
            write!(
                f,
                "ended, but a process it started still held its output open after {timeout:?}; \
                 redirect the output of what runs on in the background"
            )?;
        } else {
            write!(f, "did not end within {timeout:?} and was killed")?;
        }
        last_line(f, &self.stderr)
    }
}

impl error::Error for TimeoutExpired {}

/// A command ended with another code than zero, or by a signal.
#[derive(Clone, Debug)]
pub struct CalledProcessError(pub Box<CompletedProcess>);

impl fmt::Display for CalledProcessError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let CompletedProcess {
            args,
            pid,
            status,
            stderr,
            ..
        } = &*self.0;
        write!(f, "`{}` (pid {pid}) ", shown(args))?;
        match status.signal() {
            Some(signal) => write!(f, "was killed by {}", signal_name(signal))?,
            None => write!(f, "ended with exit code {}", self.0.returncode())?,
        }
        last_line(f, stderr)
    }
}

impl error::Error for CalledProcessError {}

/// Adds the last line of what the command complained about: most often the reason.
fn last_line(f: &mut fmt::Formatter<'_>, stderr: &[u8]) -> fmt::Result {
    let text = String::from_utf8_lossy(stderr);
    match text.lines().map(str::trim).rfind(|line| !line.is_empty()) {
        Some(line) => write!(f, "; its last words: {line}"),
        None => Ok(()),
    }
}
