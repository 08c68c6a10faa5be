//! Maps over a pool of threads: all at once, or lazily in a window.

use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use futures_core::Stream;
use phalanx_shm::{DeadlockError, Described, Patience};

use crate::threads::{ThreadPool, ThreadTask, ThreadTaskError, wait_until};

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The tasks of a map in threads. Dropping it cancels those that have not begun.
#[must_use = "dropping it cancels what has not begun"]
#[derive(Debug)]
pub struct ThreadMapHandle<R> {
    tasks: VecDeque<ThreadTask<R>>,
    done: Vec<R>,
}

impl<R> ThreadMapHandle<R> {
    pub(crate) fn new() -> Self {
        Self {
            tasks: VecDeque::new(),
            done: Vec::new(),
        }
    }

    pub(crate) fn push(&mut self, task: ThreadTask<R>) {
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
        let mut tasks = self.tasks.iter();
        tasks.all(|task| task.wait_timeout(patience.remaining()))
    }

    /// Cancels every task that has not begun.
    pub fn cancel(&self) {
        // From the end, where a thread comes last.
        for task in self.tasks.iter().rev() {
            task.cancel();
        }
    }

    /// Blocks until all are done and returns their values in order.
    ///
    /// # Errors
    ///
    /// The [`ThreadTaskError`] of the first that failed; those that have not begun are cancelled.
    #[track_caller]
    pub fn get(mut self) -> Result<Vec<R>, ThreadTaskError> {
        let mut values = std::mem::take(&mut self.done);
        values.reserve(self.tasks.len());
        while let Some(task) = self.tasks.pop_front() {
            values.push(task.get()?);
        }
        Ok(values)
    }
}

/// Awaits all values, on any executor.
impl<R: Unpin> Future for ThreadMapHandle<R> {
    type Output = Result<Vec<R>, ThreadTaskError>;

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

impl<R> Drop for ThreadMapHandle<R> {
    fn drop(&mut self) {
        self.cancel();
    }
}

/// What both lazy maps have.
struct Source<'a, F, I> {
    pool: &'a ThreadPool,
    function: Arc<F>,
    items: I,
    window: usize,
    ended: bool,
    failed: Option<ThreadTaskError>,
}

impl<'a, F, I> Source<'a, F, I> {
    fn new(pool: &'a ThreadPool, function: F, items: I) -> Self {
        Self {
            pool,
            function: Arc::new(function),
            items,
            window: 4 * pool.parallelism(),
            ended: false,
            failed: None,
        }
    }

    /// Submits the next item, if there is one and the window has room.
    fn next<A, R>(&mut self, on_their_way: usize) -> Option<ThreadTask<R>>
    where
        A: Send + Clone + 'static,
        R: Send + 'static,
        F: Fn(A) -> R + Send + Sync + 'static,
        I: Iterator<Item = A>,
    {
        if self.ended || on_their_way >= self.window {
            return None;
        }
        let Some(item) = self.items.next() else {
            self.ended = true;
            return None;
        };
        match self.pool.submit(&self.function, item) {
            Ok(task) => Some(task),
            Err(error) => {
                self.ended = true;
                self.failed = Some(error);
                None
            }
        }
    }

    fn size(&self, on_their_way: usize) -> (usize, Option<usize>)
    where
        I: Iterator,
    {
        let (low, high) = if self.ended {
            (0, Some(0))
        } else {
            self.items.size_hint()
        };
        let here = on_their_way + usize::from(self.failed.is_some());
        (
            low.saturating_add(here),
            high.and_then(|high| high.checked_add(here)),
        )
    }
}

/// Results in the order of the items, as an iterator and a stream. See [`ThreadPool::imap`].
#[must_use = "a lazy map does nothing until it is asked for results"]
pub struct ThreadImap<'a, R, F, I> {
    source: Source<'a, F, I>,
    tasks: VecDeque<ThreadTask<R>>,
}

/// Results in the order in which they are done, as an iterator and a stream. See [`ThreadPool::imap_unordered`].
#[must_use = "a lazy map does nothing until it is asked for results"]
pub struct ThreadImapUnordered<'a, R, F, I> {
    source: Source<'a, F, I>,
    done: Arc<Arrivals<R>>,
    on_their_way: usize,
    taken: u64,
}

/// Results that have come and were not taken.
struct Arrivals<R> {
    results: Mutex<(Come<R>, Option<Waker>)>,
    more: Condvar,
}

type Come<R> = VecDeque<(u64, Result<R, ThreadTaskError>)>;

macro_rules! options {
    ($Imap:ident) => {
        impl<R, F, I> $Imap<'_, R, F, I> {
            /// Takes at most so many items ahead of the results that were taken. Default: 4 per thread.
            pub fn window(mut self, items: usize) -> Self {
                self.source.window = items.max(1);
                self
            }

            /// Shows a progress bar on stderr while the results are taken, if that is a terminal.
            ///
            /// ```
            /// use phalanx_pool::ThreadPool;
            ///
            /// let pool = ThreadPool::new(2)?;
            /// let sum = pool.imap_unordered(|x: u64| x * x, 0..10).progress().sum::<Result<u64, _>>()?;
            /// assert_eq!(sum, 285);
            /// # Ok::<(), Box<dyn std::error::Error>>(())
            /// ```
            pub fn progress(self) -> crate::Progress<Self>
            where
                Self: Iterator,
            {
                crate::Progress::new(self)
            }
        }

        impl<R, F, I> std::fmt::Debug for $Imap<'_, R, F, I> {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.debug_struct(stringify!($Imap))
                    .field("window", &self.source.window)
                    .finish_non_exhaustive()
            }
        }

        // Nothing in it is pinned by reference to itself.
        impl<R, F, I> Unpin for $Imap<'_, R, F, I> {}
    };
}
options!(ThreadImap);
options!(ThreadImapUnordered);

impl<'a, R, F, I> ThreadImap<'a, R, F, I> {
    pub(crate) fn new(pool: &'a ThreadPool, function: F, items: I) -> Self {
        Self {
            source: Source::new(pool, function, items),
            tasks: VecDeque::new(),
        }
    }
}

impl<A, R, F, I> ThreadImap<'_, R, F, I>
where
    A: Send + Clone + 'static,
    R: Send + 'static,
    F: Fn(A) -> R + Send + Sync + 'static,
    I: Iterator<Item = A>,
{
    fn fill(&mut self) {
        while let Some(task) = self.source.next(self.tasks.len()) {
            self.tasks.push_back(task);
        }
    }
}

impl<A, R, F, I> Iterator for ThreadImap<'_, R, F, I>
where
    A: Send + Clone + 'static,
    R: Send + 'static,
    F: Fn(A) -> R + Send + Sync + 'static,
    I: Iterator<Item = A>,
{
    type Item = Result<R, ThreadTaskError>;

    fn next(&mut self) -> Option<Self::Item> {
        self.fill();
        match self.tasks.pop_front() {
            Some(task) => Some(task.get()),
            None => self.source.failed.take().map(Err),
        }
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        self.source.size(self.tasks.len())
    }
}

impl<A, R, F, I> Stream for ThreadImap<'_, R, F, I>
where
    A: Send + Clone + 'static,
    R: Send + 'static,
    F: Fn(A) -> R + Send + Sync + 'static,
    I: Iterator<Item = A>,
{
    type Item = Result<R, ThreadTaskError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.fill();
        let Some(task) = self.tasks.front() else {
            return Poll::Ready(self.source.failed.take().map(Err));
        };
        let Poll::Ready(result) = task.poll_result(cx) else {
            return Poll::Pending;
        };
        self.tasks.pop_front();
        Poll::Ready(Some(result))
    }
}

impl<R, F, I> Drop for ThreadImap<'_, R, F, I> {
    fn drop(&mut self) {
        for task in self.tasks.iter().rev() {
            task.cancel();
        }
    }
}

impl<'a, R, F, I> ThreadImapUnordered<'a, R, F, I> {
    pub(crate) fn new(pool: &'a ThreadPool, function: F, items: I) -> Self {
        Self {
            source: Source::new(pool, function, items),
            done: Arc::new(Arrivals {
                results: Mutex::new((VecDeque::new(), None)),
                more: Condvar::new(),
            }),
            on_their_way: 0,
            taken: 0,
        }
    }
}

impl<'a, A, R, F, I> ThreadImapUnordered<'a, R, F, I>
where
    A: Send + Clone + 'static,
    R: Send + 'static,
    F: Fn(A) -> R + Send + Sync + 'static,
    I: Iterator<Item = A>,
{
    fn fill(&mut self) {
        while let Some(task) = self.source.next(self.on_their_way) {
            let (done, number) = (Arc::clone(&self.done), self.taken);
            self.taken += 1;
            self.on_their_way += 1;
            task.then(move |result| {
                let waker = {
                    let mut results = lock(&done.results);
                    results.0.push_back((number, result));
                    results.1.take()
                };
                done.more.notify_one();
                waker.into_iter().for_each(Waker::wake);
            });
        }
    }

    /// Returns an iterator that also gives each item's number, from 0, in the order in which the items were taken.
    pub fn numbered(
        mut self,
    ) -> impl Iterator<Item = (u64, Result<R, ThreadTaskError>)> + use<'a, A, R, F, I> {
        std::iter::from_fn(move || self.next_numbered())
    }

    fn next_numbered(&mut self) -> Option<(u64, Result<R, ThreadTaskError>)> {
        self.fill();
        if self.on_their_way == 0 {
            return self
                .source
                .failed
                .take()
                .map(|error| (self.taken, Err(error)));
        }
        let _described = Described::new(format_args!("task of a thread pool"));
        let (mut results, waited) = wait_until(
            &self.done.more,
            lock(&self.done.results),
            Patience::or_deadlock(),
            |results| !results.0.is_empty(),
        );
        match waited {
            Ok(()) => {
                self.on_their_way -= 1;
                results.0.pop_front()
            }
            Err(_) => Some((
                self.taken.saturating_sub(1),
                Err(ThreadTaskError::Deadlock(DeadlockError::taken())),
            )),
        }
    }
}

impl<A, R, F, I> Iterator for ThreadImapUnordered<'_, R, F, I>
where
    A: Send + Clone + 'static,
    R: Send + 'static,
    F: Fn(A) -> R + Send + Sync + 'static,
    I: Iterator<Item = A>,
{
    type Item = Result<R, ThreadTaskError>;

    fn next(&mut self) -> Option<Self::Item> {
        self.next_numbered().map(|(_, result)| result)
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        self.source.size(self.on_their_way)
    }
}

impl<A, R, F, I> Stream for ThreadImapUnordered<'_, R, F, I>
where
    A: Send + Clone + 'static,
    R: Send + 'static,
    F: Fn(A) -> R + Send + Sync + 'static,
    I: Iterator<Item = A>,
{
    type Item = Result<R, ThreadTaskError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.fill();
        if self.on_their_way == 0 {
            return Poll::Ready(self.source.failed.take().map(Err));
        }
        let result = {
            let mut results = lock(&self.done.results);
            let result = results.0.pop_front();
            if result.is_none() {
                results.1 = Some(cx.waker().clone());
            }
            result
        };
        match result {
            Some((_, result)) => {
                self.on_their_way -= 1;
                Poll::Ready(Some(result))
            }
            None => Poll::Pending,
        }
    }
}
