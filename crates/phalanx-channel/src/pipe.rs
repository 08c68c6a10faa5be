//! A pipe: two ends, each of which sends to the other and learns when the other is gone.
//!
//! Each direction is a queue. An *end* is an object that holds both; each handle on an end holds the end. When the last
//! holder of an end drops it or dies, the end is destroyed, and that closes both queues with the reason: the other side
//! still reads what was sent, then gets the reason.
//!
//! | an end | by | what the other side sees |
//! |---|---|---|
//! | open | `pipe` | messages |
//! | closed | [`Connection::close`], by any holder | the rest of the messages, then "closed" |
//! | dropped | its last holder drops it: both queues closed, then its holds on them given back | the same |
//! | orphaned | its last holder dies; the sweep does the same, with the dead one's pid and end | the rest, then "died" |
//!
//! A death between closing and giving back leaves an end that is condemned; the sweep tears it down again, and closing twice
//! changes nothing: the first reason counts. A handle on its way in a message holds the end like any other.
#![expect(unsafe_code, reason = "the marker of what may be placed in the arena")]

use std::fmt;
use std::marker::PhantomData;
use std::time::Duration;

use phalanx_prim::{AtomicU64, Ordering};
use phalanx_shm::{
    Arena, BlockRef, Held, Kind, KindOps, Patience, Placed, Shared, register_kind, session,
};
use phalanx_sync::{CreateError, Gate, Object};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::queue::{GetError, PutError, get_ready, get_value, put_value};
use crate::raw::{Bounds, Closed, RawQueue};
use crate::reactor::Ready;
use crate::select::Waitable;

/// One end: its holds on the two queues.
#[derive(Debug)]
#[repr(C)]
struct End {
    send: AtomicU64,
    receive: AtomicU64,
}

// SAFETY: repr(C), atomics only, the only type placed under its kind.
unsafe impl Placed for End {
    const KIND: Kind = Kind::End;
}

const SEND: usize = std::mem::offset_of!(End, send);
const RECEIVE: usize = std::mem::offset_of!(End, receive);

pub(crate) fn install() {
    register_kind(
        Kind::End,
        KindOps {
            recover: |_, _, _, _| {},
            destroy,
        },
    );
}

fn destroy(arena: &Arena, block: BlockRef) {
    let end = arena.view_held::<End>(block);
    for (field, at) in [(&end.send, SEND), (&end.receive, RECEIVE)] {
        if let Some(queue) = BlockRef::from_bits(field.load(Ordering::Acquire)) {
            RawQueue::close_block(arena, queue);
            arena.detach(block, at);
        }
    }
}

/// One end of a pipe: sends `S`, receives `R`.
///
/// It is a serde value. *Death*: when every process that holds the other end dropped it or died, `send` returns the message with the
/// reason, and `recv` returns the reason once everything that was sent has been read.
///
/// ```
/// use phalanx_channel::pipe;
///
/// let (ours, theirs) = pipe::<String, u64>()?;
/// ours.send("how many?".to_owned())?;
/// assert_eq!(theirs.recv()?, "how many?");
/// theirs.send(3)?;
/// assert!(ours.poll());
/// assert_eq!(ours.recv()?, 3);
/// drop(theirs);
/// assert!(ours.recv().is_err(), "nobody is there any more");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Connection<S, R = S> {
    end: Object<End>,
    send: RawQueue,
    receive: RawQueue,
    of: PhantomData<fn(S) -> R>,
}

/// The two ends of a pipe.
pub type Ends<S, R> = (Connection<S, R>, Connection<R, S>);

/// Makes a pipe and returns its two ends.
///
/// # Errors
///
/// [`CreateError`] when shared memory is short.
///
/// ```
/// use phalanx_channel::pipe;
///
/// let (left, right) = pipe::<u32, String>()?;
/// left.send(7)?;
/// right.send(format!("got {}", right.recv()?))?;
/// assert_eq!(left.recv()?, "got 7");
/// drop(right);
/// assert!(left.send(8).unwrap_err().value == 8);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn pipe<S, R>() -> Result<Ends<S, R>, CreateError> {
    crate::install();
    let arena = session()?;
    let there = RawQueue::new(arena, Bounds::default())?;
    let back = RawQueue::new(arena, Bounds::default())?;
    Ok((
        Connection::of(there.clone(), back.clone())?,
        Connection::of(back, there)?,
    ))
}

impl<S, R> Connection<S, R> {
    fn of(send: RawQueue, receive: RawQueue) -> Result<Self, CreateError> {
        let end = Object::new(End {
            send: AtomicU64::new(0),
            receive: AtomicU64::new(0),
        })?;
        let (arena, block) = (end.held().arena(), end.held().block());
        // Both are held by the caller, so neither can be stale.
        for (at, queue) in [(SEND, &send), (RECEIVE, &receive)] {
            let attached = arena.attach(block, at, queue.held().block());
            debug_assert!(attached.is_ok());
        }
        Ok(Self {
            end,
            send,
            receive,
            of: PhantomData,
        })
    }

    fn from_end(end: Object<End>) -> Option<Self> {
        let queue = |field: &AtomicU64| -> Option<Held> {
            let block = BlockRef::from_bits(field.load(Ordering::Acquire))?;
            end.held().arena().hold(block).ok()
        };
        let (send, receive) = (queue(&end.send)?, queue(&end.receive)?);
        Some(Self {
            end,
            send: RawQueue::from_held(send),
            receive: RawQueue::from_held(receive),
            of: PhantomData,
        })
    }

    /// Returns `true` if `recv` would not block: there is a message, or the other end is gone.
    #[must_use]
    pub fn poll(&self) -> bool {
        self.receive.is_ready()
    }

    /// Blocks until [`poll`](Self::poll) is true, for at most `timeout`; returns whether it is.
    #[must_use]
    pub fn poll_timeout(&self, timeout: Duration) -> bool {
        !crate::wait(&[self], Some(timeout)).is_empty()
    }

    /// Returns whether and why the other end is gone.
    #[must_use]
    pub fn closed(&self) -> Option<Closed> {
        self.send.closed()
    }

    /// Closes the connection for every holder of this end, in all processes.
    pub fn close(&self) {
        self.send.close();
        self.receive.close();
    }

    /// Returns the queues of bytes below: the one that is sent to, and the one that is received from.
    #[must_use]
    pub fn raw(&self) -> (&RawQueue, &RawQueue) {
        (&self.send, &self.receive)
    }
}

impl<S: Serialize, R> Connection<S, R> {
    /// Sends a message. Does not block: what was not received yet is kept in memory.
    ///
    /// # Errors
    ///
    /// [`PutError`], which has the message, when the other end is gone, memory is short or it does not serialize.
    pub fn send(&self, value: S) -> Result<(), PutError<S>> {
        match put_value(&self.send, &value, Patience::FOREVER) {
            Ok(()) => Ok(()),
            Err(kind) => Err(PutError { value, kind: *kind }),
        }
    }
}

impl<S, R: DeserializeOwned> Connection<S, R> {
    /// Blocks until a message comes.
    ///
    /// # Errors
    ///
    /// [`GetError::Closed`] when all were read and the other end is gone.
    #[track_caller]
    pub fn recv(&self) -> Result<R, GetError> {
        get_value(&self.receive, Patience::or_deadlock()).map_err(|error| *error)
    }

    /// As [`recv`](Self::recv), for at most `timeout`.
    ///
    /// # Errors
    ///
    /// [`GetError`].
    #[track_caller]
    pub fn recv_timeout(&self, timeout: Duration) -> Result<R, GetError> {
        get_value(&self.receive, Patience::timeout(timeout).here()).map_err(|error| *error)
    }

    /// Receives a message, as `patience` says.
    ///
    /// # Errors
    ///
    /// [`GetError`].
    pub fn recv_with(&self, patience: Patience) -> Result<R, GetError> {
        get_value(&self.receive, patience).map_err(|error| *error)
    }

    /// Receives a message when there is one, for coroutines on any executor.
    pub fn recv_async(&self) -> Ready<'_, Result<R, GetError>> {
        get_ready(&self.receive)
    }
}

impl<S, R> Waitable for Connection<S, R> {
    fn is_ready(&self) -> bool {
        self.poll()
    }

    fn gate(&self) -> &Gate<Shared> {
        self.receive.readable()
    }
}

impl<S, R> Clone for Connection<S, R> {
    /// Makes another handle on the same end.
    fn clone(&self) -> Self {
        Self {
            end: self.end.clone(),
            send: self.send.clone(),
            receive: self.receive.clone(),
            of: PhantomData,
        }
    }
}

impl<S, R> fmt::Debug for Connection<S, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection")
            .field("waiting", &self.receive.len())
            .field("closed", &self.closed())
            .finish()
    }
}

impl<S, R> Serialize for Connection<S, R> {
    fn serialize<Z: Serializer>(&self, serializer: Z) -> Result<Z::Ok, Z::Error> {
        self.end.serialize(serializer)
    }
}

impl<'de, S, R> Deserialize<'de> for Connection<S, R> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        crate::install();
        let end = Object::<End>::deserialize(deserializer)?;
        Self::from_end(end)
            .ok_or_else(|| serde::de::Error::custom("this end of a pipe was closed on the way"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROUNDS: usize = if cfg!(miri) { 6 } else { 2_000 };

    #[test]
    fn two_threads_talk_until_one_hangs_up() {
        // A child of a fork beside it would have an end of this pipe as well.
        let _alone = phalanx_testkit::alone();
        let _dog = phalanx_testkit::watchdog(Duration::from_secs(100));
        let (left, right) = pipe::<Vec<u8>, usize>().unwrap();
        std::thread::scope(|scope| {
            scope.spawn(move || {
                for _ in 0..ROUNDS {
                    let bytes = right.recv().unwrap();
                    right.send(bytes.len()).unwrap();
                }
            });
            for round in 0..ROUNDS {
                left.send(vec![1; round * 700 % 4000]).unwrap();
                assert_eq!(left.recv().unwrap(), round * 700 % 4000);
            }
            assert!(matches!(left.recv(), Err(GetError::Closed(_))));
        });
        assert_eq!(left.closed(), Some(Closed::Closed));
    }

    #[test]
    fn an_end_is_sent_through_another_pipe() {
        let _alone = phalanx_testkit::alone();
        let (left, right) = pipe::<Connection<u8, u8>, ()>().unwrap();
        let (near, far) = pipe::<u8, u8>().unwrap();
        left.send(far).unwrap();
        near.send(7).unwrap();
        let far = right.recv().unwrap();
        assert_eq!(far.recv().unwrap(), 7);
        drop(far);
        assert!(near.poll_timeout(Duration::from_millis(2)));
        assert!(near.closed().is_some());
    }
}
