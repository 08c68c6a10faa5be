//! Where locks were made and taken, while somebody wants to know (`phalanx.deadlocks`).

use std::collections::HashMap;
use std::sync::{Mutex, OnceLock, PoisonError};

use phalanx_prim::AtomicU64;
use phalanx_prim::global::{AtomicBool, Ordering};
use phalanx_shm::{Described, Node, StepText, forget_order, local_token};
use phalanx_sync::{note_order, order_wanted};
use phalanx_watch::Thing;
use pyo3::prelude::*;

use crate::{frames, watch};

/// Somebody looks for deadlocks.
static DEADLOCKS: AtomicBool = AtomicBool::new(false);
/// Somebody wants to know the order of locks.
static ORDER: AtomicBool = AtomicBool::new(false);
/// One of these.
static WANTED: AtomicBool = AtomicBool::new(false);

/// Returns `true` while places are wanted.
#[inline]
pub(crate) fn wanted() -> bool {
    WANTED.load(Ordering::Relaxed)
}

pub(crate) fn want(wanted: bool) {
    DEADLOCKS.store(wanted, Ordering::Relaxed);
    changed();
}

pub(crate) fn want_order(wanted: bool) {
    ORDER.store(wanted, Ordering::Relaxed);
    changed();
}

fn changed() {
    let wanted = DEADLOCKS.load(Ordering::Relaxed) || ORDER.load(Ordering::Relaxed);
    WANTED.store(wanted, Ordering::Relaxed);
    if !wanted {
        held().clear();
    }
}

/// What a lock is called: the name its user gave it, or the place where it was made, if that was wanted. And its number
/// among all locks, if it has one.
#[derive(Debug, Default)]
pub(crate) struct About(OnceLock<String>, AtomicU64);

impl Drop for About {
    fn drop(&mut self) {
        self.forget();
    }
}

impl About {
    #[inline]
    pub(crate) fn new(py: Python<'_>, name: Option<&str>) -> Self {
        let about = Self::default();
        if let Some(name) = name {
            let _ = about.0.set(format!("{name:?}"));
        } else if wanted() {
            let _ = about.0.set(format!("made at {}", place_of_birth(py)));
        }
        about
    }

    pub(crate) fn node(&self) -> Node {
        Node::private(&self.1)
    }

    /// The lock is gone, or no lock to its users: its order says nothing.
    pub(crate) fn forget(&self) {
        forget_order(self.1.load(phalanx_prim::Ordering::Relaxed));
    }

    pub(crate) fn name(&self) -> &str {
        self.0.get().map_or("", String::as_str)
    }

    /// Describes a wait for it.
    pub(crate) fn described(&self, kind: &str) -> Described {
        match self.name() {
            "" => Described::new(format_args!("{kind}")),
            name => Described::new(format_args!("{kind} {name}")),
        }
    }
}

/// How many were made at each place.
static BORN: Mutex<Option<HashMap<String, u32>>> = Mutex::new(None);

/// As [`place`], with a number from the second on that is made there: `"app.py:3 (2)"`.
pub(crate) fn place_of_birth(py: Python<'_>) -> String {
    let place = place(py);
    let mut born = BORN.lock().unwrap_or_else(PoisonError::into_inner);
    let count = born
        .get_or_insert_default()
        .entry(place.clone())
        .or_default();
    *count += 1;
    match *count {
        1 => place,
        count => format!("{place} ({count})"),
    }
}

/// Returns file and line of the innermost frame outside of the standard library's and this package's own modules about
/// processes and threads.
pub(crate) fn place(py: Python<'_>) -> String {
    frames::innermost(py, |file| !is_inside(file)).unwrap_or_default()
}

fn is_inside(file: &str) -> bool {
    let mut parts = file.rsplit('/');
    let (name, folder) = (parts.next().unwrap_or(""), parts.next().unwrap_or(""));
    matches!(
        folder,
        "phalanx" | "multiprocessing" | "concurrent" | "futures"
    ) || matches!(name, "threading.py" | "queue.py") && folder.starts_with("python")
        || file.starts_with("<frozen")
}

/// A lock that a thread of this process has.
#[derive(Debug)]
pub(crate) struct Taken {
    owner: u32,
    kind: &'static str,
    name: String,
    place: String,
    node: Node,
}

/// What threads of this process have, by the lock's address.
static HELD: Mutex<Option<HashMap<u64, Taken>>> = Mutex::new(None);

struct Table(std::sync::MutexGuard<'static, Option<HashMap<u64, Taken>>>);

impl Table {
    fn clear(mut self) {
        *self.0 = None;
    }
}

fn held() -> Table {
    Table(HELD.lock().unwrap_or_else(PoisonError::into_inner))
}

/// A lock that a thread takes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Lock<'a> {
    /// Its address, or where it lies in the arena.
    pub(crate) at: u64,
    /// `"Lock"` or `"RLock"`.
    pub(crate) kind: &'static str,
    /// What it is called.
    pub(crate) name: &'a str,
    /// Which of all locks it is.
    pub(crate) node: Node,
}

impl Lock<'_> {
    fn called(&self) -> String {
        if self.name.is_empty() {
            format!("at {:#x}", self.at)
        } else {
            self.name.to_owned()
        }
    }
}

/// Notes that the calling thread has just taken a lock; `waits` says that it would have waited for it as long as it takes.
/// Called with the interpreter's lock held.
#[cold]
pub(crate) fn taken(py: Python<'_>, lock: Lock<'_>, waits: bool) {
    let place = place(py);
    if waits {
        steps(py, &lock, &place);
    }
    let taken = Taken {
        owner: local_token(),
        kind: lock.kind,
        name: lock.called(),
        place,
        node: lock.node,
    };
    held().0.get_or_insert_default().insert(lock.at, taken);
}

/// Notes that the calling thread is about to wait for a lock as long as it takes. Called with the interpreter's lock held.
#[cold]
pub(crate) fn waits_for(py: Python<'_>, lock: Lock<'_>) {
    if order_wanted().is_some() {
        steps(py, &lock, &place(py));
    }
}

fn steps(py: Python<'_>, lock: &Lock<'_>, place: &str) {
    if order_wanted().is_some() {
        watch::name_once(py);
        step(
            lock.node,
            &format_args!("{} {}", lock.kind, lock.called()),
            place,
        );
    }
}

fn step(to: Node, called: &dyn std::fmt::Display, place: &str) {
    let Some(arena) = order_wanted() else { return };
    let me = local_token();
    let mine: Vec<Node> = match held().0.as_ref() {
        Some(table) => {
            let mine = table.values().filter(|taken| taken.owner == me);
            mine.map(|taken| taken.node).collect()
        }
        None => return,
    };
    if mine.is_empty() {
        return;
    }
    let say = |from: Node| {
        let table = held();
        let mut all = table.0.iter().flat_map(HashMap::values);
        let from = all.find(|taken| taken.owner == me && taken.node == from);
        StepText {
            from: from.map_or_else(String::new, |one| format!("{} {}", one.kind, one.name)),
            from_place: from.map_or_else(String::new, |one| one.place.clone()),
            to: called.to_string(),
            to_place: place.to_owned(),
        }
    };
    note_order(arena, mine.iter().copied(), to, say);
}

/// Notes that a lock is free.
#[inline]
pub(crate) fn freed(lock: u64) {
    if wanted() {
        drop(suspended(lock));
    }
}

/// Notes that a lock is free for as long as the calling thread waits at a condition; returns what it takes to say that it is
/// had again.
#[cold]
pub(crate) fn suspended(lock: u64) -> Option<Taken> {
    held().0.as_mut().and_then(|table| table.remove(&lock))
}

/// Notes that the calling thread is about to wait for the lock of its condition.
pub(crate) fn waits_again(taken: Option<&Taken>) {
    if let Some(taken) = taken {
        let called = format_args!("{} {}", taken.kind, taken.name);
        step(taken.node, &called, &taken.place);
    }
}

/// Notes that it has it again.
pub(crate) fn resumed(lock: u64, taken: Option<Taken>) {
    if let Some(taken) = taken {
        held().0.get_or_insert_default().insert(lock, taken);
    }
}

/// Returns what the calling thread has.
pub(crate) fn mine() -> Vec<Thing> {
    let me = local_token();
    // Not a wait: whoever asks may be asked in the middle of anything.
    let Ok(table) = HELD.try_lock() else {
        return Vec::new();
    };
    let all = table.iter().flat_map(HashMap::values);
    all.filter(|taken| taken.owner == me)
        .map(|taken| Thing::taken(taken.kind, &taken.name, &taken.place))
        .collect()
}

/// In a forked child: another thread may have been in the table at that moment, and its locks are not this process's.
pub(crate) fn forget() {
    if let Ok(mut table) = HELD.try_lock() {
        *table = None;
    }
}
