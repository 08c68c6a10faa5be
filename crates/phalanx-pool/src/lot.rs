//! What a crew keeps in the arena: lots of tasks. The board with a seat per worker thread is in `board.rs`.
//!
//! A lot is many tasks of one call: their arguments as opaque bytes, and one entry per task. An entry's word:
//!
//! | state | by | next |
//! |---|---|---|
//! | to do | the submitter | running (a worker claims it), an end (cancelled, terminated) |
//! | running | one worker thread, named in the word | an end, or to do again (a retry) |
//! | an end | the worker; after its death, the overseer | freed with the lot |
//!
//! A worker takes a *range* of a lot from the crew's queue. Before the queue lets go of it, under the queue's lock, the
//! range stands on the worker's seat. Then it claims entry after entry by compare-exchange, writing the entry's number onto
//! the seat first. So a death costs the one task that ran: results before it are committed, and what lies behind it is
//! put into the queue again by the overseer, who finds the range on the seat. A worker with nothing to do takes tasks from
//! the end of a range on somebody else's seat; the entry's word decides who runs it.
//!
//! How many are left is a count that workers lower after they commit, several at a time. A death in between leaves it too
//! high by less than a range; the overseer adds that to the slack, and at or below the slack the entries are looked at.
//! The last one sets *done*, wakes who sleeps on the lot and tells the overseer if somebody asked for that.
//!
//! A seat names the lot its worker works on until the worker has let go of it, and the submitter frees a lot only while no
//! seat names it: a worker writes the name first and looks afterwards whether the lot is still there, the submitter marks
//! the lot first and looks at the seats afterwards.
//!
//! The submitter's process holds its lots. When it dies, workers may be in the middle of a task for a moment: whoever sweeps
//! it makes the lots, their arguments and functions the board's, which every worker holds, and they are freed with the board.
//!
//! | the sweep of a submitter | killed after it |
//! |---|---|
//! | mark the lot as gone | nothing more of it is taken |
//! | arguments, function: in transit | the next sweeper sees the lot still held by the dead process and does it again |
//! | **lot: the board's** | the next sweeper passes it by |
//! | the dead process's hold on the board | if it was the last, the board frees the lots |
#![expect(
    unsafe_code,
    reason = "entries and bytes behind a record, in blocks of the arena"
)]

use phalanx_channel::{Loan, Message};
use phalanx_prim::{AtomicU32, AtomicU64, Ordering, Scope, Word, fence, points};
use phalanx_shm::{
    AllocError, Arena, BlockRef, Held, Kind, OBJECT, Patience, Placed, TRANSIT, WaitError,
    current_slot,
};

use crate::done::wait_done;

// ---- flags of a lot's word ----

pub(crate) const DONE: u32 = 1;
const WAITED: u32 = 2;
/// Tell the overseer when it is done.
pub(crate) const NOTIFY: u32 = 4;
/// Its handle is gone: the overseer frees it.
pub(crate) const LET_GO: u32 = 8;
/// Marked by the submitter that is about to free it.
const GONE: u32 = 16;
/// Somebody takes results one by one: results are announced at the crew's gate.
pub(crate) const STREAMED: u32 = 32;
/// Ranges stay with the worker who took them.
pub(crate) const WHOLE: u32 = 64;

// ---- an entry's word ----

const WAITING: u32 = 0;
const RUNNING: u32 = 1;
const STATE: u32 = 15;
/// The entry's result block is freed with the lot by this entry.
const OWNS: u32 = 16;
/// The result has a block of its own, with a head.
const APART: u32 = 32;
const SEAT_SHIFT: u32 = 8;

/// How a task ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum End {
    /// With a value.
    Value = 2,
    /// With an error that the worker encoded.
    Error = 3,
    /// Its worker died; the bytes are the overseer's report.
    Died = 4,
    /// Its worker was killed because it took too long.
    TimedOut = 5,
    /// It was cancelled.
    Cancelled = 6,
    /// The crew was ended before it was done.
    Terminated = 7,
    /// The crew is broken.
    Broken = 8,
}

impl End {
    fn from_bits(bits: u32) -> Option<Self> {
        Some(match bits & STATE {
            2 => Self::Value,
            3 => Self::Error,
            4 => Self::Died,
            5 => Self::TimedOut,
            6 => Self::Cancelled,
            7 => Self::Terminated,
            8 => Self::Broken,
            _ => return None,
        })
    }
}

/// The head of a lot. Its entries follow, and behind them the small payloads of a lot of one.
#[derive(Debug)]
#[repr(C, align(64))]
pub(crate) struct LotState {
    word: Word,
    items: AtomicU32,
    retries: AtomicU32,
    reserved: AtomicU32,
    timeout_ns: AtomicU64,
    /// The function's block, 0 if it is part of the payload.
    function: AtomicU64,
    function_at: AtomicU64,
    function_len: AtomicU64,
    /// The arguments' block, 0 if they are behind the entries.
    payload: AtomicU64,
    payload_len: AtomicU64,
    // From here on workers write.
    left: AtomicU32,
    slack: AtomicU32,
    /// The crew's board. Written once.
    board: AtomicU64,
    padding: [AtomicU64; 6],
}

const _: () = assert!(std::mem::offset_of!(LotState, left) == 64);

// SAFETY: repr(C), atomics only, the only type placed under its kind; what lies behind it is reached by address.
unsafe impl Placed for LotState {
    const KIND: Kind = Kind::Lot;
}

/// A task of a lot.
#[derive(Debug)]
#[repr(C)]
pub(crate) struct Item {
    word: AtomicU32,
    tries: AtomicU32,
    at: AtomicU64,
    len: AtomicU64,
    block: AtomicU64,
    result_at: AtomicU64,
    result_len: AtomicU64,
}

/// Room for the result of a lot of one, behind its arguments.
const ROOM: usize = 96;
/// The largest arguments of a lot of one that lie behind its entry.
const INLINE_MOST: usize = 1536;

/// What a submitter chooses for a lot.
#[derive(Clone, Debug, Default)]
pub struct LotSpec {
    /// The arguments of all tasks.
    pub bytes: Vec<u8>,
    /// Where each task's arguments lie in `bytes`: start and length.
    pub spans: Vec<(usize, usize)>,
    /// Where the function lies in `bytes`, if it is not known to the crew.
    pub function_span: (usize, usize),
    /// The function as the crew knows it ([`crate::Crew::know`]), 0 if it is in `bytes`.
    pub function: u64,
    /// How often a task is tried again after a death, a time-out or an error.
    pub retries: u32,
    /// How long a task may run, in nanoseconds; 0 for as long as it takes.
    pub timeout_ns: u64,
    /// Tasks that are taken by a worker together; 0 lets the crew choose.
    pub together: u32,
    /// Results are taken one by one.
    pub streamed: bool,
}

/// A lot of this tree, looked at.
#[derive(Clone, Copy)]
pub(crate) struct LotView {
    arena: &'static Arena,
    block: BlockRef,
    state: &'static LotState,
    /// Looked up once: it does not change.
    items: u32,
}

impl std::fmt::Debug for LotView {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.block.fmt(f)
    }
}

impl LotView {
    pub(crate) fn new(
        arena: &'static Arena,
        board: BlockRef,
        spec: &LotSpec,
        flags: u32,
        handles: &[Held],
    ) -> Result<Self, AllocError> {
        let items = spec.spans.len();
        let inline = items == 1 && handles.is_empty() && spec.bytes.len() <= INLINE_MOST;
        let payload = if inline {
            None
        } else {
            let mut loan = Loan::new(arena, spec.bytes.len(), handles)?;
            loan.copy_from_slice(&spec.bytes);
            Some(loan)
        };
        let behind = if inline { spec.bytes.len() + ROOM } else { 0 };
        let word = AtomicU64::new;
        let state = LotState {
            word: Word::new(flags | if items == 0 { DONE } else { 0 }),
            items: AtomicU32::new(items as u32),
            retries: AtomicU32::new(spec.retries),
            reserved: AtomicU32::new(0),
            timeout_ns: word(spec.timeout_ns),
            function: word(spec.function),
            function_at: word(spec.function_span.0 as u64),
            function_len: word(spec.function_span.1 as u64),
            payload: word(0),
            payload_len: word(spec.bytes.len() as u64),
            left: AtomicU32::new(items as u32),
            slack: AtomicU32::new(0),
            board: word(board.to_bits()),
            padding: Default::default(),
        };
        let block = arena.emplace_with(state, items * size_of::<Item>() + behind)?;
        let lot = Self::of(arena, block);
        if let Some(loan) = payload {
            lot.state
                .payload
                .store(loan.into_block().to_bits(), Ordering::Relaxed);
        } else {
            let at = lot.behind(0, spec.bytes.len());
            // SAFETY: `behind` checked that so many bytes lie there, and nobody else knows the block yet.
            unsafe { at.copy_from_nonoverlapping(spec.bytes.as_ptr(), spec.bytes.len()) };
        }
        for (item, (at, len)) in lot.all().zip(&spec.spans) {
            item.at.store(*at as u64, Ordering::Relaxed);
            item.len.store(*len as u64, Ordering::Relaxed);
        }
        Ok(lot)
    }

    /// Finds a lot by its reference; `None` if it is gone or about to go.
    pub(crate) fn find(arena: &'static Arena, bits: u64) -> Option<Self> {
        let block = BlockRef::from_bits(bits)?;
        let state = arena.view::<LotState>(block).ok()?;
        let gone = state.word.load(Ordering::SeqCst) & GONE != 0;
        (!gone).then(|| Self::of(arena, block))
    }

    /// Looks at a lot that the caller knows to be there.
    pub(crate) fn of(arena: &'static Arena, block: BlockRef) -> Self {
        let state: &LotState = arena.view_held(block);
        Self {
            arena,
            block,
            state,
            items: items_of(arena, block, state),
        }
    }

    pub(crate) fn bits(self) -> u64 {
        self.block.to_bits()
    }

    pub(crate) fn len(self) -> u32 {
        self.items
    }

    fn entry_at(self, index: u32) -> &'static Item {
        let at = self.block.offset() + size_of::<LotState>() + index as usize * size_of::<Item>();
        // SAFETY: made of atomics, at a multiple of 8; `get` checks that it lies in the arena.
        unsafe { self.arena.region().get(at) }
    }

    /// # Panics
    ///
    /// If the lot has no such task.
    fn item(self, index: u32) -> &'static Item {
        assert!(index < self.len(), "task {index} of {}", self.len());
        self.entry_at(index)
    }

    fn all(self) -> impl Iterator<Item = &'static Item> {
        (0..self.len()).map(move |index| self.entry_at(index))
    }

    /// The address of `len` bytes from `at` on behind the entries.
    ///
    /// # Panics
    ///
    /// If they are not inside the block.
    fn behind(self, at: usize, len: usize) -> *mut u8 {
        let start = size_of::<LotState>() + self.len() as usize * size_of::<Item>() + at;
        assert!(start + len <= self.arena.capacity_of(self.block));
        let start = self.block.offset() + start;
        self.arena.region().at(start, len).as_ptr()
    }

    fn with_block<R>(self, bits: u64, f: impl FnOnce(&[u8]) -> R) -> Option<R> {
        let block = BlockRef::from_bits(bits)?;
        // The lot goes on owning it: the view must not free it.
        let message = std::mem::ManuallyDrop::new(Message::from_block(self.arena, block));
        Some(f(&message))
    }

    fn slice(self, at: u64, len: u64) -> &'static [u8] {
        let whole = self.state.payload_len.load(Ordering::Relaxed);
        let at = at.min(whole);
        let len = len.min(whole - at) as usize;
        let start = match BlockRef::from_bits(self.state.payload.load(Ordering::Acquire)) {
            Some(block) => {
                let message = std::mem::ManuallyDrop::new(Message::from_block(self.arena, block));
                let at = (at as usize).min(message.len());
                let inside = &message[at..];
                // Cut again: what the block says of itself counts.
                let len = len.min(inside.len());
                // SAFETY: inside the payload, which does not change and lives as long as the lot; callers use it only
                // while they keep the lot.
                return unsafe { std::slice::from_raw_parts(inside.as_ptr(), len) };
            }
            None => self.behind(at as usize, len),
        };
        // SAFETY: inside the block (checked), otherwise as above.
        unsafe { std::slice::from_raw_parts(start, len) }
    }

    /// The arguments of all tasks. Read only while the lot cannot be freed.
    pub(crate) fn payload(self) -> &'static [u8] {
        self.slice(0, u64::MAX)
    }

    /// A task's part of the [`payload`](Self::payload).
    pub(crate) fn args(self, index: u32, payload: &'static [u8]) -> &'static [u8] {
        let item = self.item(index);
        let at = item.at.load(Ordering::Relaxed) as usize;
        let len = item.len.load(Ordering::Relaxed) as usize;
        payload.get(at..at.saturating_add(len)).unwrap_or(&[])
    }

    pub(crate) fn function(self) -> u64 {
        self.state.function.load(Ordering::Relaxed)
    }

    /// The function's bytes, where they are part of the payload.
    pub(crate) fn own_function(self) -> &'static [u8] {
        self.slice(
            self.state.function_at.load(Ordering::Relaxed),
            self.state.function_len.load(Ordering::Relaxed),
        )
    }

    pub(crate) fn timeout_ns(self) -> u64 {
        self.state.timeout_ns.load(Ordering::Relaxed)
    }

    pub(crate) fn has(self, flag: u32) -> bool {
        self.state.word.load(Ordering::Acquire) & flag != 0
    }

    /// Sets flags and returns those it had.
    pub(crate) fn flag(self, flags: u32) -> u32 {
        self.state.word.fetch_or(flags, Ordering::SeqCst)
    }

    // ---- a task's life ----

    /// to do → running, for the thread on this seat.
    pub(crate) fn claim(self, index: u32, seat: u32) -> bool {
        let item = self.item(index);
        let claimed = item
            .word
            .compare_exchange(
                WAITING,
                RUNNING | seat << SEAT_SHIFT,
                Ordering::AcqRel,
                Ordering::Relaxed,
            )
            .is_ok();
        if claimed {
            item.tries
                .store(item.tries.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
        }
        claimed
    }

    pub(crate) fn is_todo(self, index: u32) -> bool {
        index < self.len() && self.entry_at(index).word.load(Ordering::Relaxed) == WAITING
    }

    /// Who runs it, if somebody does.
    pub(crate) fn runner(self, index: u32) -> Option<u32> {
        let now = self.item(index).word.load(Ordering::Acquire);
        (now & STATE == RUNNING).then_some(now >> SEAT_SHIFT)
    }

    pub(crate) fn is_run_by(self, index: u32, seat: u32) -> bool {
        index < self.len() && self.runner(index) == Some(seat)
    }

    pub(crate) fn may_retry(self, index: u32) -> bool {
        self.tries(index) <= self.state.retries.load(Ordering::Relaxed)
    }

    pub(crate) fn retries(self) -> u32 {
        self.state.retries.load(Ordering::Relaxed)
    }

    pub(crate) fn tries(self, index: u32) -> u32 {
        self.item(index).tries.load(Ordering::Relaxed)
    }

    /// Undoes the count of a run that was cut short for a reason of ours.
    pub(crate) fn uncount(self, index: u32) {
        let item = self.item(index);
        let tries = item.tries.load(Ordering::Relaxed);
        item.tries.store(tries.saturating_sub(1), Ordering::Relaxed);
    }

    /// running → to do. The caller puts it into the queue.
    pub(crate) fn put_back(self, index: u32) {
        let item = self.item(index);
        self.discard(item);
        item.word.store(WAITING, Ordering::Release);
    }

    fn discard(self, item: &Item) {
        if let Some(block) = BlockRef::from_bits(item.block.swap(0, Ordering::AcqRel))
            && item.word.load(Ordering::Relaxed) & OWNS != 0
        {
            Message::discard(self.arena, block);
        }
    }

    /// Commits the result of a task that this thread runs. Small results gather in `chunk`.
    pub(crate) fn commit(
        self,
        index: u32,
        end: End,
        bytes: &[u8],
        handles: &[Held],
        chunk: &mut Chunk,
    ) -> Result<(), AllocError> {
        let item = self.item(index);
        let small = handles.is_empty() && bytes.len() <= CHUNK_MOST / 4;
        let mut flags = 0;
        if small && self.fits_behind(bytes.len()) {
            let at = self.state.payload_len.load(Ordering::Relaxed) as usize;
            let to = self.behind(at, bytes.len());
            // SAFETY: the room is there (checked twice), and belongs to whoever runs the lot's one task.
            unsafe { to.copy_from_nonoverlapping(bytes.as_ptr(), bytes.len()) };
            item.result_at.store(at as u64, Ordering::Relaxed);
        } else if small {
            let fresh = chunk.make_room(self.arena, bytes.len())?;
            let (block, at) = chunk.write(bytes);
            item.result_at.store(at as u64, Ordering::Relaxed);
            self.note_block(item, block, fresh);
            flags = if fresh { OWNS } else { 0 };
        } else {
            let mut loan = Loan::new(self.arena, bytes.len(), handles)?;
            loan.copy_from_slice(bytes);
            self.commit_block(index, end, loan);
            return Ok(());
        }
        item.result_len.store(bytes.len() as u64, Ordering::Relaxed);
        points::point("crew.result-stored");
        item.word.store(end as u32 | flags, Ordering::Release);
        points::point("crew.committed");
        Ok(())
    }

    /// As [`commit`](Self::commit), with a block of its own.
    pub(crate) fn commit_block(self, index: u32, end: End, loan: Loan) {
        let item = self.item(index);
        let len = loan.len() as u64;
        self.note_block(item, loan.into_block(), true);
        item.result_len.store(len, Ordering::Relaxed);
        points::point("crew.result-stored");
        item.word
            .store(end as u32 | OWNS | APART, Ordering::Release);
        points::point("crew.committed");
    }

    /// Takes the block of a result that has one of its own; the caller's process holds it then.
    pub(crate) fn take_block(self, index: u32) -> Option<Message> {
        let item = self.item(index);
        if item.word.load(Ordering::Acquire) & APART == 0 {
            return None;
        }
        let block = BlockRef::from_bits(item.block.swap(0, Ordering::AcqRel))?;
        self.arena.seize(block, current_slot());
        Some(Message::from_block(self.arena, block))
    }

    fn note_block(self, item: &Item, block: BlockRef, fresh: bool) {
        if fresh {
            // Only its runner writes the word now. A death from here on lets the overseer free the block.
            item.word.fetch_or(OWNS, Ordering::Relaxed);
        }
        item.block.store(block.to_bits(), Ordering::Release);
        points::point("crew.block-noted");
        if fresh {
            // From here on it is the lot's, whoever dies.
            self.arena.rehold(block, current_slot(), TRANSIT);
        }
    }

    fn fits_behind(self, len: usize) -> bool {
        self.len() == 1 && len <= ROOM && self.state.payload.load(Ordering::Relaxed) == 0
    }

    /// Ends a task that nobody alive runs: `from_running` says in which state it is expected. Returns whether it was.
    pub(crate) fn end(self, index: u32, from_running: bool, end: End, report: &[u8]) -> bool {
        let item = self.item(index);
        if from_running {
            if item.word.load(Ordering::Acquire) & STATE != RUNNING {
                return false;
            }
        } else if item
            .word
            // Alone with it from here on, under a seat that nobody has.
            .compare_exchange(
                WAITING,
                RUNNING | NO_SEAT << SEAT_SHIFT,
                Ordering::AcqRel,
                Ordering::Relaxed,
            )
            .is_err()
        {
            return false;
        }
        self.discard(item);
        let mut chunk = Chunk::default();
        // Without memory for the report its kind must do.
        if self.commit(index, end, report, &[], &mut chunk).is_err() {
            item.result_len.store(0, Ordering::Relaxed);
            item.word.store(end as u32, Ordering::Release);
        }
        chunk.close();
        true
    }

    /// Lowers the count of tasks that are left; returns `true` to the one who finds that none is, and marks the lot done.
    pub(crate) fn count_down(self, by: u32) -> bool {
        let left = self
            .state
            .left
            .fetch_sub(by, Ordering::AcqRel)
            .wrapping_sub(by);
        points::point("crew.counted");
        if left.cast_signed() > self.state.slack.load(Ordering::Acquire).cast_signed() {
            return false;
        }
        self.finish_if_done()
    }

    /// After a death: up to `by` commits were perhaps not counted.
    pub(crate) fn add_slack(self, by: u32) -> bool {
        self.state.slack.fetch_add(by, Ordering::AcqRel);
        self.finish_if_done()
    }

    fn finish_if_done(self) -> bool {
        let all_done = self
            .all()
            .all(|item| item.word.load(Ordering::Acquire) & STATE > RUNNING);
        all_done && self.flag(DONE) & DONE == 0
    }

    /// How many are not done. Looks at all.
    pub(crate) fn pending(self) -> u32 {
        if self.has(DONE) {
            return 0;
        }
        let pending = self
            .all()
            .filter(|item| item.word.load(Ordering::Relaxed) & STATE <= RUNNING);
        pending.count() as u32
    }

    pub(crate) fn wake(self) {
        if self.has(WAITED) {
            self.state.word.wake(u32::MAX, Scope::Shared);
        }
    }

    // ---- results ----

    pub(crate) fn end_of(self, index: u32) -> Option<End> {
        End::from_bits(self.item(index).word.load(Ordering::Acquire))
    }

    /// Reads the result of a task that has ended.
    pub(crate) fn with_result<R>(self, index: u32, f: impl FnOnce(&[u8]) -> R) -> R {
        let item = self.item(index);
        let apart = item.word.load(Ordering::Acquire) & APART != 0;
        let block = item.block.load(Ordering::Acquire);
        let at = item.result_at.load(Ordering::Relaxed) as usize;
        let len = item.result_len.load(Ordering::Relaxed) as usize;
        if block == 0 {
            if !self.fits_behind(len) || len == 0 {
                return f(&[]);
            }
            let start = self.behind(at, len);
            // SAFETY: inside the block (checked), written before the entry's word said so.
            return f(unsafe { std::slice::from_raw_parts(start, len) });
        }
        let mut f = Some(f);
        self.with_block(block, |bytes| {
            let at = if apart { 0 } else { at.min(bytes.len()) };
            let len = len.min(bytes.len() - at);
            f.take().map(|f| f(&bytes[at..at + len]))
        })
        .flatten()
        .unwrap_or_else(|| unreachable!("a block that is not 0 is read once"))
    }

    pub(crate) fn wait(self, patience: Patience) -> Result<(), WaitError> {
        wait_done(&self.state.word, WAITED, patience, |now| now & DONE != 0)
    }

    /// Marks it as about to go. Look at the seats after this.
    pub(crate) fn condemn(self) {
        self.flag(GONE);
        fence(Ordering::SeqCst);
    }

    /// Frees the lot and what it owns. No seat names it any more.
    pub(crate) fn free(self) {
        free_payloads(self.arena, self.block);
        self.arena.free(self.block);
    }
}

/// How many entries a lot has, never more than fit its block.
fn items_of(arena: &Arena, block: BlockRef, state: &LotState) -> u32 {
    let room = arena
        .capacity_of(block)
        .saturating_sub(size_of::<LotState>())
        / size_of::<Item>();
    state.items.load(Ordering::Relaxed).min(room as u32)
}

pub(crate) fn free_payloads(arena: &Arena, block: BlockRef) {
    let state = arena.view_held::<LotState>(block);
    let items = items_of(arena, block, state) as usize;
    for index in 0..items {
        let at = block.offset() + size_of::<LotState>() + index * size_of::<Item>();
        // SAFETY: as in `entry_at`.
        let item: &Item = unsafe { arena.region().get(at) };
        if item.word.load(Ordering::Acquire) & OWNS == 0 {
            continue;
        }
        if let Some(block) = BlockRef::from_bits(item.block.swap(0, Ordering::AcqRel)) {
            Message::discard(arena, block);
        }
    }
    if let Some(payload) = BlockRef::from_bits(state.payload.swap(0, Ordering::AcqRel)) {
        Message::discard(arena, payload);
    }
}

/// Makes a lot of the dead process its board's: workers may be at it.
pub(crate) fn submitter_died(arena: &Arena, block: BlockRef, dead: u16) {
    if arena.holder_of(block) != Some(dead) {
        return;
    }
    let state = arena.view_held::<LotState>(block);
    let board = BlockRef::from_bits(state.board.load(Ordering::Relaxed));
    // The dead process's own hold on the board is dropped after this, so a board that is there now sees its lots.
    if board.and_then(|board| arena.kind_of(board)) != Some(Kind::Crew) {
        return;
    }
    state.word.fetch_or(GONE, Ordering::SeqCst);
    for part in [&state.payload, &state.function] {
        if let Some(part) = BlockRef::from_bits(part.load(Ordering::Acquire)) {
            arena.rehold(part, dead, TRANSIT);
        }
    }
    points::point("crew.lot-disowned");
    arena.rehold(block, dead, OBJECT);
}

/// Frees the lots that a board got from their submitter, and the functions they name. No worker is left.
pub(crate) fn free_orphans(arena: &Arena, board: BlockRef) {
    for (block, holder) in arena.blocks_of(Kind::Lot) {
        let state = arena.view_held::<LotState>(block);
        if holder != OBJECT || state.board.load(Ordering::Relaxed) != board.to_bits() {
            continue;
        }
        // Lots share functions: the first to come frees it.
        if let Some(function) = BlockRef::from_bits(state.function.load(Ordering::Acquire)) {
            Message::discard(arena, function);
        }
        free_payloads(arena, block);
        arena.free(block);
    }
}

/// A seat that no worker has.
const NO_SEAT: u32 = 0xffff;
const CHUNK_LEAST: usize = 192;
const CHUNK_MOST: usize = 32 << 10;

/// A block in which a worker gathers the results of tasks of one range. It belongs to the first of them.
#[derive(Debug, Default)]
pub(crate) struct Chunk {
    loan: Option<Loan>,
    used: usize,
    last: usize,
    /// A result lies in it, so it is the lot's.
    given: bool,
}

impl Chunk {
    /// Returns `true` if the next result opens a new block.
    fn make_room(&mut self, arena: &'static Arena, len: usize) -> Result<bool, AllocError> {
        if let Some(loan) = &self.loan
            && self.used + len <= loan.len()
        {
            return Ok(!self.given);
        }
        self.close();
        let wanted = (self.last * 4).clamp(CHUNK_LEAST, CHUNK_MOST).max(len);
        self.loan = Some(Loan::new(arena, wanted, &[])?);
        self.last = wanted;
        self.used = 0;
        Ok(true)
    }

    fn write(&mut self, bytes: &[u8]) -> (BlockRef, usize) {
        let Some(loan) = &mut self.loan else {
            unreachable!("made before it is written to");
        };
        let at = self.used;
        loan[at..at + bytes.len()].copy_from_slice(bytes);
        self.used += bytes.len();
        self.given = true;
        (loan.block(), at)
    }

    /// The range is over: no more results into this block.
    pub(crate) fn close(&mut self) {
        if let Some(loan) = self.loan.take()
            && std::mem::take(&mut self.given)
        {
            let _the_lots = loan.into_block();
        }
    }

    pub(crate) fn restart(&mut self) {
        self.close();
        self.last = 0;
    }
}
