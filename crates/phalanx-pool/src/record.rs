//! What a pool keeps in the arena: one record per task, and the board with a seat per worker thread.
//!
//! A task's word:
//!
//! | state | by | next |
//! |---|---|---|
//! | queued | the submitter | running (a worker claims it), done (cancelled, terminated) |
//! | running | one worker thread, whose seat is in the same word | done, or queued again (a retry) |
//! | done | the worker; after its death, the supervisor | freed by the submitter |
//!
//! with flags: somebody sleeps, tell the supervisor, the handle was dropped, cancel. The claim and its claimer are one
//! compare-exchange: between two, a death would leave a task that runs nowhere.
//!
//! A worker thread takes a reference from the pool's queue. *Before* the queue lets go of it, under the queue's lock, the
//! thread writes it onto its seat and claims the task by compare-exchange. So at every moment a task is in the queue, on a
//! seat, or done; references in the queue are hints, and a second one to the same task finds it claimed. It takes it off
//! the seat when everybody was told. When its process dies, the supervisor finds on the seats what was running, and who
//! may not have been told.
#![expect(
    unsafe_code,
    reason = "records with bytes behind them, in blocks of the arena"
)]

use phalanx_channel::{Loan, Message, RawQueue};
use phalanx_prim::{AtomicU32, AtomicU64, Ordering, Scope, Word, points};
use phalanx_shm::{
    AllocError, Arena, BlockRef, Held, Kind, KindOps, Patience, Placed, Shared, TRANSIT, WaitError,
    current_slot, register_kind,
};
use phalanx_sync::{CreateError, Gate, Object};

use crate::done::wait_done;

pub(crate) const QUEUED: u32 = 0;
pub(crate) const RUNNING: u32 = 1;
pub(crate) const DONE: u32 = 2;
const STATE: u32 = 3;
const WAITED: u32 = 4;
pub(crate) const NOTIFY: u32 = 8;
pub(crate) const ABANDONED: u32 = 16;
pub(crate) const CANCEL: u32 = 32;
/// Its handle was dropped before it was done: the supervisor frees it.
pub(crate) const ORPHAN: u32 = 64;
/// From this bit on: the seat that claimed it last.
const SEAT_SHIFT: u32 = 16;
/// The seat of whoever ends a task that was not claimed.
const NO_SEAT: u32 = 0xffff;
const _: () = assert!(SEATS <= NO_SEAT as usize);

/// How a task ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub(crate) enum Outcome {
    Value = 1,
    Panic = 2,
    Refused = 3,
    Died = 4,
    TimedOut = 5,
    Cancelled = 6,
    Terminated = 7,
    Broken = 8,
}

impl Outcome {
    fn from_bits(bits: u32) -> Self {
        match bits {
            1 => Self::Value,
            2 => Self::Panic,
            3 => Self::Refused,
            5 => Self::TimedOut,
            6 => Self::Cancelled,
            7 => Self::Terminated,
            8 => Self::Broken,
            _ => Self::Died,
        }
    }
}

/// See the module's head. Its small payloads follow it in the block.
///
/// What the submitter polls has a cache line apart from what the worker writes before. Small arguments and results share the
/// latter: each line travels there and back with every task.
#[derive(Debug)]
#[repr(C)]
pub(crate) struct TaskState {
    word: Word,
    retries: AtomicU32,
    function: AtomicU64,
    timeout_ns: AtomicU64,
    /// A queue that is told when the task is done, 0 for none.
    port: AtomicU64,
    /// Bytes behind the record.
    room: AtomicU64,
    args: AtomicU64,
    args_len: AtomicU64,
    /// The submitter's own number for it.
    tag: AtomicU64,
    // From here on the worker writes.
    result: AtomicU64,
    result_len: AtomicU64,
    outcome: AtomicU32,
    attempts: AtomicU32,
    reserved: AtomicU64,
}

const _: () =
    assert!(std::mem::offset_of!(TaskState, result) == 64 && size_of::<TaskState>() == 96);

// SAFETY: repr(C), atomics only, the only type placed under its kind; the bytes behind it are reached by address.
unsafe impl Placed for TaskState {
    const KIND: Kind = Kind::Task;
}

/// The smallest room behind a record: with it, a record fills a block of 256 bytes.
const ROOM: usize = 256 - size_of::<TaskState>();
/// The largest payload behind a record.
const INLINE_MOST: usize = 2048 - size_of::<TaskState>();
/// Room that is made for a result behind arguments that lie behind the record.
const RESULT_LEAST: usize = 32;

/// The most bytes of arguments of a task that takes over another's record.
pub(crate) const RENEWED_MOST: usize = ROOM - RESULT_LEAST;

/// What a submitter chooses for a task.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Choices {
    pub(crate) function: u64,
    pub(crate) timeout_ns: u64,
    pub(crate) retries: u32,
    pub(crate) port: u64,
    pub(crate) tag: u64,
}

/// A task of this tree, looked at.
#[derive(Clone, Copy)]
pub(crate) struct TaskView {
    arena: &'static Arena,
    block: BlockRef,
    state: &'static TaskState,
}

impl std::fmt::Debug for TaskView {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.block.fmt(f)
    }
}

impl TaskView {
    pub(crate) fn new(
        arena: &'static Arena,
        choices: Choices,
        args: &[u8],
        handles: &[Held],
    ) -> Result<Self, AllocError> {
        let inline = args.len() <= INLINE_MOST && handles.is_empty();
        let room = if inline {
            // A small result fits behind the arguments, and blocks are powers of two anyway.
            let whole = size_of::<TaskState>() + args.len() + RESULT_LEAST;
            whole.next_power_of_two().clamp(
                ROOM + size_of::<TaskState>(),
                INLINE_MOST + size_of::<TaskState>(),
            ) - size_of::<TaskState>()
        } else {
            ROOM
        };
        let payload = if inline {
            None
        } else {
            let mut loan = Loan::new(arena, args.len(), handles)?;
            loan.copy_from_slice(args);
            Some(loan)
        };
        let word = AtomicU64::new;
        let state = TaskState {
            word: Word::new(QUEUED),
            retries: AtomicU32::new(choices.retries),
            function: word(choices.function),
            timeout_ns: word(choices.timeout_ns),
            port: word(choices.port),
            room: word(room as u64),
            args: word(0),
            args_len: word(args.len() as u64),
            result: word(0),
            tag: word(choices.tag),
            result_len: word(0),
            outcome: AtomicU32::new(0),
            attempts: AtomicU32::new(0),
            reserved: word(0),
        };
        let block = arena.alloc(size_of::<TaskState>() + room, Kind::Task)?;
        let at = arena.address(block).cast::<TaskState>();
        // SAFETY: the block has room for the record, is aligned to 64 bytes at least and ours alone.
        unsafe { at.write(state) };
        let state = arena.view_held::<TaskState>(block);
        let task = Self {
            arena,
            block,
            state,
        };
        match payload {
            Some(loan) => {
                let payload = loan.into_block();
                state.args.store(payload.to_bits(), Ordering::Relaxed);
            }
            None => task.write_inline(0, args),
        }
        Ok(task)
    }

    /// Returns `true` if nobody has a use for this record any more, so that it may become another task's under the same
    /// reference: it ran once, its end was told to nobody but who waited, and no kill was ever meant for it.
    pub(crate) fn is_renewable(self) -> bool {
        let state = self.state;
        let flags = state.word.load(Ordering::Acquire) & !(u32::MAX << SEAT_SHIFT);
        let is_plain = [&state.port, &state.timeout_ns, &state.args, &state.result]
            .into_iter()
            .all(|word| word.load(Ordering::Relaxed) == 0);
        flags & !WAITED == DONE
            && is_plain
            && state.room.load(Ordering::Relaxed) == ROOM as u64
            && state.attempts.load(Ordering::Relaxed) == 1
            && self.outcome() == Outcome::Value
    }

    /// Makes this record, which [`is_renewable`](Self::is_renewable), that of a new task with at most [`RENEWED_MOST`] bytes of
    /// arguments.
    ///
    /// A reference to it that somebody still has is one to the new task: it finds it claimed, or claims it.
    pub(crate) fn renew(self, choices: Choices, args: &[u8]) {
        let state = self.state;
        state.retries.store(choices.retries, Ordering::Relaxed);
        for (word, value) in [
            (&state.function, choices.function),
            (&state.timeout_ns, choices.timeout_ns),
            (&state.port, choices.port),
            (&state.args_len, args.len() as u64),
            (&state.tag, choices.tag),
            (&state.result_len, 0),
        ] {
            word.store(value, Ordering::Relaxed);
        }
        state.outcome.store(0, Ordering::Relaxed);
        state.attempts.store(0, Ordering::Relaxed);
        self.write_inline(0, args);
        // Release: who finds it queued finds it whole.
        state.word.store(QUEUED, Ordering::Release);
    }

    /// Finds a task by its reference; `None` if it is gone.
    pub(crate) fn find(arena: &'static Arena, bits: u64) -> Option<Self> {
        let block = BlockRef::from_bits(bits)?;
        let state = arena.view::<TaskState>(block).ok()?;
        Some(Self {
            arena,
            block,
            state,
        })
    }

    pub(crate) fn bits(self) -> u64 {
        self.block.to_bits()
    }

    fn inline_at(self) -> *mut u8 {
        let at = self.arena.address(self.block).as_ptr();
        // SAFETY: the record is in its block, so one past it is inside or at the end.
        unsafe { at.add(size_of::<TaskState>()) }
    }

    /// Returns the bytes behind the record: never beyond the block, whatever the record says.
    fn room(self) -> usize {
        let behind = self.arena.capacity_of(self.block);
        (self.state.room.load(Ordering::Relaxed) as usize)
            .min(behind.saturating_sub(size_of::<TaskState>()))
    }

    /// Where a result lies behind the record: behind the arguments, which a next run needs if this one's worker dies with
    /// the result written and the task not done.
    fn result_from(self) -> usize {
        if self.state.args.load(Ordering::Relaxed) == 0 {
            (self.state.args_len.load(Ordering::Relaxed) as usize).min(self.room())
        } else {
            0
        }
    }

    fn write_inline(self, from: usize, bytes: &[u8]) {
        assert!(from.saturating_add(bytes.len()) <= self.room());
        // SAFETY: `from` lies within the room (checked above).
        let at = unsafe { self.inline_at().add(from) };
        // SAFETY: the room behind the record is as large as said, and belongs to whoever the state says: the submitter
        // before the task is queued, the worker while it runs.
        unsafe { at.copy_from_nonoverlapping(bytes.as_ptr(), bytes.len()) };
    }

    fn read<R>(
        self,
        payload: &AtomicU64,
        from: usize,
        len: &AtomicU64,
        f: impl FnOnce(&[u8]) -> R,
    ) -> R {
        if let Some(block) = BlockRef::from_bits(payload.load(Ordering::Acquire)) {
            // The record goes on owning it: the view must not free it.
            let message = std::mem::ManuallyDrop::new(Message::from_block(self.arena, block));
            return f(&message);
        }
        // Never beyond the room, whatever a dying process left.
        let len = (len.load(Ordering::Relaxed) as usize).min(self.room().saturating_sub(from));
        // SAFETY: `from` is cut to the room.
        let at = unsafe { self.inline_at().add(from) };
        // SAFETY: `len` bytes behind the record, written before the state said so.
        f(unsafe { std::slice::from_raw_parts(at, len) })
    }

    pub(crate) fn with_args<R>(self, f: impl FnOnce(&[u8]) -> R) -> R {
        self.read(&self.state.args, 0, &self.state.args_len, f)
    }

    pub(crate) fn with_result<R>(self, f: impl FnOnce(&[u8]) -> R) -> R {
        let from = self.result_from();
        self.read(&self.state.result, from, &self.state.result_len, f)
    }

    pub(crate) fn function(self) -> u64 {
        self.state.function.load(Ordering::Relaxed)
    }

    pub(crate) fn timeout_ns(self) -> u64 {
        self.state.timeout_ns.load(Ordering::Relaxed)
    }

    pub(crate) fn port(self) -> u64 {
        self.state.port.load(Ordering::Relaxed)
    }

    pub(crate) fn tag(self) -> u64 {
        self.state.tag.load(Ordering::Relaxed)
    }

    pub(crate) fn attempts(self) -> u32 {
        self.state.attempts.load(Ordering::Relaxed)
    }

    pub(crate) fn may_retry(self) -> bool {
        self.attempts() <= self.state.retries.load(Ordering::Relaxed)
    }

    pub(crate) fn state(self) -> u32 {
        self.state.word.load(Ordering::Acquire) & STATE
    }

    pub(crate) fn has(self, flag: u32) -> bool {
        self.state.word.load(Ordering::Acquire) & flag != 0
    }

    pub(crate) fn claimed_by(self) -> u32 {
        self.state.word.load(Ordering::Acquire) >> SEAT_SHIFT
    }

    fn change(self, from: u32, to: u32) -> Option<u32> {
        self.change_for(from, to, None)
    }

    /// Changes the state, and the seat beside it if one is given; returns the word as it was.
    fn change_for(self, from: u32, to: u32, seat: Option<u32>) -> Option<u32> {
        let mut now = self.state.word.load(Ordering::Relaxed);
        while now & STATE == from {
            let orphan = if to == DONE && now & ABANDONED != 0 {
                ORPHAN
            } else {
                0
            };
            let seat = seat.unwrap_or(now >> SEAT_SHIFT) << SEAT_SHIFT;
            let flags = now & !(STATE | u32::MAX << SEAT_SHIFT);
            let next = flags | to | orphan | seat;
            match self.state.word.compare_exchange_weak(
                now,
                next,
                Ordering::AcqRel,
                Ordering::Relaxed,
            ) {
                Ok(_) => return Some(now),
                Err(seen) => now = seen,
            }
        }
        None
    }

    /// Finds a task by its reference and claims it for the thread on this seat; `None` if it is gone or was claimed.
    #[inline]
    pub(crate) fn find_and_claim(arena: &'static Arena, bits: u64, seat: u32) -> Option<Self> {
        let task = Self::find(arena, bits)?;
        // The run needs this line next; asked for before the claim, which nothing overtakes, the two come together.
        std::hint::black_box(task.attempts());
        task.claim(seat).then_some(task)
    }

    /// queued → running, for the thread on this seat.
    pub(crate) fn claim(self, seat: u32) -> bool {
        self.change_for(QUEUED, RUNNING, Some(seat)).is_some()
    }

    /// Counts a run that is about to begin.
    pub(crate) fn count_attempt(self) {
        self.state
            .attempts
            .store(self.attempts().saturating_add(1), Ordering::Relaxed);
    }

    /// Undoes the count of a run that was cut short for a reason of ours.
    pub(crate) fn uncount_attempt(self) {
        self.state
            .attempts
            .store(self.attempts().saturating_sub(1), Ordering::Relaxed);
    }

    /// running → queued. The caller puts it into the queue.
    pub(crate) fn requeue(self) {
        self.discard(&self.state.result);
        let _ = self.change(RUNNING, QUEUED);
    }

    /// Writes the result of a running task, before [`finish`](Self::finish).
    pub(crate) fn set_result(self, bytes: &[u8], handles: &[Held]) -> Result<(), AllocError> {
        self.discard(&self.state.result);
        let from = self.result_from();
        if handles.is_empty() && bytes.len() <= self.room().saturating_sub(from) {
            self.write_inline(from, bytes);
            points::point("pool.result-written");
        } else {
            let mut loan = Loan::new(self.arena, bytes.len(), handles)?;
            loan.copy_from_slice(bytes);
            let block = loan.into_block();
            self.state.result.store(block.to_bits(), Ordering::Release);
            points::point("pool.result-stored");
            // From here on it is the record's, whoever dies.
            self.arena.rehold(block, current_slot(), TRANSIT);
        }
        self.state
            .result_len
            .store(bytes.len() as u64, Ordering::Relaxed);
        Ok(())
    }

    /// `from` → done. Returns the flags it had, `None` if it was in another state. Wakes who sleeps on it.
    pub(crate) fn finish(self, from: u32, outcome: Outcome) -> Option<u32> {
        if from == RUNNING {
            // Alone with it: its claimer, or the supervisor after that one's death.
            self.state.outcome.store(outcome as u32, Ordering::Relaxed);
        }
        let flags = if from == QUEUED {
            // A worker may claim it at this moment; only when it was not does the outcome belong to us.
            let flags = self.change_for(QUEUED, RUNNING, Some(NO_SEAT))?;
            self.state.outcome.store(outcome as u32, Ordering::Relaxed);
            self.change(RUNNING, DONE).or(Some(flags))
        } else {
            self.change(from, DONE)
        }?;
        points::point("pool.done");
        if flags & WAITED != 0 {
            self.wake();
        }
        Some(flags)
    }

    pub(crate) fn wake(self) {
        self.state.word.wake(u32::MAX, Scope::Shared);
    }

    /// Sets a flag and returns the word as it was.
    pub(crate) fn flag(self, flag: u32) -> u32 {
        self.state.word.fetch_or(flag, Ordering::AcqRel)
    }

    pub(crate) fn is_done_in(word: u32) -> bool {
        word & STATE == DONE
    }

    pub(crate) fn outcome(self) -> Outcome {
        Outcome::from_bits(self.state.outcome.load(Ordering::Relaxed))
    }

    pub(crate) fn wait(self, patience: Patience) -> Result<(), WaitError> {
        wait_done(&self.state.word, WAITED, patience, Self::is_done_in)
    }

    fn discard(self, payload: &AtomicU64) {
        if payload.load(Ordering::Relaxed) != 0
            && let Some(block) = BlockRef::from_bits(payload.swap(0, Ordering::AcqRel))
        {
            Message::discard(self.arena, block);
        }
    }

    /// Frees the record and what it owns. Only the submitter's process calls it, once, when the task is done.
    pub(crate) fn free(self) {
        self.discard(&self.state.args);
        self.discard(&self.state.result);
        self.arena.free(self.block);
    }
}

/// Most worker threads of one pool, all processes together.
pub(crate) const SEATS: usize = 1024;

/// Where a worker is in its life.
pub(crate) const STARTING: u32 = 1;
pub(crate) const READY: u32 = 2;

/// A worker thread's place on the board.
#[derive(Debug)]
#[repr(C)]
pub(crate) struct Seat {
    /// The task it has claimed and not told everybody about.
    pub(crate) current: AtomicU64,
    /// When that must be done, 0 for whenever.
    pub(crate) deadline_ns: AtomicU64,
    pub(crate) tasks: AtomicU64,
    pub(crate) busy_ns: AtomicU64,
    /// When it claimed the current task.
    pub(crate) since_ns: AtomicU64,
    pub(crate) phase: AtomicU32,
    reserved: AtomicU32,
    padding: [AtomicU64; 2],
}

/// What all processes of a pool see.
#[derive(Debug)]
#[repr(C)]
pub(crate) struct Board {
    /// Holds on the two queues.
    tasks: AtomicU64,
    port: AtomicU64,
    /// The supervisor sleeps here.
    pub(crate) bell: Gate<Shared>,
    pub(crate) closing: AtomicU32,
    /// When the supervisor looks next at the deadlines on its own.
    pub(crate) next_look_ns: AtomicU64,
    pub(crate) seats: [Seat; SEATS],
}

// SAFETY: repr(C), atomics and a gate only, the only type placed under its kind.
unsafe impl Placed for Board {
    const KIND: Kind = Kind::Pool;
    const PADDED_UP_TO: usize = std::mem::offset_of!(Board, seats);
}

const _: () = assert!(
    size_of::<Seat>() == 64,
    "no padding but that which is named"
);

const TASKS: usize = std::mem::offset_of!(Board, tasks);
const PORT: usize = std::mem::offset_of!(Board, port);

phalanx_shm::inventory::submit! {
    phalanx_shm::Kinds(install)
}

pub(crate) fn install() {
    static ONCE: std::sync::Once = std::sync::Once::new();
    ONCE.call_once(|| {
        phalanx_channel::install();
        let free_payloads = |arena: &Arena, block: BlockRef| {
            let task = arena.view_held::<TaskState>(block);
            for payload in [&task.args, &task.result] {
                if let Some(block) = BlockRef::from_bits(payload.swap(0, Ordering::AcqRel)) {
                    Message::discard(arena, block);
                }
            }
        };
        register_kind(
            Kind::Task,
            KindOps {
                recover: |_, _, _, _| {},
                destroy: free_payloads,
            },
        );
        let let_queues_go = |arena: &Arena, block: BlockRef| {
            arena.detach(block, TASKS);
            arena.detach(block, PORT);
        };
        register_kind(
            Kind::Pool,
            KindOps {
                recover: |arena, block, _, wake_all| {
                    if wake_all && let Ok(board) = arena.view::<Board>(block) {
                        board.bell.rouse();
                    }
                },
                destroy: let_queues_go,
            },
        );
    });
}

/// Makes a board that holds both queues.
pub(crate) fn new_board(tasks: &RawQueue, port: &RawQueue) -> Result<Object<Board>, CreateError> {
    install();
    let word = AtomicU64::new;
    let board = Board {
        tasks: word(0),
        port: word(0),
        bell: Gate::new(),
        closing: AtomicU32::new(0),
        next_look_ns: word(u64::MAX),
        seats: std::array::from_fn(|_| Seat {
            current: word(0),
            deadline_ns: word(0),
            tasks: word(0),
            busy_ns: word(0),
            since_ns: word(0),
            phase: AtomicU32::new(0),
            reserved: AtomicU32::new(0),
            padding: [word(0), word(0)],
        }),
    };
    let board = Object::new(board)?;
    let (arena, block) = (board.held().arena(), board.held().block());
    for (at, queue) in [(TASKS, tasks), (PORT, port)] {
        let attached = arena.attach(block, at, queue.held().block());
        debug_assert!(attached.is_ok(), "the caller holds both");
    }
    Ok(board)
}

/// Returns the board's queues: tasks, port.
pub(crate) fn queues_of(board: &Object<Board>) -> Option<(RawQueue, RawQueue)> {
    let queue = |bits: &AtomicU64| {
        let block = BlockRef::from_bits(bits.load(Ordering::Acquire))?;
        board
            .held()
            .arena()
            .hold(block)
            .ok()
            .map(RawQueue::from_held)
    };
    Some((queue(&board.tasks)?, queue(&board.port)?))
}
