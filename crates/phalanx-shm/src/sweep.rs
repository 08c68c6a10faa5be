//! What happens to the arena when a process dies.
//!
//! One process (the parent, or an ancestor in its place) sweeps. Every step may be done twice, so a sweeper that dies is
//! replaced by its own sweeper. The order matters:
//!
//! 1. the slot is marked: from now on every look at it says "dead";
//! 2. locks the dead one held are recovered: each kind finishes or undoes what was half done, including the holder of
//!    blocks it had already put into a queue;
//! 3. sleepers it owed a wake are woken;
//! 4. its holds are dropped, destroying what nobody else holds;
//! 5. blocks it still holds are reclaimed, objects it was destroying are destroyed;
//! 6. sweeps it was doing are continued, starts it had reserved are cancelled, its own children become the sweeper's and are
//!    named to the caller;
//! 7. hints are repaired, the slot is free.

use phalanx_prim::{Ordering, points};

use crate::arena::Arena;
use crate::block::{BlockRef, Kind};
use crate::slots::{ExitRecord, ProcessInfo, SlotState, Ticket};
use crate::token;

/// What a kind of block needs when a process dies or its last hold is dropped. Each function may be called twice.
#[derive(Clone, Copy, Debug)]
pub struct KindOps {
    /// Finishes or undoes what the process in this slot, now dead, was doing to a live block of the kind. With the flag,
    /// also wakes everybody who sleeps on any word of it.
    pub recover: fn(&Arena, BlockRef, u16, bool),
    /// Tears down what the block refers to; the block itself is freed afterwards.
    pub destroy: fn(&Arena, BlockRef),
}

// Plain data published once per kind before any process shares a block of it; not part of any modelled protocol.
static OPS: [std::sync::OnceLock<KindOps>; Kind::COUNT] =
    [const { std::sync::OnceLock::new() }; Kind::COUNT];

/// What a crate does to tell the sweep of its kinds, by [`register_kind`]: submitted to [`inventory`], done in every process
/// when it joins a tree. A process sweeps after others whose kinds it never used itself.
#[derive(Debug)]
pub struct Kinds(pub fn());

inventory::collect!(Kinds);

/// Lets every crate of the program tell of its kinds.
pub(crate) fn install_kinds() {
    for kinds in inventory::iter::<Kinds> {
        (kinds.0)();
    }
}

/// Tells the sweep what to do with a kind. The first registration counts.
pub fn register_kind(kind: Kind, ops: KindOps) {
    let _ = OPS[kind as usize].set(ops);
}

pub(crate) fn ops_of(kind: Kind) -> Option<KindOps> {
    OPS[kind as usize].get().copied()
}

thread_local! {
    static SWEEPING: std::cell::Cell<Option<(u32, Option<ExitRecord>)>> = const { std::cell::Cell::new(None) };
}

/// Returns pid and end of the process that the calling thread is sweeping, `None` outside of a sweep. Lets an object's
/// teardown say whether it was dropped or its holder died.
#[must_use]
pub fn sweeping() -> Option<(u32, Option<ExitRecord>)> {
    SWEEPING.get()
}

/// What a sweep leaves for its caller to do.
#[derive(Debug, Default)]
pub struct Swept {
    /// Live processes whose parent was the dead one, and which are the sweeper's now: watch them, and sweep them when they are
    /// gone.
    pub orphans: Vec<ProcessInfo>,
    /// Blocks that were reclaimed.
    pub reclaimed: usize,
}

impl Arena {
    /// Returns everything the dead process in `slot` held. The caller has seen it dead (by pidfd or wait).
    ///
    /// Does nothing if the slot is free or was given to another process meanwhile (which takes a [`Ticket`] to know: for a mere
    /// slot it is asked whether the process in it lives), or if somebody who lives sweeps it.
    pub fn sweep(&self, place: impl Into<Ticket>) -> Swept {
        let mut swept = Swept::default();
        let ticket = place.into();
        let slot = ticket.slot();
        if slot == 0 || slot == token::current_slot() || !self.take_for_sweep(ticket) {
            return swept;
        }
        let mut todo = vec![slot];
        while let Some(slot) = todo.pop() {
            self.sweep_one(slot, &mut swept, &mut todo);
        }
        swept
    }

    /// Sweeps a slot that was taken over for it.
    fn sweep_one(&self, slot: u16, swept: &mut Swept, todo: &mut Vec<u16>) {
        let entry = self.slot(slot);
        points::point("sweep.begun");
        let outer = SWEEPING.replace(Some((
            entry.pid.load(Ordering::Relaxed),
            self.exit_of(slot),
        )));
        self.carve_owner_died(slot);
        self.registry_owner_died(slot);
        let wake_all = entry.interest_overflow.load(Ordering::SeqCst) != 0;
        self.each_block(|block, _, now| {
            if now.is_live()
                && let Some(ops) = now.kind().and_then(ops_of)
            {
                (ops.recover)(self, block, slot, wake_all);
            }
        });
        for line in &entry.interests {
            let offset = line.load(Ordering::SeqCst) as usize;
            // 1 marks a line that is kept and not in use.
            if offset > 1 && offset + 4 <= self.region().len() {
                self.word_at(offset)
                    .wake(u32::MAX, phalanx_prim::Scope::Shared);
            }
        }
        self.drop_table_of(slot);
        points::point("sweep.dropped");
        let mut left = Vec::new();
        self.each_block(|block, _, now| {
            if now.holder() == slot {
                left.push((block, now));
            }
        });
        for (block, now) in left {
            if let Some(ops) = now.kind().and_then(ops_of) {
                (ops.destroy)(self, block);
            }
            swept.reclaimed += usize::from(self.free(block));
        }
        points::point("sweep.reclaimed");
        for process in self.processes() {
            let other = self.slot(process.slot);
            match process.state {
                // Now, while this slot's number still means the dead one.
                SlotState::Sweeping
                    if other.by() == slot && self.take_for_sweep(process.slot.into()) =>
                {
                    todo.push(process.slot);
                }
                SlotState::Reserved if other.by() == slot && self.unreserve_slot(process.slot) => {}
                // It may have begun to live since it was looked at.
                SlotState::Reserved | SlotState::Live => {
                    swept.orphans.extend(self.inherit(process.slot, slot));
                }
                _ => {}
            }
        }
        self.repair_hints();
        points::point("sweep.repaired");
        entry.finish_sweep();
        SWEEPING.set(outer);
    }

    /// Makes a living process, whose parent died in the slot `from`, one of the calling process's: that slot's next process is
    /// not its parent, and whoever sweeps the calling process finds it. Returns `None` if it is not such a process.
    fn inherit(&self, orphan: u16, from: u16) -> Option<ProcessInfo> {
        let process = self.process(orphan);
        if process.state != SlotState::Live || process.parent != from {
            return None;
        }
        // Before it is ours: the caller is told, and need not look for it.
        self.set_watched(orphan);
        let (from, me) = (u32::from(from), u32::from(token::current_slot()));
        self.slot(orphan)
            .parent
            .compare_exchange(from, me, Ordering::AcqRel, Ordering::Relaxed)
            .is_ok()
            .then(|| self.process(orphan))
    }

    #[expect(unsafe_code, reason = "a word is an atomic at an offset")]
    fn word_at(&self, offset: usize) -> &phalanx_prim::Word {
        let offset = offset & !3;
        // SAFETY: offsets in the interest list are those of words in the arena; a stale one is still 4 bytes that are only
        // ever used as a futex address here.
        unsafe { self.region().get(offset) }
    }
}
