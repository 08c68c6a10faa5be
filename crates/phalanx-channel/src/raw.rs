//! The queue of bytes: many producers, many consumers, in any processes of the tree; survives the death of any of them.
//!
//! ```text
//!  tail lock ─► puts, tail segment ─┐              ┌─ head segment, gets ◄─ head lock
//!                                   ▼              ▼
//!                    [ segment: ring of records ] ─► [ segment ] …
//! ```
//!
//! Two locks, after Michael and Scott's two-lock queue (1996): producers serialize on the tail lock, consumers on the head
//! lock, and neither meets the other. A record is either small (its bytes in the ring) or names a block that holds its
//! bytes. A segment is a ring: it is reused as long as consumers keep up; when it is full, a larger one is linked behind it.
//!
//! Under each lock a change is noted, made by one store (the *commit*), and the note cleared:
//!
//! | put, under the tail lock | killed after it |
//! |---|---|
//! | write the record behind the tail | nothing happened; the next put writes over it |
//! | note block, new tail, new count | nothing happened; the block still belongs to the dead producer: its sweep frees it |
//! | **tail = new tail** | it was put; the next owner hands the block over to the queue and sets the count |
//! | block's holder = in transit; count; clear the note | it was put |
//! | unlock | the next owner notifies all |
//! | notify a consumer | the sweep does: it looks at every queue |
//!
//! | get, under the head lock | killed after it |
//! |---|---|
//! | copy the bytes out, or note the block and make it mine | nothing happened; the next owner gives the block back to the queue |
//! | **head = new head** | it was taken, and is lost with the one who took it: its sweep frees the block |
//! | count; clear the note; unlock | the next owner sets the count and notifies all |
//! | notify a producer | the sweep does: it looks at every queue |
//!
//! So an item is never torn and never delivered twice, and the only items lost are those the dead process had taken.
//! The last record is echoed beside the position that consumers poll, if it is tiny: see [`Tail`].
//!
//! Bytes are copied under a lock only while they are few ([`INLINE_MOST`]); large ones are copied before the lock is taken
//! and read in place after it was released.
#![expect(unsafe_code, reason = "records are bytes at positions of a ring")]

use std::time::Duration;

use phalanx_prim::{AtomicU32, AtomicU64, Deadline, Ordering, Padded, fence, points};
use phalanx_shm::{
    Acquired, AllocError, Arena, BlockRef, ExitRecord, Held, Kind, KindOps, PLACED_MOST, Patience,
    Placed, RawLock, Shared, TRANSIT, WaitError, current_slot, register_kind, sweeping,
};
use phalanx_sync::Gate;

use crate::message::{self, Message};

mod handle;
#[cfg(test)]
mod tests;

/// Payloads up to this many bytes travel in the ring.
pub const INLINE_MOST: usize = 1536;
const FIRST_RING: usize = 4096;
const LARGEST_RING: usize = 1 << 20;

const INLINE: u64 = 1;
const BLOCK: u64 = 2;
const WRAP: u64 = 3;

/// The tail side's fields; written under its lock.
#[derive(Debug)]
#[repr(C)]
struct Side {
    lock: RawLock<Shared>,
    /// Not 0 while the note below is valid: the slot of the process that wrote it.
    noted: AtomicU32,
    segment: AtomicU64,
    /// Items put (tail) or taken (head).
    items: AtomicU64,
    /// Payload bytes put or taken.
    bytes: AtomicU64,
    note_position: AtomicU64,
    note_block: AtomicU64,
    /// Both counts before the change, and the payload's length.
    note_items: AtomicU64,
    note_bytes: AtomicU64,
    note_len: AtomicU64,
    /// A segment being linked (tail) or freed (head).
    note_segment: AtomicU64,
    /// The consumer's entry among the takers, plus 1, and what it was (head only).
    note_taker: AtomicU64,
    note_taken: AtomicU64,
    /// What this side last saw of the other's position in its segment, and of its count of items: never ahead of them. So
    /// the other side's lines are read once per round, not once per item.
    seen: AtomicU64,
    seen_items: AtomicU64,
}

impl Side {
    fn new(segment: BlockRef) -> Self {
        Self {
            lock: RawLock::new(),
            noted: AtomicU32::new(0),
            segment: AtomicU64::new(segment.to_bits()),
            items: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
            note_position: AtomicU64::new(0),
            note_block: AtomicU64::new(0),
            note_items: AtomicU64::new(0),
            note_bytes: AtomicU64::new(0),
            note_len: AtomicU64::new(0),
            note_segment: AtomicU64::new(0),
            note_taker: AtomicU64::new(0),
            note_taken: AtomicU64::new(0),
            seen: AtomicU64::new(0),
            seen_items: AtomicU64::new(0),
        }
    }
}

const TAKERS: usize = 32;

/// Where those wait who want to put. Woken with the first free place, a producer would fill it and sleep again, once per item
/// where both share a core. So it waits first until half of the queue is free, but no longer than [`LATE`].
#[derive(Debug)]
#[repr(C)]
struct Room {
    /// There is room.
    some: Gate<Shared>,
    /// Half of the queue is free.
    half: Gate<Shared>,
}

/// How much later than it could a put returns at most, where it had to wait.
const LATE: Duration = Duration::from_millis(1);
/// Queues bounded at fewer items tell of each free place at once.
const HALVED_FROM: u64 = 16;

/// A queue in the arena.
#[derive(Debug)]
#[repr(C)]
pub(crate) struct State {
    tail: Padded<Side>,
    head: Padded<Side>,
    not_empty: Padded<Gate<Shared>>,
    not_full: Padded<Room>,
    /// Most items, 0 for any number.
    capacity: AtomicU64,
    /// Most payload bytes, 0 for any number.
    byte_capacity: AtomicU64,
    /// 1 when closed, 2 when closed because its other side died.
    closed: AtomicU32,
    joinable: AtomicU32,
    /// pid and end of the process whose death closed it.
    closer: AtomicU64,
    /// Items whose `task_done` was called or whose taker died.
    done: AtomicU64,
    /// Of those, the ones whose taker died.
    lost: AtomicU64,
    all_done: Gate<Shared>,
    /// slot and count of items taken and not yet done; under the head lock.
    takers: [AtomicU64; TAKERS],
}

// SAFETY: repr(C), atomics, raw locks and gates only, and the only type placed under its kind.
unsafe impl Placed for State {
    const KIND: Kind = Kind::Queue;
}

/// A ring of records. Its bytes follow the struct.
#[derive(Debug)]
#[repr(C)]
struct Segment {
    /// Bytes read since the beginning; written under the head lock.
    head: Padded<AtomicU64>,
    tail: Padded<Tail>,
    /// The next segment; 0 while this is the last. Once set, the tail does not move again.
    next: AtomicU64,
    /// Bytes of the ring, a power of two.
    size: AtomicU64,
}

/// What a consumer polls: one cache line.
///
/// The last record that was put lies here, too, if it is tiny: a consumer that waited has it with the news that it is there, and
/// the line in the ring does not travel. This *echo* is a mere copy, written before the commit and read only while it
/// is that of the record to be taken: a producer spoils its position, writes the rest, then writes the position.
#[derive(Debug)]
#[repr(C)]
struct Tail {
    /// Bytes written since the beginning; written under the tail lock.
    at: AtomicU64,
    /// Where the tail was before the record; [`NOWHERE`] while the rest means nothing.
    echo_from: AtomicU64,
    echo_len: AtomicU64,
    echo: [AtomicU64; 2],
}

const NOWHERE: u64 = u64::MAX;
/// Records up to this many bytes have an echo.
const ECHO_MOST: usize = 16;

impl Tail {
    fn new() -> Self {
        Self {
            at: AtomicU64::new(0),
            echo_from: AtomicU64::new(NOWHERE),
            echo_len: AtomicU64::new(0),
            echo: [AtomicU64::new(0), AtomicU64::new(0)],
        }
    }

    /// Copies the record that is about to be committed. The tail lock is held.
    #[inline]
    fn write_echo(&self, from: u64, len: usize, words: [u64; 2]) {
        self.echo_from.store(NOWHERE, Ordering::Relaxed);
        // Whoever reads any of the new words finds the position spoiled, or new.
        fence(Ordering::Release);
        self.echo_len.store(len as u64, Ordering::Relaxed);
        self.echo[0].store(words[0], Ordering::Relaxed);
        self.echo[1].store(words[1], Ordering::Relaxed);
        // Release: the position is the last.
        self.echo_from.store(from, Ordering::Release);
    }

    /// Returns the record at `from` if this is its echo. The head lock is held, and a record at `from` was committed.
    #[inline]
    fn read_echo(&self, from: u64) -> Option<(usize, [u64; 2])> {
        // Acquire: pairs with the last store of `write_echo`.
        if self.echo_from.load(Ordering::Acquire) != from {
            return None;
        }
        let len = self.echo_len.load(Ordering::Relaxed) as usize;
        let words = [
            self.echo[0].load(Ordering::Relaxed),
            self.echo[1].load(Ordering::Relaxed),
        ];
        // Pairs with the fence of `write_echo`.
        fence(Ordering::Acquire);
        let whole = self.echo_from.load(Ordering::Relaxed) == from && len <= ECHO_MOST;
        whole.then_some((len, words))
    }
}

// SAFETY: as for `State`; the bytes behind it are reached by address only.
unsafe impl Placed for Segment {
    const KIND: Kind = Kind::Segment;
}

/// Whether and why a queue is closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Closed {
    /// Somebody closed it, or the last holder of the other end dropped it.
    Closed,
    /// The last holder of the other end died.
    PeerDied {
        /// Its process id.
        pid: u32,
        /// How it ended, if its parent could see that.
        exit: Option<ExitRecord>,
    },
}

impl std::fmt::Display for Closed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Closed => f.write_str("the other side closed it"),
            Self::PeerDied {
                pid,
                exit: Some(ExitRecord::Signal(signal)),
            } => {
                write!(
                    f,
                    "process {pid} on the other side was killed by {}",
                    phalanx_sys::signal::name(*signal)
                )
            }
            Self::PeerDied {
                pid,
                exit: Some(ExitRecord::Code(code)),
            } => {
                write!(f, "process {pid} on the other side exited with code {code}")
            }
            Self::PeerDied { pid, .. } => write!(f, "process {pid} on the other side died"),
        }
    }
}

/// Why a put did not happen. The payload is still the caller's.
#[derive(Debug, thiserror::Error)]
pub enum RawPutError {
    /// Nothing is taken any more.
    #[error("the queue takes no more items: {0}")]
    Closed(Closed),
    /// No room until the deadline, or a signal came.
    #[error("no room in the queue: {0}")]
    Wait(#[from] WaitError),
    /// No memory for the payload.
    #[error(transparent)]
    Alloc(#[from] AllocError),
    /// The payload alone is larger than the queue may ever hold.
    #[error("an item of {bytes} bytes never fits a queue of at most {most} bytes")]
    TooLarge {
        /// Size of the item.
        bytes: u64,
        /// The queue's limit.
        most: u64,
    },
}

/// Why a get returned nothing.
#[derive(Debug, thiserror::Error)]
pub enum RawGetError {
    /// Empty, and nothing more will come.
    #[error("the queue is empty and nothing more will come: {0}")]
    Closed(Closed),
    /// Empty until the deadline, or a signal came.
    #[error("the queue is empty: {0}")]
    Wait(#[from] WaitError),
}

/// How large a queue may grow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Bounds {
    /// Most items; `None` for any number.
    pub items: Option<u64>,
    /// Most payload bytes; `None` for any number.
    pub bytes: Option<u64>,
    /// Counts items taken and not done per process, for `task_done` and `join`.
    pub joinable: bool,
}

/// Where a received payload is.
#[derive(Debug)]
pub enum Received {
    /// In the caller's buffer.
    Inline,
    /// In a block that is now the caller's.
    Block(Message),
}

enum Record<'a> {
    Inline(&'a [&'a [u8]], usize),
    Block(BlockRef, usize),
}

impl Record<'_> {
    fn payload(&self) -> u64 {
        match self {
            Self::Inline(_, len) | Self::Block(_, len) => *len as u64,
        }
    }

    /// Bytes in the ring.
    fn footprint(&self) -> u64 {
        match self {
            Self::Inline(_, len) => 8 + len.next_multiple_of(8) as u64,
            Self::Block(..) => 16,
        }
    }
}

/// A handle on a queue of bytes.
#[derive(Clone, Debug)]
pub struct RawQueue {
    held: Held,
}

/// Registers what the sweep does with queues.
pub(crate) fn install() {
    register_kind(Kind::Queue, KindOps { recover, destroy });
    message::install();
}

fn recover(arena: &Arena, block: BlockRef, dead: u16, wake_all: bool) {
    let Ok(state) = arena.view::<State>(block) else {
        return;
    };
    let queue = Core { arena, state };
    if state.tail.lock.is_held_by(dead) {
        queue.lock_tail();
        state.tail.lock.unlock();
    }
    if state.head.lock.is_held_by(dead) {
        queue.lock_head();
        state.head.lock.unlock();
    }
    if state.joinable.load(Ordering::Relaxed) != 0 {
        queue.taker_died(dead);
    }
    // The dead one may have unlocked and not told anybody. Instead of a note of its own for each put and get, whoever sleeps
    // beside what it waits for is woken: rarely anybody, unless there is a wake owed.
    if queue.has_item() {
        state.not_empty.notify_all();
    }
    if queue.has_room(1) {
        state.not_full.some.notify_all();
    }
    if wake_all {
        for gate in [&state.not_empty.0, &state.not_full.some, &state.all_done] {
            gate.rouse();
        }
        state.tail.lock.wake_all();
        state.head.lock.wake_all();
    }
}

fn destroy(arena: &Arena, block: BlockRef) {
    let state = arena.view_held::<State>(block);
    let core = Core { arena, state };
    // Nobody holds the queue: no lock is needed, and doing it twice finds less to do the second time.
    let mut next = BlockRef::from_bits(state.head.segment.load(Ordering::Acquire));
    while let Some(segment) = next {
        let Ok(ring) = arena.view::<Segment>(segment) else {
            break;
        };
        loop {
            let at = ring.head.load(Ordering::Relaxed);
            // More than a ring holds was never put.
            let left = ring.tail.at.load(Ordering::Acquire).wrapping_sub(at);
            if left == 0 || left > ring_size(ring) {
                break;
            }
            let (found, end) = core.read_record(segment, ring, at);
            if let Some(block) = found.block()
                && message::is_payload(arena, block)
            {
                message::discard(arena, block);
            }
            ring.head.store(end, Ordering::Release);
        }
        next = BlockRef::from_bits(ring.next.load(Ordering::Acquire));
        state
            .head
            .segment
            .store(next.map_or(0, BlockRef::to_bits), Ordering::Release);
        arena.free(segment);
    }
}

enum Found {
    Inline { at: u64, len: usize },
    Block { block: Option<BlockRef>, len: usize },
}

impl Found {
    fn block(&self) -> Option<BlockRef> {
        match self {
            Self::Inline { .. } => None,
            Self::Block { block, .. } => *block,
        }
    }

    fn len(&self) -> u64 {
        match self {
            Self::Inline { len, .. } | Self::Block { len, .. } => *len as u64,
        }
    }
}

/// The queue without the handle: what recovery works on.
struct Core<'a> {
    arena: &'a Arena,
    state: &'a State,
}

/// Returns the size of a ring: a power of two, whatever the memory says.
#[inline]
fn ring_size(ring: &Segment) -> u64 {
    let size = ring.size.load(Ordering::Relaxed);
    if size.is_power_of_two() && (8..=LARGEST_RING as u64).contains(&size) {
        size
    } else {
        8
    }
}

/// Returns up to 16 bytes as two words, the first byte lowest and zeros behind the last; `None` for more.
#[inline]
fn words_of(bytes: &[u8]) -> Option<[u64; 2]> {
    let len = bytes.len();
    let bits = |lacking: usize| 8 * lacking as u32;
    // Each time two looks that overlap unless all bytes are seen: what they have in common is the same.
    if let (Some(first), Some(last)) = (bytes.first_chunk(), bytes.last_chunk::<8>()) {
        let last = u64::from_le_bytes(*last);
        return match len {
            8 => Some([last, 0]),
            9..=16 => Some([u64::from_le_bytes(*first), last >> bits(16 - len)]),
            _ => None,
        };
    }
    if let (Some(first), Some(last)) = (bytes.first_chunk(), bytes.last_chunk::<4>()) {
        let (first, last) = (u32::from_le_bytes(*first), u32::from_le_bytes(*last));
        return Some([u64::from(first) | u64::from(last) << bits(len - 4), 0]);
    }
    let word = bytes
        .iter()
        .rev()
        .fold(0, |word, byte| word << 8 | u64::from(*byte));
    Some([word, 0])
}

/// Makes `buffer` the first `len` bytes of two words.
#[inline]
fn copy_words(words: [u64; 2], len: usize, buffer: &mut Vec<u8>) {
    buffer.clear();
    buffer.extend_from_slice(&words[0].to_le_bytes());
    buffer.extend_from_slice(&words[1].to_le_bytes());
    buffer.truncate(len);
}

/// Returns the bytes from a position to the end of the ring.
#[inline]
fn to_end_of(ring: &Segment, at: u64) -> u64 {
    let size = ring_size(ring);
    size - (at & (size - 1))
}

fn new_segment(arena: &Arena, size: usize) -> Result<BlockRef, AllocError> {
    let segment = Segment {
        head: Padded(AtomicU64::new(0)),
        tail: Padded(Tail::new()),
        next: AtomicU64::new(0),
        size: AtomicU64::new(size as u64),
    };
    const { assert!(size_of::<Segment>() <= PLACED_MOST) };
    let block = arena.alloc(size_of::<Segment>() + size, Kind::Segment)?;
    let at = arena.address(block).cast::<Segment>();
    // SAFETY: the block is ours alone and has room for the struct; blocks are aligned to 64 bytes at least, and a segment
    // is placed in classes of 8 KiB and more only, which are aligned to 128.
    unsafe { at.write(segment) };
    Ok(block)
}

impl Core<'_> {
    #[inline]
    fn segment(&self, bits: &AtomicU64) -> (BlockRef, &Segment) {
        let bits = bits.load(Ordering::Acquire);
        let block = BlockRef::from_bits(bits).expect("a queue always has a segment");
        (block, self.arena.view_held::<Segment>(block))
    }

    #[inline]
    fn ring_byte(&self, segment: BlockRef, ring: &Segment, position: u64, len: usize) -> *mut u8 {
        // Aligned and inside the ring, whatever the memory says.
        let offset = (position & (ring_size(ring) - 1) & !7) as usize;
        let start = segment.offset() + size_of::<Segment>() + offset;
        self.arena.region().at(start, len).as_ptr()
    }

    #[inline]
    fn write_word(&self, segment: BlockRef, ring: &Segment, position: u64, word: u64) {
        let at = self.ring_byte(segment, ring, position, 8).cast::<u64>();
        // SAFETY: positions are multiples of 8 inside the ring, and the ring behind the tail belongs to the tail lock.
        unsafe { at.write(word) };
    }

    #[inline]
    fn read_word(&self, segment: BlockRef, ring: &Segment, position: u64) -> u64 {
        let at = self.ring_byte(segment, ring, position, 8).cast::<u64>();
        // SAFETY: as above; records between head and tail do not change.
        unsafe { at.read() }
    }

    #[inline]
    fn lock_tail(&self) {
        if self.state.tail.lock.lock_forever() == Acquired::OwnerDied {
            self.repair_tail();
        }
    }

    #[cold]
    fn repair_tail(&self) {
        let side = &self.state.tail;
        // It may be that of a record that was never committed: another will have its place.
        let (_, ring) = self.segment(&side.segment);
        ring.tail.echo_from.store(NOWHERE, Ordering::Relaxed);
        let dead = side.noted.load(Ordering::Acquire) as u16;
        if dead != 0 {
            let committed =
                ring.tail.at.load(Ordering::Relaxed) == side.note_position.load(Ordering::Relaxed);
            self.settle(side, committed);
            if committed
                && let Some(block) = BlockRef::from_bits(side.note_block.load(Ordering::Relaxed))
            {
                self.arena.rehold(block, dead, TRANSIT);
            }
            side.noted.store(0, Ordering::Release);
        }
        let grown = BlockRef::from_bits(side.note_segment.load(Ordering::Relaxed));
        if let Some(grown) = grown {
            let (_, ring) = self.segment(&side.segment);
            if ring.next.load(Ordering::Relaxed) == grown.to_bits() {
                self.arena.seize(grown, TRANSIT);
                side.seen.store(0, Ordering::Relaxed);
                side.segment.store(grown.to_bits(), Ordering::Release);
            }
            side.note_segment.store(0, Ordering::Release);
        }
        self.state.not_empty.notify_all();
    }

    #[inline]
    fn lock_head(&self) {
        if self.state.head.lock.lock_forever() == Acquired::OwnerDied {
            self.repair_head();
        }
    }

    #[cold]
    fn repair_head(&self) {
        let side = &self.state.head;
        let dead = side.noted.load(Ordering::Acquire) as u16;
        if dead != 0 {
            let (_, ring) = self.segment(&side.segment);
            let committed =
                ring.head.load(Ordering::Relaxed) == side.note_position.load(Ordering::Relaxed);
            self.settle(side, committed);
            let taker = (side.note_taker.load(Ordering::Relaxed) as usize).checked_sub(1);
            if !committed && let Some(taker) = taker.and_then(|taker| self.state.takers.get(taker))
            {
                taker.store(side.note_taken.load(Ordering::Relaxed), Ordering::Relaxed);
            }
            if !committed
                && let Some(block) = BlockRef::from_bits(side.note_block.load(Ordering::Relaxed))
            {
                self.arena.rehold(block, dead, TRANSIT);
            }
            side.noted.store(0, Ordering::Release);
        }
        if let Some(old) = BlockRef::from_bits(side.note_segment.load(Ordering::Relaxed)) {
            if side.segment.load(Ordering::Relaxed) != old.to_bits() {
                self.arena.free(old);
            }
            side.note_segment.store(0, Ordering::Release);
        }
        self.state.not_full.some.notify_all();
        self.state.not_empty.notify_all();
    }

    /// Makes the counts say what the commit says.
    fn settle(&self, side: &Side, committed: bool) {
        let by = u64::from(committed);
        let items = side.note_items.load(Ordering::Relaxed);
        let bytes = side.note_bytes.load(Ordering::Relaxed);
        let len = side.note_len.load(Ordering::Relaxed);
        side.items.store(items.wrapping_add(by), Ordering::Release);
        side.bytes
            .store(bytes.wrapping_add(by * len), Ordering::Release);
    }

    /// Notes a change before its commit.
    #[inline]
    fn note(&self, side: &Side, position: u64, block: Option<BlockRef>, len: u64) {
        side.note_position.store(position, Ordering::Relaxed);
        side.note_block
            .store(block.map_or(0, BlockRef::to_bits), Ordering::Relaxed);
        side.note_items
            .store(side.items.load(Ordering::Relaxed), Ordering::Relaxed);
        side.note_bytes
            .store(side.bytes.load(Ordering::Relaxed), Ordering::Relaxed);
        side.note_len.store(len, Ordering::Relaxed);
        side.note_taker.store(0, Ordering::Relaxed);
        // Release: the note is whole before it counts.
        side.noted
            .store(u32::from(current_slot()), Ordering::Release);
    }

    #[inline]
    fn counted(&self, side: &Side, len: u64) {
        side.bytes.store(
            side.bytes.load(Ordering::Relaxed).wrapping_add(len),
            Ordering::Relaxed,
        );
        // Release: pairs with the Acquire of those who compare the counts without a lock.
        side.items.store(
            side.items.load(Ordering::Relaxed).wrapping_add(1),
            Ordering::Release,
        );
        side.noted.store(0, Ordering::Release);
    }

    fn len(&self) -> u64 {
        // Taken first: it never passes put.
        let taken = self.state.head.items.load(Ordering::Acquire);
        self.state
            .tail
            .items
            .load(Ordering::Acquire)
            .saturating_sub(taken)
    }

    fn bytes(&self) -> u64 {
        let taken = self.state.head.bytes.load(Ordering::Acquire);
        self.state
            .tail
            .bytes
            .load(Ordering::Acquire)
            .saturating_sub(taken)
    }

    /// Returns `true` if the first segment has an item, or one comes behind it. Without the lock this is a hint, but it never
    /// says `false` while an item lies there.
    #[inline]
    fn has_item(&self) -> bool {
        let first = self.state.head.segment.load(Ordering::Acquire);
        let Some(block) = BlockRef::from_bits(first) else {
            return true;
        };
        // Another consumer may move on and free it at this moment: what is read here is then any number.
        let ring = self.arena.view_held::<Segment>(block);
        // Acquire: the look below comes after these.
        ring.tail.at.load(Ordering::Acquire) != ring.head.load(Ordering::Acquire)
            || ring.next.load(Ordering::Acquire) != 0
            // A reference is used once, so the same one means that it was the first segment all the time.
            || self.state.head.segment.load(Ordering::Relaxed) != first
    }

    /// As [`has_room`](Self::has_room), under the tail lock: looks at the other side only if there may be none.
    #[inline]
    fn has_room_locked(&self, payload: u64) -> bool {
        let items = self.state.capacity.load(Ordering::Relaxed);
        if self.state.byte_capacity.load(Ordering::Relaxed) != 0 {
            return self.has_room(payload);
        }
        let side = &self.state.tail;
        let put = side.items.load(Ordering::Relaxed);
        if items == 0 || put - side.seen_items.load(Ordering::Relaxed) < items {
            return true;
        }
        let taken = self.state.head.items.load(Ordering::Acquire);
        side.seen_items.store(taken, Ordering::Relaxed);
        put.saturating_sub(taken) < items
    }

    fn is_bounded(&self) -> bool {
        self.state.capacity.load(Ordering::Relaxed)
            | self.state.byte_capacity.load(Ordering::Relaxed)
            != 0
    }

    /// Unlocks the head and tells producers that there is room.
    #[inline]
    fn unlock_head_taken(&self) {
        if !self.is_bounded() {
            self.state.head.lock.unlock();
            return;
        }
        self.state.head.lock.unlock();
        points::point("queue.get.unlocked");
        // By bytes one large item may make room for several small ones.
        let count = if self.state.byte_capacity.load(Ordering::Relaxed) == 0 {
            1
        } else {
            u32::MAX
        };
        let room = &self.state.not_full;
        room.some.notify_after_unlock(count);
        if room.half.may_have_sleepers() && self.is_half_empty() {
            room.half.notify_all();
        }
    }

    /// Returns `true` if those who wait for half of the queue to be free are to be woken.
    fn is_half_empty(&self) -> bool {
        self.len() <= self.state.capacity.load(Ordering::Relaxed) / 2
    }

    /// Blocks until there is room, or somebody closes the queue.
    fn wait_for_room(&self, payload: u64, patience: Patience) -> Result<(), WaitError> {
        let room = &self.state.not_full;
        if self.state.capacity.load(Ordering::Relaxed) >= HALVED_FROM
            && self.state.byte_capacity.load(Ordering::Relaxed) == 0
        {
            let late = Deadline::after(LATE);
            let first = Patience {
                deadline: Some(
                    patience
                        .deadline
                        .map_or(late, |deadline| deadline.min(late)),
                ),
                ..patience
            };
            // Not by spinning, which would look at the counts that the consumers write.
            let half = || (self.is_half_empty() || self.closed().is_some()).then_some(());
            match room.half.sleep_until(first, half) {
                // There may be room all the same.
                Err(WaitError::TimedOut) => {}
                done => return done,
            }
        }
        let ready = || (self.has_room(payload) || self.closed().is_some()).then_some(());
        room.some.wait_until(patience, ready)
    }

    fn has_room(&self, payload: u64) -> bool {
        let items = self.state.capacity.load(Ordering::Relaxed);
        let bytes = self.state.byte_capacity.load(Ordering::Relaxed);
        (items == 0 || self.len() < items) && (bytes == 0 || self.bytes() + payload <= bytes)
    }

    #[inline]
    fn closed(&self) -> Option<Closed> {
        match self.state.closed.load(Ordering::Acquire) {
            0 => None,
            2 => {
                let closer = self.state.closer.load(Ordering::Relaxed);
                let value = (closer >> 32 & 0xffff) as i32;
                let exit = match closer >> 48 {
                    1 => Some(ExitRecord::Code(value)),
                    2 => Some(ExitRecord::Signal(value)),
                    _ => None,
                };
                Some(Closed::PeerDied {
                    pid: closer as u32,
                    exit,
                })
            }
            _ => Some(Closed::Closed),
        }
    }

    fn close(&self) {
        let died = sweeping().map(|(pid, exit)| {
            let (kind, value) = match exit {
                Some(ExitRecord::Code(code)) => (1, code as u64 & 0xffff),
                Some(ExitRecord::Signal(signal)) => (2, signal as u64 & 0xffff),
                _ => (0, 0),
            };
            kind << 48 | value << 32 | u64::from(pid)
        });
        if self.state.closed.load(Ordering::Acquire) == 0 {
            self.state
                .closer
                .store(died.unwrap_or(0), Ordering::Relaxed);
            let how = if died.is_some() { 2 } else { 1 };
            let _ = self
                .state
                .closed
                .compare_exchange(0, how, Ordering::AcqRel, Ordering::Relaxed);
        }
        let state = self.state;
        let _owed = [&state.not_empty.0, &state.not_full.some, &state.all_done]
            .map(|gate| phalanx_shm::Interest::of(gate.word()));
        self.state.not_empty.notify_all();
        self.state.not_full.some.notify_all();
        self.state.not_full.half.notify_all();
        self.state.all_done.notify_all();
    }

    /// Writes a record if there is room now. The tail lock is held.
    fn put_locked(&self, record: &Record<'_>) -> Result<(), AllocError> {
        let side = &self.state.tail;
        let (mut segment, mut ring) = self.segment(&side.segment);
        let footprint = record.footprint();
        let mut from = ring.tail.at.load(Ordering::Relaxed);
        let mut at = from;
        let size = ring_size(ring);
        let to_end = to_end_of(ring, at);
        let wrapped = if to_end < footprint { to_end } else { 0 };
        let full = |head: u64| at.wrapping_sub(head).saturating_add(wrapped + footprint) > size;
        let mut is_full = full(side.seen.load(Ordering::Relaxed));
        if is_full {
            // Acquire: what was read before the head moved may be written over now.
            let head = ring.head.load(Ordering::Acquire);
            side.seen.store(head, Ordering::Relaxed);
            is_full = full(head);
        }
        if is_full {
            (segment, ring) = self.grow(segment, ring)?;
            (from, at) = (0, 0);
        } else if wrapped != 0 {
            self.write_word(segment, ring, at, WRAP << 56);
            at = at.wrapping_add(wrapped);
        }
        let mut tiny = None;
        match record {
            Record::Inline(parts, len) => {
                tiny = self.write_inline(segment, ring, at, parts, *len);
            }
            Record::Block(block, len) => {
                self.write_word(segment, ring, at, BLOCK << 56 | *len as u64);
                self.write_word(segment, ring, at.wrapping_add(8), block.to_bits());
            }
        }
        let block = match record {
            Record::Inline(..) => None,
            Record::Block(block, _) => Some(*block),
        };
        let end = at.wrapping_add(footprint);
        self.note(side, end, block, record.payload());
        points::point("queue.put.noted");
        // Right before the commit: a consumer that polls the line takes it away once.
        if let Some(words) = tiny {
            ring.tail.write_echo(from, record.payload() as usize, words);
            points::point("queue.put.echoed");
        }
        // Release: pairs with the Acquire in `get_locked`; this is the commit.
        ring.tail.at.store(end, Ordering::Release);
        points::point("queue.put.committed");
        if let Some(block) = block {
            self.arena.rehold(block, current_slot(), TRANSIT);
            points::point("queue.put.handed-over");
        }
        self.counted(side, record.payload());
        Ok(())
    }

    /// Writes a small record at `at`, where there is room for it in one piece, and returns its bytes if they are few. The
    /// tail lock is held.
    #[inline]
    fn write_inline(
        &self,
        segment: BlockRef,
        ring: &Segment,
        at: u64,
        parts: &[&[u8]],
        len: usize,
    ) -> Option<[u64; 2]> {
        self.write_word(segment, ring, at, INLINE << 56 | len as u64);
        let at = at.wrapping_add(8);
        if let [part] = *parts
            && let Some(words) = words_of(part)
        {
            // Copying few bytes of unknown number would be a call. A record's room is whole words.
            // An empty record has none: behind it may lie the first that is not taken yet.
            if len > 0 {
                self.write_word(segment, ring, at, words[0].to_le());
            }
            if len > 8 {
                self.write_word(segment, ring, at.wrapping_add(8), words[1].to_le());
            }
            return Some(words);
        }
        let mut to = self.ring_byte(segment, ring, at, len);
        for part in parts {
            // SAFETY: the parts add up to `len`, for which there is room in one piece (the caller's promise); the ring
            // behind the tail belongs to the tail lock, which we hold.
            unsafe { to.copy_from_nonoverlapping(part.as_ptr(), part.len()) };
            // SAFETY: still inside the record's `len` bytes (or one past them).
            to = unsafe { to.add(part.len()) };
        }
        None
    }

    /// Copies a small record's bytes out. The head lock is held.
    #[inline]
    fn read_inline(
        &self,
        segment: BlockRef,
        ring: &Segment,
        at: u64,
        len: usize,
        buffer: &mut Vec<u8>,
    ) {
        if len <= 16 {
            let first = self.read_word(segment, ring, at);
            let second = if len > 8 {
                self.read_word(segment, ring, at.wrapping_add(8))
            } else {
                0
            };
            return copy_words([u64::from_le(first), u64::from_le(second)], len, buffer);
        }
        buffer.clear();
        buffer.reserve(len);
        let from = self.ring_byte(segment, ring, at, len);
        // SAFETY: a record between head and tail is `len` initialised bytes that nobody changes until the head
        // has passed it; the buffer has room for them.
        unsafe { buffer.as_mut_ptr().copy_from_nonoverlapping(from, len) };
        // SAFETY: `len` bytes were initialised just now, and the capacity was reserved.
        unsafe { buffer.set_len(len) };
    }

    /// Links a larger segment behind a full one.
    #[cold]
    fn grow(&self, _full: BlockRef, ring: &Segment) -> Result<(BlockRef, &Segment), AllocError> {
        let side = &self.state.tail;
        let size = (ring_size(ring) as usize * 16).clamp(FIRST_RING, LARGEST_RING);
        let fresh = new_segment(self.arena, size)?;
        side.note_segment.store(fresh.to_bits(), Ordering::Release);
        points::point("queue.grow.noted");
        // Release: the segment is complete. This is the commit of growing.
        ring.next.store(fresh.to_bits(), Ordering::Release);
        points::point("queue.grow.linked");
        self.arena.rehold(fresh, current_slot(), TRANSIT);
        // Of the old segment 0 is no lie either: it is only older news.
        side.seen.store(0, Ordering::Relaxed);
        side.segment.store(fresh.to_bits(), Ordering::Release);
        side.note_segment.store(0, Ordering::Release);
        Ok((fresh, self.arena.view_held::<Segment>(fresh)))
    }

    #[inline]
    fn read_record(&self, segment: BlockRef, ring: &Segment, mut at: u64) -> (Found, u64) {
        let mut head = self.read_word(segment, ring, at);
        let size = ring_size(ring);
        if head >> 56 == WRAP {
            at = at.wrapping_add(size - (at & (size - 1)));
            head = self.read_word(segment, ring, at);
        }
        let len = (head & 0x00ff_ffff_ffff_ffff) as usize;
        if head >> 56 == BLOCK {
            let block = BlockRef::from_bits(self.read_word(segment, ring, at.wrapping_add(8)));
            return (Found::Block { block, len }, at.wrapping_add(16));
        }
        // No record crosses the ring's end.
        let to_end = (size - (at.wrapping_add(8) & (size - 1))) as usize;
        let len = len.min(INLINE_MOST).min(to_end);
        let at = at.wrapping_add(8);
        (
            Found::Inline { at, len },
            at.wrapping_add(len.next_multiple_of(8) as u64),
        )
    }

    /// Takes the first record if there is one. The head lock is held. `claim` sees its bytes first; a death from then on until
    /// the commit lets the next consumer see them again.
    fn get_locked(
        &self,
        buffer: &mut Vec<u8>,
        claim: impl FnOnce(&[u8]),
    ) -> Option<Option<(BlockRef, usize)>> {
        let side = &self.state.head;
        loop {
            let (segment, ring) = self.segment(&side.segment);
            let at = ring.head.load(Ordering::Relaxed);
            let mut echo = None;
            if at >= side.seen.load(Ordering::Relaxed) {
                // Acquire: pairs with the commit of the put.
                let tail = ring.tail.at.load(Ordering::Acquire);
                side.seen.store(tail, Ordering::Relaxed);
                if tail != at {
                    echo = ring.tail.read_echo(at);
                }
            }
            if at == side.seen.load(Ordering::Relaxed) {
                let next = BlockRef::from_bits(ring.next.load(Ordering::Acquire))?;
                // The last put into this segment came before the link: look once more.
                if at == ring.tail.at.load(Ordering::Acquire) {
                    if self.arena.view::<Segment>(next).is_err() {
                        // Not ours to follow, whoever wrote it.
                        ring.next.store(0, Ordering::Release);
                        return None;
                    }
                    self.advance(segment, next);
                }
                continue;
            }
            let (block, len, end) = match echo {
                Some((len, words)) => {
                    copy_words(words, len, buffer);
                    let footprint = 8 + len.next_multiple_of(8) as u64;
                    let to_end = to_end_of(ring, at);
                    let wrapped = if to_end < footprint { to_end } else { 0 };
                    (None, len as u64, at.wrapping_add(wrapped + footprint))
                }
                None => {
                    let (found, end) = self.read_record(segment, ring, at);
                    let block = found
                        .block()
                        .filter(|block| message::is_payload(self.arena, *block));
                    if let Found::Inline { at, len } = found {
                        self.read_inline(segment, ring, at, len, buffer);
                    }
                    (block, found.len(), end)
                }
            };
            claim(buffer);
            points::point("queue.get.claimed");
            self.note(side, end, block, len);
            points::point("queue.get.noted");
            if let Some(block) = block {
                self.arena.seize(block, current_slot());
                points::point("queue.get.seized");
            }
            if self.state.joinable.load(Ordering::Relaxed) != 0 {
                self.count_taker(current_slot(), 1);
                points::point("queue.get.counted");
            }
            // Release: pairs with the Acquire of the put that writes over the record; this is the commit.
            ring.head.store(end, Ordering::Release);
            points::point("queue.get.committed");
            self.counted(side, len);
            return Some(block.map(|block| (block, len as usize)));
        }
    }

    #[cold]
    fn advance(&self, old: BlockRef, next: BlockRef) {
        let side = &self.state.head;
        side.note_segment.store(old.to_bits(), Ordering::Release);
        points::point("queue.advance.noted");
        // Older news of the old segment, and of the new one.
        side.seen.store(0, Ordering::Relaxed);
        side.segment.store(next.to_bits(), Ordering::Release);
        points::point("queue.advance.moved");
        self.arena.free(old);
        side.note_segment.store(0, Ordering::Release);
    }

    /// Adds to the items that the process in `slot` has taken and not done. The head lock is held.
    fn count_taker(&self, slot: u16, by: i64) -> bool {
        let wanted = u64::from(slot) << 32;
        let find = |what: u64| {
            self.state.takers.iter().find(|taker| {
                let now = taker.load(Ordering::Relaxed);
                if what == 0 {
                    now == 0
                } else {
                    now >> 32 == what >> 32 && now != 0
                }
            })
        };
        let Some(taker) = find(wanted).or_else(|| find(0)) else {
            return false;
        };
        let was = taker.load(Ordering::Relaxed);
        let count = (was & 0xffff_ffff) as i64 + by;
        if count < 0 {
            return false;
        }
        if by > 0 {
            let index = self
                .state
                .takers
                .iter()
                .position(|other| std::ptr::eq(other, taker));
            self.state.head.note_taken.store(was, Ordering::Relaxed);
            self.state
                .head
                .note_taker
                .store(index.map_or(0, |index| index as u64 + 1), Ordering::Release);
        }
        taker.store(
            if count == 0 { 0 } else { wanted | count as u64 },
            Ordering::Relaxed,
        );
        true
    }

    fn taker_died(&self, dead: u16) {
        self.lock_head();
        for taker in &self.state.takers {
            let now = taker.load(Ordering::Relaxed);
            if now != 0 && now >> 32 == u64::from(dead) {
                taker.store(0, Ordering::Relaxed);
                self.state
                    .done
                    .fetch_add(now & 0xffff_ffff, Ordering::AcqRel);
                self.state
                    .lost
                    .fetch_add(now & 0xffff_ffff, Ordering::AcqRel);
            }
        }
        self.state.all_done.notify_all();
        self.state.head.lock.unlock();
    }
}
