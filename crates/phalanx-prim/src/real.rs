//! The machine's own atomics and the system's wait.

pub use std::cell::UnsafeCell;
pub use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering, fence};
pub use std::sync::{Arc, Mutex, MutexGuard};
pub use std::{hint, thread};

use phalanx_sys::clock::Deadline;
pub use phalanx_sys::wait::wait_any;
use phalanx_sys::wait::{self, Scope, Waited};

/// An [`AtomicU32`] one can wait on. All zero is valid; it lives in mapped memory or anywhere else.
#[derive(Debug, Default)]
#[repr(transparent)]
pub struct Word(AtomicU32);

impl Word {
    /// Creates a word with this value.
    #[must_use]
    pub const fn new(value: u32) -> Self {
        Self(AtomicU32::new(value))
    }

    /// Blocks while the word holds `expected`.
    #[inline]
    pub fn wait(&self, expected: u32, deadline: Option<Deadline>, scope: Scope) -> Waited {
        let began = phalanx_sys::clock::now_ns();
        let waited = wait::wait(&self.0, expected, deadline, scope);
        crate::spin::slept(phalanx_sys::clock::now_ns() - began);
        waited
    }

    /// Wakes up to `count` waiters and returns how many were woken.
    #[inline]
    pub fn wake(&self, count: u32, scope: Scope) -> u32 {
        wait::wake(&self.0, count, scope)
    }
}

impl std::ops::Deref for Word {
    type Target = AtomicU32;

    #[inline]
    fn deref(&self) -> &AtomicU32 {
        &self.0
    }
}

/// Returns who the calling thread is in a model: outside of models nobody.
#[inline(always)]
#[must_use]
pub const fn modelled() -> Option<crate::Me> {
    None
}

/// Orders everything before a read-modify-write that the caller has just done before everything after it.
///
/// On x86-64 the read-modify-write (a locked instruction) is that fence already.
#[inline]
pub fn fence_after_rmw() {
    if cfg!(target_arch = "x86_64") {
        std::sync::atomic::compiler_fence(Ordering::SeqCst);
    } else {
        fence(Ordering::SeqCst);
    }
}
