//! A process with a target, typed: started, watched, joined.

use phalanx_prim::global::{AtomicU32, Ordering};
use std::fs::File;
use std::future::Future;
use std::marker::PhantomData;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use phalanx_channel::Loan;
use phalanx_channel::codec::{self, CodecError};
use phalanx_shm::{Instead, Patience, Subject};
use phalanx_sys::clock::Deadline;
use phalanx_sys::pidfd::ExitStatus;
use phalanx_sys::{ids, signal, socket};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::child::{Child, Parts};
use crate::entry::{self, Role};
use crate::error::{ProcessError, StartError};
use crate::fork;
use crate::reaper;
use crate::start::{DIED, PANIC, StartHandle, VALUE};
use crate::task::{TaskFn, TaskRef};
use crate::zygote::{self, Extras, Zygote};

/// How a process comes to be.
///
/// ```
/// use phalanx_process::{Process, StartMethod};
///
/// fn pid() -> u32 {
///     std::process::id()
/// }
///
/// # #[phalanx_macros::main(crate = phalanx_process)]
/// fn main() -> Result<(), Box<dyn std::error::Error>> {
///     for method in [StartMethod::Zygote, StartMethod::Spawn] {
///         let process = Process::builder().start_method(method).spawn(pid, ())?;
///         assert_eq!(process.join()?, process.pid());
///     }
///     Ok(())
/// }
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum StartMethod {
    /// A fork of the zygote, a small process started once: about 0.1 ms whatever this process's size. The default.
    #[default]
    Zygote,
    /// This program started again: about 1 ms, with nothing shared but the arena.
    Spawn,
}

/// Options for a process. Made by [`Process::builder`].
///
/// ```
/// use std::time::Duration;
///
/// use phalanx_process::Process;
///
/// fn shout(text: String) -> String {
///     text.to_uppercase()
/// }
///
/// # #[phalanx_macros::main(crate = phalanx_process)]
/// fn main() -> Result<(), Box<dyn std::error::Error>> {
///     let process = Process::builder()
///         .name("shouter")
///         .daemon()
///         .capture_stderr()
///         .memory_limit(1 << 30)
///         .spawn(shout, "hello".to_owned())?;
///     assert_eq!(process.name(), "shouter");
///     assert_eq!(process.join_timeout(Duration::from_secs(60))?, "HELLO");
///     Ok(())
/// }
/// ```
#[derive(Clone, Debug, Default)]
#[must_use]
pub struct Builder {
    name: Option<String>,
    method: StartMethod,
    daemon: bool,
    capture_stderr: bool,
    memory_limit: Option<u64>,
    executable: Option<PathBuf>,
    new_group: bool,
    quiet_interrupt: bool,
}

/// A process of this program that runs one function, and the handle on it.
///
/// Dropping the handle lets the process run on. When this process ends in order, it joins its children, but ends those that
/// are daemons; when it is killed, the kernel kills all of them.
///
/// ```no_run
/// use phalanx_process::Process;
///
/// fn square(x: u64) -> u64 {
///     x * x
/// }
///
/// phalanx_process::enter(); // what #[phalanx::main] does
/// let process = Process::spawn(square, 12)?;
/// assert_eq!(process.join()?, 144);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct Process<R> {
    child: Arc<Child>,
    types: PhantomData<fn() -> R>,
}

static COUNTER: AtomicU32 = AtomicU32::new(1);

impl Builder {
    /// Names the process; otherwise it is `Process-1`, `Process-2`, ….
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.name = Some(name.into());
        self
    }

    /// Chooses how the process comes to be.
    pub fn start_method(mut self, method: StartMethod) -> Self {
        self.method = method;
        self
    }

    /// Ends the process when this one ends in order, instead of waiting for it.
    pub fn daemon(mut self) -> Self {
        self.daemon = true;
        self
    }

    /// Passes the process's stderr on through this one, which keeps the last 4 KiB for the report of its death.
    pub fn capture_stderr(mut self) -> Self {
        self.capture_stderr = true;
        self
    }

    /// Limits the memory that the process may allocate, in bytes beyond what it has at its start. An allocation beyond
    /// fails, which in Rust ends the process; the error then says so. Shared memory does not count.
    pub fn memory_limit(mut self, bytes: u64) -> Self {
        self.memory_limit = Some(bytes);
        self
    }

    /// Starts another executable than this one. Its `main` is `#[phalanx::main]` too, and functions are found there by
    /// their registered name. Implies [`StartMethod::Spawn`].
    pub fn executable(mut self, path: impl Into<PathBuf>) -> Self {
        self.executable = Some(path.into());
        self.method = StartMethod::Spawn;
        self
    }

    /// Puts the process into a process group of its own, out of reach of the terminal's Ctrl-C. Implies
    /// [`StartMethod::Spawn`].
    pub fn new_group(mut self) -> Self {
        self.new_group = true;
        self.method = StartMethod::Spawn;
        self
    }

    /// Lets the process ignore Ctrl-C (SIGINT); its parent decides when it ends.
    pub fn ignore_interrupt(mut self) -> Self {
        self.quiet_interrupt = true;
        self
    }

    /// Starts the process.
    ///
    /// # Errors
    ///
    /// [`StartError`]: nothing was started.
    pub fn spawn<F, A, M>(self, function: F, args: A) -> Result<Process<F::Output>, StartError>
    where
        F: TaskFn<A, M>,
        A: Serialize + DeserializeOwned,
        M: 'static,
        F::Output: DeserializeOwned,
    {
        let task = TaskRef::of(&function)?;
        let name = task.name().to_owned();
        let (bytes, handles) = encode_args(&args)?;
        let payload = entry::join_payload(&task, &bytes)?;
        let start = self.record(&payload, &handles)?;
        let child = match self.method {
            StartMethod::Spawn => {
                let extras = self.extras(name)?;
                zygote::entry_spawn(
                    Role::Start,
                    Some((start, extras)),
                    &self.process_name(),
                    &[],
                    None,
                )?
            }
            StartMethod::Zygote => {
                let connection = zygote::shared()?;
                let extras = self.extras(name)?;
                zygote::spawn_through(&connection, start, &self.process_name(), extras)?
            }
        };
        Ok(Process {
            child,
            types: PhantomData,
        })
    }

    /// Starts a process from a zygote that carries a closure.
    ///
    /// # Errors
    ///
    /// [`StartError`]: nothing was started.
    pub fn spawn_in<A, R>(self, zygote: &Zygote<A, R>, args: A) -> Result<Process<R>, StartError>
    where
        A: Serialize + DeserializeOwned,
        R: Serialize + DeserializeOwned,
    {
        let connection = zygote.connection()?;
        let (bytes, handles) = encode_args(&args)?;
        let start = self.record(&bytes, &handles)?;
        let extras = self.extras("the zygote's closure".to_owned())?;
        let child = zygote::spawn_through(connection, start, &self.process_name(), extras)?;
        Ok(Process {
            child,
            types: PhantomData,
        })
    }

    /// Forks this process and runs `closure` in the child, with all that it captured.
    ///
    /// # Errors
    ///
    /// [`StartError`]: nothing was started.
    ///
    /// # Safety
    ///
    /// As for [`fork`](crate::fork()): the closure uses nothing that another thread of this process may hold now.
    #[expect(unsafe_code, reason = "passes the duty of a fork on")]
    pub unsafe fn fork<R>(self, closure: impl FnOnce() -> R) -> Result<Process<R>, StartError>
    where
        R: Serialize + DeserializeOwned,
    {
        let start = self.record(&[], &[])?;
        let block = start.block();
        let mut extras = self.extras(std::any::type_name_of_val(&closure).to_owned())?;
        let write = extras.stderr_write.take();
        let name = self.process_name();
        let parts = |pid, ticket, tie| Parts {
            pid,
            ticket,
            name,
            daemon: extras.daemon,
            start: Some(start),
            task: extras.task,
            memory_limit: extras.memory_limit,
            stderr: extras.stderr_read,
            tie: Some(tie),
        };
        // SAFETY: the caller's promise.
        match unsafe { fork::fork_with(parts) }? {
            Some(child) => Ok(Process {
                child,
                types: PhantomData,
            }),
            None => {
                if let Some(write) = write {
                    let _ = socket::replace_stderr(write);
                }
                entry::run_closure_and_exit(block, closure)
            }
        }
    }

    fn process_name(&self) -> String {
        self.name
            .clone()
            .unwrap_or_else(|| format!("Process-{}", COUNTER.fetch_add(1, Ordering::Relaxed)))
    }

    fn record(
        &self,
        payload: &[u8],
        handles: &[phalanx_shm::Held],
    ) -> Result<StartHandle, StartError> {
        let arena = phalanx_shm::session()?;
        crate::start::install();
        let mut loan = Loan::new(arena, payload.len(), handles)?;
        loan.copy_from_slice(payload);
        Ok(StartHandle::new(arena, loan, self.memory_limit)?)
    }

    fn extras(&self, task: String) -> Result<Extras, StartError> {
        let mut extras = Extras {
            daemon: self.daemon,
            task,
            memory_limit: self.memory_limit,
            stderr_read: None,
            stderr_write: None,
            executable: self.executable.clone(),
            new_group: self.new_group,
            quiet_interrupt: self.quiet_interrupt,
        };
        if self.capture_stderr {
            let (read, write): (OwnedFd, OwnedFd) = socket::pipe()?;
            socket::set_nonblocking(&read)?;
            extras.stderr_read = Some(File::from(read));
            extras.stderr_write = Some(write);
        }
        Ok(extras)
    }
}

fn encode_args<A: Serialize>(args: &A) -> Result<(Vec<u8>, Vec<phalanx_shm::Held>), CodecError> {
    let mut bytes = Vec::new();
    let (encoded, handles) = phalanx_sync::handle::collect(|| codec::encode(args, &mut bytes));
    encoded?;
    Ok((bytes, handles))
}

impl Process<()> {
    /// Returns the options for a process.
    pub fn builder() -> Builder {
        Builder::default()
    }
}

impl<R> Process<R> {
    /// Starts a process that runs `function` on `args`, with the default options.
    ///
    /// A function of several parameters takes them as a tuple. It is a function, a `fn` pointer or a closure that captures
    /// nothing; values travel as arguments.
    ///
    /// # Errors
    ///
    /// [`StartError`]: nothing was started.
    pub fn spawn<F, A, M>(function: F, args: A) -> Result<Self, StartError>
    where
        F: TaskFn<A, M, Output = R>,
        A: Serialize + DeserializeOwned,
        M: 'static,
        R: DeserializeOwned,
    {
        Builder::default().spawn(function, args)
    }

    /// Returns the process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.pid
    }

    /// Returns the name.
    #[must_use]
    pub fn name(&self) -> String {
        self.child.name()
    }

    /// Gives the handle another name; the process itself does not notice.
    pub fn set_name(&self, name: &str) {
        self.child.set_name(name);
    }

    /// Returns `true` if the process is ended when this one ends.
    #[must_use]
    pub fn is_daemon(&self) -> bool {
        self.child.is_daemon()
    }

    /// Returns `true` while the process runs.
    #[must_use]
    pub fn is_alive(&self) -> bool {
        self.child.status().is_none()
    }

    /// Returns how the process ended, `None` while it runs.
    #[must_use]
    pub fn exit_status(&self) -> Option<ExitStatus> {
        self.child.status()
    }

    /// Returns the exit code, or the negative number of the signal that ended it; `None` while it runs.
    #[must_use]
    pub fn exit_code(&self) -> Option<i32> {
        self.child.status().and_then(ExitStatus::code)
    }

    /// Asks the process to end (SIGTERM). One that has ended is not an error.
    ///
    /// # Errors
    ///
    /// When this process may not signal it.
    pub fn terminate(&self) -> std::io::Result<()> {
        self.child.signal(signal::SIGTERM)
    }

    /// Ends the process at once (SIGKILL). One that has ended is not an error.
    ///
    /// # Errors
    ///
    /// When this process may not signal it.
    pub fn kill(&self) -> std::io::Result<()> {
        self.child.signal(signal::SIGKILL)
    }

    /// Sends any signal.
    ///
    /// # Errors
    ///
    /// When there is no such signal or this process may not send it.
    pub fn signal(&self, number: i32) -> std::io::Result<()> {
        self.child.signal(number)
    }

    fn check_parent(&self) -> Result<(), ProcessError> {
        if self.child.is_mine() {
            Ok(())
        } else if self.child.pid == ids::pid() {
            Err(ProcessError::Current)
        } else {
            Err(ProcessError::NotAChild(self.child.pid))
        }
    }

    /// Blocks until the process has ended and returns how, without asking for its result.
    ///
    /// # Errors
    ///
    /// [`ProcessError::TimedOut`], [`ProcessError::Current`], [`ProcessError::NotAChild`],
    /// [`ProcessError::Deadlock`].
    #[track_caller]
    pub fn wait(&self, timeout: Option<Duration>) -> Result<ExitStatus, ProcessError> {
        self.check_parent()?;
        let patience = Patience {
            deadline: timeout.map(Deadline::after),
            ..Patience::or_deadlock()
        };
        match self.child.wait(patience) {
            Ok(Some(status)) => Ok(status),
            Err(error) => Err(ProcessError::from_wait(error, self.child.pid, timeout)),
            Ok(None) => Err(ProcessError::TimedOut {
                pid: self.child.pid,
                after: timeout.unwrap_or_default(),
            }),
        }
    }

    pub(crate) fn child(&self) -> &Arc<Child> {
        &self.child
    }

    /// Calls `then` once the process has ended and what it held was returned, in whichever thread notices first.
    pub fn at_end(&self, then: impl FnOnce(ExitStatus) + Send + 'static) {
        self.child().at_end(Box::new(then));
    }

    /// Returns all that is known about the process's end, `None` while it runs.
    #[must_use]
    pub fn death(&self) -> Option<crate::Death> {
        self.child.status().map(|status| self.child.death(status))
    }
}

impl<R: DeserializeOwned> Process<R> {
    /// Blocks until the process has ended and returns its result.
    ///
    /// # Errors
    ///
    /// [`ProcessError`]: how it died, or with which message it panicked.
    #[track_caller]
    pub fn join(&self) -> Result<R, ProcessError> {
        self.wait(None)?;
        self.take()
    }

    /// As [`join`](Self::join), for at most `timeout`. The process runs on when it is too slow, and can be joined again.
    ///
    /// # Errors
    ///
    /// [`ProcessError::TimedOut`] and as for `join`.
    #[track_caller]
    pub fn join_timeout(&self, timeout: Duration) -> Result<R, ProcessError> {
        self.wait(Some(timeout))?;
        self.take()
    }

    /// Blocks until there is a result, which may be a little before the process has ended.
    ///
    /// # Errors
    ///
    /// [`ProcessError`]: how it died, or with which message it panicked.
    #[track_caller]
    pub fn result(&self) -> Result<R, ProcessError> {
        self.result_within(Patience::or_deadlock(), None)
    }

    /// As [`result`](Self::result), for at most `timeout`.
    ///
    /// # Errors
    ///
    /// [`ProcessError::TimedOut`] and as for `result`.
    #[track_caller]
    pub fn result_timeout(&self, timeout: Duration) -> Result<R, ProcessError> {
        self.result_within(Patience::timeout(timeout).here(), Some(timeout))
    }

    fn result_within(
        &self,
        patience: Patience,
        timeout: Option<Duration>,
    ) -> Result<R, ProcessError> {
        self.check_parent()?;
        if let Some(start) = &self.child.start {
            let _instead = Instead::new(Subject::Process, u64::from(self.child.pid));
            start
                .wait(patience)
                .map_err(|error| ProcessError::from_wait(error, self.child.pid, timeout))?;
        }
        self.take()
    }

    fn take(&self) -> Result<R, ProcessError> {
        let start = self
            .child
            .start
            .as_ref()
            .ok_or(ProcessError::Taken(self.child.pid))?;
        let outcome = start.outcome().unwrap_or(DIED);
        if outcome == DIED {
            let status = self.wait(None)?;
            return Err(ProcessError::Died(Box::new(self.child.death(status))));
        }
        let message = start
            .take_result()
            .ok_or(ProcessError::Taken(self.child.pid))?;
        match outcome {
            VALUE => Ok(codec::decode(&message)?),
            PANIC => Err(ProcessError::Panicked(Box::new(codec::decode(&message)?))),
            _ => Err(ProcessError::Task(codec::decode(&message)?)),
        }
    }
}

/// Ready when the process has ended.
impl<R> phalanx_channel::Waitable for Process<R> {
    fn is_ready(&self) -> bool {
        self.child.status().is_some()
    }

    fn gate(&self) -> &phalanx_sync::Gate<phalanx_shm::Shared> {
        match &self.child.start {
            Some(start) => start.gate(),
            None => unreachable!("a process with a handle of this type has a start record"),
        }
    }
}

/// Awaits the result, on any executor.
impl<R: DeserializeOwned> Future for Process<R> {
    type Output = Result<R, ProcessError>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        if let Err(error) = self.check_parent() {
            return Poll::Ready(Err(error));
        }
        if self.child.status().is_some() || self.child.wake_at_end(cx.waker()).is_some() {
            return Poll::Ready(self.take());
        }
        Poll::Pending
    }
}

/// A child as [`active_children`] lists it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ActiveChild {
    /// Its process id.
    pub pid: u32,
    /// Its name.
    pub name: String,
    /// It is ended when this process ends.
    pub daemon: bool,
}

/// Returns the children of this process that run, in the order of their ids. Collects those that have ended.
///
/// ```
/// use phalanx_process::{Process, active_children};
///
/// fn sleep() {
///     std::thread::sleep(std::time::Duration::from_secs(3600));
/// }
///
/// # #[phalanx_macros::main(crate = phalanx_process)]
/// fn main() -> Result<(), Box<dyn std::error::Error>> {
///     let process = Process::builder().name("sleeper").spawn(sleep, ())?;
///     assert!(active_children().iter().any(|child| child.name == "sleeper"));
///     process.kill()?;
///     assert!(process.join().is_err());
///     Ok(())
/// }
/// ```
#[must_use]
pub fn active_children() -> Vec<ActiveChild> {
    let children = reaper::children()
        .into_iter()
        .filter(|child| child.status().is_none() && child.start.is_some());
    children
        .map(|child| ActiveChild {
            pid: child.pid,
            name: child.name(),
            daemon: child.is_daemon(),
        })
        .collect()
}
