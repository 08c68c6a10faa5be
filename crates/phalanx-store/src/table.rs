//! One block with everything a store has in it.
//!
//! ```text
//! | head | entries: hash, place | index: entry + 1, or 0 | log: records |
//! record: | key length: u32 | value length: u32, high bit: aside | key | value, or the block it is in |
//! ```
//!
//! | to | do first | then, and this is the commit |
//! |---|---|---|
//! | change an entry | append the record to the log | store its place in the entry |
//! | add an entry | append the record, write the entry behind the last | store the count |
//! | remove any entry | | store 0 as its place |
//! | remove the first or last | | store the first, or the count |
//!
//! The index, `live` and `waste` are hints: they are built anew after a death.
#![expect(
    unsafe_code,
    reason = "entries and records are words and bytes at offsets of a block"
)]

use phalanx_channel::Message;
use phalanx_prim::{AtomicU32, AtomicU64, Ordering};
use phalanx_shm::{AllocError, Arena, BlockRef, Kind, Placed};

/// Longer values get a block of their own, so that the log does not fill with them.
pub(crate) const INLINE_MOST: usize = 4096;
const ASIDE: u32 = 1 << 31;
const RECORD_HEAD: usize = 8;

/// What a table begins with.
#[derive(Debug)]
#[repr(C, align(64))]
pub(crate) struct TableHead {
    /// Room: entries, places in the index (a power of two, or 0 without an index), bytes of the log. Never changed.
    entries: AtomicU32,
    slots: AtomicU32,
    log: AtomicU64,
    /// Entries before this one are gone.
    first: AtomicU32,
    /// Entries in use, gone ones included.
    count: AtomicU32,
    /// Bytes of the log in use.
    used: AtomicU64,
    /// Hints: entries that are not gone, and where the last of them may be.
    live: AtomicU32,
    last: AtomicU32,
    /// A hint: bytes of records that are not gone.
    kept: AtomicU64,
    /// Whether any value was ever put aside here.
    aside: AtomicU32,
}

// SAFETY: repr(C), made of atomics alone; the only type placed under its kind.
unsafe impl Placed for TableHead {
    const KIND: Kind = Kind::Table;
}

// SAFETY: repr(C), atomics and a raw lock; the only type placed under its kind.
unsafe impl Placed for crate::store::StoreState {
    const KIND: Kind = Kind::Store;
}

/// What to write as a value.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Written<'a> {
    Inline(&'a [u8]),
    Aside(BlockRef),
}

/// A table of the arena, under its store's lock.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Table<'a> {
    arena: &'a Arena,
    pub(crate) block: BlockRef,
    head: &'a TableHead,
    entries_at: usize,
    entries: usize,
    index_at: usize,
    slots: usize,
    log_at: usize,
    log: usize,
}

impl<'a> Table<'a> {
    /// Makes an empty one of the calling process.
    pub(crate) fn new(
        arena: &'a Arena,
        entries: usize,
        indexed: bool,
        log: usize,
    ) -> Result<Self, AllocError> {
        let too_many = || AllocError::Exhausted {
            requested: entries,
            reserved: arena.region().len(),
        };
        let entries = u32::try_from(entries.max(8)).map_err(|_| too_many())?;
        // At most half full, so that every search meets an empty place.
        let slots = if indexed {
            entries
                .checked_mul(2)
                .and_then(u32::checked_next_power_of_two)
                .ok_or_else(too_many)?
        } else {
            0
        };
        let log = log.next_multiple_of(8);
        let behind = entries as usize * 16 + slots as usize * 4 + log;
        let head = TableHead {
            entries: AtomicU32::new(entries),
            slots: AtomicU32::new(slots),
            log: AtomicU64::new(log as u64),
            first: AtomicU32::new(0),
            count: AtomicU32::new(0),
            used: AtomicU64::new(0),
            live: AtomicU32::new(0),
            last: AtomicU32::new(0),
            kept: AtomicU64::new(0),
            aside: AtomicU32::new(0),
        };
        let block = arena.emplace_with(head, behind)?;
        Ok(Self::view(arena, block))
    }

    /// Looks at the table in `block`.
    pub(crate) fn view(arena: &'a Arena, block: BlockRef) -> Self {
        let head = arena.view_held::<TableHead>(block);
        // Whatever the words say, what follows lies in the block.
        let room = arena
            .capacity_of(block)
            .saturating_sub(size_of::<TableHead>());
        let entries = (head.entries.load(Ordering::Relaxed) as usize).min(room / 16);
        let slots = (head.slots.load(Ordering::Relaxed) as usize).min((room - entries * 16) / 4);
        let log = (head.log.load(Ordering::Relaxed) as usize).min(room - entries * 16 - slots * 4);
        let entries_at = block.offset() + size_of::<TableHead>();
        let index_at = entries_at + entries * 16;
        Self {
            arena,
            block,
            head,
            entries_at,
            entries,
            index_at,
            slots,
            log_at: index_at + slots * 4,
            log,
        }
    }

    fn hash_word(&self, entry: usize) -> &'a AtomicU64 {
        debug_assert!(entry < self.entries);
        // SAFETY: an atomic at an aligned offset inside the table (entries are cut to the block); any bytes are valid.
        unsafe { self.arena.region().get(self.entries_at + entry * 16) }
    }

    fn place_word(&self, entry: usize) -> &'a AtomicU64 {
        debug_assert!(entry < self.entries);
        // SAFETY: as above.
        unsafe { self.arena.region().get(self.entries_at + entry * 16 + 8) }
    }

    fn slot_word(&self, slot: usize) -> &'a AtomicU32 {
        debug_assert!(slot < self.slots);
        // SAFETY: as above.
        unsafe { self.arena.region().get(self.index_at + slot * 4) }
    }

    /// Returns the bytes of the log from `at`, none that lie outside.
    fn log_bytes(&self, at: usize, len: usize) -> &'a [u8] {
        let at = at.min(self.log);
        let len = len.min(self.log - at);
        let start = self.arena.region().at(self.log_at + at, len);
        // SAFETY: inside the table (cut above); a record's bytes do not change under the lock, which the caller holds.
        unsafe { std::slice::from_raw_parts(start.as_ptr(), len) }
    }

    fn write_log(&self, at: usize, bytes: &[u8]) {
        assert!(at <= self.log && bytes.len() <= self.log - at);
        let to = self.arena.region().at(self.log_at + at, bytes.len());
        // SAFETY: inside the log (checked above), behind its used part, which nobody reads; the caller's alone by the lock.
        unsafe { to.as_ptr().copy_from(bytes.as_ptr(), bytes.len()) };
    }

    pub(crate) fn first(&self) -> usize {
        (self.head.first.load(Ordering::Relaxed) as usize).min(self.count())
    }

    pub(crate) fn count(&self) -> usize {
        (self.head.count.load(Ordering::Acquire) as usize).min(self.entries)
    }

    pub(crate) fn live(&self) -> usize {
        self.head.live.load(Ordering::Relaxed) as usize
    }

    /// Bytes that its live records take.
    pub(crate) fn kept(&self) -> usize {
        self.head.kept.load(Ordering::Relaxed) as usize
    }

    pub(crate) fn is_indexed(&self) -> bool {
        self.slots != 0
    }

    /// Tells whether an entry is there and not gone.
    pub(crate) fn is_live(&self, entry: usize) -> bool {
        entry >= self.first()
            && entry < self.count()
            && self.place_word(entry).load(Ordering::Acquire) != 0
    }

    pub(crate) fn hash(&self, entry: usize) -> u64 {
        self.hash_word(entry).load(Ordering::Relaxed)
    }

    /// Returns where key and value of an entry lie in the log: start of the key, its length, length of the value.
    fn record(&self, entry: usize) -> Option<(usize, usize, u32)> {
        if !self.is_live(entry) {
            return None;
        }
        let place = self.place_word(entry).load(Ordering::Acquire);
        let at = (place as usize - 1).saturating_mul(8);
        let head = self.log_bytes(at, RECORD_HEAD);
        let (key, value) = head.split_at_checked(4)?;
        let key = u32::from_ne_bytes(key.try_into().ok()?) as usize;
        let value = u32::from_ne_bytes(value.try_into().ok()?);
        Some((at + RECORD_HEAD, key, value))
    }

    pub(crate) fn key(&self, entry: usize) -> &'a [u8] {
        self.record(entry)
            .map_or(&[], |(at, key, _)| self.log_bytes(at, key))
    }

    /// Returns the value of an entry as it is written.
    pub(crate) fn value(&self, entry: usize) -> Written<'a> {
        let Some((at, key, value)) = self.record(entry) else {
            return Written::Inline(&[]);
        };
        if value & ASIDE == 0 {
            return Written::Inline(self.log_bytes(at + key, value as usize));
        }
        let bits = self
            .log_bytes(at + key, 8)
            .try_into()
            .map(u64::from_ne_bytes);
        match bits.ok().and_then(BlockRef::from_bits) {
            Some(block) => Written::Aside(block),
            None => Written::Inline(&[]),
        }
    }

    /// Returns the block that the value of an entry is in, if it is aside and the entry is live.
    pub(crate) fn aside(&self, entry: usize) -> Option<BlockRef> {
        match self.value(entry) {
            Written::Aside(block) => Some(block),
            Written::Inline(_) => None,
        }
    }

    /// Returns every block that values are in.
    pub(crate) fn all_aside(&self) -> Vec<BlockRef> {
        if self.head.aside.load(Ordering::Relaxed) == 0 {
            return Vec::new();
        }
        (self.first()..self.count())
            .filter_map(|entry| self.aside(entry))
            .collect()
    }

    fn size_of(key: &[u8], value: Written<'_>) -> usize {
        let value = match value {
            Written::Inline(bytes) => bytes.len(),
            Written::Aside(_) => 8,
        };
        (RECORD_HEAD + key.len() + value).next_multiple_of(8)
    }

    fn size_at(&self, entry: usize) -> usize {
        Self::size_of(self.key(entry), self.value(entry))
    }

    /// Bytes of log that such a record needs.
    pub(crate) fn needs(key: &[u8], value: Written<'_>) -> usize {
        Self::size_of(key, value)
    }

    /// Writes a record, which no entry names yet, and returns its place; `None` if there is no room.
    fn append(&self, key: &[u8], value: Written<'_>) -> Option<u64> {
        let used = self.head.used.load(Ordering::Relaxed) as usize;
        let size = Self::size_of(key, value);
        let end = used.checked_add(size).filter(|end| *end <= self.log)?;
        let key_len = u32::try_from(key.len()).ok()?;
        let value_len = match value {
            Written::Inline(bytes) => u32::try_from(bytes.len()).ok().filter(|len| *len < ASIDE)?,
            Written::Aside(_) => ASIDE,
        };
        let mut head = [0; RECORD_HEAD];
        head[..4].copy_from_slice(&key_len.to_ne_bytes());
        head[4..].copy_from_slice(&value_len.to_ne_bytes());
        self.write_log(used, &head);
        self.write_log(used + RECORD_HEAD, key);
        match value {
            Written::Inline(bytes) => self.write_log(used + RECORD_HEAD + key.len(), bytes),
            Written::Aside(block) => {
                self.head.aside.store(1, Ordering::Relaxed);
                self.write_log(
                    used + RECORD_HEAD + key.len(),
                    &block.to_bits().to_ne_bytes(),
                );
            }
        }
        self.head.used.store(end as u64, Ordering::Relaxed);
        Some(used as u64 / 8 + 1)
    }

    fn keep(&self, more: usize, less: usize) {
        let kept = (self.kept() + more).saturating_sub(less);
        self.head.kept.store(kept as u64, Ordering::Relaxed);
    }

    /// Changes a live entry. The place returned commits it, by [`commit_change`](Self::commit_change); `None` if there is no
    /// room.
    pub(crate) fn prepare(&self, key: &[u8], value: Written<'_>) -> Option<u64> {
        self.append(key, value)
    }

    pub(crate) fn commit_change(&self, entry: usize, place: u64) {
        let before = self.size_at(entry);
        // Release: the record is complete.
        self.place_word(entry).store(place, Ordering::Release);
        self.keep(self.size_at(entry), before);
    }

    /// Tells whether one more entry fits.
    pub(crate) fn has_entry(&self) -> bool {
        self.count() < self.entries
    }

    /// Writes the entry behind the last, which does not count yet.
    pub(crate) fn write_entry(&self, hash: u64, place: u64) {
        let entry = self.count();
        self.hash_word(entry).store(hash, Ordering::Relaxed);
        self.place_word(entry).store(place, Ordering::Relaxed);
    }

    /// Counts the entry behind the last.
    pub(crate) fn commit_entry(&self) {
        let entry = self.count();
        // Release: entry and record are complete.
        self.head.count.store(entry as u32 + 1, Ordering::Release);
        self.head
            .live
            .store(self.live() as u32 + 1, Ordering::Relaxed);
        self.head.last.store(entry as u32 + 1, Ordering::Relaxed);
        self.keep(self.size_at(entry), 0);
        self.enter_index(entry);
    }

    /// Tells whether there is a free entry before the first.
    pub(crate) fn has_entry_before(&self) -> bool {
        self.first() > 0
    }

    /// Writes the entry before the first, which does not count yet.
    pub(crate) fn write_entry_before(&self, place: u64) {
        self.place_word(self.first() - 1)
            .store(place, Ordering::Relaxed);
    }

    /// Counts the entry before the first.
    pub(crate) fn commit_entry_before(&self) {
        let entry = self.first() - 1;
        self.head.first.store(entry as u32, Ordering::Release);
        self.head
            .live
            .store(self.live() as u32 + 1, Ordering::Relaxed);
        self.keep(self.size_at(entry), 0);
    }

    /// Removes a live entry.
    pub(crate) fn commit_removal(&self, entry: usize) {
        let size = self.size_at(entry);
        if self.slots == 0 && entry == self.first() {
            self.head.first.store(entry as u32 + 1, Ordering::Release);
        } else if self.slots == 0 && entry + 1 == self.count() {
            self.head.count.store(entry as u32, Ordering::Release);
        } else {
            self.place_word(entry).store(0, Ordering::Release);
        }
        self.head
            .live
            .store((self.live() as u32).saturating_sub(1), Ordering::Relaxed);
        self.keep(0, size);
    }

    fn enter_index(&self, entry: usize) {
        if self.slots == 0 {
            return;
        }
        let mask = self.slots - 1;
        let mut slot = self.hash(entry) as usize & mask;
        for _ in 0..self.slots {
            let word = self.slot_word(slot);
            if word.load(Ordering::Relaxed) == 0 {
                word.store(entry as u32 + 1, Ordering::Relaxed);
                return;
            }
            slot = (slot + 1) & mask;
        }
    }

    /// Returns the live entry of a key.
    pub(crate) fn find(&self, hash: u64, key: &[u8]) -> Option<usize> {
        let mask = self.slots.checked_sub(1)?;
        let mut slot = hash as usize & mask;
        for _ in 0..self.slots {
            let entry = self.slot_word(slot).load(Ordering::Relaxed) as usize;
            let entry = entry.checked_sub(1)?;
            if entry < self.entries
                && self.hash(entry) == hash
                && self.is_live(entry)
                && self.key(entry) == key
            {
                return Some(entry);
            }
            slot = (slot + 1) & mask;
        }
        None
    }

    /// Returns the first live entry from `entry` on.
    pub(crate) fn next_live(&self, entry: usize) -> Option<usize> {
        (entry.max(self.first())..self.count()).find(|entry| self.is_live(*entry))
    }

    /// Returns the last live entry.
    pub(crate) fn last_live(&self) -> Option<usize> {
        let end = if self.slots == 0 {
            self.count()
        } else {
            self.count()
                .min(self.head.last.load(Ordering::Relaxed) as usize)
        };
        let found = (self.first()..end).rev().find(|entry| self.is_live(*entry));
        self.head
            .last
            .store(found.map_or(0, |entry| entry as u32 + 1), Ordering::Relaxed);
        found
    }

    /// Builds the hints anew, after a death.
    pub(crate) fn repair(&self) {
        for slot in 0..self.slots {
            self.slot_word(slot).store(0, Ordering::Relaxed);
        }
        let (mut live, mut kept) = (0, 0);
        for entry in self.first()..self.count() {
            if self.is_live(entry) {
                live += 1;
                kept += self.size_at(entry);
                self.enter_index(entry);
            }
        }
        self.head.live.store(live, Ordering::Relaxed);
        self.head.last.store(self.count() as u32, Ordering::Relaxed);
        self.head.kept.store(kept as u64, Ordering::Relaxed);
    }

    /// Frees the table and every value aside. May be done twice.
    pub(crate) fn discard(arena: &Arena, block: BlockRef) {
        if arena.kind_of(block) == Some(Kind::Table) {
            for aside in Table::view(arena, block).all_aside() {
                Message::discard(arena, aside);
            }
        }
        arena.free(block);
    }
}
