//! Where this thread took the locks whose guards it has; kept while somebody watches.
//!
//! A guard that was noted has [`NOTED`](phalanx_shm::NOTED) beside its token, so that a guard that was not pays nothing: to
//! free its lock is one compare-exchange that succeeds.

use std::cell::RefCell;
use std::panic::Location;

use phalanx_shm::{Arena, Node, StepText, place_text, thread_identity};

use crate::home::Name;
use crate::order::note_order;

/// A lock that the calling thread has.
#[derive(Clone, Debug)]
pub struct Holding {
    /// The address of its word.
    pub address: usize,
    /// `"Lock"` or `"RLock"`.
    pub kind: &'static str,
    /// The name its user gave it.
    pub name: Name,
    /// Where it was taken.
    pub place: &'static Location<'static>,
    /// Which lock it is.
    node: Node,
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
    name: Name,
    node: Node,
    place: &'static Location<'static>,
) {
    with(|held| {
        held.retain(|one| one.address != address);
        held.push(Holding {
            address,
            kind,
            name,
            place,
            node,
            away: false,
            who: thread_identity(),
        });
    });
}

pub(crate) fn freed(address: usize) {
    with(|held| held.retain(|one| one.address != address));
}

/// Notes that the calling thread is about to wait for a lock, with those it has.
pub(crate) fn takes(
    arena: &'static Arena,
    to: Node,
    kind: &'static str,
    name: &Name,
    place: &'static Location<'static>,
) {
    with(|held| {
        let who = thread_identity();
        let mine = || held.iter().filter(|one| !one.away && one.who == who);
        let say = |from: Node| {
            let from = mine().find(|one| one.node == from);
            StepText {
                from: from.map_or_else(String::new, |one| called(one.kind, &one.name)),
                from_place: from.map_or_else(String::new, |one| place_text(one.place)),
                to: called(kind, name),
                to_place: place_text(place),
            }
        };
        note_order(arena, mine().map(|one| one.node), to, say);
    });
}

fn called(kind: &str, name: &Name) -> String {
    match name.as_str() {
        "" => kind.to_owned(),
        name => format!("{kind} {name:?}"),
    }
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

/// Returns where the calling thread took a lock, if that was noted.
pub(crate) fn place_of(address: usize) -> Option<&'static Location<'static>> {
    with(|held| {
        held.iter()
            .find(|one| one.address == address)
            .map(|one| one.place)
    })
    .flatten()
}

/// Returns the locks that the calling thread has, as far as their guards were noted.
#[must_use]
pub fn held_here() -> Vec<Holding> {
    let mine = |one: &&Holding| !one.away && one.who == thread_identity();
    with(|held| held.iter().filter(mine).cloned().collect()).unwrap_or_default()
}
