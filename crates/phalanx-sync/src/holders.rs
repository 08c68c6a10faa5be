//! Who holds how much of something counted: a small table, one entry per process.
//!
//! An entry is `slot << 32 | count`. It is read and changed under the lock of the object it belongs to.

use phalanx_prim::{AtomicU64, Ordering};

/// Most processes that a table follows.
pub(crate) const MOST: usize = 120;

#[derive(Debug)]
#[repr(transparent)]
pub(crate) struct Holders([AtomicU64; MOST]);

impl Holders {
    pub(crate) fn new() -> Self {
        Self(std::array::from_fn(|_| AtomicU64::new(0)))
    }

    /// Returns the entry of `slot`, or a free one; `None` when the table is full.
    pub(crate) fn find(&self, slot: u16) -> Option<usize> {
        let mut free = None;
        for (index, entry) in self.0.iter().enumerate() {
            match entry.load(Ordering::Relaxed) {
                0 => free = free.or(Some(index)),
                now if now >> 32 == u64::from(slot) => return Some(index),
                _ => {}
            }
        }
        free
    }

    pub(crate) fn read(&self, index: usize) -> u64 {
        self.0[index % MOST].load(Ordering::Relaxed)
    }

    pub(crate) fn write(&self, index: usize, entry: u64) {
        self.0[index % MOST].store(entry, Ordering::Relaxed);
    }

    /// Returns the entry with `by` added to its count, for `slot`.
    pub(crate) fn changed(&self, index: usize, slot: u16, by: i64) -> u64 {
        let count = ((self.read(index) & 0xffff_ffff) as i64 + by).max(0);
        if count == 0 {
            0
        } else {
            u64::from(slot) << 32 | count as u64
        }
    }

    /// Returns the entry and count of `slot`, if it has any.
    pub(crate) fn of(&self, slot: u16) -> Option<(usize, u32)> {
        self.find(slot).and_then(|index| {
            let entry = self.read(index);
            (entry >> 32 == u64::from(slot)).then_some((index, entry as u32))
        })
    }

    pub(crate) fn clear(&self) {
        for entry in &self.0 {
            entry.store(0, Ordering::Relaxed);
        }
    }
}
