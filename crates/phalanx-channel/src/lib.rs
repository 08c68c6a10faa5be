//! Queues and pipes between any processes of the tree.
//!
//! | | for | items |
//! |---|---|---|
//! | [`Queue`] | many producers, many consumers | any serde values, handles among them |
//! | [`SimpleQueue`] | the same, without bounds, time-outs and `task_done` | |
//! | [`pipe`] | two ends that know when the other is gone | |
//! | [`RawQueue`] | bytes, written and read in place | |
//!
//! The essay is `README.md` beside this crate; [`raw`](RawQueue) has the protocol.
#![warn(missing_docs)]

pub mod codec;
mod doorbell;
pub mod exposed;
mod frozen;
#[cfg(fuzzing)]
#[doc(hidden)]
pub mod fuzzed;
#[cfg(test)]
mod garbage;
mod message;
mod pipe;
mod queue;
mod raw;
pub mod reactor;
mod select;

pub use doorbell::{Bell, Doorbell};
pub use message::{Kept, Loan, Message};
pub use phalanx_sync::CreateError;
pub use pipe::{Connection, Ends, pipe};
pub use queue::{
    GetError, GetFuture, Items, JoinError, PutError, PutErrorKind, Queue, QueueBuilder,
    SimpleQueue, TaskDoneError,
};
pub use raw::{Bounds, Closed, INLINE_MOST, RawGetError, RawPutError, RawQueue, Received};
pub use reactor::Ready;
pub use select::{Waitable, wait};

/// Tells the sweep what to do with this crate's objects when a process dies. Called by whoever makes or receives one, and
/// when a process joins a tree.
pub fn install() {
    static ONCE: std::sync::Once = std::sync::Once::new();
    ONCE.call_once(|| {
        phalanx_sync::install();
        raw::install();
        pipe::install();
    });
}
