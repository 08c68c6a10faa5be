//! `Queue` and `SimpleQueue`: serde values over the queue of bytes.

use std::cell::RefCell;
use std::error::Error;
use std::fmt;
use std::future::Future;
use std::marker::PhantomData;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use phalanx_shm::{AllocError, DeadlockError, Kind, Patience, Shared, WaitError, session};
use phalanx_sync::{CreateError, Gate, handle};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::codec::{self, CodecError};
use crate::raw::{Bounds, Closed, RawGetError, RawPutError, RawQueue, Received};
use crate::reactor::Ready;
use crate::select::Waitable;

/// Why an item was not put.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PutErrorKind {
    /// The queue takes nothing any more.
    #[error("the queue takes no more items: {0}")]
    Closed(Closed),
    /// No room until the deadline, or (without one) now.
    #[error("the queue is full; take items out, wait longer, or make it larger")]
    Full,
    /// A signal handler ran in this thread.
    #[error("interrupted by a signal while waiting for room in the queue")]
    Interrupted,
    /// The wait could never have ended, and somebody wants such waits to fail.
    #[error(transparent)]
    Deadlock(DeadlockError),
    /// No shared memory for it.
    #[error(transparent)]
    Alloc(AllocError),
    /// It alone is larger than the queue may ever hold.
    #[error(
        "an item of {bytes} bytes never fits a queue of at most {most} bytes; make the queue larger or the item smaller"
    )]
    TooLarge {
        /// Bytes of the item.
        bytes: u64,
        /// Bytes the queue may hold.
        most: u64,
    },
    /// It does not serialize.
    #[error(transparent)]
    Codec(CodecError),
}

/// An item that was not put, and why. Nothing is lost.
///
/// ```
/// use phalanx_channel::{PutErrorKind, Queue};
///
/// let queue = Queue::new()?;
/// queue.close();
/// let error = queue.put("mine".to_owned()).unwrap_err();
/// assert!(matches!(error.kind, PutErrorKind::Closed(_)));
/// assert_eq!(error.value, "mine");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct PutError<T> {
    /// The item.
    pub value: T,
    /// Why.
    pub kind: PutErrorKind,
}

impl<T> fmt::Display for PutError<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.kind.fmt(f)
    }
}

impl<T> Error for PutError<T> {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.kind.source()
    }
}

impl<T> fmt::Debug for PutError<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PutError")
            .field("kind", &self.kind)
            .finish_non_exhaustive()
    }
}

impl From<RawPutError> for PutErrorKind {
    fn from(error: RawPutError) -> Self {
        match error {
            RawPutError::Closed(closed) => Self::Closed(closed),
            RawPutError::Wait(WaitError::TimedOut) => Self::Full,
            RawPutError::Wait(WaitError::Interrupted) => Self::Interrupted,
            RawPutError::Wait(WaitError::Deadlock) => Self::Deadlock(DeadlockError::taken()),
            RawPutError::Alloc(error) => Self::Alloc(error),
            RawPutError::TooLarge { bytes, most } => Self::TooLarge { bytes, most },
        }
    }
}

/// Why there is no item.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum GetError {
    /// Empty until the deadline, or (without one) now.
    #[error("the queue is empty")]
    Empty,
    /// Empty, and nothing more will come.
    #[error("the queue is empty and nothing more will come: {0}")]
    Closed(Closed),
    /// A signal handler ran in this thread.
    #[error("interrupted by a signal while waiting for an item")]
    Interrupted,
    /// The wait could never have ended, and somebody wants such waits to fail.
    #[error(transparent)]
    Deadlock(#[from] DeadlockError),
    /// An item came that is no value of this type; it is lost.
    #[error(transparent)]
    Codec(#[from] CodecError),
}

impl From<RawGetError> for GetError {
    fn from(error: RawGetError) -> Self {
        match error {
            RawGetError::Closed(closed) => Self::Closed(closed),
            RawGetError::Wait(WaitError::TimedOut) => Self::Empty,
            RawGetError::Wait(WaitError::Interrupted) => Self::Interrupted,
            RawGetError::Wait(WaitError::Deadlock) => Self::Deadlock(DeadlockError::taken()),
        }
    }
}

/// `task_done` was called more often than items were taken by this process, or on a queue that does not count.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "task_done() without an item that this process took and has not done yet (on a queue made with joinable())"
)]
pub struct TaskDoneError;

/// Why a queue's `join` did not end well.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum JoinError {
    /// Not all items were done until the deadline.
    #[error("timed out: not all items are done")]
    TimedOut,
    /// A signal handler ran in this thread.
    #[error("interrupted by a signal while waiting for the items to be done")]
    Interrupted,
    /// The wait could never have ended, and somebody wants such waits to fail.
    #[error(transparent)]
    Deadlock(#[from] DeadlockError),
    /// Processes died with items they had taken and not done.
    #[error("{0} items were lost with the processes that had taken them")]
    Lost(u64),
}

thread_local! {
    static SCRATCH: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// Largest scratch buffer a thread keeps.
const KEPT: usize = 1 << 16;

/// Runs `f` with an empty buffer: this thread's, or a new one while that is in use (serializing may use another queue).
#[inline]
fn with_scratch<R>(f: impl FnOnce(&mut Vec<u8>) -> R) -> R {
    SCRATCH.with(|scratch| {
        // Used where it lies: moving it out and back costs more than a small item's put.
        let Ok(mut buffer) = scratch.try_borrow_mut() else {
            return f(&mut Vec::new());
        };
        buffer.clear();
        let result = f(&mut buffer);
        if buffer.capacity() > KEPT {
            *buffer = Vec::new();
        }
        result
    })
}

/// Puts a serialized value with the handles in it. The error lies elsewhere, so that what is returned fits a register.
#[inline]
pub(crate) fn put_value<T: Serialize>(
    queue: &RawQueue,
    value: &T,
    patience: Patience,
) -> Result<(), Box<PutErrorKind>> {
    with_scratch(|buffer| {
        let encode = || match codec::write(value, buffer) {
            Ok(()) => Ok(buffer),
            Err(error) => Err(error),
        };
        handle::collect_then(encode, |encoded, handles| match encoded {
            Err(error) => Err(Box::new(PutErrorKind::Codec(*error))),
            Ok(bytes) => match queue.put_all(bytes, handles, patience) {
                Ok(()) => Ok(()),
                Err(error) => Err(Box::new(PutErrorKind::from(*error))),
            },
        })
    })
}

/// Takes a value. The error lies elsewhere, as in [`put_value`].
#[inline]
pub(crate) fn get_value<T: DeserializeOwned>(
    queue: &RawQueue,
    patience: Patience,
) -> Result<T, Box<GetError>> {
    with_scratch(|buffer| {
        let decoded = match queue.take_into(buffer, patience) {
            Ok(Received::Inline) => codec::read(buffer),
            Ok(Received::Block(message)) => codec::read(&message),
            Err(error) => return Err(Box::new(GetError::from(*error))),
        };
        match decoded {
            Ok(value) => Ok(value),
            Err(error) => Err(Box::new(GetError::Codec(*error))),
        }
    })
}

const NOW: Patience = Patience {
    deadline: Some(phalanx_prim::Deadline::PAST),
    ..Patience::FOREVER
};

/// A queue of values for many producers and many consumers in any processes of the tree.
///
/// `put` completes when the item is in the queue: there is no thread behind it, and the process may exit right after. A
/// queue is a serde value; it can be sent through itself.
///
/// *Death*: an item is never torn and never delivered twice; items that a process had taken are lost with it, all others stay. *Fork*: the
/// child has its own handle. *Order*: items of one producer come out in the order in which it put them.
///
/// ```
/// use phalanx_channel::Queue;
///
/// let queue = Queue::bounded(64)?;
/// queue.put(("answer".to_owned(), 42))?;
/// assert_eq!(queue.get()?, ("answer".to_owned(), 42));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Queue<T> {
    raw: RawQueue,
    of: PhantomData<fn(T) -> T>,
}

/// Options of a [`Queue`].
///
/// ```
/// use phalanx_channel::{PutErrorKind, Queue};
///
/// let queue = Queue::<String>::builder().items(2).bytes(1 << 20).joinable().build()?;
/// queue.put("one".to_owned())?;
/// queue.put("two".to_owned())?;
/// let full = queue.try_put("three".to_owned()).unwrap_err();
/// assert!(matches!(full.kind, PutErrorKind::Full));
/// assert_eq!(full.value, "three");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Copy, Debug, Default)]
#[must_use = "a builder does nothing until `build`"]
pub struct QueueBuilder {
    bounds: Bounds,
}

impl QueueBuilder {
    /// Holds at most so many items. Default: any number.
    pub fn items(mut self, most: u64) -> Self {
        self.bounds.items = Some(most);
        self
    }

    /// Holds at most so many bytes of serialized items. Default: any number.
    pub fn bytes(mut self, most: u64) -> Self {
        self.bounds.bytes = Some(most);
        self
    }

    /// Counts what is taken and not done, for [`Queue::task_done`] and [`Queue::join`].
    pub fn joinable(mut self) -> Self {
        self.bounds.joinable = true;
        self
    }

    /// Makes the queue.
    ///
    /// # Errors
    ///
    /// [`CreateError`] when shared memory is short, or a bound is 0.
    pub fn build<T>(self) -> Result<Queue<T>, CreateError> {
        if self.bounds.items == Some(0) || self.bounds.bytes == Some(0) {
            let instead = "nothing would ever fit; leave the bound out for a queue that grows";
            return Err(CreateError::Invalid {
                what: "a queue with a bound",
                given: 0,
                instead,
            });
        }
        crate::install();
        Ok(Queue {
            raw: RawQueue::new(session()?, self.bounds)?,
            of: PhantomData,
        })
    }
}

impl<T> Queue<T> {
    /// Makes a queue that grows as needed.
    ///
    /// # Errors
    ///
    /// [`CreateError`] when shared memory is short.
    pub fn new() -> Result<Self, CreateError> {
        QueueBuilder::default().build()
    }

    /// Makes a queue of at most `items` items.
    ///
    /// # Errors
    ///
    /// [`CreateError`] when shared memory is short or `items` is 0.
    pub fn bounded(items: u64) -> Result<Self, CreateError> {
        QueueBuilder::default().items(items).build()
    }

    /// Makes a queue that counts what is done.
    ///
    /// # Errors
    ///
    /// [`CreateError`] when shared memory is short.
    pub fn joinable() -> Result<Self, CreateError> {
        QueueBuilder::default().joinable().build()
    }

    /// Returns the options for a queue.
    pub fn builder() -> QueueBuilder {
        QueueBuilder::default()
    }

    /// Returns the queue of bytes below, whose payloads are those of [`codec`].
    #[must_use]
    pub fn raw(&self) -> &RawQueue {
        &self.raw
    }

    /// Closes the queue in all processes: nothing more can be put, what is in it can still be taken.
    pub fn close(&self) {
        self.raw.close();
    }

    /// Returns whether and why the queue is closed.
    #[must_use]
    pub fn closed(&self) -> Option<Closed> {
        self.raw.closed()
    }

    /// Returns the number of items; a moment later it may be another.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.raw.len()
    }

    /// Returns `true` if there is no item; a moment later there may be.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.raw.is_empty()
    }

    /// Returns `true` if a further item has to wait; a moment later it may not.
    #[must_use]
    pub fn is_full(&self) -> bool {
        let bounds = self.raw.bounds();
        bounds.items.is_some_and(|most| self.len() >= most)
            || bounds.bytes.is_some_and(|most| self.raw.bytes() >= most)
    }

    /// Says that an item this process took is done.
    ///
    /// # Errors
    ///
    /// [`TaskDoneError`] when there is none.
    pub fn task_done(&self) -> Result<(), TaskDoneError> {
        if self.raw.task_done() {
            Ok(())
        } else {
            Err(TaskDoneError)
        }
    }

    /// Blocks until every item that was put is done.
    ///
    /// # Errors
    ///
    /// [`JoinError::Lost`] when processes died with items they had taken: the others are done.
    #[track_caller]
    pub fn join(&self) -> Result<(), JoinError> {
        self.join_with(Patience::or_deadlock())
    }

    /// As [`join`](Self::join), for at most `timeout`.
    ///
    /// # Errors
    ///
    /// [`JoinError`].
    #[track_caller]
    pub fn join_timeout(&self, timeout: Duration) -> Result<(), JoinError> {
        self.join_with(Patience::timeout(timeout).here())
    }

    fn join_with(&self, patience: Patience) -> Result<(), JoinError> {
        match self.raw.join(patience) {
            Ok(0) => Ok(()),
            Ok(lost) => Err(JoinError::Lost(lost)),
            Err(WaitError::TimedOut) => Err(JoinError::TimedOut),
            Err(WaitError::Interrupted) => Err(JoinError::Interrupted),
            Err(WaitError::Deadlock) => Err(JoinError::Deadlock(DeadlockError::taken())),
        }
    }
}

impl<T: Serialize> Queue<T> {
    /// Puts an item; blocks while the queue is full.
    ///
    /// # Errors
    ///
    /// [`PutError`], which has the item.
    #[track_caller]
    pub fn put(&self, value: T) -> Result<(), PutError<T>> {
        self.put_with(value, Patience::or_deadlock())
    }

    /// As [`put`](Self::put), for at most `timeout`.
    ///
    /// # Errors
    ///
    /// [`PutError`], which has the item.
    #[track_caller]
    pub fn put_timeout(&self, value: T, timeout: Duration) -> Result<(), PutError<T>> {
        self.put_with(value, Patience::timeout(timeout).here())
    }

    /// Puts an item if there is room now.
    ///
    /// # Errors
    ///
    /// [`PutError`], which has the item.
    pub fn try_put(&self, value: T) -> Result<(), PutError<T>> {
        self.put_with(value, NOW)
    }

    /// Puts an item, as `patience` says.
    ///
    /// # Errors
    ///
    /// [`PutError`], which has the item.
    pub fn put_with(&self, value: T, patience: Patience) -> Result<(), PutError<T>> {
        match put_value(&self.raw, &value, patience) {
            Ok(()) => Ok(()),
            Err(kind) => Err(PutError { value, kind: *kind }),
        }
    }

    /// Puts an item when there is room, for coroutines on any executor.
    pub fn put_async(&self, value: T) -> Ready<'_, Result<(), PutError<T>>>
    where
        T: Send,
    {
        let mut waiting = Some(value);
        Ready::new(self.raw.writable(), self.raw.held(), move || {
            match self.try_put(waiting.take()?) {
                Err(PutError {
                    value,
                    kind: PutErrorKind::Full,
                }) => {
                    waiting = Some(value);
                    None
                }
                done => Some(done),
            }
        })
    }
}

impl<T: DeserializeOwned> Queue<T> {
    /// Takes the first item; blocks while the queue is empty.
    ///
    /// # Errors
    ///
    /// [`GetError`].
    #[track_caller]
    pub fn get(&self) -> Result<T, GetError> {
        self.get_with(Patience::or_deadlock())
    }

    /// As [`get`](Self::get), for at most `timeout`.
    ///
    /// # Errors
    ///
    /// [`GetError`].
    #[track_caller]
    pub fn get_timeout(&self, timeout: Duration) -> Result<T, GetError> {
        self.get_with(Patience::timeout(timeout).here())
    }

    /// Takes the first item if there is one now.
    ///
    /// # Errors
    ///
    /// [`GetError`].
    pub fn try_get(&self) -> Result<T, GetError> {
        self.get_with(NOW)
    }

    /// Takes the first item, as `patience` says.
    ///
    /// # Errors
    ///
    /// [`GetError`].
    pub fn get_with(&self, patience: Patience) -> Result<T, GetError> {
        get_value(&self.raw, patience).map_err(|error| *error)
    }

    /// Takes the first item when there is one, for coroutines on any executor.
    ///
    /// ```
    /// use phalanx_channel::Queue;
    ///
    /// # let runtime = tokio::runtime::Builder::new_current_thread().build()?;
    /// let queue = Queue::new()?;
    /// # runtime.block_on(async {
    /// queue.put_async(5).await?;
    /// assert_eq!(queue.get_async().await?, 5);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// # })?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn get_async(&self) -> GetFuture<'_, T> {
        GetFuture(get_ready(&self.raw))
    }

    /// Returns an iterator that takes items until the queue is closed. It is also a
    /// [`Stream`](futures_core::Stream).
    pub fn iter(&self) -> Items<'_, T> {
        Items {
            queue: self,
            next: None,
        }
    }
}

pub(crate) fn get_ready<T: DeserializeOwned>(raw: &RawQueue) -> Ready<'_, Result<T, GetError>> {
    Ready::new(raw.readable(), raw.held(), || match get_value(raw, NOW) {
        Ok(value) => Some(Ok(value)),
        Err(error) => match *error {
            GetError::Empty => None,
            error => Some(Err(error)),
        },
    })
}

/// The next item of a [`Queue`], for coroutines.
#[must_use = "a future does nothing until it is awaited"]
#[derive(Debug)]
pub struct GetFuture<'a, T>(Ready<'a, Result<T, GetError>>);

impl<T> Future for GetFuture<'_, T> {
    type Output = Result<T, GetError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.0).poll(cx)
    }
}

/// The items of a [`Queue`] until it is closed.
#[must_use = "it takes nothing until it is asked"]
#[derive(Debug)]
pub struct Items<'a, T> {
    queue: &'a Queue<T>,
    next: Option<Ready<'a, Result<T, GetError>>>,
}

impl<T: DeserializeOwned> Iterator for Items<'_, T> {
    type Item = Result<T, GetError>;

    fn next(&mut self) -> Option<Self::Item> {
        match self.queue.get_with(Patience::or_deadlock()) {
            Err(GetError::Closed(_)) => None,
            item => Some(item),
        }
    }
}

impl<T: DeserializeOwned> futures_core::Stream for Items<'_, T> {
    type Item = Result<T, GetError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let queue = self.queue;
        let next = self.next.get_or_insert_with(|| get_ready(&queue.raw));
        let Poll::Ready(item) = Pin::new(next).poll(cx) else {
            return Poll::Pending;
        };
        self.next = None;
        Poll::Ready(match item {
            Err(GetError::Closed(_)) => None,
            item => Some(item),
        })
    }
}

impl<'a, T: DeserializeOwned> IntoIterator for &'a Queue<T> {
    type Item = Result<T, GetError>;
    type IntoIter = Items<'a, T>;

    fn into_iter(self) -> Items<'a, T> {
        self.iter()
    }
}

impl<T> Waitable for Queue<T> {
    fn is_ready(&self) -> bool {
        self.raw.is_ready()
    }

    fn gate(&self) -> &Gate<Shared> {
        self.raw.readable()
    }
}

impl<T> Clone for Queue<T> {
    /// Makes another handle on the same queue.
    fn clone(&self) -> Self {
        Self {
            raw: self.raw.clone(),
            of: PhantomData,
        }
    }
}

impl<T> fmt::Debug for Queue<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Queue")
            .field("len", &self.len())
            .field("closed", &self.closed())
            .finish()
    }
}

impl<T> Serialize for Queue<T> {
    fn serialize<Z: Serializer>(&self, serializer: Z) -> Result<Z::Ok, Z::Error> {
        handle::serialize(self.raw.held(), serializer)
    }
}

impl<'de, T> Deserialize<'de> for Queue<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        crate::install();
        let held = handle::deserialize(Kind::Queue, deserializer)?;
        Ok(Self {
            raw: RawQueue::from_held(held),
            of: PhantomData,
        })
    }
}

/// A queue with `put`, `get` and `is_empty`, and no more.
///
/// ```
/// use phalanx_channel::SimpleQueue;
///
/// let queue = SimpleQueue::new()?;
/// queue.put("one".to_owned())?;
/// assert_eq!(queue.get()?, "one");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Serialize, Deserialize)]
#[serde(bound = "")]
pub struct SimpleQueue<T>(Queue<T>);

impl<T> SimpleQueue<T> {
    /// Makes a queue that grows as needed.
    ///
    /// # Errors
    ///
    /// [`CreateError`] when shared memory is short.
    pub fn new() -> Result<Self, CreateError> {
        Queue::new().map(Self)
    }

    /// Returns `true` if there is no item; a moment later there may be.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Closes the queue in all processes; what is in it can still be taken.
    pub fn close(&self) {
        self.0.close();
    }
}

impl<T: Serialize> SimpleQueue<T> {
    /// Puts an item.
    ///
    /// # Errors
    ///
    /// [`PutError`], which has the item.
    #[track_caller]
    pub fn put(&self, value: T) -> Result<(), PutError<T>> {
        self.0.put(value)
    }
}

impl<T: DeserializeOwned> SimpleQueue<T> {
    /// Takes the first item; blocks while the queue is empty.
    ///
    /// # Errors
    ///
    /// [`GetError`].
    #[track_caller]
    pub fn get(&self) -> Result<T, GetError> {
        self.0.get()
    }
}

impl<T> Clone for SimpleQueue<T> {
    /// Makes another handle on the same queue.
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ITEMS: u64 = if cfg!(miri) { 10 } else { 2_000 };

    #[test]
    fn what_is_put_is_taken_done_and_joined() {
        let _dog = phalanx_testkit::watchdog(Duration::from_secs(200));
        let queue = Queue::<(u64, String)>::builder()
            .items(2)
            .joinable()
            .build()
            .unwrap();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for expected in 0..ITEMS {
                    let (number, text) = queue.get().unwrap();
                    assert_eq!(
                        (number, text),
                        (expected, "x".repeat(expected as usize % 50))
                    );
                    queue.task_done().unwrap();
                }
            });
            for number in 0..ITEMS {
                queue
                    .put((number, "x".repeat(number as usize % 50)))
                    .unwrap();
            }
            queue.join().unwrap();
        });
        assert!(queue.task_done().is_err());
    }

    #[test]
    fn a_closed_queue_gives_what_is_in_it() {
        let _dog = phalanx_testkit::watchdog(Duration::from_secs(100));
        let queue = SimpleQueue::<u8>::new().unwrap();
        queue.put(1).unwrap();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                assert_eq!(queue.get().unwrap(), 1);
                assert!(matches!(queue.get(), Err(GetError::Closed(_))));
            });
            std::thread::yield_now();
            queue.close();
        });
        assert_eq!(queue.put(2).unwrap_err().value, 2);
    }

    #[test]
    fn a_full_queue_gives_the_item_back() {
        let queue = Queue::bounded(1).unwrap();
        queue.put("one".to_owned()).unwrap();
        let soon = Duration::from_millis(2);
        let refused = queue.put_timeout("two".to_owned(), soon).unwrap_err();
        assert!(matches!(refused.kind, PutErrorKind::Full));
        assert_eq!(refused.value, "two");
        assert_eq!(queue.try_get().unwrap(), "one");
        assert!(matches!(queue.get_timeout(soon), Err(GetError::Empty)));
    }
}
