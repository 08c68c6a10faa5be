//! Waiting for whichever of several is ready first.

use std::time::Duration;

use phalanx_prim::Deadline;
use phalanx_prim::{MAX_WORDS, WaitedAny, wait_any};
use phalanx_shm::{Arena, Interest, Patience, Shared, Subject, WaitError, Waiting, place_of};
use phalanx_sync::Gate;

/// Something one can wait for: a queue with an item, a connection with a message, a process that ended.
pub trait Waitable {
    /// Returns `true` if the operation would not block now.
    fn is_ready(&self) -> bool;

    /// Returns the gate that is notified when that may have changed.
    fn gate(&self) -> &Gate<Shared>;
}

/// Blocks until at least one of `objects` is ready, for at most `timeout`; returns the indices of those that are.
///
/// Empty when time was up. Without a time-out and without objects there is nothing to wait for: returns at once.
///
/// # Panics
///
/// With the deadlock as its payload, if the wait could never end and somebody wants such waits to fail.
///
/// ```
/// use phalanx_channel::{Queue, wait};
///
/// let (one, two) = (Queue::<u8>::new()?, Queue::<u8>::new()?);
/// two.put(5)?;
/// assert_eq!(wait(&[&one, &two], None), [1]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[track_caller]
pub fn wait(objects: &[&dyn Waitable], timeout: Option<Duration>) -> Vec<usize> {
    let patience = Patience {
        deadline: timeout.map(Deadline::after),
        ..Patience::or_panic()
    };
    wait_with(objects, patience).unwrap_or_default()
}

/// As [`wait`], as `patience` says.
///
/// # Errors
///
/// [`WaitError`] as `patience` says.
pub(crate) fn wait_with(
    objects: &[&dyn Waitable],
    patience: Patience,
) -> Result<Vec<usize>, WaitError> {
    let ready = || -> Vec<usize> {
        objects
            .iter()
            .enumerate()
            .filter(|(_, object)| object.is_ready())
            .map(|(index, _)| index)
            .collect()
    };
    let now = ready();
    if !now.is_empty() || objects.is_empty() {
        return Ok(now);
    }
    // The kernel waits on so many words at once; of the rest we hear by looking now and then.
    let watched = &objects[..objects.len().min(MAX_WORDS)];
    let _interests: Vec<Interest> = watched
        .iter()
        .map(|object| Interest::of(object.gate().word()))
        .collect();
    let mut waiting = Waiting::new();
    loop {
        waiting.looks();
        let keys: Vec<_> = watched
            .iter()
            .map(|object| (object.gate(), object.gate().prepare()))
            .collect();
        let now = ready();
        if !now.is_empty() {
            return Ok(now);
        }
        let words: Vec<_> = keys
            .iter()
            .map(|(gate, key)| (&**gate.word(), key.expected()))
            .collect();
        let first = |arena: &Arena| place_of(arena, watched[0].gate().word());
        waiting.sleeps(Subject::SharedGate, first, 0, patience)?;
        let until = waiting.until(patience.deadline);
        let mut deadline = until;
        if watched.len() < objects.len() {
            let soon = Deadline::after(Duration::from_millis(1));
            deadline = Some(deadline.map_or(soon, |deadline| deadline.min(soon)));
        }
        match wait_any(&words, deadline, phalanx_prim::Scope::Shared) {
            WaitedAny::TimedOut if deadline == until && until != patience.deadline => waiting.cut(),
            WaitedAny::TimedOut if patience.deadline.is_some_and(Deadline::has_passed) => {
                let now = ready();
                return if now.is_empty() {
                    Err(WaitError::TimedOut)
                } else {
                    Ok(now)
                };
            }
            WaitedAny::Interrupted if patience.interruptible => return Err(WaitError::Interrupted),
            WaitedAny::Unsupported => std::thread::sleep(Duration::from_millis(1)),
            _ => {}
        }
    }
}
