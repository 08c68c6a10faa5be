//! The arena: blocks by size class in a sparse shared mapping.
//!
//! ```text
//! | header | process table | span table | span 0 | span 1 | …
//! ```
//!
//! A *span* is 64 KiB. A small block (up to 8 KiB) is one of many equal ones in a span, which begins with a bitmap of
//! hints and the blocks' heads. A large block is a power of two of spans; its head stands in the span table, so that its
//! bytes begin on a page and can be given back to the system.
//!
//! Allocation is the compare-exchange of a head from free to live (see [`crate::block`]); bitmaps, cursors and counters
//! only say where to look, and the sweep after a death repairs them. New spans are taken under one robust lock, with
//! "how many there are" as the single commit. Pages get their memory before the block is handed out: when there is
//! none, the caller is told, and nobody dies of a bus error.
#![expect(
    unsafe_code,
    reason = "offsets become references to what was placed there"
)]

use std::io;
use std::ptr::NonNull;

use phalanx_prim::{AtomicU32, AtomicU64, Ordering, Padded, points};
use phalanx_sys::limits;

use crate::block::{BlockRef, GRAIN, Head, Kind, OBJECT, Snapshot};
use crate::error::{AllocError, OpenError, StaleHandle};
use crate::hold::{MIRRORS, Mirror, Undo};
use crate::region::Region;
use crate::robust::{RawLock, Shared};
use crate::slots::{MAX_PROCESSES, Slot};
use crate::token;

const MAGIC: u64 = u64::from_le_bytes(*b"phalanx\x01");
pub(crate) const SPAN: usize = if MODELLED { 16 } else { 64 } * 1024;
/// In a model each look at a block is a step: there are fewer.
pub(crate) const MODELLED: bool = cfg!(any(phalanx_loom, phalanx_shuttle));
const PAGE: usize = 4096;
/// Sizes of small blocks.
const SMALL: [usize; 8] = [64, 128, 256, 512, 1024, 2048, 4096, 8192];
/// Large classes: 1, 2, 4, … spans.
const LARGE: usize = 26;
/// Free large blocks keep this much memory together, so that a stream of large messages does not fault anew each time.
const CACHE_MOST: u64 = 256 << 20;
/// Beyond that, they keep one part in so many of what the system has to give: a fresh page costs a dozen times what copying
/// into a warm one does.
const CACHE_PART: u64 = 16;
/// Before so many bytes are committed, at once or bit by bit, the system is asked whether it has them.
const ASK_FROM: u64 = 1 << 20;

/// Returns how much free large blocks may keep where the system has so much to give.
fn most_kept(available: u64) -> u64 {
    CACHE_MOST.max(available / CACHE_PART)
}

/// What stands at offset 0. All zero but for what [`Arena::format`] writes is a valid initial state.
#[repr(C)]
pub(crate) struct Header {
    magic: AtomicU64,
    layout: AtomicU32,
    /// Sizes that depend on the build, folded together: a build with others is refused.
    shape: AtomicU32,
    identity: AtomicU64,
    len: AtomicU64,
    ready: AtomicU32,
    pub(crate) slots_used: AtomicU32,
    pub(crate) slot_cursor: AtomicU32,
    slots_committed: AtomicU32,
    /// Spans taken so far; the commit of carving.
    next_span: AtomicU32,
    /// From this entry of the span table on, none has memory.
    entries_committed: AtomicU32,
    carve: RawLock<Shared>,
    pub(crate) registry: RawLock<Shared>,
    pub(crate) undo: Undo,
    /// How the processes look for waits that never end; see [`crate::Watch`].
    pub(crate) watch: AtomicU64,
    /// When somebody last looked for them.
    pub(crate) surveyed: AtomicU64,
    /// The block in which they note the order of their locks.
    pub(crate) order: AtomicU64,
    /// Bytes of memory that free large blocks keep (a hint).
    cached: AtomicU64,
    /// Bytes committed since the system was asked last (a hint).
    unasked: AtomicU64,
    classes: [Padded<Class>; SMALL.len() + LARGE],
}

/// Where to look for a free block of one class. Hints only.
#[derive(Debug)]
#[repr(C)]
struct Class {
    /// The block freed last.
    hint: AtomicU64,
    /// First span of the chain, plus 1.
    chain: AtomicU32,
    /// Span to look in first, plus 1.
    cursor: AtomicU32,
    /// About how many blocks are free.
    free: AtomicU32,
}

/// A line of the span table.
#[derive(Debug)]
#[repr(C, align(64))]
struct Span {
    /// The head of a large block.
    head: Head,
    /// The length that was asked for, of a large block; written by its holder.
    len: AtomicU64,
    /// Bytes from the block's start that have memory; written by its holder.
    committed: AtomicU64,
    /// Next span of the class, plus 1.
    next: AtomicU32,
    /// Class, plus 1.
    class: AtomicU32,
    /// Spans of a large block.
    spans: AtomicU32,
    /// In a span of small blocks: from this one on, none was ever taken. Grows before the block is taken.
    used: AtomicU32,
}

const _: () = assert!(size_of::<Span>() == 64 && size_of::<Head>() == 16);

impl Span {
    /// Returns how many of a span's small blocks were ever taken; never more than there are, whatever the table says.
    fn used(&self, geometry: &Small) -> usize {
        (self.used.load(Ordering::Relaxed) as usize).min(geometry.count)
    }
}

const TABLE: usize = 16 * 1024;
const _: () = assert!(size_of::<Header>() <= TABLE);

#[derive(Clone, Copy, Debug)]
struct Shape {
    spans: usize,
    entries: usize,
    data: usize,
}

impl Shape {
    fn of(len: usize) -> Self {
        let entries = TABLE + (MAX_PROCESSES + 1) * size_of::<Slot>();
        let spans = len.saturating_sub(entries + SPAN) / (SPAN + size_of::<Span>());
        let data = (entries + spans * size_of::<Span>()).next_multiple_of(SPAN);
        Self {
            spans,
            entries,
            data,
        }
    }
}

/// Where a small class keeps its parts inside a span.
#[derive(Clone, Copy)]
struct Small {
    size: usize,
    /// The power of two that the size is: a shift is cheaper than a division, and hot.
    shift: u32,
    count: usize,
    heads: usize,
    blocks: usize,
}

const BITMAP_WORDS: usize = 16;
/// Where the padding of a type that is placed ends at most. Padding is no value of any kind: who reads bytes of a reused block that
/// nobody wrote gives so many from its start a value first.
pub const PLACED_MOST: usize = 8192;
/// What blocks of this size and more are aligned to: two cache lines, see [`Padded`].
const WIDE: usize = 128;

impl Small {
    const ALL: [Self; SMALL.len()] = {
        let mut all = [Self {
            size: 0,
            shift: 0,
            count: 0,
            heads: 0,
            blocks: 0,
        }; SMALL.len()];
        let mut i = 0;
        while i < all.len() {
            all[i] = Self::of(SMALL[i]);
            i += 1;
        }
        all
    };

    const fn of(size: usize) -> Self {
        let heads = BITMAP_WORDS * 8;
        let mut count = (SPAN - heads) / (size + size_of::<Head>());
        loop {
            let grain = if size < WIDE { GRAIN } else { WIDE };
            let blocks = (heads + count * size_of::<Head>()).next_multiple_of(grain);
            if blocks + count * size <= SPAN && count <= BITMAP_WORDS * 64 {
                return Self {
                    size,
                    shift: size.trailing_zeros(),
                    count,
                    heads,
                    blocks,
                };
            }
            count -= 1;
        }
    }
}

/// How much an arena holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Usage {
    /// Blocks in use.
    pub blocks: usize,
    /// Bytes asked for by the blocks in use.
    pub bytes: usize,
    /// Bytes of memory the arena has from the system, freed blocks it keeps warm included.
    pub committed: u64,
}

/// Shared memory of one process tree. See the module's head.
#[derive(Debug)]
pub struct Arena {
    region: Region,
    shape: Shape,
    /// What this process holds, beside the tables that say so in the arena.
    pub(crate) mirrors: [Mirror; MIRRORS],
}

/// A type that is placed in blocks of one kind.
///
/// # Safety
///
/// `Self` is `repr(C)`, is the only type ever placed in blocks of [`KIND`](Self::KIND), and is made of atomics, raw locks
/// and arrays of them alone: any bytes are a valid value, and every access through a shared reference is atomic. So a
/// reference to a block that was freed and reused reads nonsense at worst.
pub unsafe trait Placed: Sized + 'static {
    /// The kind of block it lives in.
    const KIND: Kind;

    /// From this byte on there is no padding between the fields; at most [`PLACED_MOST`]. Padding has no value, and bytes that
    /// were a placed value are read as bytes by the block's next tenant.
    const PADDED_UP_TO: usize = size_of::<Self>();
}

impl Arena {
    /// Makes an arena of `len` reserved bytes with the calling process as its root.
    ///
    /// # Errors
    ///
    /// When the system refuses the mapping or has no memory for the tables.
    pub fn create(len: usize) -> Result<Self, OpenError> {
        let region = Region::create(len)?;
        Self::format(region)
    }

    /// Makes an arena in heap memory, for models and Miri: only this process sees it.
    ///
    /// # Panics
    ///
    /// If `len` is too small for the tables (10 MiB always suffice).
    #[must_use]
    pub fn on_heap(len: usize) -> Self {
        Self::format(Region::heap(len)).expect("heap regions have their memory")
    }

    fn format(region: Region) -> Result<Self, OpenError> {
        let shape = Shape::of(region.len());
        if shape.spans == 0 {
            return Err(OpenError::Io(io::Error::other(
                "the arena is too small for its tables",
            )));
        }
        region.commit(0, TABLE)?;
        let arena = Self {
            region,
            shape,
            mirrors: std::array::from_fn(|_| Mirror::default()),
        };
        let header = arena.header();
        header
            .layout
            .store(crate::LAYOUT_VERSION, Ordering::Relaxed);
        header.shape.store(Self::shape_code(), Ordering::Relaxed);
        header
            .identity
            .store(phalanx_sys::ids::random_u64() | 1, Ordering::Relaxed);
        header
            .len
            .store(arena.region.len() as u64, Ordering::Relaxed);
        header.magic.store(MAGIC, Ordering::Relaxed);
        // Release: pairs with the Acquire of `open`; everything above is complete.
        header.ready.store(1, Ordering::Release);
        Ok(arena)
    }

    /// Maps an arena that another process made, after checking that it is one and of our layout.
    ///
    /// # Errors
    ///
    /// [`OpenError::Foreign`] or [`OpenError::Version`], and what the mapping may meet.
    pub fn open(file: phalanx_sys::map::SharedFile) -> Result<Self, OpenError> {
        let size = file.size()?;
        // Look before mapping: the first bytes are read as bytes.
        let mut head = [0_u8; 40];
        if size < TABLE as u64 || file.read_at(&mut head, 0)? != head.len() {
            return Err(OpenError::Foreign("it is too short"));
        }
        let word = |at: usize| u64::from_le_bytes(head[at..at + 8].try_into().unwrap_or([0; 8]));
        if word(0) != MAGIC {
            return Err(OpenError::Foreign("its first bytes are not ours"));
        }
        let (layout, shape) = (word(8) as u32, (word(8) >> 32) as u32);
        if layout != crate::LAYOUT_VERSION {
            return Err(OpenError::Version {
                theirs: layout,
                ours: crate::LAYOUT_VERSION,
            });
        }
        if shape != Self::shape_code() {
            return Err(OpenError::Foreign(
                "it was laid out by another kind of build",
            ));
        }
        if word(24) != size || word(32) as u32 != 1 {
            return Err(OpenError::Foreign("it was never completed"));
        }
        let len = usize::try_from(size)
            .map_err(|_| OpenError::Foreign("it is too large for this machine"))?;
        let region = Region::map(file, len)?;
        let shape = Shape::of(len);
        Ok(Self {
            region,
            shape,
            mirrors: std::array::from_fn(|_| Mirror::default()),
        })
    }

    fn shape_code() -> u32 {
        let sizes = [
            size_of::<Header>(),
            size_of::<Slot>(),
            size_of::<Span>(),
            size_of::<Head>(),
            size_of::<usize>(),
            SPAN,
        ];
        sizes.iter().fold(0x811c_9dc5, |hash, size| {
            (hash ^ *size as u32).wrapping_mul(0x0100_0193)
        })
    }

    /// Returns the random number that names this arena.
    #[must_use]
    pub fn identity(&self) -> u64 {
        self.header().identity.load(Ordering::Relaxed)
    }

    /// Returns the region the arena lives in.
    #[must_use]
    pub fn region(&self) -> &Region {
        &self.region
    }

    pub(crate) fn header(&self) -> &Header {
        // SAFETY: the header is placed at 0 by `format` or checked by `open`, and made of atomics only.
        unsafe { self.region.get(0) }
    }

    pub(crate) fn slot(&self, slot: u16) -> &Slot {
        assert!(
            (slot as usize) <= MAX_PROCESSES,
            "slot {slot} is outside the process table"
        );
        // SAFETY: zeroed memory is a free slot, and a slot is made of atomics only.
        unsafe {
            self.region
                .get(TABLE + usize::from(slot) * size_of::<Slot>())
        }
    }

    pub(crate) fn commit_slot(&self, slot: usize) -> Result<(), AllocError> {
        let committed = self.header().slots_committed.load(Ordering::Acquire) as usize;
        if slot < committed {
            return Ok(());
        }
        let per_page = PAGE / size_of::<Slot>();
        let until = (slot / per_page + 1) * per_page;
        self.commit(TABLE, until * size_of::<Slot>())?;
        self.header()
            .slots_committed
            .fetch_max(until as u32, Ordering::AcqRel);
        Ok(())
    }

    fn span(&self, index: usize) -> &Span {
        debug_assert!(index < self.shape.spans);
        // SAFETY: zeroed memory is an unused span, and a span is made of atomics only.
        unsafe {
            self.region
                .get(self.shape.entries + index * size_of::<Span>())
        }
    }

    fn class(&self, class: usize) -> &Class {
        &self.header().classes[class].0
    }

    fn commit(&self, offset: usize, len: usize) -> Result<(), AllocError> {
        self.try_commit(offset, len).or_else(|_| {
            // What free blocks keep for the next large message is wanted now.
            self.trim();
            self.try_commit(offset, len)
        })
    }

    fn try_commit(&self, offset: usize, len: usize) -> Result<(), AllocError> {
        let unasked = &self.header().unasked;
        let sum = unasked.load(Ordering::Relaxed).saturating_add(len as u64);
        if sum >= ASK_FROM && self.region.file().is_some() {
            // Reserving beyond a control group's limit would call the out-of-memory killer: ask first, also for what is
            // taken before the next time, and by others meanwhile.
            let wanted = (len as u64).saturating_add(2 * ASK_FROM);
            if wanted > limits::available_memory().available {
                return Err(self.out_of_memory(len));
            }
            unasked.store(0, Ordering::Relaxed);
        } else {
            unasked.store(sum, Ordering::Relaxed);
        }
        self.region
            .commit(offset, len)
            .map_err(|_| self.out_of_memory(len))
    }

    #[cold]
    fn out_of_memory(&self, requested: usize) -> AllocError {
        let in_use = self
            .region
            .file()
            .and_then(|file| file.committed().ok())
            .unwrap_or(0);
        AllocError::OutOfMemory {
            requested,
            available: limits::available_memory().available,
            in_use,
        }
    }

    /// Takes a block of at least `len` bytes for the calling process. Its bytes are whatever they were.
    ///
    /// # Errors
    ///
    /// [`AllocError`] when memory or addresses are short; nothing is taken then.
    pub fn alloc(&self, len: usize, kind: Kind) -> Result<BlockRef, AllocError> {
        let holder = token::current_slot();
        let block = match SMALL.iter().position(|size| len <= *size) {
            Some(class) => self.alloc_small(class, len, kind, holder)?,
            None => self.alloc_large(len, kind, holder)?,
        };
        points::point("arena.allocated");
        Ok(block)
    }

    fn alloc_small(
        &self,
        class: usize,
        len: usize,
        kind: Kind,
        holder: u16,
    ) -> Result<BlockRef, AllocError> {
        let state = self.class(class);
        let taken = self
            .take_hint(class, kind, holder)
            .or_else(|| self.search_small(class, kind, holder));
        let (block, head) = match taken {
            Some(taken) => {
                Self::count_taken(state);
                taken
            }
            None => self.carve_small(class, kind, holder)?,
        };
        head.len.store(len as u32, Ordering::Relaxed);
        Ok(block)
    }

    fn count_taken(state: &Class) {
        // A hint: an unlucky interleaving is off by one until the next sweep.
        let free = state.free.load(Ordering::Relaxed);
        state.free.store(free.saturating_sub(1), Ordering::Relaxed);
    }

    fn take_hint(&self, class: usize, kind: Kind, holder: u16) -> Option<(BlockRef, &Head)> {
        let hint = &self.class(class).hint;
        let block = BlockRef::from_bits(hint.load(Ordering::Relaxed))?;
        // Two may see the same: the claim decides. A newer hint that is lost here has its bit still.
        hint.store(0, Ordering::Relaxed);
        points::point("arena.hint-popped");
        let head = self.head_at(block.offset())?;
        let generation = head.claim(kind, holder)?;
        Some((BlockRef::new(block.offset(), generation), head))
    }

    fn search_small(&self, class: usize, kind: Kind, holder: u16) -> Option<(BlockRef, &Head)> {
        let state = self.class(class);
        let cursor = state.cursor.load(Ordering::Relaxed);
        if cursor == 0 {
            return None;
        }
        if let Some(found) = self.search_span(cursor as usize - 1, class, kind, holder) {
            return Some(found);
        }
        if state.free.load(Ordering::Relaxed) == 0 {
            return None;
        }
        let mut next = state.chain.load(Ordering::Acquire);
        while next != 0 {
            let index = next as usize - 1;
            if let Some(found) = self.search_span(index, class, kind, holder) {
                state.cursor.store(next, Ordering::Relaxed);
                return Some(found);
            }
            next = self.span(index).next.load(Ordering::Acquire);
        }
        state.free.store(0, Ordering::Relaxed);
        None
    }

    fn search_span(
        &self,
        index: usize,
        class: usize,
        kind: Kind,
        holder: u16,
    ) -> Option<(BlockRef, &Head)> {
        let geometry = Small::ALL[class];
        let used = &self.span(index).used;
        for word in 0..geometry.count.div_ceil(64) {
            let bits = self.bitmap(index, word);
            let mut seen = bits.load(Ordering::Relaxed);
            while seen != 0 {
                let bit = seen.trailing_zeros() as usize;
                let beyond = (word * 64 + bit) as u32 + 1;
                if used.load(Ordering::Relaxed) < beyond {
                    used.fetch_max(beyond, Ordering::Relaxed);
                    points::point("arena.used-grown");
                }
                // The bit is only a hint; clearing it first keeps others from trying the same block.
                seen = bits.fetch_and(!(1 << bit), Ordering::Relaxed) & !(1 << bit);
                points::point("arena.bit-cleared");
                let slot = word * 64 + bit;
                if slot >= geometry.count {
                    continue;
                }
                let head = self.small_head(index, &geometry, slot);
                if let Some(generation) = head.claim(kind, holder) {
                    return Some((
                        BlockRef::new(self.small_offset(index, &geometry, slot), generation),
                        head,
                    ));
                }
            }
        }
        None
    }

    fn bitmap(&self, span: usize, word: usize) -> &AtomicU64 {
        debug_assert!(word < BITMAP_WORDS);
        // SAFETY: a small span begins with BITMAP_WORDS atomics (zero when fresh).
        unsafe { self.region.get(self.shape.data + span * SPAN + word * 8) }
    }

    fn small_head(&self, span: usize, geometry: &Small, slot: usize) -> &Head {
        let offset = self.shape.data + span * SPAN + geometry.heads + slot * size_of::<Head>();
        // SAFETY: the heads of a small span stand there (zero when fresh: free), and are atomics only.
        unsafe { self.region.get(offset) }
    }

    fn small_offset(&self, span: usize, geometry: &Small, slot: usize) -> usize {
        self.shape.data + span * SPAN + geometry.blocks + slot * geometry.size
    }

    fn carve_small(
        &self,
        class: usize,
        kind: Kind,
        holder: u16,
    ) -> Result<(BlockRef, &Head), AllocError> {
        let geometry = Small::ALL[class];
        let (index, generation) = self.carve(class, 1, |index| {
            self.commit(self.shape.data + index * SPAN, SPAN)?;
            for word in 0..geometry.count.div_ceil(64) {
                let left = geometry.count - word * 64;
                let mask = if left >= 64 {
                    u64::MAX
                } else {
                    (1 << left) - 1
                };
                let mask = if word == 0 { mask & !1 } else { mask };
                self.bitmap(index, word).store(mask, Ordering::Relaxed);
            }
            self.span(index).used.store(1, Ordering::Relaxed);
            Ok(self
                .small_head(index, &geometry, 0)
                .claim_uncounted(kind, holder))
        })?;
        let state = self.class(class);
        state.cursor.store(index as u32 + 1, Ordering::Relaxed);
        state
            .free
            .fetch_add(geometry.count as u32 - 1, Ordering::Relaxed);
        Ok((
            BlockRef::new(self.small_offset(index, &geometry, 0), generation),
            self.small_head(index, &geometry, 0),
        ))
    }

    /// Takes `spans` new spans; `prepare` makes them ready before they count.
    fn carve(
        &self,
        class: usize,
        spans: usize,
        prepare: impl FnOnce(usize) -> Result<u64, AllocError>,
    ) -> Result<(usize, u64), AllocError> {
        let header = self.header();
        // A dead owner left nothing: what it prepared was never counted and is prepared again.
        let _ = header.carve.lock_looking();
        let carved = self.carve_locked(class, spans, prepare);
        header.carve.unlock();
        carved
    }

    fn carve_locked(
        &self,
        class: usize,
        spans: usize,
        prepare: impl FnOnce(usize) -> Result<u64, AllocError>,
    ) -> Result<(usize, u64), AllocError> {
        let header = self.header();
        let index = self.spans_taken();
        if spans > self.shape.spans - index {
            return Err(AllocError::Exhausted {
                requested: spans * SPAN,
                reserved: self.region.len(),
            });
        }
        // Only the first span of a block uses its entry; a large block's other entries stay without memory.
        if index >= header.entries_committed.load(Ordering::Relaxed) as usize {
            let per_page = PAGE / size_of::<Span>();
            let first = index / per_page * per_page;
            let until = (first + per_page).min(self.shape.spans);
            let at = self.shape.entries + first * size_of::<Span>();
            self.commit(at, (until - first) * size_of::<Span>())?;
            header
                .entries_committed
                .store(until as u32, Ordering::Relaxed);
        }
        let span = self.span(index);
        let generation = prepare(index)?;
        span.class.store(class as u32 + 1, Ordering::Relaxed);
        span.spans.store(spans as u32, Ordering::Relaxed);
        points::point("arena.carving");
        // Release: who sees the span counted sees it prepared. This is the commit.
        header
            .next_span
            .store((index + spans) as u32, Ordering::Release);
        points::point("arena.carved");
        let state = self.class(class);
        span.next
            .store(state.chain.load(Ordering::Relaxed), Ordering::Relaxed);
        state.chain.store(index as u32 + 1, Ordering::Release);
        Ok((index, generation))
    }

    fn alloc_large(&self, len: usize, kind: Kind, holder: u16) -> Result<BlockRef, AllocError> {
        let spans = len.div_ceil(SPAN).next_power_of_two();
        let power = spans.trailing_zeros() as usize;
        if power >= LARGE || spans > self.shape.spans {
            return Err(AllocError::Exhausted {
                requested: len,
                reserved: self.region.len(),
            });
        }
        let class = SMALL.len() + power;
        let state = self.class(class);
        let taken = self
            .take_hint(class, kind, holder)
            .or_else(|| self.search_large(class, kind, holder));
        let block = match taken {
            Some((block, _)) => {
                Self::count_taken(state);
                let kept = self
                    .large_span(block.offset())
                    .committed
                    .load(Ordering::Relaxed);
                self.cached_changes(-(kept as i64));
                block
            }
            None => {
                let (index, generation) = self.carve(class, spans, |index| {
                    let span = self.span(index);
                    span.committed.store(0, Ordering::Relaxed);
                    Ok(span.head.claim_uncounted(kind, holder))
                })?;
                BlockRef::new(self.shape.data + index * SPAN, generation)
            }
        };
        let span = self.large_span(block.offset());
        span.len.store(len as u64, Ordering::Relaxed);
        let committed = span.committed.load(Ordering::Relaxed) as usize;
        let needed = len.next_multiple_of(PAGE);
        if needed > committed {
            let fresh = needed - committed;
            if let Err(error) = self.commit(block.offset() + committed, fresh) {
                self.free(block);
                return Err(error);
            }
            points::point("arena.committed");
            span.committed.store(needed as u64, Ordering::Relaxed);
            self.region.prefault(block.offset() + committed, fresh);
        }
        Ok(block)
    }

    fn search_large(&self, class: usize, kind: Kind, holder: u16) -> Option<(BlockRef, &Head)> {
        let state = self.class(class);
        if state.free.load(Ordering::Relaxed) == 0 {
            return None;
        }
        let mut next = state.chain.load(Ordering::Acquire);
        while next != 0 {
            let index = next as usize - 1;
            let span = self.span(index);
            if let Some(generation) = span.head.claim(kind, holder) {
                return Some((
                    BlockRef::new(self.shape.data + index * SPAN, generation),
                    &span.head,
                ));
            }
            next = span.next.load(Ordering::Acquire);
        }
        state.free.store(0, Ordering::Relaxed);
        None
    }

    fn cached_changes(&self, by: i64) -> u64 {
        let change = |cached: u64| Some(cached.saturating_add_signed(by));
        let cached = &self.header().cached;
        let was = cached.fetch_update(Ordering::Relaxed, Ordering::Relaxed, change);
        was.map_or(0, |was| was.saturating_add_signed(by))
    }

    /// Returns how many spans are taken; never more than there are, whatever the header says.
    fn spans_taken(&self) -> usize {
        let taken = self.header().next_span.load(Ordering::Acquire) as usize;
        taken.min(self.shape.spans)
    }

    fn index_of(&self, offset: usize) -> Option<usize> {
        let index = offset.checked_sub(self.shape.data)? / SPAN;
        (index < self.spans_taken()).then_some(index)
    }

    fn large_span(&self, offset: usize) -> &Span {
        self.span((offset - self.shape.data) / SPAN)
    }

    fn class_of(&self, offset: usize) -> Option<usize> {
        let index = self.index_of(offset)?;
        (self.span(index).class.load(Ordering::Relaxed) as usize).checked_sub(1)
    }

    /// Returns the head of the block at `offset`, `None` if no block begins there.
    pub(crate) fn head_at(&self, offset: usize) -> Option<&Head> {
        let index = self.index_of(offset)?;
        let span = self.span(index);
        let class = (span.class.load(Ordering::Relaxed) as usize).checked_sub(1)?;
        if class >= SMALL.len() {
            return (offset == self.shape.data + index * SPAN).then_some(&span.head);
        }
        let geometry = Small::ALL[class];
        let inside = (offset - self.shape.data - index * SPAN).checked_sub(geometry.blocks)?;
        let slot = inside >> geometry.shift;
        (inside & (geometry.size - 1) == 0 && slot < geometry.count)
            .then(|| self.small_head(index, &geometry, slot))
    }

    /// Returns where the block around `offset` begins, and its head; `None` if no block is laid out there.
    pub(crate) fn head_around(&self, offset: usize) -> Option<(usize, &Head)> {
        let index = self.index_of(offset)?;
        if let Some(class) =
            (self.span(index).class.load(Ordering::Relaxed) as usize).checked_sub(1)
            && class < SMALL.len()
        {
            let geometry = Small::ALL[class];
            let first = self.shape.data + index * SPAN + geometry.blocks;
            let begin = first + offset.checked_sub(first)? / geometry.size * geometry.size;
            return Some((begin, self.head_at(begin)?));
        }
        // A large block: its first span knows how many there are.
        let mut from = index;
        loop {
            let span = self.span(from);
            let spans = span.spans.load(Ordering::Relaxed) as usize;
            if span.class.load(Ordering::Relaxed) != 0 {
                return (from + spans > index).then(|| (self.shape.data + from * SPAN, &span.head));
            }
            from = from.checked_sub(1)?;
        }
    }

    /// Returns the head and its word if the block still exists under this reference.
    pub(crate) fn living(&self, block: BlockRef) -> Option<(&Head, Snapshot)> {
        let head = self.head_at(block.offset())?;
        let now = head.read();
        (!now.is_free() && now.generation() == block.generation()).then_some((head, now))
    }

    /// Frees a block; `false` if it was freed before.
    pub fn free(&self, block: BlockRef) -> bool {
        let Some((head, now)) = self.living(block) else {
            return false;
        };
        let Some(class) = self.class_of(block.offset()) else {
            return false;
        };
        if class >= SMALL.len() {
            let span = self.large_span(block.offset());
            let committed = span.committed.load(Ordering::Relaxed);
            if !self.may_keep(committed) {
                // Still ours: nobody can be given the block while its pages go.
                span.committed.store(0, Ordering::Relaxed);
                self.region.release(block.offset(), committed as usize);
            }
            let kept = span.committed.load(Ordering::Relaxed);
            if !head.free(now) {
                return false;
            }
            self.cached_changes(kept as i64);
        } else if !head.free(now) {
            return false;
        }
        points::point("arena.freed");
        self.hint_free(block, class);
        true
    }

    /// Tells whether free blocks may keep so many bytes more. The next process that wants memory for a block and finds none
    /// gives back what they keep.
    fn may_keep(&self, bytes: u64) -> bool {
        let cached = self.header().cached.load(Ordering::Relaxed);
        let kept = cached.saturating_add(bytes);
        kept <= CACHE_MOST
            || self.region.file().is_some()
                && kept <= most_kept(limits::available_memory().available)
    }

    fn hint_free(&self, block: BlockRef, class: usize) {
        let state = self.class(class);
        state.free.store(
            state.free.load(Ordering::Relaxed).saturating_add(1),
            Ordering::Relaxed,
        );
        if class < SMALL.len() {
            let geometry = Small::ALL[class];
            let index = (block.offset() - self.shape.data) / SPAN;
            let slot = (block.offset() - self.shape.data - index * SPAN - geometry.blocks)
                >> geometry.shift;
            if state.hint.load(Ordering::Relaxed) == 0 {
                state.hint.store(block.to_bits(), Ordering::Relaxed);
            }
            // Who takes a block by the hint above leaves its bit as it is.
            let (bits, bit) = (self.bitmap(index, slot / 64), 1 << (slot % 64));
            if bits.load(Ordering::Relaxed) & bit == 0 {
                bits.fetch_or(bit, Ordering::Relaxed);
            }
            state.cursor.store(index as u32 + 1, Ordering::Relaxed);
        } else {
            // The block freed last is the warmest.
            state.hint.store(block.to_bits(), Ordering::Relaxed);
        }
    }

    /// Hands a block from one holder to another; `false` if `from` does not hold it (any more).
    pub fn rehold(&self, block: BlockRef, from: u16, to: u16) -> bool {
        self.living(block)
            .is_some_and(|(head, now)| now.holder() == from && head.rehold(now, to))
    }

    /// Takes a block over from whoever holds it.
    pub fn seize(&self, block: BlockRef, to: u16) -> bool {
        loop {
            let Some((head, now)) = self.living(block) else {
                return false;
            };
            if head.rehold(now, to) {
                return true;
            }
        }
    }

    /// Changes what a block is; `false` if it does not exist (any more).
    pub fn rekind(&self, block: BlockRef, kind: Kind) -> bool {
        self.living(block)
            .is_some_and(|(head, now)| head.rekind(now, kind))
    }

    /// Lets a block of this process live as long as the tree.
    pub(crate) fn give_to_tree(&self, block: BlockRef) {
        if let Some((head, now)) = self.living(block) {
            head.refs.store(0, Ordering::Relaxed);
            head.rehold(now, OBJECT);
        }
    }

    /// Returns who holds a block, `None` if it does not exist (any more).
    #[must_use]
    pub fn holder_of(&self, block: BlockRef) -> Option<u16> {
        self.living(block).map(|(_, now)| now.holder())
    }

    /// Returns a block's kind, `None` if it does not exist (any more).
    #[must_use]
    pub fn kind_of(&self, block: BlockRef) -> Option<Kind> {
        self.living(block).and_then(|(_, now)| now.kind())
    }

    /// Returns the bytes that were asked for when the block was taken.
    #[must_use]
    pub fn len_of(&self, block: BlockRef) -> usize {
        match self.class_of(block.offset()) {
            Some(class) if class >= SMALL.len() => {
                self.large_span(block.offset()).len.load(Ordering::Relaxed) as usize
            }
            Some(_) => self
                .head_at(block.offset())
                .map_or(0, |head| head.len.load(Ordering::Relaxed) as usize),
            None => 0,
        }
    }

    /// Returns the bytes the block could hold without growing.
    #[must_use]
    pub fn capacity_of(&self, block: BlockRef) -> usize {
        match self.class_of(block.offset()) {
            Some(class) if class >= SMALL.len() => {
                self.large_span(block.offset())
                    .committed
                    .load(Ordering::Relaxed) as usize
            }
            Some(class) => SMALL[class],
            None => 0,
        }
    }

    /// Returns the offsets of the pages that a large block has for itself, `None` if it shares its pages with others.
    #[must_use]
    pub fn pages_of(&self, block: BlockRef) -> Option<std::ops::Range<usize>> {
        let class = self.class_of(block.offset())?;
        let len = self.capacity_of(block);
        (class >= SMALL.len() && len > 0).then(|| block.offset()..block.offset() + len)
    }

    /// Returns the address of a block's first byte.
    ///
    /// # Panics
    ///
    /// If the reference lies outside the arena.
    #[inline]
    #[must_use]
    pub fn address(&self, block: BlockRef) -> NonNull<u8> {
        self.region.at(block.offset(), 1)
    }

    /// Takes a block and places `value` in it.
    ///
    /// # Errors
    ///
    /// [`AllocError`] when memory or addresses are short.
    pub fn emplace<T: Placed>(&self, value: T) -> Result<BlockRef, AllocError> {
        self.emplace_with(value, 0)
    }

    /// As [`emplace`](Self::emplace), with `extra` more bytes behind the value, all zero.
    ///
    /// # Errors
    ///
    /// [`AllocError`] when memory or addresses are short.
    pub fn emplace_with<T: Placed>(&self, value: T, extra: usize) -> Result<BlockRef, AllocError> {
        const { assert!(align_of::<T>() <= WIDE && T::PADDED_UP_TO <= PLACED_MOST) };
        let whole = size_of::<T>()
            .checked_add(extra)
            .ok_or(AllocError::Exhausted {
                requested: extra,
                reserved: self.region.len(),
            })?;
        // Mere bytes until it is complete: whoever sweeps after our death must not take what lies there for a `T`.
        let block = self.alloc(whole, Kind::Bytes)?;
        let at = self.region.at(block.offset(), whole);
        // SAFETY: the block has room for `T` plus `extra` (asked for above), and is ours alone until handed on.
        let behind = unsafe { at.add(size_of::<T>()) };
        // SAFETY: as above; `extra` bytes lie behind the value.
        unsafe { behind.write_bytes(0, extra) };
        // SAFETY: ours alone, and aligned: a `T` wider than the grain has a block of its own width at least.
        unsafe { at.cast::<T>().write(value) };
        points::point("arena.placed");
        self.rekind(block, T::KIND);
        Ok(block)
    }

    /// Returns what was placed in a block.
    ///
    /// # Errors
    ///
    /// [`StaleHandle`] if the block does not exist any more or holds another kind.
    #[inline]
    pub fn view<T: Placed>(&self, block: BlockRef) -> Result<&T, StaleHandle> {
        let (_, now) = self.living(block).ok_or(StaleHandle)?;
        if now.kind() != Some(T::KIND) {
            return Err(StaleHandle);
        }
        Ok(self.view_held::<T>(block))
    }

    /// As [`view`](Self::view) without the check, for a block the caller holds.
    #[inline]
    #[must_use]
    pub fn view_held<T: Placed>(&self, block: BlockRef) -> &T {
        // SAFETY: only `T` is placed in blocks of its kind and any bytes are a valid `T` (the contract of `Placed`), so
        // even a reference kept too long reads atomics, never something invalid.
        unsafe { self.region.get(block.offset()) }
    }

    /// Calls `visit` with every block that is not free.
    pub(crate) fn each_block(&self, mut visit: impl FnMut(BlockRef, &Head, Snapshot)) {
        let mut index = 0;
        let end = self.spans_taken();
        while index < end {
            let span = self.span(index);
            let spans = (span.spans.load(Ordering::Relaxed) as usize).max(1);
            match (span.class.load(Ordering::Relaxed) as usize).checked_sub(1) {
                Some(class) if class < SMALL.len() => {
                    let geometry = Small::ALL[class];
                    for slot in 0..span.used(&geometry) {
                        let head = self.small_head(index, &geometry, slot);
                        let now = head.read();
                        if !now.is_free() {
                            let offset = self.small_offset(index, &geometry, slot);
                            visit(BlockRef::new(offset, now.generation()), head, now);
                        }
                    }
                }
                Some(_) => {
                    let now = span.head.read();
                    if !now.is_free() {
                        let offset = self.shape.data + index * SPAN;
                        visit(BlockRef::new(offset, now.generation()), &span.head, now);
                    }
                }
                None => {}
            }
            index += spans;
        }
    }

    /// Makes the hints true again after a death: bits of free blocks, chains, counters.
    pub(crate) fn repair_hints(&self) {
        let header = self.header();
        let _ = header.carve.lock_looking();
        let end = self.spans_taken();
        let mut free = [0_u32; SMALL.len() + LARGE];
        let mut chains = [0_u32; SMALL.len() + LARGE];
        let mut cached = 0;
        let mut index = 0;
        while index < end {
            let span = self.span(index);
            let spans = (span.spans.load(Ordering::Relaxed) as usize).max(1);
            if let Some(class) = (span.class.load(Ordering::Relaxed) as usize).checked_sub(1) {
                // Rebuilding every chain puts back a span whose carver died between counting and chaining it.
                span.next.store(chains[class], Ordering::Release);
                chains[class] = index as u32 + 1;
                if class < SMALL.len() {
                    let geometry = Small::ALL[class];
                    let used = span.used(&geometry);
                    // The bits of those behind were never touched.
                    free[class] += (geometry.count - used) as u32;
                    for slot in 0..used {
                        if !self.small_head(index, &geometry, slot).read().is_free() {
                            continue;
                        }
                        free[class] += 1;
                        let (bits, bit) = (self.bitmap(index, slot / 64), 1 << (slot % 64));
                        if bits.load(Ordering::Relaxed) & bit == 0 {
                            bits.fetch_or(bit, Ordering::Relaxed);
                        }
                    }
                } else if span.head.read().is_free() {
                    free[class] += 1;
                    cached += span.committed.load(Ordering::Relaxed);
                }
            }
            index += spans;
        }
        for (class, (free, chain)) in free.into_iter().zip(chains).enumerate() {
            self.class(class).chain.store(chain, Ordering::Release);
            self.class(class).free.store(free, Ordering::Relaxed);
            if chain != 0 && self.class(class).cursor.load(Ordering::Relaxed) == 0 {
                self.class(class).cursor.store(chain, Ordering::Relaxed);
            }
        }
        header.cached.store(cached, Ordering::Relaxed);
        header.carve.unlock();
    }

    /// Gives the memory of free large blocks back to the system.
    pub fn trim(&self) {
        let end = self.spans_taken();
        let mut index = 0;
        while index < end {
            let span = self.span(index);
            let class = span.class.load(Ordering::Relaxed) as usize;
            if let Some(large_class) = class.checked_sub(1)
                && large_class >= SMALL.len()
                && span.committed.load(Ordering::Relaxed) > 0
                && let Some(generation) = span.head.claim(Kind::Bytes, token::current_slot())
            {
                Self::count_taken(self.class(large_class));
                let offset = self.shape.data + index * SPAN;
                let committed = span.committed.swap(0, Ordering::Relaxed);
                self.region.release(offset, committed as usize);
                self.cached_changes(-(committed as i64));
                self.free(BlockRef::new(offset, generation));
            }
            index += (span.spans.load(Ordering::Relaxed) as usize).max(1);
        }
    }

    /// Counts what is in use now, without the notes of who waits for what and where, which stay with their processes. Walks all blocks.
    #[must_use]
    pub fn usage(&self) -> Usage {
        let mut usage = Usage {
            blocks: 0,
            bytes: 0,
            committed: 0,
        };
        self.each_block(|block, _, now| {
            if !matches!(now.kind(), Some(Kind::Waits | Kind::Text | Kind::Place)) {
                usage.blocks += 1;
                usage.bytes += self.len_of(block);
            }
        });
        usage.committed = self
            .region
            .file()
            .and_then(|file| file.committed().ok())
            .unwrap_or(0);
        usage
    }

    /// Returns the blocks in use by holder and kind, for reports and leak tests.
    #[must_use]
    pub fn census(&self) -> Vec<(Kind, u16)> {
        let mut all = Vec::new();
        self.each_block(|_, _, now| {
            all.extend(now.kind().map(|kind| (kind, now.holder())));
        });
        all
    }

    /// Returns the blocks of a kind, and who holds each.
    #[must_use]
    pub fn blocks_of(&self, kind: Kind) -> Vec<(BlockRef, u16)> {
        let mut all = Vec::new();
        self.each_block(|block, _, now| {
            if now.is_live() && now.kind() == Some(kind) {
                all.push((block, now.holder()));
            }
        });
        all
    }

    pub(crate) fn carve_owner_died(&self, slot: u16) {
        self.header().carve.owner_died(slot);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    use phalanx_testkit::watchdog;

    const ROUNDS: usize = if cfg!(miri) { 6 } else { 500 };
    const LEN: usize = 16 << 20;

    #[test]
    fn what_is_kept_has_a_bound() {
        assert_eq!(most_kept(0), 256 << 20);
        assert_eq!(most_kept(32 << 30), 2 << 30);
        let arena = Arena::on_heap(4 * LEN);
        let block = arena.alloc(LEN, Kind::Bytes).unwrap();
        let committed = arena
            .large_span(block.offset())
            .committed
            .load(Ordering::Relaxed);
        assert_eq!(committed, LEN as u64);
        // As if others were kept already.
        arena.header().cached.store(u64::MAX / 2, Ordering::Relaxed);
        assert!(arena.free(block));
        let kept = arena
            .large_span(block.offset())
            .committed
            .load(Ordering::Relaxed);
        assert_eq!(kept, 0);
    }

    fn fill(arena: &Arena, block: BlockRef, len: usize, byte: u8) {
        let at = arena.address(block).as_ptr();
        assert!(arena.capacity_of(block) >= len);
        // SAFETY: the block is the caller's, and has room for so many bytes.
        unsafe { at.write_bytes(byte, len) };
    }

    fn is_filled(arena: &Arena, block: BlockRef, len: usize, byte: u8) -> bool {
        let at = arena.address(block).as_ptr();
        // SAFETY: the block is the caller's, who has written so many bytes; nobody else writes meanwhile.
        let bytes = unsafe { std::slice::from_raw_parts(at, len) };
        bytes.iter().all(|seen| *seen == byte)
    }

    #[test]
    fn blocks_of_all_sizes_lie_apart_and_come_back() {
        let arena = Arena::on_heap(LEN);
        let before = arena.usage().blocks;
        let sizes = [1, 64, 65, 300, 1000, 3000, 8192, 8193, 70_000];
        let blocks: Vec<_> = sizes
            .iter()
            .map(|len| arena.alloc(*len, Kind::Bytes).unwrap())
            .collect();
        for (byte, (block, len)) in blocks.iter().zip(sizes).enumerate() {
            fill(&arena, *block, len, byte as u8);
        }
        assert_eq!(arena.usage().blocks, before + sizes.len());
        for (byte, (block, len)) in blocks.iter().zip(sizes).enumerate() {
            assert!(is_filled(&arena, *block, len, byte as u8));
            assert_eq!(arena.len_of(*block), len);
            assert!(arena.free(*block));
            assert!(!arena.free(*block), "a block is freed once");
            assert_eq!(arena.kind_of(*block), None);
        }
        assert_eq!(arena.usage().blocks, before);
        // The same bytes under another name.
        let again = arena.alloc(70_000, Kind::Bytes).unwrap();
        assert_eq!(again.offset(), blocks[8].offset());
        assert_ne!(again, blocks[8]);
    }

    #[test]
    fn threads_never_share_a_block() {
        let _dog = watchdog(Duration::from_secs(100));
        let arena = Arena::on_heap(LEN);
        let work = |byte: u8| {
            for round in 0..ROUNDS {
                let len = [40, 200, 9000][round % 3];
                let block = arena.alloc(len, Kind::Bytes).unwrap();
                fill(&arena, block, len, byte);
                std::thread::yield_now();
                assert!(is_filled(&arena, block, len, byte));
                assert!(arena.free(block));
            }
        };
        std::thread::scope(|scope| {
            for byte in 1..=3 {
                scope.spawn(move || work(byte));
            }
        });
        assert_eq!(arena.usage().blocks, 0);
    }

    #[test]
    fn a_full_arena_says_so() {
        let arena = Arena::on_heap(9 << 20);
        let mut taken = Vec::new();
        let error = loop {
            match arena.alloc(SPAN, Kind::Bytes) {
                Ok(block) => taken.push(block),
                Err(error) => break error,
            }
        };
        assert!(matches!(error, AllocError::Exhausted { .. }), "{error}");
        arena.free(taken[0]);
        assert!(arena.alloc(SPAN, Kind::Bytes).is_ok());
    }
}
