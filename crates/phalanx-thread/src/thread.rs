//! A thread's handle.

use std::collections::HashMap;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use phalanx_prim::Deadline;
use phalanx_prim::global::{AtomicU32, Ordering};
use phalanx_shm::{DeadlockError, Patience, Subject, Waiting};

use crate::panics::{self, PanicReport};
use crate::registry::{self, ThreadInfo, lock};

/// Why a thread's value was not had.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum JoinError {
    /// It panicked.
    #[error("{0}")]
    Panicked(Box<PanicReport>),
    /// It still runs, and can be joined again.
    #[error("thread {name} still runs after {after:?}")]
    TimedOut {
        /// Its name.
        name: String,
        /// The time-out.
        after: Duration,
    },
    /// A thread cannot wait for its own end.
    #[error("a thread cannot join itself; join it from another thread")]
    Current,
    /// Its value was taken before.
    #[error("the value of thread {0} was taken already")]
    Taken(String),
    /// The wait could never have ended, and somebody wants such waits to fail.
    #[error(transparent)]
    Deadlock(#[from] DeadlockError),
}

/// What a struct does as a thread: `Thread::spawn(move || task.run())` by another name.
///
/// ```
/// use phalanx_thread::{Builder, Run};
///
/// struct Sum(Vec<u64>);
///
/// impl Run for Sum {
///     type Output = u64;
///
///     fn run(self) -> u64 {
///         self.0.iter().sum()
///     }
/// }
///
/// assert_eq!(Builder::new().run(Sum(vec![1, 2, 3]))?.join()?, 6);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub trait Run {
    /// What it returns.
    type Output;

    /// Does it.
    fn run(self) -> Self::Output;
}

enum Value<T> {
    Running,
    Ended(Result<T, PanicReport>),
    Taken,
}

struct State<T> {
    value: Value<T>,
    wakers: Vec<Waker>,
}

struct Shared<T> {
    state: Mutex<State<T>>,
    ended: Condvar,
    /// The kernel's id of it.
    tid: AtomicU32,
    info: Mutex<Option<ThreadInfo>>,
    name: String,
}

/// A thread and its value. Dropping the handle lets the thread run on.
///
/// ```
/// use phalanx_thread::Thread;
///
/// let thread = Thread::spawn(|| 6 * 7)?;
/// assert!(thread.name().starts_with("Thread-"));
/// assert_eq!(thread.join_timeout(std::time::Duration::from_secs(60))?, 42);
/// assert!(!thread.is_alive());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Thread<T> {
    shared: Arc<Shared<T>>,
}

/// Options of a [`Thread`].
///
/// ```
/// use phalanx_thread::Builder;
///
/// let thread = Builder::new().name("helper").daemon().spawn(|| "done")?;
/// assert_eq!(thread.join()?, "done");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Default)]
#[must_use = "a builder does nothing until `spawn`"]
pub struct Builder {
    name: Option<String>,
    daemon: bool,
    stack_size: Option<usize>,
}

/// Threads that are no daemons and run: what `join_all` waits for.
static ALIVE: Mutex<Option<Alive>> = Mutex::new(None);
static ENDED: Condvar = Condvar::new();

struct Alive {
    pid: u32,
    threads: HashMap<u64, std::thread::ThreadId>,
}

/// Keeps the list whole while the process forks.
pub(crate) fn freeze() -> impl Sized + 'static {
    lock(&ALIVE)
}

fn with_alive<R>(f: impl FnOnce(&mut HashMap<u64, std::thread::ThreadId>) -> R) -> R {
    crate::frozen::install();
    let mut alive = lock(&ALIVE);
    let pid = phalanx_sys::ids::pid();
    let alive = match &mut *alive {
        Some(alive) if alive.pid == pid => alive,
        other => other.insert(Alive {
            pid,
            threads: HashMap::new(),
        }),
    };
    f(&mut alive.threads)
}

impl Builder {
    /// Returns the options of a thread that is named by number and no daemon.
    pub fn new() -> Self {
        Self::default()
    }

    /// Names the thread. Default: `Thread-1`, `Thread-2`, …
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.name = Some(name.into());
        self
    }

    /// Lets [`join_all`] end without it.
    pub fn daemon(mut self) -> Self {
        self.daemon = true;
        self
    }

    /// Sets the size of its stack in bytes. Default: the standard library's.
    pub fn stack_size(mut self, bytes: usize) -> Self {
        self.stack_size = Some(bytes);
        self
    }

    /// Starts the thread.
    ///
    /// # Errors
    ///
    /// When the system has no room for another thread, or the name holds a zero byte.
    pub fn spawn<T, F>(self, f: F) -> io::Result<Thread<T>>
    where
        F: FnOnce() -> T + Send + 'static,
        T: Send + 'static,
    {
        // The main thread is the one that was there before.
        let _main = registry::main_thread();
        let name = self.name.unwrap_or_else(registry::next_name);
        if name.contains('\0') {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "a thread's name cannot hold a zero byte",
            ));
        }
        let shared = Arc::new(Shared {
            state: Mutex::new(State {
                value: Value::Running,
                wakers: Vec::new(),
            }),
            ended: Condvar::new(),
            tid: AtomicU32::new(0),
            info: Mutex::new(None),
            name: name.clone(),
        });
        let mut builder = std::thread::Builder::new().name(name.clone());
        if let Some(bytes) = self.stack_size {
            builder = builder.stack_size(bytes);
        }
        let (theirs, daemon) = (Arc::clone(&shared), self.daemon);
        let (started, entered) = std::sync::mpsc::sync_channel(1);
        builder.spawn(move || {
            theirs.tid.store(phalanx_sys::ids::tid(), Ordering::Relaxed);
            let entry = registry::enter(name, daemon, false);
            let number = {
                let info = registry::current();
                let number = info.ident();
                *lock(&theirs.info) = Some(info);
                number
            };
            drop(entry);
            if !daemon {
                with_alive(|alive| alive.insert(number, std::thread::current().id()));
            }
            let _ = started.send(());
            let value = panics::catch(f);
            // Out of the list first: whoever joined it does not find it there any more.
            registry::leave(number);
            let wakers = {
                let mut state = lock(&theirs.state);
                state.value = Value::Ended(value);
                std::mem::take(&mut state.wakers)
            };
            theirs.ended.notify_all();
            wakers.into_iter().for_each(Waker::wake);
            with_alive(|alive| alive.remove(&number));
            ENDED.notify_all();
        })?;
        // When `spawn` returns the thread is in the list.
        let _ = entered.recv();
        Ok(Thread { shared })
    }

    /// As [`spawn`](Self::spawn), for a struct that says what it does.
    ///
    /// # Errors
    ///
    /// As for `spawn`.
    pub fn run<R>(self, task: R) -> io::Result<Thread<R::Output>>
    where
        R: Run + Send + 'static,
        R::Output: Send + 'static,
    {
        self.spawn(move || task.run())
    }
}

impl<T: Send + 'static> Thread<T> {
    /// Starts a thread with the default options.
    ///
    /// # Errors
    ///
    /// When the system has no room for another thread.
    pub fn spawn(f: impl FnOnce() -> T + Send + 'static) -> io::Result<Self> {
        Builder::new().spawn(f)
    }
}

impl<T> Thread<T> {
    /// Returns its name.
    #[must_use]
    pub fn name(&self) -> String {
        lock(&self.shared.info)
            .as_ref()
            .map_or_else(|| self.shared.name.clone(), ThreadInfo::name)
    }

    /// Gives it another name.
    pub fn set_name(&self, name: &str) {
        if let Some(info) = lock(&self.shared.info).as_ref() {
            info.set_name(name);
        }
    }

    /// Returns what else is known of it.
    #[must_use]
    pub fn info(&self) -> Option<ThreadInfo> {
        lock(&self.shared.info).clone()
    }

    /// Returns `true` while it runs.
    #[must_use]
    pub fn is_alive(&self) -> bool {
        matches!(lock(&self.shared.state).value, Value::Running)
    }

    /// Blocks until it has ended and returns its value.
    ///
    /// # Errors
    ///
    /// [`JoinError`].
    #[track_caller]
    pub fn join(&self) -> Result<T, JoinError> {
        self.join_within(None)
    }

    /// As [`join`](Self::join), for at most `timeout`. It can be joined again when that was too short.
    ///
    /// # Errors
    ///
    /// [`JoinError`].
    #[track_caller]
    pub fn join_timeout(&self, timeout: Duration) -> Result<T, JoinError> {
        self.join_within(Some(timeout))
    }

    #[track_caller]
    fn join_within(&self, timeout: Option<Duration>) -> Result<T, JoinError> {
        if lock(&self.shared.info).as_ref() == Some(&registry::current()) {
            return Err(JoinError::Current);
        }
        let patience = Patience {
            deadline: timeout.map(Deadline::after),
            ..Patience::or_deadlock()
        };
        let tid = |_: &_| u64::from(self.shared.tid.load(Ordering::Relaxed));
        let mut waiting = Waiting::new();
        let mut state = lock(&self.shared.state);
        loop {
            waiting.looks();
            if !matches!(state.value, Value::Running) {
                return self.take(&mut state);
            }
            if patience.deadline.is_some_and(Deadline::has_passed) {
                return Err(JoinError::TimedOut {
                    name: self.shared.name.clone(),
                    after: timeout.unwrap_or_default(),
                });
            }
            if waiting.sleeps(Subject::Thread, tid, 0, patience).is_err() {
                return Err(JoinError::Deadlock(DeadlockError::taken()));
            }
            let until = waiting.until(patience.deadline);
            let ended = &self.shared.ended;
            state = match until {
                None => ended.wait(state).unwrap_or_else(PoisonError::into_inner),
                Some(until) => {
                    let waited = ended.wait_timeout(state, until.remaining());
                    waited.unwrap_or_else(PoisonError::into_inner).0
                }
            };
            if until != patience.deadline && until.is_some_and(Deadline::has_passed) {
                waiting.cut();
            }
        }
    }

    fn take(&self, state: &mut State<T>) -> Result<T, JoinError> {
        match std::mem::replace(&mut state.value, Value::Taken) {
            Value::Ended(Ok(value)) => Ok(value),
            Value::Ended(Err(report)) => Err(JoinError::Panicked(Box::new(report))),
            _ => Err(JoinError::Taken(self.shared.name.clone())),
        }
    }
}

/// Awaits the value, on any executor.
impl<T> Future for Thread<T> {
    type Output = Result<T, JoinError>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut state = lock(&self.shared.state);
        if matches!(state.value, Value::Running) {
            if !state.wakers.iter().any(|waker| waker.will_wake(cx.waker())) {
                state.wakers.push(cx.waker().clone());
            }
            return Poll::Pending;
        }
        Poll::Ready(self.take(&mut state))
    }
}

impl<T> std::fmt::Debug for Thread<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Thread")
            .field("name", &self.name())
            .field("alive", &self.is_alive())
            .finish()
    }
}

/// Blocks until all threads of this crate that are no daemons have ended, except the calling one.
///
/// ```
/// let thread = phalanx_thread::Thread::spawn(|| ())?;
/// phalanx_thread::join_all();
/// assert!(!thread.is_alive());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn join_all() {
    let me = std::thread::current().id();
    let mut alive = lock(&ALIVE);
    loop {
        let pid = phalanx_sys::ids::pid();
        let waits = alive.as_ref().is_some_and(|alive| {
            alive.pid == pid && alive.threads.values().any(|thread| *thread != me)
        });
        if !waits {
            return;
        }
        alive = ENDED.wait(alive).unwrap_or_else(PoisonError::into_inner);
    }
}
