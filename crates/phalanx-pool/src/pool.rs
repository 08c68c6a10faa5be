//! The typed pool.

use std::cell::RefCell;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use phalanx_channel::codec;
use phalanx_process::{StartMethod, TaskFn, TaskRef, key_of};
use phalanx_shm::{DeadlockError, Patience, WaitError};
use phalanx_sync::handle;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::engine::{Config, Engine, PoolStats};
use crate::error::{BuildError, PoolError, SubmitError};
use crate::handle::TaskHandle;
use crate::map::{Imap, ImapUnordered, MapHandle};
use crate::record::{Choices, SEATS};
use crate::worker;

/// Worker processes that run tasks.
///
/// Each worker claims a task before it runs it, so that a death costs that task alone (which is then retried or reported)
/// and is made good by a new worker. A pool belongs to the process that made it.
///
/// *Drop* terminates the pool; [`close`](Self::close) and [`join`](Self::join) end it in order. *Fork*: the child has no
/// use of its parent's pool. *Ctrl-C*: workers ignore it; this process decides.
///
/// ```
/// use phalanx_pool::Pool;
///
/// fn square(x: u64) -> u64 {
///     x * x
/// }
///
/// # #[phalanx_macros::main(crate = phalanx_process)]
/// fn main() -> Result<(), Box<dyn std::error::Error>> {
///     let pool = Pool::new(2)?;
///     assert_eq!(pool.apply(square, 7)?, 49);
///     assert_eq!(pool.map(square, 0..5)?, [0, 1, 4, 9, 16]);
///     Ok(())
/// }
/// ```
#[derive(Debug)]
pub struct Pool {
    engine: Arc<Engine>,
    defaults: TaskOptions,
}

/// What may be chosen for a single task; see [`PoolBuilder`] for a pool's defaults.
///
/// ```
/// use std::time::Duration;
///
/// use phalanx_pool::{Pool, PoolError, TaskOptions};
///
/// fn sleep(seconds: u64) {
///     std::thread::sleep(Duration::from_secs(seconds));
/// }
///
/// # #[phalanx_macros::main(crate = phalanx_process)]
/// fn main() -> Result<(), Box<dyn std::error::Error>> {
///     let pool = Pool::new(1)?;
///     let options = TaskOptions::new().timeout(Duration::from_millis(20)).retries(1);
///     let late = pool.apply_with(options, sleep, 3600)?.get();
///     assert!(matches!(late, Err(PoolError::TimedOut { attempts: 2, .. })));
///     Ok(())
/// }
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[must_use = "options do nothing on their own"]
pub struct TaskOptions {
    timeout: Option<Duration>,
    retries: u32,
}

impl TaskOptions {
    /// Returns the options of a task without a time-out and without retries.
    pub fn new() -> Self {
        Self::default()
    }

    /// Ends a run of the task after so long by killing its worker. The time begins when a worker claims the task.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = Some(timeout);
        self
    }

    /// Runs the task again, up to so many times, when its worker died, its time was up, or it panicked.
    pub fn retries(mut self, retries: u32) -> Self {
        self.retries = retries;
        self
    }

    fn choices(self, function: u64) -> Choices {
        // 0 means none: the shortest time-out is a nanosecond.
        let ns = |timeout: Duration| u64::try_from(timeout.as_nanos()).unwrap_or(u64::MAX).max(1);
        Choices {
            function,
            timeout_ns: self.timeout.map_or(0, ns),
            retries: self.retries,
            ..Choices::default()
        }
    }
}

/// An initializer: a function of up to four parameters whose result becomes the worker's state.
pub trait InitFn<Args, Marker>: Copy + Send + 'static {
    /// What it makes.
    type State: Send + Sync + 'static;

    /// Calls it.
    fn call(self, args: Args) -> Self::State;
}

impl<F, S> InitFn<(), fn() -> S> for F
where
    F: Fn() -> S + Copy + Send + 'static,
    S: Send + Sync + 'static,
{
    type State = S;

    fn call(self, (): ()) -> S {
        self()
    }
}

impl<F, A, S> InitFn<A, fn(A) -> S> for F
where
    F: Fn(A) -> S + Copy + Send + 'static,
    S: Send + Sync + 'static,
{
    type State = S;

    fn call(self, arg: A) -> S {
        self(arg)
    }
}

macro_rules! init_several {
    ($($arg:ident)+) => {
        impl<F, $($arg,)+ S> InitFn<($($arg,)+), fn($($arg),+) -> S> for F
        where
            F: Fn($($arg),+) -> S + Copy + Send + 'static,
            S: Send + Sync + 'static,
        {
            type State = S;

            #[expect(non_snake_case, reason = "one name for the type and its value")]
            fn call(self, ($($arg,)+): ($($arg,)+)) -> S {
                self($($arg),+)
            }
        }
    };
}
init_several!(A B);
init_several!(A B C);
init_several!(A B C D);

/// Options of a [`Pool`].
///
/// ```
/// use std::time::Duration;
///
/// use phalanx_pool::Pool;
///
/// fn square(x: u64) -> u64 {
///     x * x
/// }
///
/// # #[phalanx_macros::main(crate = phalanx_process)]
/// fn main() -> Result<(), Box<dyn std::error::Error>> {
///     let pool = Pool::builder()
///         .workers(2)
///         .threads_per_worker(2)
///         .task_timeout(Duration::from_secs(60))
///         .retries(1)
///         .max_tasks_per_child(1000)
///         .memory_limit(1 << 30)
///         .name("Squares")
///         .build()?;
///     assert_eq!(pool.parallelism(), 4);
///     assert_eq!(pool.map(square, 0..3)?, [0, 1, 4]);
///     Ok(())
/// }
/// ```
#[derive(Debug)]
#[must_use = "a builder does nothing until `build`"]
pub struct PoolBuilder {
    workers: Option<usize>,
    threads: usize,
    max_tasks: Option<u64>,
    memory_limit: Option<u64>,
    start_timeout: Option<Duration>,
    method: StartMethod,
    name: String,
    defaults: TaskOptions,
    init: Option<Result<Init, BuildError>>,
}

#[derive(Debug)]
struct Init {
    task: TaskRef,
    args: Vec<u8>,
    handles: Vec<phalanx_shm::Held>,
}

impl Default for PoolBuilder {
    fn default() -> Self {
        Self {
            workers: None,
            threads: 1,
            max_tasks: None,
            memory_limit: None,
            start_timeout: None,
            method: StartMethod::default(),
            name: "Pool".to_owned(),
            defaults: TaskOptions::default(),
            init: None,
        }
    }
}

impl PoolBuilder {
    /// Sets the number of worker processes. Default: the CPUs this process may use.
    pub fn workers(mut self, workers: usize) -> Self {
        self.workers = Some(workers);
        self
    }

    /// Sets the threads of each worker; all of them run tasks. Default: 1.
    pub fn threads_per_worker(mut self, threads: usize) -> Self {
        self.threads = threads;
        self
    }

    /// Ends a run of any task after so long by killing its worker. Default: never.
    pub fn task_timeout(mut self, timeout: Duration) -> Self {
        self.defaults = self.defaults.timeout(timeout);
        self
    }

    /// Runs a task again, up to so many times, when its worker died, its time was up, or it panicked. Default: 0.
    pub fn retries(mut self, retries: u32) -> Self {
        self.defaults = self.defaults.retries(retries);
        self
    }

    /// Replaces a worker after so many tasks of one of its threads. Default: never.
    pub fn max_tasks_per_child(mut self, tasks: u64) -> Self {
        self.max_tasks = Some(tasks);
        self
    }

    /// Limits the memory each worker may allocate, in bytes beyond what it has at its start. Shared memory does not count.
    pub fn memory_limit(mut self, bytes: u64) -> Self {
        self.memory_limit = Some(bytes);
        self
    }

    /// Limits how long a worker may take until it is ready: to start, and to run the initializer. One that takes longer is
    /// killed, and another one started; when no worker gets ready the pool breaks and says so. Default: as long as it takes;
    /// `Pool::terminate` and time-outs of those who wait are the ways out then.
    pub fn start_timeout(mut self, limit: Duration) -> Self {
        self.start_timeout = Some(limit);
        self
    }

    /// Chooses how workers come to be. Default: by a zygote.
    pub fn start_method(mut self, method: StartMethod) -> Self {
        self.method = method;
        self
    }

    /// Names the pool in reports, and its workers after it. Default: `Pool`.
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.name = name.into();
        self
    }

    /// Runs `init` once in each worker before its first task; tasks reach its result with
    /// [`worker_state`](crate::worker_state).
    ///
    /// A panic in it, or the end of the process, breaks the pool: every task and every later submission gets the reason.
    ///
    /// ```
    /// use phalanx_pool::{Pool, worker_state};
    ///
    /// fn open(name: String) -> String {
    ///     format!("a connection to {name}")
    /// }
    ///
    /// fn ask() -> String {
    ///     worker_state::<String>().cloned().unwrap_or_default()
    /// }
    ///
    /// # #[phalanx_macros::main(crate = phalanx_process)]
    /// fn main() -> Result<(), Box<dyn std::error::Error>> {
    ///     let pool = Pool::builder().workers(1).initializer(open, "db".to_owned()).build()?;
    ///     assert_eq!(pool.apply(ask, ())?, "a connection to db");
    ///     Ok(())
    /// }
    /// ```
    pub fn initializer<F, A, M>(mut self, init: F, args: A) -> Self
    where
        F: InitFn<A, M>,
        A: Serialize + DeserializeOwned + 'static,
        M: 'static,
    {
        let run = move |args: A| -> Option<String> {
            worker::set_state(init.call(args));
            None
        };
        self.init = Some(named(run, &args));
        self
    }

    /// As [`initializer`](Self::initializer), for one that can fail: an error breaks the pool like a panic.
    ///
    /// ```
    /// use phalanx_pool::Pool;
    ///
    /// fn open() -> Result<u32, String> {
    ///     Err("no database".to_owned())
    /// }
    ///
    /// fn ask() {}
    ///
    /// # #[phalanx_macros::main(crate = phalanx_process)]
    /// fn main() -> Result<(), Box<dyn std::error::Error>> {
    ///     let pool = Pool::builder().workers(1).try_initializer(open, ()).build()?;
    ///     assert!(pool.apply(ask, ()).unwrap_err().to_string().contains("no database"));
    ///     Ok(())
    /// }
    /// ```
    pub fn try_initializer<F, A, M, S, E>(mut self, init: F, args: A) -> Self
    where
        F: InitFn<A, M, State = Result<S, E>>,
        A: Serialize + DeserializeOwned + 'static,
        M: 'static,
        S: Send + Sync + 'static,
        E: fmt::Display,
    {
        let run = move |args: A| -> Option<String> {
            match init.call(args) {
                Ok(state) => {
                    worker::set_state(state);
                    None
                }
                Err(error) => Some(error.to_string()),
            }
        };
        self.init = Some(named(run, &args));
        self
    }

    /// Starts the workers.
    ///
    /// # Errors
    ///
    /// [`BuildError`]; nothing is left running.
    pub fn build(self) -> Result<Pool, BuildError> {
        let invalid = |text: String| Err(BuildError::Invalid(text));
        let cpus = || std::thread::available_parallelism().map_or(1, usize::from);
        let workers = self.workers.unwrap_or_else(cpus);
        if workers == 0 {
            return invalid(
                "a pool of 0 workers would never do anything; ask for at least 1".to_owned(),
            );
        }
        if self.threads == 0 {
            return invalid(
                "workers of 0 threads would never do anything; ask for at least 1".to_owned(),
            );
        }
        if workers
            .checked_mul(self.threads)
            .is_none_or(|seats| seats > SEATS)
        {
            return invalid(format!(
                "{workers} workers of {} threads are more than the {SEATS} worker threads a pool can have; use fewer",
                self.threads
            ));
        }
        if self.max_tasks == Some(0) {
            return invalid("a worker that ends before its first task is of no use; max_tasks_per_child is at least 1".to_owned());
        }
        let (init, init_handles) = match self.init.transpose()? {
            Some(init) => (Some((init.task, init.args)), init.handles),
            None => (None, Vec::new()),
        };
        let config = Config {
            workers: workers as u32,
            threads: self.threads as u32,
            max_tasks: self.max_tasks.unwrap_or(0),
            memory_limit: self.memory_limit,
            start_timeout: self.start_timeout,
            method: self.method,
            name: self.name,
            init,
            init_handles,
        };
        Ok(Pool {
            engine: Engine::start(config)?,
            defaults: self.defaults,
        })
    }
}

fn named<F, A>(run: F, args: &A) -> Result<Init, BuildError>
where
    F: Fn(A) -> Option<String> + Copy + Send + 'static,
    A: Serialize + DeserializeOwned + 'static,
{
    let task = TaskRef::of::<F, A, fn(A) -> Option<String>>(&run)?;
    let mut bytes = Vec::new();
    let (encoded, handles) = handle::collect(|| codec::encode(args, &mut bytes));
    encoded?;
    Ok(Init {
        task,
        args: bytes,
        handles,
    })
}

thread_local! {
    static SCRATCH: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

impl Pool {
    /// Starts a pool of `workers` processes of one thread.
    ///
    /// # Errors
    ///
    /// [`BuildError`]; nothing is left running.
    pub fn new(workers: usize) -> Result<Self, BuildError> {
        Self::builder().workers(workers).build()
    }

    /// Returns the options for a pool.
    pub fn builder() -> PoolBuilder {
        PoolBuilder::default()
    }

    /// Returns the options that tasks have unless they are given others.
    pub fn defaults(&self) -> TaskOptions {
        self.defaults
    }

    pub(crate) fn submit<F, A, M>(
        &self,
        function: &F,
        args: &A,
        options: TaskOptions,
        port: u64,
        tag: u64,
    ) -> Result<TaskHandle<F::Output>, SubmitError>
    where
        F: TaskFn<A, M>,
        A: Serialize + DeserializeOwned,
        M: 'static,
    {
        self.engine.check_open()?;
        let bits = self
            .engine
            .function(key_of(function), || TaskRef::of(function))?;
        let choices = Choices {
            port,
            tag,
            ..options.choices(bits)
        };
        let mut buffer = SCRATCH.take();
        buffer.clear();
        let (encoded, handles) = handle::collect(|| codec::encode(args, &mut buffer));
        let task = match encoded {
            Ok(()) => self.engine.submit(choices, &buffer, &handles),
            Err(error) => Err(error.into()),
        };
        if buffer.capacity() <= 1 << 16 {
            SCRATCH.set(buffer);
        }
        Ok(TaskHandle::new(Arc::clone(&self.engine), task?))
    }

    pub(crate) fn engine(&self) -> &Arc<Engine> {
        &self.engine
    }

    /// Runs `function` on `args` in a worker, blocks, and returns its value.
    ///
    /// # Errors
    ///
    /// [`PoolError`].
    #[track_caller]
    pub fn apply<F, A, M>(&self, function: F, args: A) -> Result<F::Output, PoolError>
    where
        F: TaskFn<A, M>,
        A: Serialize + DeserializeOwned,
        M: 'static,
        F::Output: DeserializeOwned,
    {
        self.apply_async(function, args)?.get()
    }

    /// Submits `function` on `args` and returns a handle, which is a future too.
    ///
    /// # Errors
    ///
    /// [`SubmitError`].
    pub fn apply_async<F, A, M>(
        &self,
        function: F,
        args: A,
    ) -> Result<TaskHandle<F::Output>, SubmitError>
    where
        F: TaskFn<A, M>,
        A: Serialize + DeserializeOwned,
        M: 'static,
    {
        self.apply_with(self.defaults, function, args)
    }

    /// As [`apply_async`](Self::apply_async), with options of its own.
    ///
    /// # Errors
    ///
    /// [`SubmitError`].
    pub fn apply_with<F, A, M>(
        &self,
        options: TaskOptions,
        function: F,
        args: A,
    ) -> Result<TaskHandle<F::Output>, SubmitError>
    where
        F: TaskFn<A, M>,
        A: Serialize + DeserializeOwned,
        M: 'static,
    {
        self.submit(&function, &args, options, 0, 0)
    }

    /// Runs `function` on each of `items`, blocks, and returns the values in the order of the items.
    ///
    /// # Errors
    ///
    /// The [`PoolError`] of the first item that failed; those behind it are cancelled.
    #[track_caller]
    pub fn map<F, A, M>(
        &self,
        function: F,
        items: impl IntoIterator<Item = A>,
    ) -> Result<Vec<F::Output>, PoolError>
    where
        F: TaskFn<A, M>,
        A: Serialize + DeserializeOwned,
        M: 'static,
        F::Output: DeserializeOwned,
    {
        self.map_async(function, items)?.get()
    }

    /// As [`map`](Self::map) for functions of several parameters; the items are tuples. (`map` takes them too.)
    ///
    /// ```
    /// use phalanx_pool::Pool;
    ///
    /// fn add(a: u64, b: u64) -> u64 {
    ///     a + b
    /// }
    ///
    /// # #[phalanx_macros::main(crate = phalanx_process)]
    /// fn main() -> Result<(), Box<dyn std::error::Error>> {
    ///     let pool = Pool::new(2)?;
    ///     assert_eq!(pool.starmap(add, [(1, 2), (3, 4)])?, [3, 7]);
    ///     Ok(())
    /// }
    /// ```
    ///
    /// # Errors
    ///
    /// As for `map`.
    pub fn starmap<F, A, M>(
        &self,
        function: F,
        items: impl IntoIterator<Item = A>,
    ) -> Result<Vec<F::Output>, PoolError>
    where
        F: TaskFn<A, M>,
        A: Serialize + DeserializeOwned,
        M: 'static,
        F::Output: DeserializeOwned,
    {
        self.map(function, items)
    }

    /// Submits `function` on each of `items` and returns a handle on all of them, which is a future too.
    ///
    /// # Errors
    ///
    /// [`SubmitError`]; those submitted before are cancelled.
    pub fn map_async<F, A, M>(
        &self,
        function: F,
        items: impl IntoIterator<Item = A>,
    ) -> Result<MapHandle<F::Output>, SubmitError>
    where
        F: TaskFn<A, M>,
        A: Serialize + DeserializeOwned,
        M: 'static,
    {
        let mut map = MapHandle::new();
        for item in items {
            map.push(self.submit(&function, &item, self.defaults, 0, 0)?);
        }
        Ok(map)
    }

    /// Runs `function` on items as they come, lazily: returns an iterator (and stream) of results in the order of the
    /// items. It takes items from `items` only as results are taken from it, see [`Imap::window`].
    pub fn imap<F, A, M, I>(&self, function: F, items: I) -> Imap<'_, F, A, M, I::IntoIter>
    where
        F: TaskFn<A, M>,
        A: Serialize + DeserializeOwned,
        M: 'static,
        I: IntoIterator<Item = A>,
    {
        Imap::new(self, function, items.into_iter())
    }

    /// As [`imap`](Self::imap); the results come in the order in which they are done.
    pub fn imap_unordered<F, A, M, I>(
        &self,
        function: F,
        items: I,
    ) -> ImapUnordered<'_, F, A, M, I::IntoIter>
    where
        F: TaskFn<A, M>,
        A: Serialize + DeserializeOwned,
        M: 'static,
        I: IntoIterator<Item = A>,
    {
        ImapUnordered::new(self, function, items.into_iter())
    }

    /// Refuses further tasks. Those submitted are still done, then the workers end.
    ///
    /// ```
    /// use phalanx_pool::{Pool, SubmitError};
    ///
    /// fn square(x: u64) -> u64 {
    ///     x * x
    /// }
    ///
    /// # #[phalanx_macros::main(crate = phalanx_process)]
    /// fn main() -> Result<(), Box<dyn std::error::Error>> {
    ///     let pool = Pool::new(1)?;
    ///     let last = pool.apply_async(square, 5)?;
    ///     pool.close();
    ///     assert!(matches!(pool.apply_async(square, 6), Err(SubmitError::Closed)));
    ///     pool.join()?;
    ///     assert_eq!(last.get()?, 25);
    ///     Ok(())
    /// }
    /// ```
    pub fn close(&self) {
        self.engine.close();
    }

    /// Ends the workers now. Tasks that are not done get [`PoolError::Terminated`].
    pub fn terminate(&self) {
        self.engine.terminate();
    }

    /// Returns `true` once the pool takes no more tasks.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.engine.is_closed()
    }

    /// Blocks until every worker has ended. Call [`close`](Self::close) or [`terminate`](Self::terminate) before.
    ///
    /// # Errors
    ///
    /// [`JoinPoolError::NotClosed`] instead of waiting for ever.
    #[track_caller]
    pub fn join(&self) -> Result<(), JoinPoolError> {
        self.join_with(Patience::or_deadlock())
    }

    /// As [`join`](Self::join), for at most `timeout`.
    ///
    /// # Errors
    ///
    /// [`JoinPoolError`].
    #[track_caller]
    pub fn join_timeout(&self, timeout: Duration) -> Result<(), JoinPoolError> {
        self.join_with(Patience::timeout(timeout).here())
    }

    fn join_with(&self, patience: Patience) -> Result<(), JoinPoolError> {
        if !self.engine.is_closed() {
            return Err(JoinPoolError::NotClosed);
        }
        self.engine.join(patience).map_err(JoinPoolError::from)
    }

    /// Returns the process ids of the workers that run at this moment.
    #[must_use]
    pub fn worker_pids(&self) -> Vec<u32> {
        self.engine.pids()
    }

    /// Returns what the pool has done so far.
    #[must_use]
    pub fn stats(&self) -> PoolStats {
        self.engine.stats()
    }

    /// Returns how many tasks can run at once.
    #[must_use]
    pub fn parallelism(&self) -> usize {
        (self.engine.config.workers * self.engine.config.threads) as usize
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        if self.engine.is_mine() {
            self.engine.terminate();
            let _ = self.engine.join(Patience::FOREVER);
        }
    }
}

/// Why a pool was not joined.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum JoinPoolError {
    /// It still takes tasks, so joining it would never end.
    #[error("the pool is still open; call close() or terminate() before join()")]
    NotClosed,
    /// The caller is a task of the pool: it would wait for its own end.
    #[error("a task of the pool cannot join it; join it from outside")]
    Current,
    /// Workers still run.
    #[error("timed out: workers still run")]
    TimedOut,
    /// A signal handler ran in this thread.
    #[error("interrupted by a signal while waiting for the workers to end")]
    Interrupted,
    /// The wait could never have ended, and somebody wants such waits to fail.
    #[error(transparent)]
    Deadlock(#[from] DeadlockError),
}

impl From<WaitError> for JoinPoolError {
    fn from(error: WaitError) -> Self {
        match error {
            WaitError::TimedOut => Self::TimedOut,
            WaitError::Interrupted => Self::Interrupted,
            WaitError::Deadlock => Self::Deadlock(DeadlockError::taken()),
        }
    }
}
