//! Loom's atomics, and a wait made of its mutex and condition variable.

pub use loom::cell::UnsafeCell;
pub use loom::sync::Arc;
pub use loom::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering, fence};
pub use loom::{hint, thread};

use loom::sync::{Condvar, Mutex};
use phalanx_sys::clock::Deadline;
use phalanx_sys::wait::{Scope, Waited};

/// An atomic word one can wait on; sleepers are counted so that a wake can say how many it woke.
#[derive(Debug)]
pub struct Word {
    value: AtomicU32,
    // (sleepers, permits): a wake hands out permits to those that sleep at that moment.
    queue: Mutex<(u32, u32)>,
    bell: Condvar,
}

impl Word {
    /// Creates a word with this value.
    #[must_use]
    pub fn new(value: u32) -> Self {
        Self {
            value: AtomicU32::new(value),
            queue: Mutex::new((0, 0)),
            bell: Condvar::new(),
        }
    }

    /// Blocks while the word holds `expected`. Time does not pass in a model: a deadline that can expire expires at once.
    pub fn wait(&self, expected: u32, deadline: Option<Deadline>, _: Scope) -> Waited {
        let mut queue = self.queue.lock().unwrap();
        if self.value.load(Ordering::SeqCst) != expected {
            return Waited::Changed;
        }
        if deadline.is_some() {
            return Waited::TimedOut;
        }
        queue.0 += 1;
        while queue.1 == 0 {
            queue = self.bell.wait(queue).unwrap();
        }
        queue.1 -= 1;
        queue.0 -= 1;
        Waited::Woken
    }

    /// Wakes up to `count` waiters and returns how many were woken.
    pub fn wake(&self, count: u32, _: Scope) -> u32 {
        let mut queue = self.queue.lock().unwrap();
        let woken = count.min(queue.0 - queue.1);
        queue.1 += woken;
        if woken > 0 {
            self.bell.notify_all();
        }
        woken
    }
}

impl std::ops::Deref for Word {
    type Target = AtomicU32;

    fn deref(&self) -> &AtomicU32 {
        &self.value
    }
}

/// Orders everything before a read-modify-write that the caller has just done before everything after it.
pub fn fence_after_rmw() {
    fence(Ordering::SeqCst);
}
