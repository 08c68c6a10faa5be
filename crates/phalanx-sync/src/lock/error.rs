//! Why a lock was not had, and who has it.

use std::fmt;

use phalanx_shm::{DeadlockError, Owner, session_if_any};

/// The process that held a lock died; the guard inside has the lock. What the lock protects may be half-changed.
///
/// Told once, to the next owner: like a poisoned mutex, except that it heals.
///
/// ```
/// use phalanx_sync::{Lock, OwnerDied};
///
/// let lock = Lock::new()?;
/// let guard = lock.lock().unwrap_or_else(|died| {
///     // Repair what the dead process may have left half-changed, then go on.
///     OwnerDied::into_guard(died)
/// });
/// drop(guard);
/// # Ok::<(), phalanx_sync::CreateError>(())
/// ```
pub struct OwnerDied<G> {
    guard: G,
}

impl<G> OwnerDied<G> {
    /// Goes on with the lock, having repaired what it protects.
    pub fn into_guard(self) -> G {
        self.guard
    }

    pub(crate) fn new(guard: G) -> Self {
        Self { guard }
    }
}

impl<G> fmt::Debug for OwnerDied<G> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("OwnerDied")
    }
}

impl<G> fmt::Display for OwnerDied<G> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the process that held the lock died; repair what it protects, then go on with into_guard()")
    }
}

impl<G> std::error::Error for OwnerDied<G> {}

/// A lock was not had, or was had from a dead owner.
///
/// ```
/// use phalanx_sync::{Lock, LockError};
///
/// let lock = Lock::local();
/// let _guard = lock.lock();
/// match lock.try_lock() {
///     Err(LockError::TimedOut { owner: Some(owner) }) => assert_eq!(owner.pid, std::process::id()),
///     other => panic!("{other:?}"),
/// }
/// ```
pub enum LockError<G> {
    /// Somebody holds it, until the deadline or (without one) now.
    TimedOut {
        /// Who, at that moment.
        owner: Option<LockOwner>,
    },
    /// A signal handler ran in this thread.
    Interrupted,
    /// The wait could never have ended, and somebody wants such waits to fail.
    Deadlock(DeadlockError),
    /// We have it; see [`OwnerDied`].
    OwnerDied(OwnerDied<G>),
}

impl<G> fmt::Debug for LockError<G> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl<G> fmt::Display for LockError<G> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TimedOut { owner: Some(owner) } => {
                write!(f, "timed out: the lock is held by {owner}")
            }
            Self::TimedOut { owner: None } => f.write_str("timed out waiting for the lock"),
            Self::Interrupted => f.write_str("interrupted by a signal while waiting for the lock"),
            Self::Deadlock(deadlock) => deadlock.fmt(f),
            Self::OwnerDied(died) => died.fmt(f),
        }
    }
}

impl<G> std::error::Error for LockError<G> {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Deadlock(deadlock) => Some(deadlock),
            _ => None,
        }
    }
}

/// Who holds a lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LockOwner {
    /// Process id; 0 if the process is gone.
    pub pid: u32,
    /// Number of the thread within its process, from 1, in the order in which threads first used a lock.
    pub thread: u16,
}

impl fmt::Display for LockOwner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "thread {} of process {}", self.thread, self.pid)
    }
}

pub(super) fn owner_of(owner: Owner) -> LockOwner {
    let pid = match (owner.slot, session_if_any()) {
        (0, _) | (_, None) => phalanx_sys::ids::pid(),
        (slot, Some(arena)) => arena.process(slot).pid,
    };
    LockOwner {
        pid,
        thread: owner.number(),
    }
}
