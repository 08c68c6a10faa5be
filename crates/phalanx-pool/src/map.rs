//! Maps: all at once, and lazily in a window.

use std::collections::{HashMap, VecDeque};
use std::future::Future;
use std::marker::PhantomData;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_core::Stream;
use phalanx_channel::{RawQueue, Ready};
use phalanx_process::TaskFn;
use phalanx_shm::{DeadlockError, Patience, WaitError};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::error::{PoolError, SubmitError};
use crate::handle::TaskHandle;
use crate::pool::{Pool, TaskOptions};

/// The tasks of a map. Dropping it cancels those that have not begun.
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
///     let squares = pool.map_async(square, 0..4)?;
///     assert_eq!(squares.get()?, [0, 1, 4, 9]);
///     Ok(())
/// }
/// ```
#[must_use = "dropping it cancels what has not begun"]
#[derive(Debug)]
pub struct MapHandle<R> {
    tasks: VecDeque<TaskHandle<R>>,
    done: Vec<R>,
}

impl<R> MapHandle<R> {
    pub(crate) fn new() -> Self {
        Self {
            tasks: VecDeque::new(),
            done: Vec::new(),
        }
    }

    pub(crate) fn push(&mut self, task: TaskHandle<R>) {
        self.tasks.push_back(task);
    }

    /// Returns the number of tasks that are not done.
    #[must_use]
    pub fn pending(&self) -> usize {
        self.tasks.iter().filter(|task| !task.is_done()).count()
    }

    /// Returns `true` if all are done.
    #[must_use]
    pub fn is_done(&self) -> bool {
        self.pending() == 0
    }

    /// Blocks until all are done, for at most `timeout`; returns whether they are.
    pub fn wait_timeout(&self, timeout: Duration) -> bool {
        let patience = phalanx_prim::Deadline::after(timeout);
        self.tasks
            .iter()
            .all(|task| task.wait_timeout(patience.remaining()))
    }

    /// Cancels every task that is not done, also those that run.
    pub fn cancel(&self) {
        for task in self.tasks.iter().rev() {
            task.cancel();
        }
    }
}

impl<R: DeserializeOwned> MapHandle<R> {
    /// Blocks until all are done and returns their values in order.
    ///
    /// # Errors
    ///
    /// The [`PoolError`] of the first that failed; those that have not begun are cancelled.
    #[track_caller]
    pub fn get(mut self) -> Result<Vec<R>, PoolError> {
        let mut values = std::mem::take(&mut self.done);
        values.reserve(self.tasks.len());
        while let Some(task) = self.tasks.pop_front() {
            values.push(task.get()?);
        }
        Ok(values)
    }
}

/// Awaits all values, on any executor.
impl<R: DeserializeOwned + Unpin> Future for MapHandle<R> {
    type Output = Result<Vec<R>, PoolError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        while let Some(task) = self.tasks.front() {
            match task.poll_result(cx) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Ready(Ok(value)) => {
                    self.tasks.pop_front();
                    self.done.push(value);
                }
            }
        }
        Poll::Ready(Ok(std::mem::take(&mut self.done)))
    }
}

impl<R> Drop for MapHandle<R> {
    fn drop(&mut self) {
        cancel_waiting(self.tasks.iter());
    }
}

/// Cancels what has not begun: from the end, where a worker comes last.
fn cancel_waiting<'a, R: 'a>(tasks: impl DoubleEndedIterator<Item = &'a TaskHandle<R>>) {
    for task in tasks.rev() {
        task.cancel_if_waiting();
    }
}

/// The window of a lazy map: so many items per worker thread are on their way.
const WINDOW_PER_THREAD: usize = 4;

/// Results in the order of the items. See [`Pool::imap`].
///
/// An item that fails gives its error in its place, and the others go on.
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
///     // Endless items: only some are taken ahead of the results.
///     let mut squares = pool.imap(square, 0..).window(8);
///     assert_eq!(squares.next().unwrap()?, 0);
///     assert_eq!(squares.next().unwrap()?, 1);
///     Ok(())
/// }
/// ```
#[must_use = "a lazy map does nothing until it is asked for results"]
pub struct Imap<'a, F, A, M, I>
where
    F: TaskFn<A, M>,
{
    pool: &'a Pool,
    function: F,
    items: I,
    window: usize,
    options: TaskOptions,
    ended: bool,
    tasks: VecDeque<TaskHandle<F::Output>>,
    failed: Option<SubmitError>,
    of: PhantomData<fn(A) -> M>,
}

/// Results in the order in which they are done. See [`Pool::imap_unordered`].
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
///     let sum = pool.imap_unordered(square, 0..10).sum::<Result<u64, _>>()?;
///     assert_eq!(sum, 285);
///     Ok(())
/// }
/// ```
#[must_use = "a lazy map does nothing until it is asked for results"]
pub struct ImapUnordered<'a, F, A, M, I>
where
    F: TaskFn<A, M>,
{
    pool: &'a Pool,
    function: F,
    items: I,
    window: usize,
    options: TaskOptions,
    ended: bool,
    tasks: HashMap<u64, TaskHandle<F::Output>>,
    failed: Option<SubmitError>,
    port: Option<RawQueue>,
    buffer: Vec<u8>,
    taken: u64,
    of: PhantomData<fn(A) -> M>,
}

macro_rules! options {
    ($Imap:ident) => {
        impl<F, A, M, I> $Imap<'_, F, A, M, I>
        where
            F: TaskFn<A, M>,
        {
            /// Takes at most so many items ahead of the results that were taken. Default: 4 per worker thread.
            pub fn window(mut self, items: usize) -> Self {
                self.window = items.max(1);
                self
            }

            /// Gives the tasks options of their own instead of the pool's.
            pub fn options(mut self, options: TaskOptions) -> Self {
                self.options = options;
                self
            }

            /// Shows a progress bar on stderr while the results are taken, if that is a terminal.
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
            ///     let sum = pool.imap_unordered(square, 0..10).progress().sum::<Result<u64, _>>()?;
            ///     assert_eq!(sum, 285);
            ///     Ok(())
            /// }
            /// ```
            pub fn progress(self) -> crate::Progress<Self>
            where
                Self: Iterator,
            {
                crate::Progress::new(self)
            }
        }

        impl<F, A, M, I> std::fmt::Debug for $Imap<'_, F, A, M, I>
        where
            F: TaskFn<A, M>,
        {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.debug_struct(stringify!($Imap))
                    .field("window", &self.window)
                    .field("on their way", &self.tasks.len())
                    .finish()
            }
        }

        // Nothing in it is pinned by reference to itself.
        impl<F, A, M, I> Unpin for $Imap<'_, F, A, M, I> where F: TaskFn<A, M> {}
    };
}
options!(Imap);
options!(ImapUnordered);

impl<'a, F, A, M, I> Imap<'a, F, A, M, I>
where
    F: TaskFn<A, M>,
    A: Serialize + DeserializeOwned,
    M: 'static,
    I: Iterator<Item = A>,
{
    pub(crate) fn new(pool: &'a Pool, function: F, items: I) -> Self {
        Self {
            pool,
            function,
            items,
            window: WINDOW_PER_THREAD * pool.parallelism(),
            options: pool.defaults(),
            ended: false,
            tasks: VecDeque::new(),
            failed: None,
            of: PhantomData,
        }
    }

    fn fill(&mut self) {
        while !self.ended && self.tasks.len() < self.window {
            let Some(item) = self.items.next() else {
                self.ended = true;
                break;
            };
            match self.pool.submit(&self.function, &item, self.options, 0, 0) {
                Ok(task) => self.tasks.push_back(task),
                Err(error) => {
                    self.failed = Some(error);
                    self.ended = true;
                }
            }
        }
    }

    fn size(&self) -> (usize, Option<usize>) {
        let (low, high) = if self.ended {
            (0, Some(0))
        } else {
            self.items.size_hint()
        };
        let here = self.tasks.len() + usize::from(self.failed.is_some());
        (
            low.saturating_add(here),
            high.and_then(|high| high.checked_add(here)),
        )
    }
}

impl<F, A, M, I> Iterator for Imap<'_, F, A, M, I>
where
    F: TaskFn<A, M>,
    A: Serialize + DeserializeOwned,
    M: 'static,
    F::Output: DeserializeOwned,
    I: Iterator<Item = A>,
{
    type Item = Result<F::Output, PoolError>;

    fn next(&mut self) -> Option<Self::Item> {
        self.fill();
        match self.tasks.pop_front() {
            Some(task) => Some(task.get()),
            None => self.failed.take().map(|error| Err(error.into())),
        }
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        self.size()
    }
}

impl<F, A, M, I> Stream for Imap<'_, F, A, M, I>
where
    F: TaskFn<A, M>,
    A: Serialize + DeserializeOwned,
    M: 'static,
    F::Output: DeserializeOwned,
    I: Iterator<Item = A>,
{
    type Item = Result<F::Output, PoolError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.fill();
        let Some(task) = self.tasks.front() else {
            return Poll::Ready(self.failed.take().map(|error| Err(error.into())));
        };
        let Poll::Ready(result) = task.poll_result(cx) else {
            return Poll::Pending;
        };
        self.tasks.pop_front();
        Poll::Ready(Some(result))
    }
}

impl<F, A, M, I> Drop for Imap<'_, F, A, M, I>
where
    F: TaskFn<A, M>,
{
    fn drop(&mut self) {
        cancel_waiting(self.tasks.iter());
    }
}

impl<'a, F, A, M, I> ImapUnordered<'a, F, A, M, I>
where
    F: TaskFn<A, M>,
    A: Serialize + DeserializeOwned,
    M: 'static,
    I: Iterator<Item = A>,
{
    pub(crate) fn new(pool: &'a Pool, function: F, items: I) -> Self {
        Self {
            pool,
            function,
            items,
            window: WINDOW_PER_THREAD * pool.parallelism(),
            options: pool.defaults(),
            ended: false,
            tasks: HashMap::new(),
            failed: None,
            port: None,
            buffer: Vec::new(),
            taken: 0,
            of: PhantomData,
        }
    }

    fn fill(&mut self) {
        if self.port.is_none() && !self.ended {
            match self.pool.engine().new_port() {
                Ok(port) => self.port = Some(port),
                Err(error) => {
                    self.failed = Some(error);
                    self.ended = true;
                }
            }
        }
        let Some(port) = &self.port else { return };
        let port = port.held().block().to_bits();
        while !self.ended && self.tasks.len() < self.window {
            let Some(item) = self.items.next() else {
                self.ended = true;
                break;
            };
            self.taken += 1;
            match self
                .pool
                .submit(&self.function, &item, self.options, port, self.taken - 1)
            {
                Ok(task) => {
                    self.tasks.insert(task.bits(), task);
                }
                Err(error) => {
                    self.failed = Some(error);
                    self.ended = true;
                }
            }
        }
    }

    /// Takes a task that is done out of the window; `None` when none is now.
    fn take_done(&mut self, patience: Patience) -> Result<TaskHandle<F::Output>, WaitError> {
        loop {
            let Some(port) = &self.port else {
                return Err(WaitError::TimedOut);
            };
            match port.get_into(&mut self.buffer, patience) {
                Ok(_) => {}
                Err(phalanx_channel::RawGetError::Wait(error)) => return Err(error),
                Err(phalanx_channel::RawGetError::Closed(_)) => return Err(WaitError::TimedOut),
            }
            let Ok(bits) = <[u8; 8]>::try_from(&self.buffer[..]) else {
                continue;
            };
            // A death between "done" and "told" may tell twice.
            if let Some(task) = self.tasks.remove(&u64::from_le_bytes(bits)) {
                return Ok(task);
            }
        }
    }

    /// Returns an iterator that also gives each item's number, from 0, in the order in which the items were taken.
    pub fn numbered(self) -> Numbered<'a, F, A, M, I> {
        Numbered(self)
    }

    fn size(&self) -> (usize, Option<usize>) {
        let (low, high) = if self.ended {
            (0, Some(0))
        } else {
            self.items.size_hint()
        };
        let here = self.tasks.len() + usize::from(self.failed.is_some());
        (
            low.saturating_add(here),
            high.and_then(|high| high.checked_add(here)),
        )
    }
}

impl<F, A, M, I> ImapUnordered<'_, F, A, M, I>
where
    F: TaskFn<A, M>,
    A: Serialize + DeserializeOwned,
    M: 'static,
    F::Output: DeserializeOwned,
    I: Iterator<Item = A>,
{
    fn next_numbered(&mut self) -> Option<(u64, Result<F::Output, PoolError>)> {
        self.fill();
        if self.tasks.is_empty() {
            return self
                .failed
                .take()
                .map(|error| (self.taken.saturating_sub(1), Err(error.into())));
        }
        match self.take_done(Patience::or_deadlock()) {
            Ok(task) => Some((task.tag(), task.get())),
            Err(WaitError::Deadlock) => Some((
                self.taken.saturating_sub(1),
                Err(PoolError::Deadlock(DeadlockError::taken())),
            )),
            Err(_) => None,
        }
    }
}

impl<F, A, M, I> Iterator for ImapUnordered<'_, F, A, M, I>
where
    F: TaskFn<A, M>,
    A: Serialize + DeserializeOwned,
    M: 'static,
    F::Output: DeserializeOwned,
    I: Iterator<Item = A>,
{
    type Item = Result<F::Output, PoolError>;

    fn next(&mut self) -> Option<Self::Item> {
        self.next_numbered().map(|(_, result)| result)
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        self.size()
    }
}

impl<F, A, M, I> Stream for ImapUnordered<'_, F, A, M, I>
where
    F: TaskFn<A, M>,
    A: Serialize + DeserializeOwned,
    M: 'static,
    F::Output: DeserializeOwned,
    I: Iterator<Item = A>,
{
    type Item = Result<F::Output, PoolError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.fill();
        if self.tasks.is_empty() {
            return Poll::Ready(self.failed.take().map(|error| Err(error.into())));
        }
        let now = Patience {
            deadline: Some(phalanx_prim::Deadline::PAST),
            ..Patience::FOREVER
        };
        loop {
            if let Ok(task) = self.take_done(now) {
                return Poll::Ready(Some(task.result()));
            }
            let Some(port) = self.port.clone() else {
                return Poll::Ready(None);
            };
            let mut ready = Ready::new(port.readable(), port.held(), || {
                port.is_ready().then_some(())
            });
            let pending = Pin::new(&mut ready).poll(cx).is_pending();
            // The waker stays with the reactor; nobody else takes from the port.
            ready.detach();
            if pending {
                return Poll::Pending;
            }
        }
    }
}

impl<F, A, M, I> Drop for ImapUnordered<'_, F, A, M, I>
where
    F: TaskFn<A, M>,
{
    fn drop(&mut self) {
        let tasks: Vec<_> = self.tasks.values().collect();
        cancel_waiting(tasks.into_iter());
    }
}

/// Results with the numbers of their items. See [`ImapUnordered::numbered`].
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
///     for (number, result) in pool.imap_unordered(square, 0..10).numbered() {
///         assert_eq!(result?, number * number);
///     }
///     Ok(())
/// }
/// ```
#[derive(Debug)]
#[must_use = "a lazy map does nothing until it is asked for results"]
pub struct Numbered<'a, F, A, M, I>(ImapUnordered<'a, F, A, M, I>)
where
    F: TaskFn<A, M>;

impl<F, A, M, I> Iterator for Numbered<'_, F, A, M, I>
where
    F: TaskFn<A, M>,
    A: Serialize + DeserializeOwned,
    M: 'static,
    F::Output: DeserializeOwned,
    I: Iterator<Item = A>,
{
    type Item = (u64, Result<F::Output, PoolError>);

    fn next(&mut self) -> Option<Self::Item> {
        self.0.next_numbered()
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        self.0.size()
    }
}
