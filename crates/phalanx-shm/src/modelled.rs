//! The arena of a model, and the processes in it.
#![expect(unsafe_code, reason = "an arena that ends before its process does")]

use std::cell::Cell;

use phalanx_prim::{Ordering, model};

use crate::arena::Arena;
use crate::slots::ExitRecord;
use crate::sweep::Swept;

const LEN: usize = 1 << 20;
const LIVE: u32 = 2;

thread_local! {
    // Of the execution that runs on this thread. Its threads come to their end before the next one begins.
    static ARENA: Cell<Option<&'static Arena>> = const { Cell::new(None) };
    // The same, as it was leaked.
    static LEAKED: Cell<*mut Arena> = const { Cell::new(std::ptr::null_mut()) };
}

/// Makes the arena of an execution; processes 1 to `processes` live in it. The arena of the execution before ends.
pub fn begin(processes: u16) -> &'static Arena {
    ARENA.set(None);
    let last = LEAKED.replace(std::ptr::null_mut());
    if !last.is_null() {
        // SAFETY: leaked below, and taken back once. Threads and objects of an execution end with it, or are forgotten when
        // it fails.
        drop(unsafe { Box::from_raw(last) });
    }
    let leaked = Box::into_raw(Box::new(Arena::on_heap(LEN)));
    LEAKED.set(leaked);
    // SAFETY: just made, and not taken back before the next execution begins.
    let arena: &'static Arena = unsafe { &*leaked };
    ARENA.set(Some(arena));
    let header = arena.header();
    header
        .slots_used
        .store(u32::from(processes), Ordering::Release);
    for slot in 1..=processes {
        let entry = arena.slot(slot);
        entry.pid.store(u32::from(slot), Ordering::Relaxed);
        let parent = u32::from(slot > 1);
        entry.parent.store(parent, Ordering::Relaxed);
        entry.state.store(LIVE, Ordering::Release);
    }
    arena
}

/// Returns the arena of the execution on this thread.
#[must_use]
pub fn arena() -> Option<&'static Arena> {
    ARENA.get()
}

/// Runs the life of the process in `slot` on the calling thread; if it dies at a point (see `phalanx_prim::model::die_at`), its
/// death is seen by the process in `reaper`, which sweeps it. Returns what the life returned, `None` if it died.
pub fn process<R>(slot: u16, reaper: u16, life: impl FnOnce() -> R) -> Option<R> {
    model::be(slot);
    let ended = model::living(life);
    model::be(reaper);
    if ended.is_none() {
        bury(slot);
    }
    ended
}

/// Sweeps the process in `slot`, which died.
pub fn bury(slot: u16) -> Swept {
    let Some(arena) = arena() else {
        return Swept::default();
    };
    arena.slot(slot).pid.store(0, Ordering::Release);
    arena.record_exit(slot, ExitRecord::Signal(9));
    arena.sweep(slot)
}

/// Marks the process in `slot` as dead without a sweep: what a model that must fail does.
pub fn vanish(slot: u16) {
    if let Some(arena) = arena() {
        arena.slot(slot).pid.store(0, Ordering::Release);
    }
}
