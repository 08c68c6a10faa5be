//! What becomes of a wait that is proved never to end.

use std::cell::RefCell;
use std::error::Error;
use std::fmt;
use std::sync::Arc;

/// What a wait does when it is proved never to end, and whoever watches wants such waits to fail.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Stuck {
    /// It waits on: it is the engine's own, or it is interruptible and its caller asks why.
    #[default]
    Waits,
    /// It returns [`WaitError::Deadlock`](crate::WaitError::Deadlock).
    Fails,
    /// It panics with the deadlock as its payload: its caller has no way to return it.
    Panics,
}

/// A wait failed because it could never have ended: its thread is one of several that wait for each other.
///
/// Only while somebody watches for deadlocks and wants them raised. Who waited for whom is its
/// [`source`](Error::source): a `Deadlock` of the crate `phalanx-watch`, whose `deadlock_in` finds it in any error.
#[derive(Clone)]
pub struct DeadlockError(Arc<dyn Error + Send + Sync>);

impl DeadlockError {
    /// Wraps what was proved.
    pub fn new(deadlock: impl Error + Send + Sync + 'static) -> Self {
        Self(Arc::new(deadlock))
    }

    /// Returns what was proved.
    #[must_use]
    pub fn deadlock(&self) -> &(dyn Error + Send + Sync + 'static) {
        &*self.0
    }

    /// Returns the deadlock for which the calling thread's last wait failed, and forgets it.
    #[must_use]
    pub fn taken() -> Self {
        take_deadlock().unwrap_or_else(|| Self::new(Unknown))
    }
}

impl fmt::Debug for DeadlockError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DeadlockError: {}", self.0)
    }
}

impl fmt::Display for DeadlockError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(
            "this wait could never have ended: a deadlock; free what you hold and try again",
        )
    }
}

impl Error for DeadlockError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        Some(&*self.0)
    }
}

/// The same deadlock, not an equal one.
impl PartialEq for DeadlockError {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Eq for DeadlockError {}

#[derive(Debug)]
struct Unknown;

impl fmt::Display for Unknown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("who takes part in this deadlock was asked for before")
    }
}

impl Error for Unknown {}

thread_local! {
    static FOUND: RefCell<Option<DeadlockError>> = const { RefCell::new(None) };
}

pub(crate) fn keep(deadlock: DeadlockError) {
    FOUND.set(Some(deadlock));
}

/// Returns and forgets the deadlock for which the calling thread's last wait failed or was interrupted, if that was the
/// reason.
#[must_use]
pub fn take_deadlock() -> Option<DeadlockError> {
    FOUND.take()
}

/// Returns `true` if there is one that nobody has taken yet.
#[must_use]
pub fn has_deadlock() -> bool {
    FOUND.with_borrow(Option::is_some)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_deadlock_is_taken_once_and_keeps_its_source() {
        keep(DeadlockError::new(fmt::Error));
        assert!(has_deadlock());
        let error = DeadlockError::taken();
        assert!(error.source().unwrap().is::<fmt::Error>());
        assert_eq!(error, error.clone());
        assert!(take_deadlock().is_none());
        assert!(DeadlockError::taken().source().unwrap().is::<Unknown>());
    }
}
