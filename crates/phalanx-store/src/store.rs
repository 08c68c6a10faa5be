//! The store: one lock, one table, one note.
//!
//! | a death | leaves | recovery |
//! |---|---|---|
//! | before a commit | the old state; a new block, still the dead process's | the sweep frees the block |
//! | after it, before the blocks changed hands | the new state, and the note | the new block becomes the store's, the old one is freed |
//! | while a table is replaced | the old or the new table, and the note | as above, for the tables and the values aside in them |
//!
//! Recovery is done by the next owner of the lock or by the sweep, whoever comes first, and may be done twice.

use std::collections::HashSet;

use phalanx_channel::{Loan, Message};
use phalanx_prim::{AtomicU32, AtomicU64, Ordering, points};
use phalanx_shm::{
    Acquired, AllocError, Arena, BlockRef, Held, HoldOrAlloc, Kind, KindOps, OpenError, Patience,
    RawLock, Shared, TRANSIT, WaitError, current_slot, register_kind, session,
};

use crate::table::{INLINE_MOST, Table, Written};

/// A store as it lies in the arena.
#[derive(Debug)]
#[repr(C)]
pub struct StoreState {
    lock: RawLock<Shared>,
    indexed: AtomicU32,
    table: AtomicU64,
    /// One more with each change: whoever looked without the lock sees whether that still holds.
    version: AtomicU64,
    /// The note: the entry that changes, the block it gets and the one it loses.
    note_entry: AtomicU64,
    note_new: AtomicU64,
    note_old: AtomicU64,
    /// The note of a replacement: the next table, and the one before it.
    next_table: AtomicU64,
    last_table: AtomicU64,
}

/// Why a store could not be changed or made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// No shared memory is left.
    #[error(transparent)]
    Alloc(#[from] AllocError),
    /// There is no arena and none can be made.
    #[error(transparent)]
    Session(#[from] OpenError),
    /// A handle in a value names an object that is gone, or its hold could not be noted.
    #[error(transparent)]
    Hold(#[from] HoldOrAlloc),
}

/// A value out of a store: its bytes, and holds on the objects that handles among them name.
#[derive(Debug, Default)]
pub struct Value {
    /// What was put in.
    pub bytes: Vec<u8>,
    /// Keep the objects until the bytes were read.
    pub holds: Vec<Held>,
}

/// One record of a [rewrite](Open::rewrite).
#[derive(Clone, Copy, Debug)]
pub enum Item<'a> {
    /// One that is there.
    Keep(usize),
    /// A new one.
    New {
        /// Hash of the key; any number in a list.
        hash: u64,
        /// The key; empty in a list.
        key: &'a [u8],
        /// The value.
        bytes: &'a [u8],
        /// Objects that live as long as the value.
        holds: &'a [Held],
    },
}

/// A handle on a map or list that processes share. Clones and copies in other processes name the same one; it is freed with
/// its last holder, however that ends.
#[derive(Clone, Debug)]
pub struct Store {
    held: Held,
}

phalanx_shm::inventory::submit! {
    phalanx_shm::Kinds(install)
}

/// Tells the sweep what to do with stores.
fn install() {
    static ONCE: std::sync::Once = std::sync::Once::new();
    ONCE.call_once(|| {
        phalanx_channel::install();
        register_kind(Kind::Store, KindOps { recover, destroy });
    });
}

fn recover(arena: &Arena, block: BlockRef, dead: u16, wake_all: bool) {
    let Ok(state) = arena.view::<StoreState>(block) else {
        return;
    };
    // Also when another heir is at it: what the note names must have changed hands before the dead one's blocks are freed.
    if state.lock.is_held_by(dead) || (Core { arena, state }).is_noted() {
        Core { arena, state }.lock();
        state.lock.unlock();
    }
    if wake_all {
        state.lock.wake_all();
    }
}

fn destroy(arena: &Arena, block: BlockRef) {
    let state = arena.view_held::<StoreState>(block);
    for table in [&state.table, &state.next_table, &state.last_table] {
        if let Some(table) = BlockRef::from_bits(table.load(Ordering::Acquire)) {
            Table::discard(arena, table);
        }
    }
}

/// The store without the handle: what recovery works on.
#[derive(Clone, Copy)]
struct Core<'a> {
    arena: &'a Arena,
    state: &'a StoreState,
}

impl<'a> Core<'a> {
    fn table(&self) -> Table<'a> {
        let bits = self.state.table.load(Ordering::Acquire);
        let block = BlockRef::from_bits(bits).expect("a store always has a table");
        Table::view(self.arena, block)
    }

    fn is_noted(&self) -> bool {
        [
            &self.state.note_new,
            &self.state.note_old,
            &self.state.next_table,
        ]
        .iter()
        .any(|note| note.load(Ordering::Acquire) != 0)
    }

    fn lock(&self) {
        if self.state.lock.lock_forever() == Acquired::OwnerDied {
            self.repair();
        }
    }

    #[cold]
    fn repair(&self) {
        if self.state.next_table.load(Ordering::Acquire) != 0 {
            let next = self.state.next_table.load(Ordering::Relaxed);
            if self.state.table.load(Ordering::Acquire) == next {
                self.settle_tables();
            } else {
                self.state.next_table.store(0, Ordering::Release);
                self.state.last_table.store(0, Ordering::Release);
            }
        }
        self.settle_note();
        self.table().repair();
        self.state.version.fetch_add(1, Ordering::Relaxed);
    }

    fn note(&self, entry: usize, new: Option<BlockRef>, old: Option<BlockRef>) -> bool {
        if new.is_none() && old.is_none() {
            return false;
        }
        let bits = |block: Option<BlockRef>| block.map_or(0, BlockRef::to_bits);
        self.state.note_entry.store(entry as u64, Ordering::Relaxed);
        self.state.note_old.store(bits(old), Ordering::Release);
        self.state.note_new.store(bits(new), Ordering::Release);
        points::point("store.noted");
        true
    }

    /// Has the blocks of the note change hands if the entry says that the change was committed, and ends the note.
    fn settle_note(&self) {
        let entry = self.state.note_entry.load(Ordering::Relaxed) as usize;
        let now = self.table().aside(entry);
        if let Some(new) = BlockRef::from_bits(self.state.note_new.load(Ordering::Acquire))
            && now == Some(new)
        {
            self.arena.seize(new, TRANSIT);
            points::point("store.handed-over");
        }
        self.state.note_new.store(0, Ordering::Release);
        if let Some(old) = BlockRef::from_bits(self.state.note_old.load(Ordering::Acquire))
            && now != Some(old)
        {
            Message::discard(self.arena, old);
            points::point("store.discarded");
        }
        self.state.note_old.store(0, Ordering::Release);
    }

    /// Puts `next` in the place of the table.
    fn replace_table(&self, next: &Table<'_>) {
        let last = self.state.table.load(Ordering::Relaxed);
        self.state.last_table.store(last, Ordering::Relaxed);
        self.state
            .next_table
            .store(next.block.to_bits(), Ordering::Release);
        points::point("store.replace.noted");
        // Release: the table is complete.
        self.state
            .table
            .store(next.block.to_bits(), Ordering::Release);
        points::point("store.replace.committed");
        self.settle_tables();
    }

    /// After a replacement was committed: what is in the new table is the store's, what is in the old one only is freed.
    fn settle_tables(&self) {
        let now = self.table();
        self.arena.seize(now.block, TRANSIT);
        let kept = now.all_aside();
        for block in &kept {
            self.arena.seize(*block, TRANSIT);
        }
        points::point("store.replace.handed-over");
        let last = self.state.last_table.load(Ordering::Relaxed);
        if let Some(last) = BlockRef::from_bits(last)
            && self.arena.kind_of(last) == Some(Kind::Table)
        {
            let kept: HashSet<BlockRef> = kept.into_iter().collect();
            for block in Table::view(self.arena, last).all_aside() {
                if !kept.contains(&block) {
                    Message::discard(self.arena, block);
                }
            }
            self.arena.free(last);
        }
        points::point("store.replace.freed");
        self.state.next_table.store(0, Ordering::Release);
        self.state.last_table.store(0, Ordering::Release);
    }
}

/// Room for a table that holds `live` records of `kept` bytes, and some more.
fn roomy(live: usize, kept: usize) -> (usize, usize) {
    (live + live / 2 + 8, kept * 2 + 1024)
}

impl Store {
    /// What its block says it is.
    pub const KIND: Kind = Kind::Store;

    /// Makes an empty one; with an index if records shall be [found](Open::find) by key.
    ///
    /// # Errors
    ///
    /// [`StoreError`] when shared memory is short or there is no arena.
    pub fn new(indexed: bool) -> Result<Self, StoreError> {
        install();
        let arena = session()?;
        let (entries, log) = roomy(0, 0);
        let table = Table::new(arena, entries, indexed, log)?;
        let state = StoreState {
            lock: RawLock::new(),
            indexed: AtomicU32::new(u32::from(indexed)),
            table: AtomicU64::new(table.block.to_bits()),
            version: AtomicU64::new(0),
            note_entry: AtomicU64::new(0),
            note_new: AtomicU64::new(0),
            note_old: AtomicU64::new(0),
            next_table: AtomicU64::new(0),
            last_table: AtomicU64::new(0),
        };
        let made = arena.emplace(state).and_then(|block| arena.publish(block));
        match made {
            Ok(held) => {
                arena.rehold(table.block, current_slot(), TRANSIT);
                Ok(Self { held })
            }
            Err(error) => {
                arena.free(table.block);
                Err(error.into())
            }
        }
    }

    /// Makes a handle of a hold on an object of this kind.
    #[must_use]
    pub fn from_held(held: Held) -> Self {
        install();
        Self { held }
    }

    /// Returns the hold.
    #[must_use]
    pub fn held(&self) -> &Held {
        &self.held
    }

    fn core(&self) -> Core<'static> {
        Core {
            arena: self.held.arena(),
            state: self.held.view::<StoreState>(),
        }
    }

    fn opened(&self, acquired: Acquired) -> Open<'_> {
        let core = self.core();
        if acquired == Acquired::OwnerDied {
            core.repair();
        }
        Open {
            core,
            table: core.table(),
            of: self,
        }
    }

    /// Waits for the lock. A death inside leaves nothing half done, so nobody is told of it.
    ///
    /// # Errors
    ///
    /// [`WaitError`] as `patience` says.
    pub fn lock(&self, patience: Patience) -> Result<Open<'_>, WaitError> {
        let acquired = self.core().state.lock.lock(patience)?;
        Ok(self.opened(acquired))
    }

    /// Takes the lock if it is free now.
    #[inline]
    #[must_use]
    pub fn try_lock(&self) -> Option<Open<'_>> {
        let acquired = self.core().state.lock.try_lock()?;
        Some(self.opened(acquired))
    }

    /// Returns the version without the lock: unchanged, nobody has changed anything.
    #[must_use]
    pub fn version(&self) -> u64 {
        self.core().state.version.load(Ordering::Acquire)
    }
}

/// A store whose lock the caller holds, until this is dropped. Entries are numbers that hold good until the next
/// change; those of live records ascend in the order of their insertion.
#[must_use = "the lock is free again as soon as this is dropped"]
#[derive(Debug)]
pub struct Open<'a> {
    core: Core<'static>,
    table: Table<'static>,
    of: &'a Store,
}

impl std::fmt::Debug for Core<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.state.fmt(f)
    }
}

impl Drop for Open<'_> {
    fn drop(&mut self) {
        self.core.state.lock.unlock();
    }
}

impl Open<'_> {
    /// Returns the number of records.
    #[must_use]
    pub fn len(&self) -> usize {
        self.table.live()
    }

    /// Returns `true` if there is no record.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Returns the version, which changes with every change.
    #[must_use]
    pub fn version(&self) -> u64 {
        self.core.state.version.load(Ordering::Relaxed)
    }

    /// Returns the entry of a key; `None` always without an index.
    #[must_use]
    pub fn find(&self, hash: u64, key: &[u8]) -> Option<usize> {
        self.table.find(hash, key)
    }

    /// Returns the first entry from `entry` on, in the order of insertion.
    #[must_use]
    pub fn next(&self, entry: usize) -> Option<usize> {
        self.table.next_live(entry)
    }

    /// Returns the entry that was added last.
    #[must_use]
    pub fn last(&self) -> Option<usize> {
        self.table.last_live()
    }

    /// Returns all entries.
    #[must_use]
    pub fn entries(&self) -> Vec<usize> {
        let (from, to) = (self.table.first(), self.table.count());
        (from..to)
            .filter(|entry| self.table.is_live(*entry))
            .collect()
    }

    /// Returns the entry at this place of the order, without looking at those before it where none of them is gone (as in
    /// a list).
    #[must_use]
    pub fn nth(&self, place: usize) -> Option<usize> {
        if self.table.count() - self.table.first() == self.len() {
            let entry = self.table.first() + place;
            return self.table.is_live(entry).then_some(entry);
        }
        self.entries().get(place).copied()
    }

    /// Returns the hash of an entry's key.
    #[must_use]
    pub fn hash(&self, entry: usize) -> u64 {
        self.table.hash(entry)
    }

    /// Returns the key of an entry.
    #[must_use]
    pub fn key(&self, entry: usize) -> &[u8] {
        self.table.key(entry)
    }

    /// Shows the bytes of an entry's value to `read`, if no handle is among them.
    #[inline]
    pub fn read<R>(&self, entry: usize, read: impl FnOnce(&[u8]) -> R) -> Option<R> {
        match self.table.value(entry) {
            Written::Inline(bytes) => Some(read(bytes)),
            Written::Aside(_) => None,
        }
    }

    /// Returns a copy of an entry's value, and holds on what it names.
    ///
    /// # Errors
    ///
    /// [`HoldOrAlloc`] when no hold can be noted.
    pub fn value(&self, entry: usize) -> Result<Value, HoldOrAlloc> {
        match self.table.value(entry) {
            Written::Inline(bytes) => Ok(Value {
                bytes: bytes.to_vec(),
                holds: Vec::new(),
            }),
            Written::Aside(block) => {
                let (bytes, objects) = Message::peek(self.core.arena, block);
                let mut holds = Vec::with_capacity(objects.len());
                for object in objects {
                    holds.push(self.of.held.arena().hold(object)?);
                }
                Ok(Value { bytes, holds })
            }
        }
    }

    fn changed(&self) {
        self.core.state.version.fetch_add(1, Ordering::Release);
    }

    /// Puts a value aside if it must be: it is long or names objects.
    fn written<'b>(&self, bytes: &'b [u8], holds: &[Held]) -> Result<Written<'b>, StoreError> {
        if holds.is_empty() && bytes.len() <= INLINE_MOST {
            return Ok(Written::Inline(bytes));
        }
        let mut loan = Loan::new(self.of.held.arena(), bytes.len(), holds)?;
        loan.copy_from_slice(bytes);
        Ok(Written::Aside(loan.into_block()))
    }

    fn undo(&self, written: Written<'_>) {
        if let Written::Aside(block) = written {
            Message::discard(self.core.arena, block);
        }
    }

    /// Changes the value of an entry, whose key the caller has at hand.
    ///
    /// # Errors
    ///
    /// [`StoreError`] when shared memory is short; nothing has changed then.
    pub fn set(
        &mut self,
        entry: usize,
        key: &[u8],
        bytes: &[u8],
        holds: &[Held],
    ) -> Result<(), StoreError> {
        let written = self.written(bytes, holds)?;
        let (entry, place) = match self.room_for_change(entry, key, written) {
            Ok(found) => found,
            Err(error) => {
                self.undo(written);
                return Err(error);
            }
        };
        let new = match written {
            Written::Aside(block) => Some(block),
            Written::Inline(_) => None,
        };
        let noted = self.core.note(entry, new, self.table.aside(entry));
        self.table.commit_change(entry, place);
        points::point("store.set.committed");
        if noted {
            self.core.settle_note();
        }
        self.changed();
        Ok(())
    }

    fn room_for_change(
        &mut self,
        entry: usize,
        key: &[u8],
        value: Written<'_>,
    ) -> Result<(usize, u64), StoreError> {
        if let Some(place) = self.table.prepare(key, value) {
            return Ok((entry, place));
        }
        let rank = (self.table.first()..entry)
            .filter(|entry| self.table.is_live(*entry))
            .count();
        self.grow(Table::needs(key, value))?;
        let place = self.table.prepare(key, value);
        let place = place.ok_or(self.too_long(key))?;
        Ok((rank, place))
    }

    fn too_long(&self, key: &[u8]) -> AllocError {
        AllocError::Exhausted {
            requested: key.len(),
            reserved: u32::MAX as usize,
        }
    }

    /// Adds a record behind the others. The caller has seen that its key is not there.
    ///
    /// # Errors
    ///
    /// [`StoreError`] when shared memory is short; nothing has changed then.
    pub fn push(
        &mut self,
        hash: u64,
        key: &[u8],
        bytes: &[u8],
        holds: &[Held],
    ) -> Result<(), StoreError> {
        let written = self.written(bytes, holds)?;
        let place = match self.room_for_entry(key, written) {
            Ok(place) => place,
            Err(error) => {
                self.undo(written);
                return Err(error);
            }
        };
        self.table.write_entry(hash, place);
        let new = match written {
            Written::Aside(block) => Some(block),
            Written::Inline(_) => None,
        };
        let noted = self.core.note(self.table.count(), new, None);
        points::point("store.push.written");
        self.table.commit_entry();
        points::point("store.push.committed");
        if noted {
            self.core.settle_note();
        }
        self.changed();
        Ok(())
    }

    fn room_for_entry(&mut self, key: &[u8], value: Written<'_>) -> Result<u64, StoreError> {
        if self.table.has_entry()
            && let Some(place) = self.table.prepare(key, value)
        {
            return Ok(place);
        }
        self.grow(Table::needs(key, value))?;
        let place = self.table.prepare(key, value);
        Ok(place.ok_or(self.too_long(key))?)
    }

    /// Adds a record before the others, in a store without an index.
    ///
    /// # Errors
    ///
    /// [`StoreError`] when shared memory is short; nothing has changed then.
    pub fn push_front(&mut self, bytes: &[u8], holds: &[Held]) -> Result<(), StoreError> {
        if !self.table.has_entry_before() {
            let mut items = vec![Item::New {
                hash: 0,
                key: &[],
                bytes,
                holds,
            }];
            items.extend(self.entries().into_iter().map(Item::Keep));
            return self.rewrite(&items);
        }
        let written = self.written(bytes, holds)?;
        let place = match self.table.prepare(&[], written) {
            Some(place) => place,
            None => {
                self.undo(written);
                let mut items = vec![Item::New {
                    hash: 0,
                    key: &[],
                    bytes,
                    holds,
                }];
                items.extend(self.entries().into_iter().map(Item::Keep));
                return self.rewrite(&items);
            }
        };
        self.table.write_entry_before(place);
        let new = match written {
            Written::Aside(block) => Some(block),
            Written::Inline(_) => None,
        };
        let noted = self.core.note(self.table.first() - 1, new, None);
        self.table.commit_entry_before();
        if noted {
            self.core.settle_note();
        }
        self.changed();
        Ok(())
    }

    /// Removes an entry. In a store without an index only the first or the last; others go by a [rewrite](Self::rewrite).
    pub fn remove(&mut self, entry: usize) {
        let noted = self.core.note(entry, None, self.table.aside(entry));
        self.table.commit_removal(entry);
        points::point("store.remove.committed");
        if noted {
            self.core.settle_note();
        }
        self.changed();
    }

    /// Moves what is live into a larger table.
    fn grow(&mut self, more: usize) -> Result<(), StoreError> {
        let items: Vec<Item<'_>> = self.entries().into_iter().map(Item::Keep).collect();
        let next = self.build(&items, more)?;
        self.core.replace_table(&next);
        self.table = next;
        Ok(())
    }

    /// Puts these records, in this order, in the place of all. One that is kept may be named once.
    ///
    /// # Errors
    ///
    /// [`StoreError`] when shared memory is short; nothing has changed then.
    pub fn rewrite(&mut self, items: &[Item<'_>]) -> Result<(), StoreError> {
        let next = self.build(items, 0)?;
        points::point("store.rewrite.built");
        self.core.replace_table(&next);
        self.table = next;
        self.changed();
        Ok(())
    }

    fn build(&self, items: &[Item<'_>], more: usize) -> Result<Table<'static>, StoreError> {
        let mut kept = more;
        for item in items {
            kept += match item {
                Item::Keep(entry) => Table::needs(self.table.key(*entry), self.table.value(*entry)),
                Item::New {
                    key, bytes, holds, ..
                } if holds.is_empty() && bytes.len() <= INLINE_MOST => {
                    Table::needs(key, Written::Inline(bytes))
                }
                Item::New { key, .. } => Table::needs(key, Written::Inline(&[0; 8])),
            };
        }
        let (entries, log) = roomy(items.len() + 1, kept);
        let next = Table::new(self.of.held.arena(), entries, self.table.is_indexed(), log)?;
        let mut fresh = Vec::new();
        let mut fill = || -> Result<(), StoreError> {
            for item in items {
                let (hash, key, value) = match item {
                    Item::Keep(entry) => (
                        self.table.hash(*entry),
                        self.table.key(*entry),
                        self.table.value(*entry),
                    ),
                    Item::New {
                        hash,
                        key,
                        bytes,
                        holds,
                    } => {
                        let written = self.written(bytes, holds)?;
                        if let Written::Aside(block) = written {
                            fresh.push(block);
                        }
                        (*hash, *key, written)
                    }
                };
                let place = next.prepare(key, value).ok_or(self.too_long(key))?;
                next.write_entry(hash, place);
                next.commit_entry();
            }
            Ok(())
        };
        match fill() {
            Ok(()) => Ok(next),
            Err(error) => {
                for block in fresh {
                    Message::discard(self.core.arena, block);
                }
                self.core.arena.free(next.block);
                Err(error)
            }
        }
    }
}
