//! What can be concluded from the order in which threads take locks.
//!
//! # Deadlocks that have not happened
//!
//! A deadlock of locks needs bad luck: one thread has to be stopped between its two locks while another is between the same
//! two. The order in which they take them needs none. So each step, *thread t takes b while it holds a*, is noted once
//! (`phalanx_shm`'s `order.rs`), as an arrow from a to b, and a circle of arrows is a deadlock that waits to happen: Havelund
//! called the search for it Goodlock (*Using Runtime Analysis to Guide Model Checking of Java Programs*, SPIN 2000). Not each
//! circle is one, and what is told to people who did nothing wrong is soon not read. The rules are those of Goodlock's heirs
//! (Bensalem and Havelund, *Dynamic Deadlock Analysis of Multi-Threaded Programs*, 2005; Joshi, Park, Sen and Naik's iGoodlock,
//! *A Randomized Dynamic Program Analysis Technique for Detecting Real Deadlocks*, PLDI 2009). A circle counts if
//!
//! 1. its steps are of different threads: one thread that takes a, b and later b, a does not meet itself;
//! 2. no lock is held in two of its steps: such a *gate* lets only one thread at a time begin;
//! 3. all of its locks exist, as those they were: a lock has a number that no other has, in any process, before or after.
//!
//! Linux's lockdep (Molnar and van de Ven, 2006) puts locks into classes by the place where they were made, and draws arrows
//! between classes: it learns more from one run, and needs to be told of each nesting in one class. Here arrows are between
//! locks, so that hand-over-hand walks along a list are no news; what the same places do with other locks is told once.
//!
//! | what a thread does | arrow |
//! |---|---|
//! | waits for a lock, for as long as it takes, holding others | one from each of them, before it waits |
//! | tries, or waits with a time-out | none into this lock; those into the next ones all the same |
//! | takes a lock again that it has (`RLock`) | none |
//! | waits at a condition | its lock is not held meanwhile; having it again is a step as another |
//! | frees a lock of another thread | that lock is a signal: its arrows do not count |
//!
//! What is not seen: order that other means impose (a thread that is only started when another has ended), which may make a
//! circle impossible; and more than four threads' steps between the same two locks, of which a longer circle might have
//! needed a fifth. The first is told though it cannot happen; it can as soon as somebody changes the start.

use std::collections::HashMap;
use std::fmt;
use std::io::Write as _;

use phalanx_shm::{Arena, Node, Step, StepText, mixed};
use phalanx_sync::lock_facts;
use serde::{Deserialize, Serialize};

use crate::detective::EnableError;
use crate::report::Thing;

/// Longer circles are not looked for.
const LONGEST: usize = 6;
/// Steps that one search looks at: then it gives up, and says nothing.
const PATIENCE: usize = 20_000;

/// One step of an [`Inversion`]: a thread took a lock while it held another.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Taking {
    /// The process.
    pub pid: u32,
    /// The thread's name, empty if it has none.
    pub thread: String,
    /// What it held, and where it took that.
    pub holds: Thing,
    /// What it took then, and where.
    pub takes: Thing,
}

/// Locks that threads take in different orders, which can end in a deadlock.
///
/// Each step takes what the next holds, and the last what the first holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Inversion {
    /// Who took what while holding what.
    pub steps: Vec<Taking>,
}

impl fmt::Display for Inversion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{} locks are taken in different orders, which can end in a deadlock:\n",
            self.steps.len()
        )?;
        for (i, step) in self.steps.iter().enumerate() {
            let Taking { pid, thread, .. } = step;
            let takes = Thing {
                place: None,
                ..step.takes.clone()
            };
            write!(f, "  ({}) process {pid}", i + 1)?;
            if !thread.is_empty() {
                write!(f, ", thread {thread:?}")?;
            }
            writeln!(f, "\n      has {}", step.holds)?;
            writeln!(
                f,
                "      and takes {takes} at {}",
                step.takes.place.as_deref().unwrap_or("an unknown place")
            )?;
        }
        writeln!(
            f,
            "\n  Take them in one order everywhere, or have one lock in common around each of these."
        )
    }
}

impl Inversion {
    /// Returns it as JSON.
    #[must_use]
    pub fn to_json(&self) -> String {
        serde_json::to_string(self).unwrap_or_default()
    }

    /// Reads what [`to_json`](Self::to_json) wrote.
    ///
    /// # Errors
    ///
    /// If it is something else.
    pub fn from_json(json: &str) -> Result<Self, serde_json::Error> {
        serde_json::from_str(json)
    }
}

/// Lets every process of the tree note in which order its threads take locks, and report on standard error when two orders
/// can end in a deadlock, though none has happened: `a` then `b` here, `b` then `a` there.
///
/// It is meant for tests, and independent of [`enable`](crate::enable). Threads take part from their first lock on, or, if they
/// have had one before, from their next sleep on; the calling thread does at once. What is taken by guards takes part: `Lock` and
/// `RLock` of both scopes, and what Python takes.
///
/// ```no_run
/// use phalanx_watch as watch;
///
/// watch::enable_lock_order()?;
/// // … the program, or its tests …
/// let found = watch::inversions();
/// assert!(found.is_empty(), "{}", found[0]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Errors
///
/// [`EnableError`] if there is no shared memory and none can be made.
pub fn enable_lock_order() -> Result<(), EnableError> {
    crate::install();
    let arena = phalanx_shm::session()?;
    arena.open_order()?;
    arena.change_watch(|watch| watch.order = true);
    Ok(())
}

/// Lets nobody note the order of locks any more. What was noted stays.
pub fn disable_lock_order() {
    if let Some(arena) = phalanx_shm::session_if_any() {
        arena.change_watch(|watch| watch.order = false);
    }
}

/// Returns the inversions found so far by any process of the tree, the oldest first; 64 at most.
#[must_use]
pub fn inversions() -> Vec<Inversion> {
    let found = phalanx_shm::session_if_any().map_or_else(Vec::new, Arena::order_found);
    found
        .iter()
        .filter_map(|json| Inversion::from_json(json).ok())
        .collect()
}

/// Looks at what follows from a new step; without one the log is full.
pub(crate) fn step(arena: &'static Arena, new: Option<&Step>) {
    let Some(new) = new else {
        say("phalanx: lock order: the log is full; new pairs of locks are not looked at\n");
        return;
    };
    let mut signals = HashMap::new();
    let mut is_signal = |node: Node| {
        *signals.entry(node).or_insert_with(|| {
            node.block()
                .and_then(|block| lock_facts(arena, block))
                .is_some_and(|facts| facts.signal)
        })
    };
    let mut steps = arena.steps();
    steps.retain(|step| !is_signal(step.from) && !is_signal(step.to));
    if is_signal(new.from) || is_signal(new.to) {
        return;
    }
    for circle in circles(&steps, new) {
        tell(arena, &circle);
    }
}

/// Returns the shortest circles through the step.
fn circles(steps: &[Step], new: &Step) -> Vec<Vec<Step>> {
    let mut from: HashMap<Node, Vec<&Step>> = HashMap::new();
    for step in steps {
        from.entry(step.from).or_default().push(step);
    }
    let mut patience = PATIENCE;
    for len in 2..=LONGEST {
        let mut found = Vec::new();
        let mut path = vec![new];
        search(&from, len, &mut path, &mut patience, &mut found);
        if !found.is_empty() || patience == 0 {
            return found;
        }
    }
    Vec::new()
}

fn search<'a>(
    from: &HashMap<Node, Vec<&'a Step>>,
    len: usize,
    path: &mut Vec<&'a Step>,
    patience: &mut usize,
    found: &mut Vec<Vec<Step>>,
) {
    let (first, last) = (path[0], path[path.len() - 1]);
    for next in from.get(&last.to).into_iter().flatten() {
        if *patience == 0 {
            return;
        }
        *patience -= 1;
        let closes = next.to == first.from;
        if closes != (path.len() + 1 == len) || path.iter().any(|step| !agree(step, next)) {
            continue;
        }
        path.push(next);
        if closes {
            found.push(path.iter().map(|step| (*step).clone()).collect());
        } else {
            search(from, len, path, patience, found);
        }
        path.pop();
    }
}

/// Tells whether both steps can be under way at the same time.
fn agree(one: &Step, other: &Step) -> bool {
    let held = |step: &Step, lock: &Node| step.from == *lock || step.gates.contains(lock);
    one.thread != other.thread
        && one.from != other.from
        && !held(other, &one.from)
        && !one.gates.iter().any(|gate| held(other, gate))
}

fn tell(arena: &'static Arena, circle: &[Step]) {
    let texts: Option<Vec<(String, StepText)>> =
        circle.iter().map(|step| arena.step_text(step)).collect();
    let Some(texts) = texts else {
        return;
    };
    let mut locks: Vec<u64> = circle.iter().map(|step| step.from.to_bits()).collect();
    let mut places: Vec<u64> = texts.iter().map(|(_, text)| key_of(text)).collect();
    locks.sort_unstable();
    places.sort_unstable();
    let folded = |keys: Vec<u64>| {
        let all = keys.into_iter().fold(1, |all, key| mixed(all ^ key));
        all | 1
    };
    if !arena.tell_order_once(&[folded(locks), folded(places)]) {
        return;
    }
    let steps = circle
        .iter()
        .zip(texts)
        .map(|(step, (thread, text))| Taking {
            pid: step.pid,
            thread,
            holds: thing(step.from, &text.from, &text.from_place),
            takes: thing(step.to, &text.to, &text.to_place),
        });
    let inversion = Inversion {
        steps: steps.collect(),
    };
    if arena.keep_order_found(&inversion.to_json()) {
        say(&format!("phalanx: lock order: {inversion}"));
    }
}

/// What a step does and where, whichever locks it does it with unless they have names.
fn key_of(text: &StepText) -> u64 {
    let parts = [&text.from, &text.from_place, &text.to, &text.to_place];
    let bytes = parts.iter().flat_map(|part| part.bytes().chain([0]));
    bytes.fold(1, |all, byte| mixed(all ^ u64::from(byte)))
}

fn thing(node: Node, called: &str, place: &str) -> Thing {
    match called.split_once(' ') {
        Some((kind, name)) => Thing::taken(kind, name, place),
        None => {
            let number = node.block().map_or_else(
                || format!("{}", node.to_bits() & u64::from(u32::MAX)),
                |block| format!("{:x}", block.offset()),
            );
            Thing::taken(called, &format!("#{number}"), place)
        }
    }
}

fn say(text: &str) {
    // Nobody may read it; that changes nothing.
    let _ = std::io::stderr().lock().write_all(text.as_bytes());
}
