//! Queues and pipes between any processes of the tree.
#![warn(missing_docs)]

pub mod codec;
mod message;
mod raw;

pub use message::{Loan, Message};
pub use raw::{Bounds, Closed, INLINE_MOST, RawGetError, RawPutError, RawQueue, Received, install};
