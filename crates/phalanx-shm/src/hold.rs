//! Counted objects: who holds them, without losing count when a holder dies.
//!
//! A *hold* is an entry (a [`BlockRef`]) in a table, plus one in the object's count. Tables belong to processes (one chain
//! of table blocks each) or to message blocks (the handles that travel in a message). Entry and count change together
//! under the arena's *registry lock*, with the old values noted first:
//!
//! | step | killed after it |
//! |---|---|
//! | note object, old count, entry, old entry; arm | next owner of the lock writes the old values back: nothing happened |
//! | change count, change entry | the same |
//! | disarm | it happened |
//!
//! The last hold condemns the object (dying, holder = me) before it disarms, so that a death during its destruction is
//! found by the sweep, which destroys it again; destruction is written to be repeatable.

use std::sync::PoisonError;

use phalanx_prim::{AtomicU32, AtomicU64, Mutex, MutexGuard, Ordering, points};

use crate::arena::{Arena, MODELLED, Placed};
use crate::block::{BlockRef, Kind, OBJECT};
use crate::error::{AllocError, StaleHandle};
use crate::robust::Acquired;
use crate::session::session_if_any;
use crate::{sweep, token};

/// What to write back if the owner of the registry lock dies.
#[derive(Debug)]
#[repr(C)]
pub(crate) struct Undo {
    armed: AtomicU32,
    refs: AtomicU32,
    object: AtomicU64,
    entry: AtomicU64,
    was: AtomicU64,
}

pub(crate) const TABLE_ENTRIES: usize = if MODELLED { 40 } else { 1000 };

/// A block of a process's hold table.
#[derive(Debug)]
#[repr(C)]
pub(crate) struct Table {
    pub(crate) next: AtomicU64,
    pub(crate) entries: [AtomicU64; TABLE_ENTRIES],
}

// SAFETY: repr(C), atomics only, and the only type placed under its kind.
#[expect(unsafe_code, reason = "the marker of what may be placed in the arena")]
unsafe impl Placed for Table {
    const KIND: Kind = Kind::Holds;
}

/// This process's holds: a mirror of its tables, which a forked child builds its own from.
#[derive(Debug, Default)]
struct Mine {
    entries: Vec<u64>,
    free: Vec<u32>,
    tables: Vec<u64>,
    // The slot the tables belong to: another one means we are a forked child that has not rebuilt them.
    slot: u16,
    // The slot for which tables were added last.
    building: u16,
    // The tables that were built for the child of the fork that is under way.
    childs: Option<(u16, Vec<u64>)>,
}

/// The mirror beside the mapping.
#[derive(Debug, Default)]
pub(crate) struct Mirror(Mutex<Mine>);

/// How many processes one mapping serves.
pub(crate) const MIRRORS: usize = if MODELLED {
    crate::MAX_PROCESSES + 1
} else {
    1
};

impl Mirror {
    fn open(&self) -> MutexGuard<'_, Mine> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Keeps every other thread of this process out of the hold table: taken before a fork, so that the child never inherits
/// it half-changed.
///
/// If the child is to have the reserved slot `child`, its holds are taken now: whatever this process lets go of meanwhile,
/// the child still has it.
pub(crate) fn freeze(child: u16) -> Frozen {
    let arena = session_if_any();
    let mut mine = arena.map(|arena| arena.mirror().open());
    if child != 0
        && let (Some(arena), Some(mine)) = (arena, mine.as_mut())
    {
        // Without memory for the tables the child takes its holds itself.
        mine.childs = arena
            .copy_for(mine, child)
            .ok()
            .map(|tables| (child, tables));
    }
    Frozen(mine)
}

/// The hold table while the process forks.
pub(crate) struct Frozen(Option<MutexGuard<'static, Mine>>);

impl Frozen {
    /// In the parent, after the fork: what was built for the child is the child's.
    pub(crate) fn thaw(mut self) {
        if let Some(mine) = self.0.as_mut() {
            mine.childs = None;
        }
    }

    /// In the child: returns the slot it was promised; its holds are noted there once it is occupied.
    pub(crate) fn thaw_in_child(mut self) -> Option<u16> {
        let mine = self.0.as_mut()?;
        let (slot, tables) = mine.childs.take()?;
        mine.tables = tables;
        mine.slot = slot;
        mine.building = slot;
        Some(slot)
    }
}

/// A hold of this process on an object. Dropping it gives the hold back; the last one destroys the object.
///
/// A forked child has its own hold for each that it inherited. A process that dies gives back all of its holds.
#[derive(Debug)]
pub struct Held {
    arena: &'static Arena,
    block: BlockRef,
    entry: u32,
}

impl Held {
    /// Returns the object's name.
    #[must_use]
    pub fn block(&self) -> BlockRef {
        self.block
    }

    /// Returns the arena the object lives in.
    #[must_use]
    pub fn arena(&self) -> &'static Arena {
        self.arena
    }

    /// Returns the object.
    #[inline]
    #[must_use]
    pub fn view<T: Placed>(&self) -> &'static T {
        debug_assert!(
            self.arena
                .kind_of(self.block)
                .is_none_or(|kind| kind == T::KIND)
        );
        self.arena.view_held(self.block)
    }
}

impl Clone for Held {
    fn clone(&self) -> Self {
        // We hold it, so it exists; only memory for the table can be missing.
        match self.arena.hold(self.block) {
            Ok(held) => held,
            Err(error) => panic!("cannot clone a handle: {error}"),
        }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let mut mine = self.arena.mirror().open();
        // A forked child that has not joined the tree holds nothing there yet.
        let joined = mine.slot == token::slot_if_joined() && mine.slot != 0;
        let at = if joined {
            entry_address(&mine, self.entry)
        } else {
            None
        };
        // Before the entry can be given to another hold.
        let dropped = at.is_some_and(|(table, index)| {
            self.arena.drop_entry(self.arena.table_entry(table, index))
        });
        if let Some(entry) = mine.entries.get_mut(self.entry as usize) {
            *entry = 0;
            mine.free.push(self.entry);
        }
        // A teardown may drop other handles.
        drop(mine);
        if dropped {
            self.arena.destroy(self.block);
        }
    }
}

fn entry_address(mine: &Mine, entry: u32) -> Option<(BlockRef, usize)> {
    let table = *mine.tables.get(entry as usize / TABLE_ENTRIES)?;
    Some((BlockRef::from_bits(table)?, entry as usize % TABLE_ENTRIES))
}

impl Arena {
    fn mirror(&self) -> &Mirror {
        // The processes of a model have one mapping together, and each its own holds.
        &self.mirrors[phalanx_prim::modelled().map_or(0, |me| usize::from(me.slot))]
    }

    /// Makes an object of a block the caller placed: counted, held once, by the calling process.
    ///
    /// # Errors
    ///
    /// [`AllocError`] when there is no memory to note the hold; the block is freed then.
    pub fn publish(&'static self, block: BlockRef) -> Result<Held, AllocError> {
        match self.hold(block) {
            Ok(held) => Ok(held),
            Err(error) => {
                self.free(block);
                match error {
                    HoldOrAlloc::Alloc(error) => Err(error),
                    // The caller's own block cannot be stale; as a number it is memory that is missing.
                    HoldOrAlloc::Stale(_) => Err(AllocError::Exhausted {
                        requested: 0,
                        reserved: self.region().len(),
                    }),
                }
            }
        }
    }

    /// Takes a hold on an object for the calling process.
    ///
    /// # Errors
    ///
    /// [`HoldOrAlloc::Stale`] if the object is gone, [`HoldOrAlloc::Alloc`] if there is no memory to note the hold.
    pub fn hold(&'static self, block: BlockRef) -> Result<Held, HoldOrAlloc> {
        let slot = token::current_slot();
        let mut mine = self.mirror().open();
        if mine.slot != slot {
            self.rebuild(&mut mine, slot)?;
        }
        let entry = match mine.free.pop() {
            Some(entry) => entry,
            None => {
                if mine.entries.len() == mine.tables.len() * TABLE_ENTRIES {
                    self.add_table(&mut mine, slot)?;
                }
                mine.entries.push(0);
                mine.entries.len() as u32 - 1
            }
        };
        let held = entry_address(&mine, entry)
            .ok_or(StaleHandle)
            .and_then(|(table, index)| self.add_entry(self.table_entry(table, index), block));
        if let Err(stale) = held {
            mine.free.push(entry);
            return Err(stale.into());
        }
        mine.entries[entry as usize] = block.to_bits();
        Ok(Held {
            arena: self,
            block,
            entry,
        })
    }

    /// Builds the tables of a forked child from the mirror it inherited.
    fn rebuild(&self, mine: &mut Mine, slot: u16) -> Result<(), AllocError> {
        // Our tables are those of this slot: what we inherited names the parent's. After a failure for want of memory the
        // next use tries again, with the tables it has got so far.
        if mine.building != slot {
            mine.building = slot;
            mine.tables.clear();
        }
        while mine.tables.len() * TABLE_ENTRIES < mine.entries.len() {
            self.add_table(mine, slot)?;
        }
        mine.slot = slot;
        for entry in 0..mine.entries.len() {
            let Some(block) = BlockRef::from_bits(mine.entries[entry]) else {
                continue;
            };
            if let Some((table, index)) = entry_address(mine, entry as u32) {
                // Gone in the meantime: the handle the child inherited is stale, and says so when it is used.
                let _ = self.add_entry(self.table_entry(table, index), block);
            }
        }
        Ok(())
    }

    /// Takes the inherited holds into the tables of this (forked) process's own slot.
    pub(crate) fn rebuild_holds(&self) {
        let slot = token::slot_if_joined();
        let mut mine = self.mirror().open();
        if mine.slot != slot {
            // Without memory for the tables the next use of a handle reports it.
            let _ = self.rebuild(&mut mine, slot);
        }
    }

    /// Takes every hold of this process once more, for the child that is to have the reserved `slot`.
    fn copy_for(&self, mine: &Mine, slot: u16) -> Result<Vec<u64>, AllocError> {
        let mut childs = Mine::default();
        while childs.tables.len() * TABLE_ENTRIES < mine.entries.len() {
            self.add_table(&mut childs, slot)?;
        }
        for (entry, bits) in mine.entries.iter().enumerate() {
            if let Some(block) = BlockRef::from_bits(*bits)
                && let Some((table, index)) = entry_address(&childs, entry as u32)
            {
                // Gone: the handle is stale in this process too.
                let _ = self.add_entry(self.table_entry(table, index), block);
            }
        }
        Ok(childs.tables)
    }

    fn add_table(&self, mine: &mut Mine, slot: u16) -> Result<(), AllocError> {
        let next = self.slot(slot).holds.load(Ordering::Relaxed);
        let block = self.alloc(size_of::<Table>(), Kind::Holds)?;
        let table = self.view_held::<Table>(block);
        for entry in &table.entries {
            entry.store(0, Ordering::Relaxed);
        }
        table.next.store(next, Ordering::Relaxed);
        self.slot(slot)
            .holds
            .store(block.to_bits(), Ordering::Release);
        // A child's table must outlast this process; while it is empty, losing it loses nothing.
        if let Some((head, now)) = self.living(block)
            && now.holder() != slot
        {
            head.rehold(now, slot);
        }
        mine.tables.push(block.to_bits());
        Ok(())
    }

    /// Returns the offset of an entry of a hold table.
    pub(crate) fn table_entry(&self, table: BlockRef, index: usize) -> usize {
        table.offset() + std::mem::offset_of!(Table, entries) + index * 8
    }

    #[expect(unsafe_code, reason = "an entry is an atomic at an offset")]
    fn entry(&self, offset: usize) -> &AtomicU64 {
        // SAFETY: offsets of entries are made by `table_entry` and by messages for their attachments, which are u64s.
        unsafe { self.region().get(offset) }
    }

    fn lock_registry(&self) {
        if self.header().registry.lock_looking() == Acquired::OwnerDied {
            self.undo();
        }
    }

    fn undo(&self) {
        let undo = &self.header().undo;
        if undo.armed.load(Ordering::Acquire) == 0 {
            return;
        }
        let object = BlockRef::from_bits(undo.object.load(Ordering::Relaxed));
        if let Some((head, _)) = object.and_then(|object| self.living(object)) {
            head.refs
                .store(undo.refs.load(Ordering::Relaxed), Ordering::Relaxed);
        }
        self.entry(undo.entry.load(Ordering::Relaxed) as usize)
            .store(undo.was.load(Ordering::Relaxed), Ordering::Relaxed);
        undo.armed.store(0, Ordering::Release);
    }

    /// Counts one more hold on `block` and notes it in the entry at this offset.
    pub(crate) fn add_entry(&self, entry_at: usize, block: BlockRef) -> Result<(), StaleHandle> {
        self.lock_registry();
        let added = self.add_entry_locked(entry_at, block);
        self.header().registry.unlock();
        added
    }

    fn add_entry_locked(&self, entry_at: usize, block: BlockRef) -> Result<(), StaleHandle> {
        let (head, now) = self.living(block).ok_or(StaleHandle)?;
        if now.is_dying() {
            return Err(StaleHandle);
        }
        if now.holder() != OBJECT {
            // Its maker's first hold: from now on it is counted.
            head.refs.store(0, Ordering::Relaxed);
        }
        let refs = head.refs.load(Ordering::Relaxed);
        self.arm(
            block,
            refs,
            entry_at,
            self.entry(entry_at).load(Ordering::Relaxed),
        );
        head.refs.store(refs + 1, Ordering::Relaxed);
        points::point("registry.counted");
        self.entry(entry_at)
            .store(block.to_bits(), Ordering::Relaxed);
        points::point("registry.noted");
        self.disarm();
        points::point("registry.disarmed");
        // Last: as long as its maker holds it, the sweep of a dead maker finds it, counted or not.
        if now.holder() != OBJECT {
            head.rehold(now, OBJECT);
        }
        Ok(())
    }

    fn arm(&self, object: BlockRef, refs: u32, entry_at: usize, was: u64) {
        let undo = &self.header().undo;
        undo.object.store(object.to_bits(), Ordering::Relaxed);
        undo.refs.store(refs, Ordering::Relaxed);
        undo.entry.store(entry_at as u64, Ordering::Relaxed);
        undo.was.store(was, Ordering::Relaxed);
        // Release: no store moves over it. A process dies between two instructions, with all earlier stores done.
        undo.armed.store(1, Ordering::Release);
        phalanx_prim::fence(Ordering::SeqCst);
        points::point("registry.armed");
    }

    fn disarm(&self) {
        self.header().undo.armed.store(0, Ordering::Release);
    }

    /// Empties an entry and counts one hold less. Returns `true` if that was the last: the caller must
    /// [`destroy`](Self::destroy) the object.
    pub(crate) fn drop_entry(&self, entry_at: usize) -> bool {
        self.lock_registry();
        let last = self.drop_entry_locked(entry_at);
        self.header().registry.unlock();
        last
    }

    fn drop_entry_locked(&self, entry_at: usize) -> bool {
        let was = self.entry(entry_at).load(Ordering::Relaxed);
        let Some(block) = BlockRef::from_bits(was) else {
            return false;
        };
        let Some((head, now)) = self.living(block) else {
            self.entry(entry_at).store(0, Ordering::Relaxed);
            return false;
        };
        let refs = head.refs.load(Ordering::Relaxed);
        self.arm(block, refs, entry_at, was);
        head.refs.store(refs.saturating_sub(1), Ordering::Relaxed);
        points::point("registry.dropped");
        self.entry(entry_at).store(0, Ordering::Relaxed);
        if refs > 1 {
            self.disarm();
            return false;
        }
        // Condemn first: from then on the sweep of a dead destroyer finds it by its holder, whatever the undo writes back.
        let condemned = now.is_live() && head.condemn(now, token::current_slot());
        points::point("registry.condemned");
        self.disarm();
        condemned
    }

    /// Destroys an object whose last hold was dropped: its kind's own teardown, then its block.
    pub(crate) fn destroy(&self, block: BlockRef) {
        points::point("object.condemned");
        if let Some(ops) = self.kind_of(block).and_then(sweep::ops_of) {
            (ops.destroy)(self, block);
        }
        self.free(block);
    }

    /// Adds a hold that belongs to the block `owner` (a message on its way), noted `at` bytes from its start.
    ///
    /// # Errors
    ///
    /// [`StaleHandle`] if the object is gone.
    ///
    /// # Panics
    ///
    /// If the entry lies outside `owner` or is not a multiple of 8.
    pub fn attach(&self, owner: BlockRef, at: usize, object: BlockRef) -> Result<(), StaleHandle> {
        self.check_entry(owner, at);
        self.entry(owner.offset() + at).store(0, Ordering::Relaxed);
        self.add_entry(owner.offset() + at, object)
    }

    /// Gives back the hold noted `at` bytes from the start of the block `owner`.
    ///
    /// # Panics
    ///
    /// If the entry lies outside `owner` or is not a multiple of 8.
    pub fn detach(&self, owner: BlockRef, at: usize) {
        self.check_entry(owner, at);
        let bits = self.entry(owner.offset() + at).load(Ordering::Relaxed);
        if self.drop_entry(owner.offset() + at)
            && let Some(object) = BlockRef::from_bits(bits)
        {
            self.destroy(object);
        }
    }

    fn check_entry(&self, owner: BlockRef, at: usize) {
        assert!(
            at.is_multiple_of(8) && at + 8 <= self.capacity_of(owner),
            "entry {at} is not inside its block"
        );
    }

    /// Gives back everything noted in the hold tables of a slot, and the tables. Used on slots without a process.
    pub(crate) fn drop_table_of(&self, slot: u16) {
        let mut next = BlockRef::from_bits(self.slot(slot).holds.load(Ordering::Acquire));
        while let Some(block) = next {
            let Ok(table) = self.view::<Table>(block) else {
                break;
            };
            for (index, entry) in table.entries.iter().enumerate() {
                let object = BlockRef::from_bits(entry.load(Ordering::Relaxed));
                if let Some(object) = object
                    && self.drop_entry(self.table_entry(block, index))
                {
                    self.destroy(object);
                }
            }
            next = BlockRef::from_bits(table.next.load(Ordering::Relaxed));
            // The chain first: a sweeper that dies here leaves a shorter chain and a block the next one frees by holder.
            self.slot(slot)
                .holds
                .store(next.map_or(0, BlockRef::to_bits), Ordering::Release);
            self.free(block);
        }
    }

    pub(crate) fn registry_owner_died(&self, slot: u16) {
        let registry = &self.header().registry;
        registry.owner_died(slot);
        // Taking it undoes what a dead owner left. Always: somebody else may have found the owner dead and be about to undo
        // it, which must have happened before anything of the dead one is freed.
        self.lock_registry();
        registry.unlock();
    }

    /// Counts the holds on an object, 0 if it is gone.
    #[must_use]
    pub fn holds_on(&self, block: BlockRef) -> u32 {
        self.living(block)
            .map_or(0, |(head, _)| head.refs.load(Ordering::Relaxed))
    }
}

/// Why [`Arena::hold`] failed.
#[derive(Debug, thiserror::Error)]
pub enum HoldOrAlloc {
    /// The object is gone.
    #[error(transparent)]
    Stale(#[from] StaleHandle),
    /// No memory to note the hold.
    #[error(transparent)]
    Alloc(#[from] AllocError),
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    use crate::session::session;

    const ROUNDS: usize = if cfg!(miri) { 5 } else { 500 };
    // More than one table has.
    const MANY: usize = if cfg!(miri) { 20 } else { TABLE_ENTRIES + 10 };

    fn object() -> Held {
        let arena = session().unwrap();
        let block = arena.alloc(100, Kind::Bytes).unwrap();
        arena.publish(block).unwrap()
    }

    #[test]
    fn an_object_lives_as_long_as_its_last_hold() {
        let held = object();
        let (arena, block) = (held.arena(), held.block());
        let others: Vec<_> = (0..MANY).map(|_| held.clone()).collect();
        assert_eq!(arena.holds_on(block), MANY as u32 + 1);
        drop(held);
        drop(others);
        assert_eq!(arena.kind_of(block), None);
        assert!(matches!(arena.hold(block), Err(HoldOrAlloc::Stale(_))));
    }

    #[test]
    fn a_hold_travels_in_a_block() {
        let held = object();
        let (arena, object) = (held.arena(), held.block());
        let carrier = arena.alloc(64, Kind::Bytes).unwrap();
        arena.attach(carrier, 8, object).unwrap();
        drop(held);
        assert_eq!(arena.holds_on(object), 1);
        let received = arena.hold(object).unwrap();
        arena.detach(carrier, 8);
        assert_eq!(arena.holds_on(object), 1);
        drop(received);
        assert_eq!(arena.kind_of(object), None);
        arena.free(carrier);
    }

    #[test]
    fn threads_count_their_holds_together() {
        let _dog = phalanx_testkit::watchdog(Duration::from_secs(100));
        let held = object();
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    for _ in 0..ROUNDS {
                        drop(held.clone());
                    }
                });
            }
        });
        assert_eq!(held.arena().holds_on(held.block()), 1);
    }
}
