//! A task's handle: wait for it, cancel it, await it.

use std::future::Future;
use std::marker::PhantomData;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use phalanx_channel::codec;
use phalanx_shm::{DeadlockError, Patience, WaitError};
use serde::de::DeserializeOwned;

use crate::engine::Engine;
use crate::error::PoolError;
use crate::record::{DONE, Outcome, TaskView};

/// A submitted task. Dropping it lets the task run and forgets the result.
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
///     let task = pool.apply_async(square, 7)?;
///     assert_eq!(task.get()?, 49);
///     // Or in a callback, or by `.await`.
///     let (sender, receiver) = std::sync::mpsc::channel();
///     pool.apply_async(square, 8)?.then(move |result| drop(sender.send(result.unwrap())));
///     assert_eq!(receiver.recv()?, 64);
///     Ok(())
/// }
/// ```
#[must_use = "dropping it forgets the result"]
pub struct TaskHandle<R> {
    engine: Arc<Engine>,
    task: TaskView,
    of: PhantomData<fn() -> R>,
}

impl<R> TaskHandle<R> {
    pub(crate) fn new(engine: Arc<Engine>, task: TaskView) -> Self {
        Self {
            engine,
            task,
            of: PhantomData,
        }
    }

    pub(crate) fn bits(&self) -> u64 {
        self.task.bits()
    }

    pub(crate) fn tag(&self) -> u64 {
        self.task.tag()
    }

    /// Returns `true` if the task is done, well or not.
    #[must_use]
    pub fn is_done(&self) -> bool {
        self.task.state() == DONE
    }

    /// Returns whether the task ended with a value; `None` while it is not done.
    #[must_use]
    pub fn is_successful(&self) -> Option<bool> {
        self.is_done()
            .then(|| self.task.outcome() == Outcome::Value)
    }

    /// Blocks until the task is done, for at most `timeout`; returns whether it is.
    #[track_caller]
    pub fn wait_timeout(&self, timeout: Duration) -> bool {
        self.task.wait(Patience::timeout(timeout).here()).is_ok()
    }

    /// Blocks until the task is done.
    ///
    /// # Panics
    ///
    /// With the deadlock as its payload, if the wait could never end and somebody wants such waits to fail;
    /// [`get`](Self::get) returns it.
    #[track_caller]
    pub fn wait(&self) {
        let waited = self.task.wait(Patience::or_panic());
        debug_assert!(waited.is_ok());
    }

    /// Cancels the task: one that waits never runs; one that runs is ended by killing its worker, which costs the other
    /// tasks of that worker's threads nothing but time. Returns `false` if it was done already.
    ///
    /// ```
    /// use phalanx_pool::{Pool, PoolError};
    ///
    /// fn sleep(seconds: u64) {
    ///     std::thread::sleep(std::time::Duration::from_secs(seconds));
    /// }
    ///
    /// # #[phalanx_macros::main(crate = phalanx_process)]
    /// fn main() -> Result<(), Box<dyn std::error::Error>> {
    ///     let pool = Pool::new(1)?;
    ///     let task = pool.apply_async(sleep, 3600)?;
    ///     assert!(task.cancel());
    ///     assert!(matches!(task.get(), Err(PoolError::Cancelled)));
    ///     Ok(())
    /// }
    /// ```
    pub fn cancel(&self) -> bool {
        self.engine.cancel(self.task)
    }

    pub(crate) fn cancel_if_waiting(&self) {
        self.engine.cancel_waiting(self.task);
    }
}

impl<R: DeserializeOwned> TaskHandle<R> {
    /// Blocks until the task is done and returns its value.
    ///
    /// # Errors
    ///
    /// [`PoolError`]: how it ended instead.
    #[track_caller]
    pub fn get(self) -> Result<R, PoolError> {
        match self.task.wait(Patience::or_deadlock()) {
            Ok(()) => self.result(),
            Err(_) => Err(PoolError::Deadlock(DeadlockError::taken())),
        }
    }

    /// As [`get`](Self::get), for at most `timeout`; can be called again when it was too short.
    ///
    /// # Errors
    ///
    /// [`PoolError::NotDone`], or how it ended instead of with a value.
    #[track_caller]
    pub fn get_timeout(&self, timeout: Duration) -> Result<R, PoolError> {
        match self.task.wait(Patience::timeout(timeout).here()) {
            Ok(()) => self.result(),
            Err(WaitError::TimedOut) => Err(PoolError::NotDone(timeout)),
            Err(WaitError::Interrupted) => Err(PoolError::Interrupted),
            Err(WaitError::Deadlock) => Err(PoolError::Deadlock(DeadlockError::taken())),
        }
    }

    /// Calls `then` with the result once the task is done, in the pool's thread for callbacks.
    pub fn then(self, then: impl FnOnce(Result<R, PoolError>) + Send + 'static)
    where
        R: 'static,
    {
        let (engine, task) = (Arc::clone(&self.engine), self.task);
        engine.call_when_done(task, Box::new(move || then(self.result())));
    }

    pub(crate) fn result(&self) -> Result<R, PoolError> {
        let decode_error = |bytes: &[u8]| match codec::decode(bytes) {
            Ok(report) => PoolError::Panicked(Box::new(report)),
            Err(error) => error.into(),
        };
        match self.task.outcome() {
            Outcome::Value => Ok(self.task.with_result(codec::decode)?),
            Outcome::Panic => Err(self.task.with_result(decode_error)),
            Outcome::Refused => Err(match self.task.with_result(codec::decode) {
                Ok(error) => PoolError::Task(error),
                Err(error) => error.into(),
            }),
            Outcome::Died => Err(match self.engine.death_of(self.task) {
                Some(death) => PoolError::Died(Box::new((*death).clone())),
                None => PoolError::Terminated,
            }),
            Outcome::TimedOut => Err(PoolError::TimedOut {
                task: self.engine.name_of(self.task.function()),
                limit: Duration::from_nanos(self.task.timeout_ns()),
                attempts: self.task.attempts(),
            }),
            Outcome::Cancelled => Err(PoolError::Cancelled),
            Outcome::Terminated => Err(PoolError::Terminated),
            Outcome::Broken => Err(PoolError::Broken(self.engine.broken_reason())),
        }
    }

    pub(crate) fn poll_result(&self, cx: &mut Context<'_>) -> Poll<Result<R, PoolError>> {
        if self.is_done() || !self.engine.wake_when_done(self.task, cx.waker()) {
            return Poll::Ready(self.result());
        }
        Poll::Pending
    }
}

/// Awaits the result, on any executor.
impl<R: DeserializeOwned> Future for TaskHandle<R> {
    type Output = Result<R, PoolError>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        self.poll_result(cx)
    }
}

impl<R> Drop for TaskHandle<R> {
    fn drop(&mut self) {
        self.engine.let_go(self.task);
    }
}

impl<R> std::fmt::Debug for TaskHandle<R> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TaskHandle")
            .field("task", &self.task)
            .field("done", &self.is_done())
            .finish()
    }
}
