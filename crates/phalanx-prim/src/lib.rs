//! The seam: atomics, cells and a word one can wait on, real or modelled.
//!
//! Everything above this crate takes its atomics from here, so that the code that ships is the code that loom
//! (`--cfg phalanx_loom`) and shuttle (`--cfg phalanx_shuttle`) explore. The backends have the same names; an atomic has
//! the same size and is valid in any bytes in each, so that the explorers see the arena itself.
#![warn(missing_docs)]

#[cfg(any(phalanx_loom, phalanx_shuttle))]
pub mod model;
#[cfg(not(any(phalanx_loom, phalanx_shuttle)))]
mod real;

#[cfg(any(phalanx_loom, phalanx_shuttle))]
use model as backend;
#[cfg(not(any(phalanx_loom, phalanx_shuttle)))]
use real as backend;

/// Atomics for statics of the process. Never modelled: a model's atomics cannot live in a static, so nothing whose
/// interleavings matter may use these.
pub mod global {
    pub use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};
}
pub mod points;
mod spin;

pub use backend::{
    Arc, AtomicBool, AtomicU32, AtomicU64, Mutex, MutexGuard, Ordering, UnsafeCell, Word, fence,
    fence_after_rmw, hint, modelled, thread, wait_any,
};
pub use phalanx_sys::clock::{self, Deadline};
pub use phalanx_sys::wait::{MAX_WORDS, Scope, Waited, WaitedAny};
pub use spin::Spin;

/// Who a thread of a model is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Me {
    /// Its process's slot.
    pub slot: u16,
    /// Its ordinal, from 1.
    pub ordinal: u16,
}

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
