//! The pool's API over threads of this process.

use std::any::Any;
use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use phalanx_prim::Deadline;
use phalanx_process::PanicReport;
use phalanx_shm::{DeadlockError, Described, Flagged, Patience, Subject, WaitError, Waiting, flag};
use phalanx_thread::panics;

use crate::pool::JoinPoolError;
use crate::thread_map::{ThreadImap, ThreadImapUnordered, ThreadMapHandle};

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Blocks on `condvar` until `ready`, as `patience` says.
pub(crate) fn wait_until<'a, T>(
    condvar: &Condvar,
    mut guard: MutexGuard<'a, T>,
    patience: Patience,
    ready: impl Fn(&T) -> bool,
) -> (MutexGuard<'a, T>, Result<(), WaitError>) {
    let deadline = patience.deadline;
    let mut waiting = Waiting::new();
    loop {
        waiting.looks();
        if ready(&guard) {
            return (guard, Ok(()));
        }
        if deadline.is_some_and(Deadline::has_passed) {
            return (guard, Err(WaitError::TimedOut));
        }
        let at = |_: &_| std::ptr::from_ref(condvar) as usize as u64;
        if let Err(error) = waiting.sleeps(Subject::PrivateGate, at, 0, patience) {
            return (guard, Err(error));
        }
        let until = waiting.until(deadline);
        guard = match until {
            None => condvar.wait(guard).unwrap_or_else(PoisonError::into_inner),
            Some(until) => {
                condvar
                    .wait_timeout(guard, until.remaining())
                    .unwrap_or_else(PoisonError::into_inner)
                    .0
            }
        };
        if until != deadline && until.is_some_and(Deadline::has_passed) {
            waiting.cut();
        }
    }
}

/// A task of a [`ThreadPool`] ended without a value, or could not be waited for.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ThreadTaskError {
    /// It panicked.
    #[error("{0}")]
    Panicked(Box<PanicReport>),
    /// It was cancelled before it began.
    #[error("the task was cancelled")]
    Cancelled,
    /// The pool was terminated before it began.
    #[error("the pool was terminated before the task was done")]
    Terminated,
    /// It is not done yet, and runs on.
    #[error("not done after {0:?}; the task goes on")]
    NotDone(Duration),
    /// Its result was taken before.
    #[error("the result of this task was taken already")]
    Taken,
    /// The pool was closed before it was submitted.
    #[error("the pool is closed; submit before close()")]
    Closed,
    /// No thread of the pool is left: the initializer failed in each.
    #[error("the pool is broken: the initializer failed: {0}")]
    Broken(String),
    /// The wait could never have ended, and somebody wants such waits to fail.
    #[error(transparent)]
    Deadlock(#[from] DeadlockError),
}

enum Stage<R> {
    Waiting,
    Running,
    Done(Result<R, ThreadTaskError>),
    Taken,
}

type Then<R> = Box<dyn FnOnce(Result<R, ThreadTaskError>) + Send>;

/// Where a task is, and who waits for it.
struct Place<R> {
    stage: Stage<R>,
    wakers: Vec<Waker>,
    then: Option<Then<R>>,
}

struct Cell<R> {
    place: Mutex<Place<R>>,
    done: Condvar,
}

impl<R> Cell<R> {
    fn finish(&self, result: Result<R, ThreadTaskError>) {
        let wakers = {
            let mut place = lock(&self.place);
            if let Some(then) = place.then.take() {
                place.stage = Stage::Taken;
                drop(place);
                call_back(then, result);
                return;
            }
            place.stage = Stage::Done(result);
            std::mem::take(&mut place.wakers)
        };
        self.done.notify_all();
        wakers.into_iter().for_each(Waker::wake);
    }

    /// waiting → running; `false` if it was cancelled.
    fn begin(&self) -> bool {
        let mut place = lock(&self.place);
        let begins = matches!(place.stage, Stage::Waiting);
        if begins {
            place.stage = Stage::Running;
        }
        begins
    }

    fn end_waiting(&self, error: ThreadTaskError) -> bool {
        let ended = self.begin();
        if ended {
            self.finish(Err(error));
        }
        ended
    }
}

/// A panicking callback is reported by the panic hook, and costs nothing else.
fn call_back<R>(then: Then<R>, result: Result<R, ThreadTaskError>) {
    let _ = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| then(result)));
}

trait Job: Send {
    fn run(self: Box<Self>, retries: u32);
    fn drop_waiting(&self, broken: Option<&str>);
}

struct Task<F, R> {
    work: F,
    cell: Arc<Cell<R>>,
}

impl<F, R> Job for Task<F, R>
where
    F: FnMut() -> R + Send,
    R: Send,
{
    fn run(mut self: Box<Self>, retries: u32) {
        if !self.cell.begin() {
            return;
        }
        let mut attempt = 0;
        let result = loop {
            match panics::catch(|| (self.work)()) {
                Ok(value) => break Ok(value),
                Err(_) if attempt < retries => attempt += 1,
                Err(report) => break Err(ThreadTaskError::Panicked(Box::new(report))),
            }
        };
        self.cell.finish(result);
    }

    fn drop_waiting(&self, broken: Option<&str>) {
        self.cell.end_waiting(match broken {
            Some(reason) => ThreadTaskError::Broken(reason.to_owned()),
            None => ThreadTaskError::Terminated,
        });
    }
}

#[derive(Default)]
struct Line {
    jobs: VecDeque<Box<dyn Job>>,
    closed: bool,
    alive: usize,
    /// Why no thread is left, if that is the initializer's fault.
    broken: Option<String>,
}

struct Core {
    line: Mutex<Line>,
    more: Condvar,
    ended: Condvar,
    retries: u32,
    initializer: Option<Box<dyn Fn() -> Box<dyn Any> + Send + Sync>>,
}

thread_local! {
    /// The address of the pool whose thread this is.
    static MINE: std::cell::Cell<usize> = const { std::cell::Cell::new(0) };
    static STATE: std::cell::RefCell<Option<Box<dyn Any>>> = const { std::cell::RefCell::new(None) };
}

/// Calls `f` with what the initializer of this thread's [`ThreadPool`] made; `None` elsewhere, or for another type.
///
/// ```
/// use phalanx_pool::{ThreadPool, with_thread_state};
///
/// let pool = ThreadPool::builder().threads(1).initializer(Vec::<u64>::new).build()?;
/// for number in 0..3 {
///     pool.apply(move || with_thread_state(|seen: &mut Vec<u64>| seen.push(number)))?;
/// }
/// let seen = pool.apply(|| with_thread_state(|seen: &mut Vec<u64>| seen.len()))?;
/// assert_eq!(seen, Some(3));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn with_thread_state<S: Any, R>(f: impl FnOnce(&mut S) -> R) -> Option<R> {
    STATE.with_borrow_mut(|state| state.as_mut()?.downcast_mut().map(f))
}

fn run(core: &Core) {
    MINE.set(std::ptr::from_ref(core) as usize);
    if let Some(initializer) = &core.initializer {
        let state = initializer();
        STATE.with_borrow_mut(|mine| *mine = Some(state));
    }
    loop {
        let job = {
            let guard = lock(&core.line);
            let _idle = Flagged::new(flag::IDLE);
            let (mut line, _) = wait_until(&core.more, guard, Patience::FOREVER, |line| {
                !line.jobs.is_empty() || line.closed
            });
            line.jobs.pop_front()
        };
        match job {
            Some(job) => job.run(core.retries),
            None => break,
        }
    }
}

/// Threads that run tasks: the API of [`Pool`](crate::Pool) without serialization, for closures too.
///
/// A thread cannot be killed: there are no time-outs that end a task, and only tasks that have not begun can be cancelled.
///
/// *Drop* discards what has not begun and waits for what runs. *Fork*: the child has none of the threads.
///
/// ```
/// use phalanx_pool::ThreadPool;
///
/// let pool = ThreadPool::new(2)?;
/// let factor = 3;
/// assert_eq!(pool.map(move |x| x * factor, 0..4)?, [0, 3, 6, 9]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct ThreadPool {
    core: Arc<Core>,
    threads: usize,
}

impl std::fmt::Debug for ThreadPool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ThreadPool")
            .field("threads", &self.threads)
            .finish_non_exhaustive()
    }
}

/// Options of a [`ThreadPool`].
///
/// ```
/// use phalanx_pool::ThreadPool;
///
/// let pool = ThreadPool::builder().threads(3).name("Cooks").retries(1).build()?;
/// assert_eq!(pool.parallelism(), 3);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[must_use = "a builder does nothing until `build`"]
pub struct ThreadPoolBuilder {
    threads: Option<usize>,
    name: String,
    retries: u32,
    initializer: Option<Box<dyn Fn() -> Box<dyn Any> + Send + Sync>>,
}

impl std::fmt::Debug for ThreadPoolBuilder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ThreadPoolBuilder")
            .field("threads", &self.threads)
            .finish_non_exhaustive()
    }
}

impl ThreadPoolBuilder {
    /// Sets the number of threads. Default: the CPUs this process may use.
    pub fn threads(mut self, threads: usize) -> Self {
        self.threads = Some(threads);
        self
    }

    /// Names the threads. Default: `ThreadPool`.
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.name = name.into();
        self
    }

    /// Runs a task again, up to so many times, when it panicked. Default: 0.
    pub fn retries(mut self, retries: u32) -> Self {
        self.retries = retries;
        self
    }

    /// Runs `init` once in each thread before its first task; see [`with_thread_state`].
    pub fn initializer<S: Any>(mut self, init: impl Fn() -> S + Send + Sync + 'static) -> Self {
        self.initializer = Some(Box::new(move || Box::new(init())));
        self
    }

    /// Starts the threads.
    ///
    /// # Errors
    ///
    /// [`std::io::ErrorKind::InvalidInput`] for 0 threads, and what the system says when it has no room for more.
    pub fn build(self) -> std::io::Result<ThreadPool> {
        let cpus = || std::thread::available_parallelism().map_or(1, usize::from);
        let threads = self.threads.unwrap_or_else(cpus);
        if threads == 0 {
            let text = "a pool of 0 threads would never do anything; ask for at least 1";
            return Err(std::io::Error::new(std::io::ErrorKind::InvalidInput, text));
        }
        let core = Arc::new(Core {
            line: Mutex::default(),
            more: Condvar::new(),
            ended: Condvar::new(),
            retries: self.retries,
            initializer: self.initializer,
        });
        let pool = ThreadPool {
            core: Arc::clone(&core),
            threads,
        };
        for number in 0..threads {
            let core = Arc::clone(&core);
            lock(&core.line).alive += 1;
            let counted = Arc::clone(&core);
            let spawned = std::thread::Builder::new()
                .name(format!("{}-{number}", self.name))
                .spawn(move || {
                    // A panicking initializer ends its thread; the others go on.
                    let failed = panics::catch(|| run(&core))
                        .inspect_err(|report| eprintln!("phalanx: {report}"))
                        .err();
                    let mut line = lock(&core.line);
                    line.alive -= 1;
                    let mut left = VecDeque::new();
                    if line.alive == 0 {
                        // Nobody is left to run them.
                        line.closed = true;
                        line.broken = failed.map(|report| report.to_string());
                        left = std::mem::take(&mut line.jobs);
                    }
                    let reason = line.broken.clone();
                    drop(line);
                    left.iter()
                        .for_each(|job| job.drop_waiting(reason.as_deref()));
                    core.ended.notify_all();
                });
            if let Err(error) = spawned {
                lock(&counted.line).alive -= 1;
                return Err(error);
            }
        }
        Ok(pool)
    }
}

impl ThreadPool {
    /// Starts a pool of so many threads.
    ///
    /// # Errors
    ///
    /// As for [`ThreadPoolBuilder::build`].
    pub fn new(threads: usize) -> std::io::Result<Self> {
        Self::builder().threads(threads).build()
    }

    /// Returns the options for a pool of threads.
    pub fn builder() -> ThreadPoolBuilder {
        ThreadPoolBuilder {
            threads: None,
            name: "ThreadPool".to_owned(),
            retries: 0,
            initializer: None,
        }
    }

    /// Returns how many tasks can run at once.
    #[must_use]
    pub fn parallelism(&self) -> usize {
        self.threads
    }

    /// Runs `work` in a thread, blocks, and returns its value.
    ///
    /// # Errors
    ///
    /// [`ThreadTaskError`].
    pub fn apply<R: Send + 'static>(
        &self,
        work: impl FnMut() -> R + Send + 'static,
    ) -> Result<R, ThreadTaskError> {
        self.apply_async(work)?.get()
    }

    /// Submits `work` and returns a handle, which is a future too.
    ///
    /// # Errors
    ///
    /// [`ThreadTaskError::Closed`].
    pub fn apply_async<R: Send + 'static>(
        &self,
        work: impl FnMut() -> R + Send + 'static,
    ) -> Result<ThreadTask<R>, ThreadTaskError> {
        let cell = Arc::new(Cell {
            place: Mutex::new(Place {
                stage: Stage::Waiting,
                wakers: Vec::new(),
                then: None,
            }),
            done: Condvar::new(),
        });
        let job = Box::new(Task {
            work,
            cell: Arc::clone(&cell),
        });
        let mut line = lock(&self.core.line);
        if line.closed {
            return Err(match &line.broken {
                Some(reason) => ThreadTaskError::Broken(reason.clone()),
                None => ThreadTaskError::Closed,
            });
        }
        line.jobs.push_back(job);
        drop(line);
        self.core.more.notify_one();
        Ok(ThreadTask { cell })
    }

    /// Runs `function` on each of `items`, blocks, and returns the values in the order of the items.
    ///
    /// # Errors
    ///
    /// The [`ThreadTaskError`] of the first item that failed; those behind it that have not begun are cancelled.
    pub fn map<A, R, F>(
        &self,
        function: F,
        items: impl IntoIterator<Item = A>,
    ) -> Result<Vec<R>, ThreadTaskError>
    where
        A: Send + Clone + 'static,
        R: Send + 'static,
        F: Fn(A) -> R + Send + Sync + 'static,
    {
        self.map_async(function, items)?.get()
    }

    /// As [`map`](Self::map) for functions of two to four parameters; the items are tuples.
    ///
    /// ```
    /// use phalanx_pool::ThreadPool;
    ///
    /// let pool = ThreadPool::new(2)?;
    /// assert_eq!(pool.starmap(|a, b| a * b, [(2, 3), (4, 5)])?, [6, 20]);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    ///
    /// As for `map`.
    pub fn starmap<A, R, F>(
        &self,
        function: F,
        items: impl IntoIterator<Item = A>,
    ) -> Result<Vec<R>, ThreadTaskError>
    where
        A: Send + Clone + 'static,
        R: Send + 'static,
        F: Spread<A, R>,
    {
        self.map(move |args| function.spread(args), items)
    }

    /// Submits `function` on each of `items` and returns a handle on all of them, which is a future too.
    ///
    /// ```
    /// use phalanx_pool::ThreadPool;
    ///
    /// let pool = ThreadPool::new(2)?;
    /// let squares = pool.map_async(|x: u64| x * x, 0..4)?;
    /// assert_eq!(squares.get()?, [0, 1, 4, 9]);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`ThreadTaskError::Closed`], [`ThreadTaskError::Broken`].
    pub fn map_async<A, R, F>(
        &self,
        function: F,
        items: impl IntoIterator<Item = A>,
    ) -> Result<ThreadMapHandle<R>, ThreadTaskError>
    where
        A: Send + Clone + 'static,
        R: Send + 'static,
        F: Fn(A) -> R + Send + Sync + 'static,
    {
        let function = Arc::new(function);
        let mut map = ThreadMapHandle::new();
        for item in items {
            map.push(self.submit(&function, item)?);
        }
        Ok(map)
    }

    pub(crate) fn submit<A, R, F>(
        &self,
        function: &Arc<F>,
        item: A,
    ) -> Result<ThreadTask<R>, ThreadTaskError>
    where
        A: Send + Clone + 'static,
        R: Send + 'static,
        F: Fn(A) -> R + Send + Sync + 'static,
    {
        let function = Arc::clone(function);
        self.apply_async(move || function(item.clone()))
    }

    /// Runs `function` on items as they come, lazily: returns an iterator (and stream) of results in the order of the items, which takes
    /// at most 4 items per thread ahead of the results that were taken.
    pub fn imap<A, R, F, I>(&self, function: F, items: I) -> ThreadImap<'_, R, F, I::IntoIter>
    where
        A: Send + Clone + 'static,
        R: Send + 'static,
        F: Fn(A) -> R + Send + Sync + 'static,
        I: IntoIterator<Item = A>,
    {
        ThreadImap::new(self, function, items.into_iter())
    }

    /// As [`imap`](Self::imap); the results come in the order in which they are done.
    ///
    /// ```
    /// use phalanx_pool::ThreadPool;
    ///
    /// let pool = ThreadPool::new(2)?;
    /// let mut all = pool.imap_unordered(|x: u64| x + 1, 0..4).collect::<Result<Vec<_>, _>>()?;
    /// all.sort_unstable();
    /// assert_eq!(all, [1, 2, 3, 4]);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn imap_unordered<A, R, F, I>(
        &self,
        function: F,
        items: I,
    ) -> ThreadImapUnordered<'_, R, F, I::IntoIter>
    where
        A: Send + Clone + 'static,
        R: Send + 'static,
        F: Fn(A) -> R + Send + Sync + 'static,
        I: IntoIterator<Item = A>,
    {
        ThreadImapUnordered::new(self, function, items.into_iter())
    }

    /// Refuses further tasks. Those submitted are still done, then the threads end.
    pub fn close(&self) {
        lock(&self.core.line).closed = true;
        self.core.more.notify_all();
    }

    /// Discards the tasks that have not begun, and refuses further ones.
    pub fn terminate(&self) {
        let jobs = {
            let mut line = lock(&self.core.line);
            line.closed = true;
            std::mem::take(&mut line.jobs)
        };
        jobs.iter().for_each(|job| job.drop_waiting(None));
        self.core.more.notify_all();
    }

    /// Blocks until every thread has ended. Call [`close`](Self::close) or [`terminate`](Self::terminate) before.
    ///
    /// # Errors
    ///
    /// [`JoinPoolError::NotClosed`] instead of waiting for ever.
    #[track_caller]
    pub fn join(&self) -> Result<(), JoinPoolError> {
        self.join_within(Patience::or_deadlock())
    }

    /// As [`join`](Self::join), for at most `timeout`.
    ///
    /// # Errors
    ///
    /// [`JoinPoolError`].
    #[track_caller]
    pub fn join_timeout(&self, timeout: Duration) -> Result<(), JoinPoolError> {
        self.join_within(Patience::timeout(timeout).here())
    }

    fn join_within(&self, patience: Patience) -> Result<(), JoinPoolError> {
        let line = lock(&self.core.line);
        if !line.closed {
            return Err(JoinPoolError::NotClosed);
        }
        if self.is_ours() {
            return Err(JoinPoolError::Current);
        }
        let (_line, ended) = wait_until(&self.core.ended, line, patience, |line| line.alive == 0);
        ended.map_err(JoinPoolError::from)
    }
}

impl ThreadPool {
    /// Returns `true` in a thread of this pool.
    fn is_ours(&self) -> bool {
        MINE.get() == Arc::as_ptr(&self.core) as usize
    }
}

impl Drop for ThreadPool {
    fn drop(&mut self) {
        self.terminate();
        // Its last handle may go in one of its own tasks: that one ends by itself.
        let _ = self.join_within(Patience::FOREVER);
    }
}

/// A function of two to four parameters that takes them as a tuple; see [`ThreadPool::starmap`].
pub trait Spread<Args, R>: Send + Sync + 'static {
    /// Calls it.
    fn spread(&self, args: Args) -> R;
}

macro_rules! spread {
    ($($arg:ident)+) => {
        impl<F, R, $($arg),+> Spread<($($arg,)+), R> for F
        where
            F: Fn($($arg),+) -> R + Send + Sync + 'static,
        {
            #[expect(non_snake_case, reason = "one name for the type and its value")]
            fn spread(&self, ($($arg,)+): ($($arg,)+)) -> R {
                self($($arg),+)
            }
        }
    };
}
spread!(A B);
spread!(A B C);
spread!(A B C D);

/// A task submitted to a [`ThreadPool`]. Dropping it lets the task run and forgets the result.
///
/// ```
/// use phalanx_pool::ThreadPool;
///
/// let pool = ThreadPool::new(1)?;
/// let task = pool.apply_async(|| 6 * 7)?;
/// assert_eq!(task.get()?, 42);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[must_use = "dropping it forgets the result"]
pub struct ThreadTask<R> {
    cell: Arc<Cell<R>>,
}

impl<R> std::fmt::Debug for ThreadTask<R> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ThreadTask")
            .field("done", &self.is_done())
            .finish()
    }
}

fn is_done<R>(place: &Place<R>) -> bool {
    matches!(place.stage, Stage::Done(_) | Stage::Taken)
}

impl<R> ThreadTask<R> {
    /// Returns `true` if the task is done, well or not.
    #[must_use]
    pub fn is_done(&self) -> bool {
        is_done(&lock(&self.cell.place))
    }

    /// Blocks until the task is done, for at most `timeout`; returns whether it is.
    #[track_caller]
    pub fn wait_timeout(&self, timeout: Duration) -> bool {
        self.wait(Patience::timeout(timeout).here()).1.is_ok()
    }

    fn wait(&self, patience: Patience) -> (MutexGuard<'_, Place<R>>, Result<(), WaitError>) {
        let _described = Described::new(format_args!("task of a thread pool"));
        wait_until(&self.cell.done, lock(&self.cell.place), patience, is_done)
    }

    /// Cancels the task if it has not begun; returns whether it had not.
    pub fn cancel(&self) -> bool {
        self.cell.end_waiting(ThreadTaskError::Cancelled)
    }

    /// Calls `then` with the result, in the thread that ends the task (so it does not block for long), or here and now if it
    /// is done already.
    ///
    /// ```
    /// use phalanx_pool::ThreadPool;
    ///
    /// let (sender, receiver) = std::sync::mpsc::channel();
    /// let pool = ThreadPool::new(1)?;
    /// pool.apply_async(|| 6 * 7)?.then(move |result| drop(sender.send(result.unwrap())));
    /// assert_eq!(receiver.recv()?, 42);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn then(self, then: impl FnOnce(Result<R, ThreadTaskError>) + Send + 'static) {
        let mut place = lock(&self.cell.place);
        if is_done(&place) {
            let result = take(&mut place.stage);
            drop(place);
            call_back(Box::new(then), result);
        } else {
            place.then = Some(Box::new(then));
        }
    }

    /// Blocks until the task is done and returns its value.
    ///
    /// # Errors
    ///
    /// [`ThreadTaskError`]: how it ended instead.
    #[track_caller]
    pub fn get(self) -> Result<R, ThreadTaskError> {
        match self.wait(Patience::or_deadlock()) {
            (mut place, Ok(())) => take(&mut place.stage),
            (_, Err(_)) => Err(ThreadTaskError::Deadlock(DeadlockError::taken())),
        }
    }

    /// As [`get`](Self::get), for at most `timeout`; can be called again when it was too short.
    ///
    /// # Errors
    ///
    /// [`ThreadTaskError::NotDone`], or how it ended instead of with a value.
    #[track_caller]
    pub fn get_timeout(&self, timeout: Duration) -> Result<R, ThreadTaskError> {
        match self.wait(Patience::timeout(timeout).here()) {
            (mut place, Ok(())) => take(&mut place.stage),
            (_, Err(_)) => Err(ThreadTaskError::NotDone(timeout)),
        }
    }
}

fn take<R>(stage: &mut Stage<R>) -> Result<R, ThreadTaskError> {
    match std::mem::replace(stage, Stage::Taken) {
        Stage::Done(result) => result,
        _ => Err(ThreadTaskError::Taken),
    }
}

/// Awaits the result, on any executor.
impl<R> Future for ThreadTask<R> {
    type Output = Result<R, ThreadTaskError>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        self.poll_result(cx)
    }
}

impl<R> ThreadTask<R> {
    pub(crate) fn poll_result(&self, cx: &mut Context<'_>) -> Poll<Result<R, ThreadTaskError>> {
        let mut place = lock(&self.cell.place);
        if is_done(&place) {
            return Poll::Ready(take(&mut place.stage));
        }
        if !place.wakers.iter().any(|waker| waker.will_wake(cx.waker())) {
            place.wakers.push(cx.waker().clone());
        }
        Poll::Pending
    }
}
