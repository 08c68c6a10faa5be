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
/// On x86-64 the read-modify-write (a locked instruction) is that fence already. Not to Miri, whose machine is the
/// language's: there a load may come before an earlier read-modify-write.
#[inline]
pub fn fence_after_rmw() {
    if cfg!(all(target_arch = "x86_64", not(miri))) {
        std::sync::atomic::compiler_fence(Ordering::SeqCst);
    } else {
        fence(Ordering::SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    const ROUNDS: u32 = if cfg!(miri) { 20 } else { 5_000 };

    #[test]
    fn a_word_wakes_those_who_wait_on_it() {
        let _dog = phalanx_testkit::watchdog(Duration::from_secs(100));
        let word = Word::new(0);
        let turn = |mine: u32| {
            for round in (0..ROUNDS).map(|round| 2 * round + mine) {
                loop {
                    let now = word.load(Ordering::Acquire);
                    if now == round {
                        break;
                    }
                    let _ = word.wait(now, None, Scope::Private);
                }
                word.store(round + 1, Ordering::Release);
                word.wake(1, Scope::Private);
            }
        };
        thread::scope(|scope| {
            scope.spawn(|| turn(1));
            turn(0);
        });
        assert_eq!(word.load(Ordering::Relaxed), 2 * ROUNDS);
    }

    #[test]
    fn a_wait_ends_at_once_or_in_time() {
        let word = Word::new(3);
        assert_eq!(word.wait(4, None, Scope::Shared), Waited::Changed);
        let soon = Deadline::after(Duration::from_millis(1));
        assert_eq!(word.wait(3, Some(soon), Scope::Shared), Waited::TimedOut);
        assert!(soon.has_passed());
        assert_eq!(word.wake(u32::MAX, Scope::Shared), 0);
    }

    #[test]
    fn the_fence_keeps_one_of_two_from_missing_the_other() {
        let _dog = phalanx_testkit::watchdog(Duration::from_secs(100));
        for _ in 0..ROUNDS {
            let (one, two, flag) = (AtomicU32::new(0), AtomicU32::new(0), AtomicU32::new(0));
            let saw = thread::scope(|scope| {
                let other = scope.spawn(|| {
                    two.store(1, Ordering::Relaxed);
                    fence(Ordering::SeqCst);
                    one.load(Ordering::Relaxed)
                });
                one.store(1, Ordering::Relaxed);
                flag.fetch_add(1, Ordering::AcqRel);
                fence_after_rmw();
                two.load(Ordering::Relaxed) + other.join().unwrap()
            });
            assert!(saw >= 1, "neither saw the other's store");
        }
    }
}
