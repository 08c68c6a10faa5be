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

use std::cell::Cell;
use std::sync::Mutex;

use crate::session;

const SLOT_SHIFT: u32 = 16;
const SLOT_MASK: u32 = 0x3fff;
const ORDINAL_MASK: u32 = 0xffff;

/// The slot of this process; 0 until it has joined a tree. Not modelled: a static cannot be.
static SLOT: phalanx_prim::global::AtomicU32 = phalanx_prim::global::AtomicU32::new(0);
/// The slot this process's parent had when it was forked, for the child to name as its parent.
static FORKED_FROM: phalanx_prim::global::AtomicU32 = phalanx_prim::global::AtomicU32::new(0);

struct Ordinals {
    next: u32,
    free: Vec<u32>,
}

static ORDINALS: Mutex<Ordinals> = Mutex::new(Ordinals {
    next: 1,
    free: Vec::new(),
});

struct Ordinal(u32);

/// Calls `release` when the calling thread, which has a token, ends.
pub(crate) fn at_thread_end(release: fn()) {
    AT_END.set(Some(release));
}

impl Drop for Ordinal {
    fn drop(&mut self) {
        if let Some(release) = AT_END.take() {
            release();
        }
        LOCAL.set(0);
        SHARED.set(0);
        if let Ok(mut ordinals) = ORDINALS.lock() {
            ordinals.free.push(self.0);
        }
    }
}

thread_local! {
    // The hot copies have no destructor, so that reading them is one instruction.
    static LOCAL: Cell<u32> = const { Cell::new(0) };
    static SHARED: Cell<u32> = const { Cell::new(0) };
    static IDENTITY: Cell<u64> = const { Cell::new(0) };
    static AT_END: Cell<Option<fn()>> = const { Cell::new(None) };
    static ORDINAL: Cell<Option<Ordinal>> = const { Cell::new(None) };
}

/// An owner read out of a lock word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Owner {
    /// Process slot, 0 for a private lock.
    pub slot: u16,
    /// Thread ordinal within that process.
    pub thread: u16,
}

impl Owner {
    pub(crate) fn of(word: u32) -> Option<Self> {
        let token = word & (SLOT_MASK << SLOT_SHIFT | ORDINAL_MASK);
        (token != 0).then_some(Self {
            slot: (token >> SLOT_SHIFT) as u16,
            thread: (token & ORDINAL_MASK) as u16,
        })
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
    let ordinal = ordinals.free.pop().unwrap_or_else(|| {
        let ordinal = ordinals.next;
        assert!(
            ordinal <= ORDINAL_MASK,
            "65,535 threads of this process use locks; end some"
        );
        ordinals.next += 1;
        ordinal
    });
    drop(ordinals);
    // During thread exit the destructor can no longer be registered: the ordinal then stays taken.
    let _ = ORDINAL.try_with(|cell| cell.set(Some(Ordinal(ordinal))));
    LOCAL.set(ordinal);
    ordinal
}

/// Returns the token of this thread for shared locks: slot and ordinal. Joins the tree on first use.
///
/// # Panics
///
/// As [`local_token`], and if the arena cannot be made or has no process slot left.
#[inline]
#[must_use]
pub fn shared_token() -> u32 {
    let token = SHARED.get();
    if token == 0 {
        shared_token_first()
    } else {
        token
    }
}

#[cold]
fn shared_token_first() -> u32 {
    let token = u32::from(current_slot()) << SLOT_SHIFT | local_token();
    SHARED.set(token);
    token
}

/// Returns the slot of this process, joining the tree (or making one) on first use.
///
/// # Panics
///
/// If the arena cannot be made or has no process slot left.
#[must_use]
pub fn current_slot() -> u16 {
    match SLOT.load(phalanx_prim::global::Ordering::Relaxed) {
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

pub(crate) fn slot_if_joined() -> u16 {
    SLOT.load(phalanx_prim::global::Ordering::Relaxed) as u16
}

pub(crate) fn set_slot(slot: u16) {
    SHARED.set(0);
    SLOT.store(u32::from(slot), phalanx_prim::global::Ordering::Relaxed);
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
    SHARED.set(0);
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

    #[test]
    fn owner_is_read_back_from_a_word() {
        let word = 1 << 31 | 5 << SLOT_SHIFT | 7;
        assert_eq!(Owner::of(word), Some(Owner { slot: 5, thread: 7 }));
        assert_eq!(Owner::of(1 << 31 | 1 << 30), None);
    }

    #[test]
    fn threads_have_distinct_ordinals() {
        let mine = local_token();
        let other = std::thread::spawn(local_token).join().unwrap();
        assert_ne!(mine, other);
        assert_eq!(mine, local_token());
    }
}
