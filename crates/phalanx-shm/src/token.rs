//! Who is asking: a process slot and a thread ordinal in 30 bits, so that one lock word can name its owner.
//!
//! | bits | meaning |
//! |---|---|
//! | 31 | (the lock's) contended |
//! | 30 | (the lock's) the last owner died |
//! | 29–16 | process slot, 0 for a private lock |
//! | 15–0 | thread ordinal in that process, from 1 |
//!
//! The slot stands for pid *and* start time: it is given to another process only after everything the old one held was
//! returned, so a recycled pid is never taken for the owner.
//!
//! Whoever takes a lock over from a dead owner looked at the word before it looked at the process, and may be preempted in
//! between for long: by the time of its compare-exchange the slot may have a new process, which may hold the very same
//! lock. So that the word differs then, each process of a slot begins to count the threads of its shared tokens
//! elsewhere ([`turned`]), and comes to the same place again after thousands of processes only.

use std::cell::Cell;
use std::collections::VecDeque;
use std::sync::Mutex;

use crate::arena::Arena;
use crate::session;

const SLOT_SHIFT: u32 = 16;
const SLOT_MASK: u32 = 0x3fff;
const ORDINAL_MASK: u32 = 0xffff;

/// The slot of this process; 0 until it has joined a tree. Not modelled: a static cannot be.
static SLOT: phalanx_prim::global::AtomicU32 = phalanx_prim::global::AtomicU32::new(0);
/// Which process of its slot this one is. Written before [`SLOT`].
static GENERATION: phalanx_prim::global::AtomicU32 = phalanx_prim::global::AtomicU32::new(0);
/// The slot this process's parent had when it was forked, for the child to name as its parent.
static FORKED_FROM: phalanx_prim::global::AtomicU32 = phalanx_prim::global::AtomicU32::new(0);

struct Ordinals {
    next: u32,
    free: VecDeque<u32>,
}

static ORDINALS: Mutex<Ordinals> = Mutex::new(Ordinals {
    next: 1,
    free: VecDeque::new(),
});

struct Ordinal(u32);

type Release = Option<fn()>;

/// Calls `release` when the calling thread, which has a token, ends. There are two such functions, of two modules.
pub(crate) fn at_thread_end(release: fn()) {
    let [first, second] = AT_END.get();
    if first.is_none_or(|first| std::ptr::fn_addr_eq(first, release)) {
        AT_END.set([Some(release), second]);
    } else {
        AT_END.set([first, Some(release)]);
    }
}

impl Drop for Ordinal {
    fn drop(&mut self) {
        for release in AT_END.take().into_iter().flatten() {
            release();
        }
        set_local(0);
        set_shared(0);
        if let Ok(mut ordinals) = ORDINALS.lock() {
            ordinals.free.push_back(self.0);
        }
    }
}

thread_local! {
    // The hot copies have no destructor, so that reading them is one instruction.
    static LOCAL: Cell<u32> = const { Cell::new(0) };
    static SHARED: Cell<u32> = const { Cell::new(0) };
    // The same while this thread notes no places, else 0: one look says whether there is more to do.
    static LOCAL_QUICK: Cell<u32> = const { Cell::new(0) };
    static SHARED_QUICK: Cell<u32> = const { Cell::new(0) };
    static PLACES: Cell<bool> = const { Cell::new(false) };
    static IDENTITY: Cell<u64> = const { Cell::new(0) };
    static AT_END: Cell<[Release; 2]> = const { Cell::new([None, None]) };
    static ORDINAL: Cell<Option<Ordinal>> = const { Cell::new(None) };
}

/// An owner read out of a lock word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Owner {
    /// Process slot, 0 for a private lock.
    pub slot: u16,
    /// Thread ordinal within that process; in a shared lock counted from another place by each process of a slot.
    pub thread: u16,
}

/// How far apart two processes in a row of one slot begin to count: no divisor of the number of ordinals divides it.
const TURN: u64 = 40_507;

/// An ordinal, counted from where the processes of this generation begin.
fn turned(ordinal: u32, generation: u32) -> u32 {
    let most = u64::from(ORDINAL_MASK);
    let at = (u64::from(ordinal) - 1 + u64::from(generation) * TURN) % most;
    at as u32 + 1
}

fn turned_back(ordinal: u32, generation: u32) -> u32 {
    let most = u64::from(ORDINAL_MASK);
    let back = u64::from(generation) * TURN % most;
    let at = (u64::from(ordinal) - 1 + most - back) % most;
    at as u32 + 1
}

impl Owner {
    pub(crate) fn of(word: u32) -> Option<Self> {
        let token = word & (SLOT_MASK << SLOT_SHIFT | ORDINAL_MASK);
        (token != 0).then_some(Self {
            slot: (token >> SLOT_SHIFT) as u16,
            thread: (token & ORDINAL_MASK) as u16,
        })
    }

    /// Returns the number of the thread within its process, from 1, in the order in which threads first used a lock.
    #[must_use]
    pub fn number(self) -> u16 {
        match (self.slot, session::session_if_any()) {
            (0, _) | (_, None) => self.thread,
            (_, Some(arena)) => arena.number_of(self),
        }
    }
}

impl Arena {
    /// As [`Owner::number`], for an owner found in a lock of this arena.
    #[must_use]
    pub fn number_of(&self, owner: Owner) -> u16 {
        let generation = self.generation_of(owner.slot);
        turned_back(u32::from(owner.thread).max(1), generation) as u16
    }
}

/// Returns the token of this thread for private locks: its ordinal.
///
/// # Panics
///
/// If this process has 65,535 threads with tokens already.
#[inline]
#[must_use]
pub fn local_token() -> u32 {
    if let Some(me) = phalanx_prim::modelled() {
        return u32::from(me.ordinal);
    }
    let token = LOCAL.get();
    if token == 0 {
        local_token_first()
    } else {
        token
    }
}

#[cold]
fn local_token_first() -> u32 {
    let mut ordinals = ORDINALS
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner);
    let ordinal = if ordinals.next <= ORDINAL_MASK {
        // As late as can be is one given to another thread: a thread may end and leave a lock behind that names it.
        ordinals.next += 1;
        ordinals.next - 1
    } else {
        ordinals
            .free
            .pop_front()
            .expect("65,535 threads of this process use locks; end some")
    };
    drop(ordinals);
    // During thread exit the destructor can no longer be registered: the ordinal then stays taken.
    let _ = ORDINAL.try_with(|cell| cell.set(Some(Ordinal(ordinal))));
    begin_places();
    set_local(ordinal);
    ordinal
}

/// As [`local_token`] if it is known and this thread notes no places, else 0.
#[inline]
pub(crate) fn local_quick() -> u32 {
    match phalanx_prim::modelled() {
        Some(me) => u32::from(me.ordinal),
        None => LOCAL_QUICK.get(),
    }
}

/// As [`shared_token`] if it is known and this thread notes no places, else 0.
#[inline]
pub(crate) fn shared_quick() -> u32 {
    match phalanx_prim::modelled() {
        Some(_) => shared_token(),
        None => SHARED_QUICK.get(),
    }
}

fn set_local(token: u32) {
    LOCAL.set(token);
    LOCAL_QUICK.set(if PLACES.get() { 0 } else { token });
}

fn set_shared(token: u32) {
    SHARED.set(token);
    SHARED_QUICK.set(if PLACES.get() { 0 } else { token });
}

/// Returns `true` if the calling thread notes the places where it takes locks.
#[inline]
#[must_use]
pub fn keeps_places() -> bool {
    PLACES.get()
}

/// Lets the calling thread note the places where it takes locks, or not any more.
pub fn keep_places(keep: bool) {
    if PLACES.replace(keep) != keep {
        set_local(LOCAL.get());
        set_shared(SHARED.get());
    }
}

fn begin_places() {
    if phalanx_prim::modelled().is_none()
        && let Some(arena) = session::session_if_any()
    {
        PLACES.set(arena.watch().notes());
    }
}

/// A bit beside the token of a guard whose place was noted. No word of a lock that is held has it.
pub const NOTED: u32 = 1 << 30;

/// Returns the token of this thread for shared locks: slot and ordinal. Joins the tree on first use.
///
/// # Panics
///
/// As [`local_token`], and if the arena cannot be made or has no process slot left.
#[inline]
#[must_use]
pub fn shared_token() -> u32 {
    if let Some(me) = phalanx_prim::modelled() {
        return u32::from(me.slot) << SLOT_SHIFT | u32::from(me.ordinal);
    }
    let token = SHARED.get();
    if token == 0 {
        shared_token_first()
    } else {
        token
    }
}

#[cold]
fn shared_token_first() -> u32 {
    let slot = u32::from(current_slot());
    let generation = GENERATION.load(phalanx_prim::global::Ordering::Relaxed);
    let token = slot << SLOT_SHIFT | turned(local_token(), generation);
    begin_places();
    set_shared(token);
    token
}

/// Returns the slot of this process, joining the tree (or making one) on first use.
///
/// # Panics
///
/// If the arena cannot be made or has no process slot left.
#[inline]
#[must_use]
pub fn current_slot() -> u16 {
    if let Some(me) = phalanx_prim::modelled() {
        return me.slot;
    }
    match SLOT.load(phalanx_prim::global::Ordering::Acquire) {
        0 => session::join_tree(),
        slot => slot as u16,
    }
}

/// Keeps other threads out of the ordinals while the process forks.
pub(crate) fn freeze() -> impl Sized + 'static {
    ORDINALS
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// Returns slot and generation of this process, joining the tree on first use.
pub(crate) fn place_in_tree() -> (u16, u32) {
    let slot = current_slot();
    (
        slot,
        GENERATION.load(phalanx_prim::global::Ordering::Relaxed),
    )
}

pub(crate) fn slot_if_joined() -> u16 {
    if let Some(me) = phalanx_prim::modelled() {
        return me.slot;
    }
    SLOT.load(phalanx_prim::global::Ordering::Relaxed) as u16
}

pub(crate) fn set_slot(slot: u16, generation: u32) {
    set_shared(0);
    GENERATION.store(generation, phalanx_prim::global::Ordering::Relaxed);
    // Release: pairs with the Acquire in `current_slot`.
    SLOT.store(u32::from(slot), phalanx_prim::global::Ordering::Release);
}

pub(crate) fn forked_from() -> u16 {
    FORKED_FROM.load(phalanx_prim::global::Ordering::Relaxed) as u16
}

/// Forgets what belonged to the parent. Called in a forked child before anything else of phalanx runs there; safe to
/// call twice.
pub fn after_fork_in_child() {
    let slot = SLOT.swap(0, phalanx_prim::global::Ordering::Relaxed);
    if slot != 0 {
        FORKED_FROM.store(slot, phalanx_prim::global::Ordering::Relaxed);
    }
    set_shared(0);
    IDENTITY.set(0);
}

/// Returns the kernel's names of the calling thread: process id in the upper half, thread id in the lower.
#[inline]
#[must_use]
pub fn thread_identity() -> u64 {
    let identity = IDENTITY.get();
    if identity == 0 {
        thread_identity_first()
    } else {
        identity
    }
}

#[cold]
fn thread_identity_first() -> u64 {
    let identity = u64::from(phalanx_sys::ids::pid()) << 32 | u64::from(phalanx_sys::ids::tid());
    IDENTITY.set(identity);
    identity
}

#[cfg(test)]
mod tests {
    use super::*;

    const GENERATIONS: u32 = if cfg!(miri) { 1 << 7 } else { 1 << 14 };

    #[test]
    fn owner_is_read_back_from_a_word() {
        let word = 1 << 31 | 5 << SLOT_SHIFT | 7;
        assert_eq!(Owner::of(word), Some(Owner { slot: 5, thread: 7 }));
        assert_eq!(Owner::of(1 << 31 | 1 << 30), None);
    }

    #[test]
    fn processes_of_one_slot_count_their_threads_from_different_places() {
        let first: Vec<u32> = (0..GENERATIONS)
            .map(|generation| turned(1, generation))
            .collect();
        let mut distinct = first.clone();
        distinct.sort_unstable();
        distinct.dedup();
        assert_eq!(distinct.len(), first.len());
        for generation in [0, 1, 2, 999, (1 << 14) - 1] {
            for ordinal in [1, 2, 77, ORDINAL_MASK] {
                let there = turned(ordinal, generation);
                assert!((1..=ORDINAL_MASK).contains(&there));
                assert_eq!(turned_back(there, generation), ordinal);
            }
        }
    }

    #[test]
    fn threads_have_distinct_ordinals() {
        let mine = local_token();
        let other = std::thread::spawn(local_token).join().unwrap();
        assert_ne!(mine, other);
        assert_eq!(mine, local_token());
    }
}
