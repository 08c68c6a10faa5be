//! What to run and how: a description that can be run any number of times.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, PipeReader, PipeWriter};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{self, ExitStatus, Stdio};
use std::time::Duration;

use phalanx_sys::clock::Deadline;

use crate::completed::CompletedProcess;
use crate::error::{Error, SpawnError};
use crate::os::{self, Tie};
use crate::popen::Popen;

/// Where a standard stream of a command leads.
///
/// ```
/// use phalanx_subprocess::{Command, Redirect};
///
/// let done = Command::shell("echo out; echo err >&2")
///     .stdout(Redirect::Pipe)
///     .stderr(Redirect::Null)
///     .run()?;
/// assert_eq!(done.stdout_text(), "out\n");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Default)]
pub enum Redirect {
    /// To the same place as this process's.
    #[default]
    Inherit,
    /// Nowhere: empty input, output dropped.
    Null,
    /// To this process, through a pipe.
    Pipe,
    /// To an open file.
    File(File),
    /// For the standard error only: to wherever the standard output leads, in the order written.
    Stdout,
}

/// A command to run: program, arguments, surroundings, limits.
///
/// # Examples
///
/// ```
/// use std::time::Duration;
/// use phalanx_subprocess::{Command, Error};
///
/// let slow = Command::shell("echo begun; sleep 1000 & wait").capture_output();
/// let error = slow.timeout(Duration::from_millis(200)).run().unwrap_err();
/// let Error::TimeoutExpired(late) = error else { panic!("{error}") };
/// assert_eq!(late.stdout, b"begun\n");
/// ```
#[derive(Debug)]
#[must_use = "a command does nothing until it is run"]
pub struct Command {
    args: Vec<OsString>,
    cwd: Option<PathBuf>,
    env_clear: bool,
    /// Later entries win; `None` removes.
    env: Vec<(OsString, Option<OsString>)>,
    input: Option<Vec<u8>>,
    stdin: Redirect,
    stdout: Redirect,
    stderr: Redirect,
    timeout: Option<Duration>,
    own_group: Option<bool>,
    die_with_parent: Option<bool>,
}

impl Command {
    /// Describes a program, found in `PATH` unless its name has a slash.
    pub fn new(program: impl Into<OsString>) -> Self {
        Self::from_args([program.into()])
    }

    /// Describes a program and its arguments.
    pub fn from_args<A: Into<OsString>>(args: impl IntoIterator<Item = A>) -> Self {
        Self {
            args: args.into_iter().map(Into::into).collect(),
            cwd: None,
            env_clear: false,
            env: Vec::new(),
            input: None,
            stdin: Redirect::Inherit,
            stdout: Redirect::Inherit,
            stderr: Redirect::Inherit,
            timeout: None,
            own_group: None,
            die_with_parent: None,
        }
    }

    /// Describes a line for `/bin/sh`. Never build one from text you do not trust.
    pub fn shell(line: impl Into<OsString>) -> Self {
        Self::from_args([OsString::from("/bin/sh"), "-c".into(), line.into()])
    }

    /// Adds an argument.
    pub fn arg(mut self, arg: impl Into<OsString>) -> Self {
        self.args.push(arg.into());
        self
    }

    /// Adds arguments.
    pub fn args<A: Into<OsString>>(mut self, args: impl IntoIterator<Item = A>) -> Self {
        self.args.extend(args.into_iter().map(Into::into));
        self
    }

    /// Runs it in another directory.
    pub fn cwd(mut self, folder: impl Into<PathBuf>) -> Self {
        self.cwd = Some(folder.into());
        self
    }

    /// Sets a variable.
    pub fn env(mut self, name: impl Into<OsString>, value: impl Into<OsString>) -> Self {
        self.env.push((name.into(), Some(value.into())));
        self
    }

    /// Removes a variable.
    pub fn env_remove(mut self, name: impl Into<OsString>) -> Self {
        self.env.push((name.into(), None));
        self
    }

    /// Removes all variables, those set here before included.
    pub fn env_clear(mut self) -> Self {
        self.env.clear();
        self.env_clear = true;
        self
    }

    /// Feeds these bytes to its standard input, then closes it.
    pub fn input(mut self, bytes: impl Into<Vec<u8>>) -> Self {
        self.input = Some(bytes.into());
        self.stdin = Redirect::Pipe;
        self
    }

    /// Says where its standard input comes from.
    pub fn stdin(mut self, from: Redirect) -> Self {
        self.stdin = from;
        self
    }

    /// Says where its standard output goes.
    pub fn stdout(mut self, to: Redirect) -> Self {
        self.stdout = to;
        self
    }

    /// Says where its standard error goes.
    pub fn stderr(mut self, to: Redirect) -> Self {
        self.stderr = to;
        self
    }

    /// Captures standard output and standard error, each by itself.
    pub fn capture_output(self) -> Self {
        self.stdout(Redirect::Pipe).stderr(Redirect::Pipe)
    }

    /// Bounds [`call`](Self::call), [`run`](Self::run) and [`check_output`](Self::check_output): when the time is up, the
    /// command and all of its process group are killed.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = Some(timeout);
        self
    }

    /// Says whether it leads a process group of its own, which signals and time-outs then reach as a whole.
    ///
    /// The default is yes with a time-out, else no. See [the crate's page](crate#ctrl-c) for what that means at a terminal.
    pub fn own_group(mut self, yes: bool) -> Self {
        self.own_group = Some(yes);
        self
    }

    /// Says whether the kernel kills it (its group, if it has its own) when this process ends, however it ends.
    ///
    /// The default is yes if it has a process group of its own, else no. It holds from a moment after the start until the
    /// command itself ends: what it leaves in the background is let be. It cannot reach a program that closes
    /// descriptors it does not know, or that runs as another user; and where this process forked others that never
    /// called exec, it waits for the last of them.
    pub fn die_with_parent(mut self, yes: bool) -> Self {
        self.die_with_parent = Some(yes);
        self
    }

    /// Runs it and returns how it ended.
    ///
    /// # Errors
    ///
    /// When it cannot be started or the time is up.
    pub fn call(&self) -> Result<ExitStatus, Error> {
        self.run().map(|done| done.status)
    }

    /// Runs it to its end and returns what is known of it, with the output that was to be captured.
    ///
    /// # Errors
    ///
    /// When it cannot be started or the time is up; the latter error carries the output until then. That the command
    /// fails is not an error here.
    pub fn run(&self) -> Result<CompletedProcess, Error> {
        let deadline = self.timeout.map(Deadline::after);
        self.spawn()?.communicate_until(self.timeout.zip(deadline))
    }

    /// Runs it to its end and returns what it wrote to its standard output.
    ///
    /// # Errors
    ///
    /// When it cannot be started, the time is up, or it ends with another code than zero or by a signal.
    pub fn check_output(&self) -> Result<Vec<u8>, Error> {
        let deadline = self.timeout.map(Deadline::after);
        let process = self.spawn_with(&Redirect::Pipe)?;
        let done = process.communicate_until(self.timeout.zip(deadline))?;
        Ok(done.check_returncode()?.stdout)
    }

    /// Starts it and returns at once. The time-out is not in force: give one to what you call next.
    ///
    /// # Errors
    ///
    /// When it cannot be started.
    pub fn spawn(&self) -> Result<Popen, Error> {
        self.spawn_with(&self.stdout)
    }

    fn spawn_with(&self, stdout: &Redirect) -> Result<Popen, Error> {
        let failed = |source| Error::from(SpawnError::new(&self.args, self.cwd.as_deref(), source));
        let Some((program, rest)) = self.args.split_first() else {
            return Err(failed(io::Error::new(
                io::ErrorKind::InvalidInput,
                "no program was given",
            )));
        };
        let mut command = process::Command::new(program);
        command.args(rest);
        self.surround(&mut command);
        let pipes = self.connect(&mut command, stdout).map_err(failed)?;

        let own_group = self.own_group.unwrap_or(self.timeout.is_some());
        if own_group {
            command.process_group(0);
        }
        let tie = if self.die_with_parent.unwrap_or(own_group) {
            Some(Tie::new().map_err(failed)?)
        } else {
            None
        };
        let child = os::spawn_tied(&mut command, tie.as_ref(), own_group).map_err(failed)?;
        // The command holds the child's ends of the pipes: dropped, so that the child's exit is the end of file.
        drop(command);
        Popen::new(
            self.args.clone(),
            child,
            own_group,
            tie,
            pipes,
            self.input.clone(),
        )
        .map_err(failed)
    }

    fn surround(&self, command: &mut process::Command) {
        if let Some(folder) = &self.cwd {
            command.current_dir(folder);
        }
        if self.env_clear {
            command.env_clear();
        }
        for (name, value) in &self.env {
            match value {
                Some(value) => command.env(name, value),
                None => command.env_remove(name),
            };
        }
    }

    fn connect(&self, command: &mut process::Command, stdout: &Redirect) -> io::Result<Pipes> {
        let mut pipes = Pipes::default();
        command.stdin(match &self.stdin {
            Redirect::Pipe => {
                let (reader, writer) = io::pipe()?;
                pipes.stdin = Some(writer);
                reader.into()
            }
            other => other.plain("stdin")?,
        });
        // Both outputs into one pipe, if that is asked: two writers of it.
        let mut merged: Option<PipeWriter> = None;
        command.stdout(match stdout {
            Redirect::Pipe => {
                let (reader, writer) = io::pipe()?;
                pipes.stdout = Some(reader);
                merged = Some(writer.try_clone()?);
                writer.into()
            }
            other => other.plain("stdout")?,
        });
        command.stderr(match (&self.stderr, merged, stdout) {
            (Redirect::Pipe, ..) => {
                let (reader, writer) = io::pipe()?;
                pipes.stderr = Some(reader);
                writer.into()
            }
            (Redirect::Stdout, Some(writer), _) => writer.into(),
            (Redirect::Stdout, None, Redirect::Inherit) => os::own_stdout()?,
            (Redirect::Stdout, None, other) => other.plain("stdout")?,
            (other, ..) => other.plain("stderr")?,
        });
        Ok(pipes)
    }
}

impl Redirect {
    /// Returns the stream for the redirections that need nothing made for them.
    fn plain(&self, stream: &str) -> io::Result<Stdio> {
        match self {
            Self::Inherit => Ok(Stdio::inherit()),
            Self::Null => Ok(Stdio::null()),
            Self::File(file) => Ok(file.try_clone()?.into()),
            Self::Pipe | Self::Stdout => Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!("{stream} cannot lead to the standard output: only stderr can"),
            )),
        }
    }
}

/// This process's ends.
#[derive(Debug, Default)]
pub(crate) struct Pipes {
    pub(crate) stdin: Option<PipeWriter>,
    pub(crate) stdout: Option<PipeReader>,
    pub(crate) stderr: Option<PipeReader>,
}

/// Returns a command as one would type it, cut where it gets too long to read.
pub(crate) fn shown(args: &[OsString]) -> String {
    const LONGEST: usize = 200;
    let plain = |c: char| c.is_alphanumeric() || "-_./=:,+@%".contains(c);
    let quoted = |arg: &OsStr| {
        let arg = arg.to_string_lossy();
        if !arg.is_empty() && arg.chars().all(plain) {
            arg.into_owned()
        } else {
            format!("'{}'", arg.replace('\'', r"'\''"))
        }
    };
    let line = args
        .iter()
        .map(|arg| quoted(arg))
        .collect::<Vec<_>>()
        .join(" ");
    match line.char_indices().nth(LONGEST) {
        Some((end, _)) => format!("{}…", &line[..end]),
        None => line,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_is_shown_as_typed() {
        let args = ["sh", "-c", "echo it's", ""].map(OsString::from);
        assert_eq!(shown(&args), r"sh -c 'echo it'\''s' ''");
        assert_eq!(shown(&["é".repeat(300).into()]).chars().count(), 201);
    }
}
