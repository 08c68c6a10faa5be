//! A command that runs.

use std::ffi::OsString;
use std::io::{self, PipeReader, PipeWriter};
use std::process::{Child, ExitStatus};
use std::thread;
use std::time::Duration;

use phalanx_sys::clock::Deadline;

use crate::command::{Pipes, shown};
use crate::communicate::{Exchanged, Input, Output, exchange, last_words};
use crate::completed::CompletedProcess;
use crate::error::{Error, TimeoutExpired};
use crate::os::{self, ProcessFd, Signal, Tie};

/// How long a killed process is waited for. It ends at once, unless the kernel holds it in a call to a dead disk.
const AFTER_KILL: Duration = Duration::from_secs(1);

/// A command that runs.
///
/// Dropped while the command runs, it kills it (and its group, if it has its own) and leaves no zombie; to let it run
/// on, [`detach`](Self::detach) it.
///
/// # Examples
///
/// ```
/// use std::io::{BufRead, BufReader, Write};
/// use phalanx_subprocess::{Command, Redirect};
///
/// let mut cat = Command::new("cat").stdin(Redirect::Pipe).stdout(Redirect::Pipe).spawn()?;
/// let mut lines = BufReader::new(cat.stdout.take().unwrap()).lines();
/// let mut stdin = cat.stdin.take().unwrap();
/// writeln!(stdin, "hello")?;
/// assert_eq!(lines.next().unwrap()?, "hello");
/// drop(stdin);
/// assert!(cat.wait()?.success());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct Popen {
    /// Its standard input, if that is a pipe. Write to it with care: if the command does not read, writing blocks.
    pub stdin: Option<PipeWriter>,
    /// Its standard output, if that is a pipe.
    pub stdout: Option<PipeReader>,
    /// Its standard error, if that is a pipe of its own.
    pub stderr: Option<PipeReader>,
    args: Vec<OsString>,
    input: Option<Vec<u8>>,
    /// Until somebody has waited for it. Only then may the system give its number to another process or group, so a
    /// signal is only ever sent while this is there.
    running: Option<Running>,
    pid: u32,
    status: Option<ExitStatus>,
}

/// A process nobody has waited for yet.
#[derive(Debug)]
struct Running {
    child: Child,
    fd: ProcessFd,
    own_group: bool,
    tie: Option<Tie>,
}

impl Running {
    /// Sends a signal to the process, or to its group if it has its own.
    fn signal(&self, signal: Signal) -> io::Result<()> {
        if self.own_group {
            os::signal_group(self.child.id(), signal)
        } else {
            self.fd.signal(signal)
        }
    }

    /// Waits for the process, which has ended, and lets what it left behind go on.
    fn reap(mut self) -> io::Result<ExitStatus> {
        let status = self.child.wait();
        self.untie();
        status
    }

    /// Kills all of it. One that does not end at once is left to a thread that waits for it.
    fn kill(mut self) {
        // Nobody there to be killed is what was asked for.
        let _ = self.signal(Signal::KILL);
        if let Ok(true) = self.fd.wait_end(Some(Deadline::after(AFTER_KILL))) {
            let _ = self.child.wait();
        } else {
            self.reap_later();
        }
    }

    /// Starts a thread that waits for the process, so that it does not stay a zombie.
    fn reap_later(mut self) {
        let name = format!("phalanx-reap-{}", self.child.id());
        // Without a thread it stays a zombie until this process ends, which harms nobody.
        let _ = thread::Builder::new()
            .name(name)
            .spawn(move || self.child.wait());
    }

    fn untie(&mut self) {
        if let Some(tie) = self.tie.take() {
            tie.undo();
        }
    }
}

impl Popen {
    pub(crate) fn new(
        args: Vec<OsString>,
        mut child: Child,
        own_group: bool,
        tie: Option<Tie>,
        pipes: Pipes,
        input: Option<Vec<u8>>,
    ) -> io::Result<Self> {
        let pid = child.id();
        let fd = match ProcessFd::open(pid) {
            Ok(fd) => fd,
            Err(error) => {
                // Not a zombie yet, or one nobody but us can take away: the number is still its own.
                let _ = child.kill();
                let _ = child.wait();
                return Err(error);
            }
        };
        let Pipes {
            stdin,
            stdout,
            stderr,
        } = pipes;
        Ok(Self {
            stdin,
            stdout,
            stderr,
            args,
            input,
            running: Some(Running {
                child,
                fd,
                own_group,
                tie,
            }),
            pid,
            status: None,
        })
    }

    /// Returns its process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Returns the program and its arguments.
    #[must_use]
    pub fn args(&self) -> &[OsString] {
        &self.args
    }

    /// Returns how it ended, if it has, without blocking.
    ///
    /// # Errors
    ///
    /// When the system does not say.
    pub fn poll(&mut self) -> Result<Option<ExitStatus>, Error> {
        self.wait_until(Some(Deadline::at_ns(0)))
    }

    /// Blocks until it ends. Its pipes are not read meanwhile: a command that fills one never ends; see
    /// [`communicate`](Self::communicate).
    ///
    /// # Errors
    ///
    /// When the system does not say how it ended.
    pub fn wait(&mut self) -> Result<ExitStatus, Error> {
        loop {
            if let Some(status) = self.wait_until(None)? {
                return Ok(status);
            }
        }
    }

    /// Blocks until it ends or the time is up; then it returns `None` and the command goes on.
    ///
    /// # Errors
    ///
    /// When the system does not say how it ended.
    pub fn wait_timeout(&mut self, timeout: Duration) -> Result<Option<ExitStatus>, Error> {
        self.wait_until(Some(Deadline::after(timeout)))
    }

    /// Feeds the input, reads both outputs as far as they are pipes, and blocks until all is done and the command has
    /// ended, or until the time is up; then it is killed.
    ///
    /// # Errors
    ///
    /// When the time is up; the error carries the output until then.
    pub fn communicate(self, timeout: Option<Duration>) -> Result<CompletedProcess, Error> {
        let deadline = timeout.map(Deadline::after);
        self.communicate_until(timeout.zip(deadline))
    }

    /// Sends a signal to it, or to its group if it has its own. One that has ended is left in peace.
    ///
    /// # Errors
    ///
    /// When the system refuses.
    pub fn send_signal(&self, signal: Signal) -> Result<(), Error> {
        match &self.running {
            Some(running) => running.signal(signal).map_err(|source| self.lost(source)),
            None => Ok(()),
        }
    }

    /// Asks it to end (SIGTERM), or its group if it has its own.
    ///
    /// # Errors
    ///
    /// When the system refuses.
    pub fn terminate(&self) -> Result<(), Error> {
        self.send_signal(Signal::TERM)
    }

    /// Kills it (SIGKILL), or its group if it has its own.
    ///
    /// # Errors
    ///
    /// When the system refuses.
    pub fn kill(&self) -> Result<(), Error> {
        self.send_signal(Signal::KILL)
    }

    /// Lets it run on, also after this process ends, and returns its process id.
    ///
    /// A thread waits for it, so that it leaves no zombie while this process lives.
    pub fn detach(mut self) -> u32 {
        if let Some(mut running) = self.running.take() {
            running.untie();
            running.reap_later();
        }
        self.pid
    }

    /// Exchanges with the command until the end or the deadline, which comes with the time-out it was made from.
    pub(crate) fn communicate_until(
        mut self,
        limit: Option<(Duration, Deadline)>,
    ) -> Result<CompletedProcess, Error> {
        let mut input = Input::new(self.stdin.take(), self.input.take().unwrap_or_default());
        let mut outputs = [
            Output::new(self.stdout.take()),
            Output::new(self.stderr.take()),
        ];
        let exchanged = match &self.running {
            Some(running) => exchange(
                &running.fd,
                &mut input,
                &mut outputs,
                limit.map(|(_, deadline)| deadline),
            ),
            None => last_words(&mut outputs).map(|()| Exchanged::Ended),
        };
        // On an error, dropping `self` kills the command.
        let exchanged = exchanged.map_err(|source| self.lost(source))?;
        let ended = match exchanged {
            Exchanged::Ended => Ok(self.wait()?),
            Exchanged::TimedOut { ended } => {
                if let Some(running) = self.running.take() {
                    running.kill();
                }
                last_words(&mut outputs).map_err(|source| self.lost(source))?;
                Err(ended)
            }
        };

        let [stdout, stderr] = outputs.map(Output::into_bytes);
        let (args, pid) = (std::mem::take(&mut self.args), self.pid);
        match ended {
            Ok(status) => Ok(CompletedProcess {
                args,
                pid,
                status,
                stdout,
                stderr,
            }),
            Err(output_held_open) => Err(Error::from(TimeoutExpired {
                args,
                pid,
                timeout: limit.map_or(Duration::ZERO, |(timeout, _)| timeout),
                output_held_open,
                stdout,
                stderr,
            })),
        }
    }

    fn wait_until(&mut self, deadline: Option<Deadline>) -> Result<Option<ExitStatus>, Error> {
        if let Some(running) = &self.running {
            match running.fd.wait_end(deadline) {
                Ok(true) => {}
                Ok(false) => return Ok(None),
                Err(source) => return Err(self.lost(source)),
            }
        }
        if let Some(running) = self.running.take() {
            let status = running.reap().map_err(|source| self.lost(source))?;
            self.status = Some(status);
        }
        match self.status {
            Some(status) => Ok(Some(status)),
            // An earlier call ended with the error that says why.
            None => Err(self.lost(io::Error::other("its exit status is lost"))),
        }
    }

    fn lost(&self, source: io::Error) -> Error {
        Error::Lost {
            command: shown(&self.args),
            pid: self.pid,
            source,
        }
    }
}

impl Drop for Popen {
    fn drop(&mut self) {
        if let Some(running) = self.running.take() {
            running.kill();
        }
    }
}
