//! The seam: atomics, cells and a word one can wait on, real or modelled.
//!
//! Everything above this crate takes its atomics from here, so that the code that ships is the code that loom
//! (`--cfg phalanx_loom`) and shuttle (`--cfg phalanx_shuttle`) explore. The three backends have the same names.
#![warn(missing_docs)]

#[cfg(phalanx_loom)]
#[path = "loom.rs"]
mod backend;
#[cfg(not(any(phalanx_loom, phalanx_shuttle)))]
#[path = "real.rs"]
mod backend;
#[cfg(all(phalanx_shuttle, not(phalanx_loom)))]
#[path = "shuttle.rs"]
mod backend;

/// Atomics for statics of the process. Never modelled: a model's atomics cannot live in a static, so nothing whose
/// interleavings matter may use these.
pub mod global {
    pub use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};
}
pub mod points;
mod spin;

pub use backend::{
    Arc, AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering, UnsafeCell, Word, fence,
    fence_after_rmw, hint, thread,
};
pub use phalanx_sys::clock::{self, Deadline};
pub use phalanx_sys::wait::{Scope, Waited};
pub use spin::Spin;

/// Pads and aligns a value to two cache lines (adjacent lines are fetched in pairs).
#[derive(Debug, Default)]
#[repr(C, align(128))]
pub struct Padded<T>(pub T);

impl<T> std::ops::Deref for Padded<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0
    }
}
