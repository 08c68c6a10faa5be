//! The word above each block: what it is, who holds it, which generation.
//!
//! | bits | meaning |
//! |---|---|
//! | 0–1 | state: 0 free, 1 live, 2 dying |
//! | 2–7 | [`Kind`] |
//! | 8–23 | holder: a process slot, [`TRANSIT`] (in a queue), [`OBJECT`] (counted), [`NOBODY`] |
//! | 24–53 | generation, one more with each freeing |
//!
//! | from | to | by | with |
//! |---|---|---|---|
//! | free | live, holder = me | an allocator | compare-exchange: this *is* the allocation |
//! | live, holder = a | live, holder = b | giver, taker or recovery | compare-exchange with the generation |
//! | live, counted | dying, holder = me | who drops the last count | compare-exchange under the registry lock |
//! | live or dying, mine | free, generation + 1 | the holder, or the sweeper of a dead holder | compare-exchange: this *is* the freeing |
//!
//! Because each change is one compare-exchange, a process that dies leaves every block either free or held by somebody
//! whose name is in the word. Bitmaps and lists elsewhere are hints.

use phalanx_prim::{AtomicU32, AtomicU64, Ordering};

/// The holder of blocks that are in a queue: they belong to the queue, not to a process.
pub const TRANSIT: u16 = 0xffff;
/// The holder of objects that are counted: they live until the last count is dropped.
pub const OBJECT: u16 = 0xfffe;
/// No holder.
pub const NOBODY: u16 = 0;

/// What a block holds. Upper floors give each kind its meaning (see [`crate::KindOps`]).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Kind {
    /// Bytes: a payload on its way, or loaned.
    Bytes = 1,
    /// A table of holds of one process.
    Holds = 2,
    /// Locks and friends (condition, semaphore, event, barrier).
    Lock = 3,
    /// A semaphore.
    Semaphore = 4,
    /// A barrier.
    Barrier = 5,
    /// A condition.
    Condition = 6,
    /// An event.
    Event = 7,
    /// A queue.
    Queue = 8,
    /// A segment of a queue's ring.
    Segment = 9,
    /// A pipe.
    Pipe = 10,
    /// One end of a pipe.
    End = 11,
    /// A value or array that processes share.
    Shared = 12,
    /// A process to start: function, arguments, result.
    Start = 13,
    /// A pool.
    Pool = 14,
    /// A task of a pool.
    Task = 15,
    /// A recursive lock.
    RLock = 16,
    /// Bytes on their way that carry handles.
    Message = 17,
    /// A map or list.
    Store = 18,
    /// What a map or list has in it.
    Table = 19,
    /// Permits that are counted without a lock.
    Permits = 20,
    /// Tasks handed to a crew of workers together.
    Lot = 21,
    /// A crew of workers.
    Crew = 22,
    /// What threads of a process wait for.
    Waits = 23,
    /// What a thread says of itself for a report.
    Text = 24,
    /// A place in the program, which its process has written down once for all reports.
    Place = 25,
    /// In which order threads of the tree take locks.
    Order = 26,
}

impl Kind {
    pub(crate) const COUNT: usize = 27;

    pub(crate) fn from_bits(bits: u64) -> Option<Self> {
        const ALL: [Option<Kind>; Kind::COUNT] = [
            None,
            Some(Kind::Bytes),
            Some(Kind::Holds),
            Some(Kind::Lock),
            Some(Kind::Semaphore),
            Some(Kind::Barrier),
            Some(Kind::Condition),
            Some(Kind::Event),
            Some(Kind::Queue),
            Some(Kind::Segment),
            Some(Kind::Pipe),
            Some(Kind::End),
            Some(Kind::Shared),
            Some(Kind::Start),
            Some(Kind::Pool),
            Some(Kind::Task),
            Some(Kind::RLock),
            Some(Kind::Message),
            Some(Kind::Store),
            Some(Kind::Table),
            Some(Kind::Permits),
            Some(Kind::Lot),
            Some(Kind::Crew),
            Some(Kind::Waits),
            Some(Kind::Text),
            Some(Kind::Place),
            Some(Kind::Order),
        ];
        ALL.get(bits as usize).copied().flatten()
    }
}

const GEN_BITS: u32 = 30;
const GEN_MASK: u64 = (1 << GEN_BITS) - 1;
const INDEX_BITS: u32 = 34;
/// Blocks are aligned to this many bytes.
pub(crate) const GRAIN: usize = 64;

/// Names a block: offset (in grains of 64 bytes) and generation. Means the same in every process of the tree.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct BlockRef(u64);

impl BlockRef {
    pub(crate) fn new(offset: usize, generation: u64) -> Self {
        debug_assert!(offset.is_multiple_of(GRAIN) && offset > 0);
        Self((generation & GEN_MASK) << INDEX_BITS | (offset / GRAIN) as u64)
    }

    /// Returns the reference as a number that is never 0.
    #[must_use]
    pub fn to_bits(self) -> u64 {
        self.0
    }

    /// Returns the reference of a number made by [`to_bits`](Self::to_bits); `None` for 0.
    #[must_use]
    pub fn from_bits(bits: u64) -> Option<Self> {
        (bits != 0).then_some(Self(bits))
    }

    /// Returns the offset of the block's first byte.
    #[must_use]
    pub fn offset(self) -> usize {
        (self.0 & ((1 << INDEX_BITS) - 1)) as usize * GRAIN
    }

    pub(crate) fn generation(self) -> u64 {
        self.0 >> INDEX_BITS
    }
}

impl std::fmt::Debug for BlockRef {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:#x}.{}", self.offset(), self.generation())
    }
}

/// A block's word and its two companions.
#[derive(Debug)]
#[repr(C)]
pub(crate) struct Head {
    word: AtomicU64,
    /// Counts of an object; changed under the registry lock only.
    pub(crate) refs: AtomicU32,
    /// The length that was asked for, in a small block.
    pub(crate) len: AtomicU32,
}

/// What a block's word said at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Snapshot(u64);

const FREE: u64 = 0;
const LIVE: u64 = 1;
const DYING: u64 = 2;

impl Snapshot {
    fn pack(state: u64, kind: u64, holder: u16, generation: u64) -> Self {
        Self(state | kind << 2 | u64::from(holder) << 8 | (generation & GEN_MASK) << 24)
    }

    pub(crate) fn is_free(self) -> bool {
        self.0 & 3 == FREE
    }

    pub(crate) fn is_live(self) -> bool {
        self.0 & 3 == LIVE
    }

    pub(crate) fn is_dying(self) -> bool {
        self.0 & 3 == DYING
    }

    pub(crate) fn kind(self) -> Option<Kind> {
        Kind::from_bits(self.0 >> 2 & 0x3f)
    }

    pub(crate) fn holder(self) -> u16 {
        (self.0 >> 8) as u16
    }

    pub(crate) fn generation(self) -> u64 {
        self.0 >> 24 & GEN_MASK
    }
}

impl Head {
    pub(crate) fn read(&self) -> Snapshot {
        // Acquire: whoever made the block live (or handed it over) wrote its bytes before.
        Snapshot(self.word.load(Ordering::Acquire))
    }

    fn change(&self, from: Snapshot, to: Snapshot) -> bool {
        // AcqRel: takes over the bytes written by the last holder and passes ours on.
        self.word
            .compare_exchange(from.0, to.0, Ordering::AcqRel, Ordering::Relaxed)
            .is_ok()
    }

    /// Allocates: free → live. Returns the generation.
    pub(crate) fn claim(&self, kind: Kind, holder: u16) -> Option<u64> {
        let now = Snapshot(self.word.load(Ordering::Relaxed));
        if !now.is_free() {
            return None;
        }
        let to = Snapshot::pack(LIVE, kind as u64, holder, now.generation());
        self.change(now, to).then_some(now.generation())
    }

    /// Allocates a block of a span that does not count yet, which only the caller can reach, whatever a carver that died
    /// there left in the word. Returns the generation.
    pub(crate) fn claim_uncounted(&self, kind: Kind, holder: u16) -> u64 {
        let generation = self.read().generation();
        let to = Snapshot::pack(LIVE, kind as u64, holder, generation);
        // Relaxed: the span counts from a releasing store on.
        self.word.store(to.0, Ordering::Relaxed);
        generation
    }

    /// Frees: live or dying → free.
    pub(crate) fn free(&self, from: Snapshot) -> bool {
        debug_assert!(!from.is_free());
        self.change(
            from,
            Snapshot::pack(FREE, 0, NOBODY, from.generation().wrapping_add(1)),
        )
    }

    pub(crate) fn rehold(&self, from: Snapshot, holder: u16) -> bool {
        self.change(
            from,
            Snapshot::pack(from.0 & 3, from.0 >> 2 & 0x3f, holder, from.generation()),
        )
    }

    pub(crate) fn rekind(&self, from: Snapshot, kind: Kind) -> bool {
        self.change(
            from,
            Snapshot::pack(from.0 & 3, kind as u64, from.holder(), from.generation()),
        )
    }

    pub(crate) fn condemn(&self, from: Snapshot, holder: u16) -> bool {
        self.change(
            from,
            Snapshot::pack(DYING, from.0 >> 2 & 0x3f, holder, from.generation()),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_keep_offset_and_generation() {
        let block = BlockRef::new(64 * 12345, 77);
        assert_eq!(block.offset(), 64 * 12345);
        assert_eq!(block.generation(), 77);
        assert_eq!(BlockRef::from_bits(block.to_bits()), Some(block));
        assert_eq!(BlockRef::from_bits(0), None);
    }

    #[test]
    fn a_block_is_claimed_once_and_freed_once() {
        let head = Head {
            word: AtomicU64::new(0),
            refs: AtomicU32::new(0),
            len: AtomicU32::new(0),
        };
        let generation = head.claim(Kind::Bytes, 3).unwrap();
        assert!(head.claim(Kind::Bytes, 4).is_none());
        let now = head.read();
        assert!(now.is_live() && now.holder() == 3 && now.kind() == Some(Kind::Bytes));
        assert!(head.rehold(now, TRANSIT));
        assert!(!head.free(now), "a stale view frees nothing");
        assert!(head.free(head.read()));
        assert_eq!(head.read().generation(), generation + 1);
    }
}
