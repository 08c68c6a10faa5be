//! Where this thread took the locks whose guards it has; kept while somebody watches.
//!
//! A guard that was noted has [`NOTED`](phalanx_shm::NOTED) beside its token, so that a guard that was not pays nothing: to
//! free its lock is one compare-exchange that succeeds.

use std::cell::RefCell;
use std::panic::Location;

use phalanx_shm::thread_identity;

/// A lock that the calling thread has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holding {
    /// The address of its word.
    pub address: usize,
    /// `"Lock"` or `"RLock"`.
    pub kind: &'static str,
    /// The name its user gave it.
    pub name: String,
    /// Where it was taken.
    pub place: &'static Location<'static>,
    /// A condition's wait has let it go.
    away: bool,
    /// Who has it: in a forked child its parent's thread does.
    who: u64,
}

thread_local! {
    static HELD: RefCell<Vec<Holding>> = const { RefCell::new(Vec::new()) };
}

/// Runs `f` unless this thread is in the middle of it, or ends.
fn with<R>(f: impl FnOnce(&mut Vec<Holding>) -> R) -> Option<R> {
    HELD.try_with(|held| held.try_borrow_mut().ok().map(|mut held| f(&mut held)))
        .ok()
        .flatten()
}

pub(crate) fn taken(
    address: usize,
    kind: &'static str,
    name: &str,
    place: &'static Location<'static>,
) {
    with(|held| {
        held.retain(|one| one.address != address);
        held.push(Holding {
            address,
            kind,
            name: name.to_owned(),
            place,
            away: false,
            who: thread_identity(),
        });
    });
}

pub(crate) fn freed(address: usize) {
    with(|held| held.retain(|one| one.address != address));
}

/// Says that the lock is let go for a while, or had again; returns where it was taken.
pub(crate) fn away(address: usize, away: bool) -> Option<&'static Location<'static>> {
    with(|held| {
        let one = held.iter_mut().find(|one| one.address == address)?;
        one.away = away;
        Some(one.place)
    })
    .flatten()
}

/// Returns the locks that the calling thread has, as far as their guards were noted.
#[must_use]
pub fn held_here() -> Vec<Holding> {
    let mine = |one: &&Holding| !one.away && one.who == thread_identity();
    with(|held| held.iter().filter(mine).cloned().collect()).unwrap_or_default()
}
