//! Wait on a word until its value changes (futex).
//!
//! The word is the only state: nothing is registered, so nothing is left behind by a waiter that dies.
//! Limits: [`wait_any`] takes at most [`MAX_WORDS`] words and needs Linux 5.16.

use std::num::NonZeroU32;
use std::sync::atomic::AtomicU32;

use rustix::io::Errno;
use rustix::thread::futex;

use super::clock::Deadline;

/// The most words that [`wait_any`] can wait on.
pub const MAX_WORDS: usize = 128;

/// Who may wait on the word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// Threads of this process only; cheaper.
    Private,
    /// Every process that maps the word.
    Shared,
}

/// Why a wait ended.
#[must_use]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Waited {
    /// Somebody woke this waiter (or nobody did: look again).
    Woken,
    /// The word did not have the expected value, so nothing was waited for.
    Changed,
    /// The deadline passed.
    TimedOut,
    /// A signal handler ran in this thread.
    Interrupted,
}

fn flags(scope: Scope) -> futex::Flags {
    match scope {
        Scope::Private => futex::Flags::PRIVATE,
        Scope::Shared => futex::Flags::empty(),
    }
}

/// Blocks while `word` holds `expected`, until woken, interrupted or `deadline`.
pub fn wait(word: &AtomicU32, expected: u32, deadline: Option<Deadline>, scope: Scope) -> Waited {
    let until = deadline.map(Deadline::timespec);
    // The bitset variant is the one whose time-out is absolute on the monotonic clock.
    match futex::wait_bitset(
        word,
        flags(scope),
        expected,
        until.as_ref(),
        NonZeroU32::MAX,
    ) {
        Ok(()) => Waited::Woken,
        Err(Errno::AGAIN) => Waited::Changed,
        Err(Errno::TIMEDOUT) => Waited::TimedOut,
        Err(Errno::INTR) => Waited::Interrupted,
        // Anything else is a word that is not mapped, which a reference rules out: let the caller look again.
        Err(_) => Waited::Woken,
    }
}

/// Wakes up to `count` waiters of `word` and returns how many were woken.
pub fn wake(word: &AtomicU32, count: u32, scope: Scope) -> u32 {
    let count = count.min(i32::MAX as u32);
    futex::wake(word, flags(scope), count).map_or(0, |n| n as u32)
}

/// Why [`wait_any`] ended.
#[must_use]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WaitedAny {
    /// The word with this index was woken.
    Woken(usize),
    /// Some word did not have its expected value.
    Changed,
    /// The deadline passed.
    TimedOut,
    /// A signal handler ran in this thread.
    Interrupted,
    /// The kernel cannot wait on several words (before Linux 5.16, or forbidden by a sandbox).
    Unsupported,
}

/// Blocks while every word holds its expected value, until one is woken, a signal, or `deadline`.
///
/// # Panics
///
/// If `words` is longer than [`MAX_WORDS`] or empty.
pub fn wait_any(
    words: &[(&AtomicU32, u32)],
    deadline: Option<Deadline>,
    scope: Scope,
) -> WaitedAny {
    assert!(
        !words.is_empty() && words.len() <= MAX_WORDS,
        "wait_any takes 1 to {MAX_WORDS} words, got {}",
        words.len()
    );
    if cfg!(miri) {
        // A kernel without the call, as far as Miri knows.
        return WaitedAny::Unsupported;
    }
    let mut flags = futex::WaitFlags::SIZE_U32;
    if scope == Scope::Private {
        flags |= futex::WaitFlags::PRIVATE;
    }
    let mut waits = [const { futex::Wait::new() }; MAX_WORDS];
    for (slot, (word, expected)) in waits.iter_mut().zip(words) {
        slot.val = u64::from(*expected);
        slot.uaddr = futex::WaitPtr::new(std::ptr::from_ref(*word).cast_mut().cast());
        slot.flags = flags;
    }
    let until = deadline.map(Deadline::timespec);
    match futex::waitv(
        &waits[..words.len()],
        futex::WaitvFlags::empty(),
        until.as_ref(),
        futex::ClockId::Monotonic,
    ) {
        Ok(index) => WaitedAny::Woken(index),
        Err(Errno::AGAIN) => WaitedAny::Changed,
        Err(Errno::TIMEDOUT) => WaitedAny::TimedOut,
        Err(Errno::INTR) => WaitedAny::Interrupted,
        Err(_) => WaitedAny::Unsupported,
    }
}
