//! The side of a crew's worker: take a range, run task after task, tell.

use phalanx_channel::{Loan, Message, RawQueue};
use phalanx_prim::{AtomicBool, Ordering, clock, points};
use phalanx_shm::{Arena, BlockRef, Flagged, Held, Patience, WaitError, flag, set_timed};
use phalanx_sync::Object;
use phalanx_sys::event::EventFd;
use std::sync::Arc;

use crate::board::{self, Board, Seat};
use crate::crew::{READY, Range, STARTING, ring};
use crate::lot::{Chunk, End, LotView, NOTIFY, STREAMED, WHOLE};

/// A task that took longer is worth a wake of others, and its result worth a wake of its taker.
const LONG_NS: u64 = 50_000;

/// What the threads of one worker process share.
#[derive(Debug, Default)]
pub struct Leaving(AtomicBool);

/// A thread of a crew's worker process.
#[derive(Debug)]
pub struct CrewWorker {
    board: Object<Board>,
    arena: &'static Arena,
    tasks: RawQueue,
    port: RawQueue,
    bell: Arc<EventFd>,
    number: u32,
    leaving: Arc<Leaving>,
    buffer: Vec<u8>,
    chunk: Chunk,
    claim: Option<Claim>,
    /// When the last task ended, while no wait came between.
    clock_ns: u64,
    announced_ns: u64,
    silent: u32,
}

#[derive(Clone, Copy, Debug)]
struct Claim {
    lot: LotView,
    next: u32,
    to: u32,
    stolen: bool,
    uncounted: u32,
    streamed: bool,
    timeout_ns: u64,
    payload: &'static [u8],
}

/// What a worker gets to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Work {
    /// Tasks: ask for them with [`CrewWorker::begin`].
    Range,
    /// Nothing any more.
    Over,
}

impl CrewWorker {
    /// Takes a seat of the crew that the hold names.
    ///
    /// Returns `None` if the crew is gone.
    #[must_use]
    pub fn join(
        held: Held,
        bell: Arc<EventFd>,
        number: u32,
        leaving: Arc<Leaving>,
    ) -> Option<Self> {
        board::install();
        let arena = held.arena();
        let board = Object::<Board>::from_held(held);
        let (tasks, port) = board::queues_of(&board)?;
        board.seat(number).phase.store(STARTING, Ordering::SeqCst);
        Some(Self {
            board,
            arena,
            tasks,
            port,
            bell,
            number,
            leaving,
            buffer: Vec::new(),
            chunk: Chunk::default(),
            claim: None,
            clock_ns: 0,
            announced_ns: 0,
            silent: 0,
        })
    }

    fn seat(&self) -> &Seat {
        self.board.seat(self.number)
    }

    /// Says that the worker is set up.
    pub fn ready(&self) {
        self.seat().phase.store(READY, Ordering::SeqCst);
    }

    /// Says that no worker can be set up, and why. The crew is broken.
    pub fn break_with(&self, reason: &[u8]) {
        self.board.break_with(self.arena, reason);
        ring(&self.board, &self.bell);
    }

    /// Makes all threads of this process leave when they have nothing in hand.
    pub fn leave(&self) {
        if !self.leaving.0.swap(true, Ordering::AcqRel) {
            self.tasks.readable().rouse();
        }
    }

    /// Blocks until there is something to do.
    ///
    /// # Errors
    ///
    /// [`WaitError`] as `patience` says.
    pub fn next(&mut self, patience: Patience) -> Result<Work, WaitError> {
        loop {
            if self.leaving.0.load(Ordering::Acquire) {
                // The wake that brought us here may have been for somebody who stays.
                if !self.tasks.is_empty() {
                    self.tasks.readable().notify(1);
                }
                return Ok(Work::Over);
            }
            if self.take_range() || self.steal() {
                return Ok(Work::Range);
            }
            if self.tasks.closed().is_some() && self.tasks.is_empty() {
                return Ok(Work::Over);
            }
            self.clock_ns = 0;
            let more = || {
                (!self.tasks.is_empty()
                    || self.tasks.closed().is_some()
                    || self.leaving.0.load(Ordering::Acquire)
                    || self.find_prey().is_some())
                .then_some(())
            };
            let _idle = Flagged::new(flag::IDLE);
            self.tasks.readable().wait_until(patience, more)?;
        }
    }

    fn take_range(&mut self) -> bool {
        loop {
            let seat = self.board.seat(self.number);
            let mut range = None;
            let taken = self.tasks.try_get_claimed(&mut self.buffer, |bytes| {
                range = Range::from_bytes(bytes);
                if let Some(range) = range {
                    // The seat first: from here on somebody must know who answers for them.
                    seat.from.store(range.from, Ordering::Relaxed);
                    seat.to.store(range.to, Ordering::Relaxed);
                    seat.cursor.store(0, Ordering::Relaxed);
                    seat.lot.store(range.lot, Ordering::SeqCst);
                    points::point("crew.seated");
                }
            });
            if !taken {
                return false;
            }
            // The name stands on the seat: a lot that is found now stays until it is taken off.
            if let Some(range) = range
                && let Some(lot) = LotView::find(self.arena, range.lot)
            {
                self.open(lot, range.from, range.to.min(lot.len()), false);
                return true;
            }
            self.leave_seat();
        }
    }

    fn open(&mut self, lot: LotView, from: u32, to: u32, stolen: bool) {
        self.chunk.restart();
        self.claim = Some(Claim {
            lot,
            next: from,
            to,
            stolen,
            uncounted: 0,
            streamed: lot.has(STREAMED),
            timeout_ns: lot.timeout_ns(),
            payload: lot.payload(),
        });
    }

    fn leave_seat(&self) {
        let seat = self.seat();
        seat.from.store(0, Ordering::Relaxed);
        seat.to.store(0, Ordering::Relaxed);
        seat.cursor.store(0, Ordering::Relaxed);
        seat.lot.store(0, Ordering::SeqCst);
        if self.board.closing.load(Ordering::SeqCst) != 0 {
            ring(&self.board, &self.bell);
        }
    }

    /// A seat with tasks behind the one that runs. A hint.
    fn find_prey(&self) -> Option<&Seat> {
        self.board
            .seats()
            .iter()
            .enumerate()
            .find_map(|(number, seat)| {
                let lot = seat.lot.load(Ordering::Relaxed);
                let cursor = seat.cursor.load(Ordering::Relaxed);
                let to = seat.to.load(Ordering::Relaxed);
                let has_more =
                    lot != 0 && cursor != 0 && cursor < to && number as u32 != self.number;
                (has_more && self.is_prey(lot, to - 1)).then_some(seat)
            })
    }

    fn is_prey(&self, lot: u64, last: u32) -> bool {
        // Looked at without the name on our seat: a hint, and atomics at worst of another lot.
        LotView::find(self.arena, lot).is_some_and(|lot| !lot.has(WHOLE) && lot.is_todo(last))
    }

    /// Takes the last task of a range on somebody else's seat.
    fn steal(&mut self) -> bool {
        let Some(prey) = self.find_prey() else {
            return false;
        };
        let bits = prey.lot.load(Ordering::SeqCst);
        let (cursor, to) = (
            prey.cursor.load(Ordering::SeqCst),
            prey.to.load(Ordering::SeqCst),
        );
        let seat = self.seat();
        seat.lot.store(bits, Ordering::SeqCst);
        let found = LotView::find(self.arena, bits);
        let lot = found.filter(|lot| to <= lot.len() && !lot.has(WHOLE));
        let index = lot.and_then(|lot| (cursor..to).rev().find(|index| lot.is_todo(*index)));
        if let (Some(lot), Some(index)) = (lot, index) {
            self.open(lot, index, index + 1, true);
            return true;
        }
        self.leave_seat();
        false
    }

    /// Begins the next task of the range and returns its number; `None` when the range is over.
    pub fn begin(&mut self) -> Option<u32> {
        loop {
            let claim = self.claim.as_mut()?;
            if claim.next >= claim.to {
                self.close();
                return None;
            }
            let index = claim.next;
            claim.next += 1;
            let (lot, timeout) = (claim.lot, claim.timeout_ns);
            let seat = self.board.seat(self.number);
            // Before the claim: so the overseer knows where to look.
            seat.cursor.store(index + 1, Ordering::SeqCst);
            points::point("crew.cursor");
            if !lot.claim(index, self.number) {
                continue;
            }
            points::point("crew.claimed");
            if self.clock_ns == 0 {
                self.clock_ns = clock::now_ns();
            }
            seat.since_ns.store(self.clock_ns, Ordering::Relaxed);
            if timeout != 0 {
                let at = self.clock_ns.saturating_add(timeout);
                seat.deadline_ns.store(at, Ordering::SeqCst);
                set_timed(true);
                if at < self.board.next_look_ns.load(Ordering::SeqCst) {
                    ring(&self.board, &self.bell);
                }
            }
            return Some(index);
        }
    }

    /// The function of the range that was taken: its name, 0 if it has none, and its bytes.
    pub fn with_function<R>(&self, f: impl FnOnce(u64, &[u8]) -> R) -> Option<R> {
        let lot = self.claim?.lot;
        let name = lot.function();
        if name == 0 {
            return Some(f(0, lot.own_function()));
        }
        let block = BlockRef::from_bits(name)?;
        // The crew's maker owns it.
        let message = std::mem::ManuallyDrop::new(Message::from_block(self.arena, block));
        Some(f(name, &message))
    }

    /// Names the lot of the range that was taken.
    #[must_use]
    pub fn lot(&self) -> u64 {
        self.claim.map_or(0, |claim| claim.lot.bits())
    }

    /// The arguments of a task that was begun.
    #[must_use]
    pub fn args(&self, index: u32) -> &[u8] {
        self.claim
            .map_or(&[], |claim| claim.lot.args(index, claim.payload))
    }

    /// Returns `true` if the range's tasks are never tried again, so that a task may change what its arguments lie in. Where
    /// a process has several worker threads, one may be killed for the sake of another, and is tried again then.
    #[must_use]
    pub fn runs_once(&self) -> bool {
        self.claim.is_some_and(|claim| claim.lot.retries() == 0)
    }

    /// Tells how a task ended that was begun.
    ///
    /// # Errors
    ///
    /// When memory is short; the task still runs then: tell something shorter.
    pub fn finish(
        &mut self,
        index: u32,
        end: End,
        bytes: &[u8],
        handles: &[Held],
    ) -> Result<(), phalanx_shm::AllocError> {
        let Some(claim) = self.claim else {
            return Ok(());
        };
        points::point("crew.ran");
        self.disarm(claim);
        if end == End::Error && claim.lot.may_retry(index) {
            self.again(claim.lot, index);
        } else {
            claim
                .lot
                .commit(index, end, bytes, handles, &mut self.chunk)?;
            self.committed();
        }
        self.account();
        Ok(())
    }

    /// As [`finish`](Self::finish), with bytes that lie in a block already.
    pub fn finish_with(&mut self, index: u32, end: End, loan: Loan) {
        let Some(claim) = self.claim else {
            return;
        };
        points::point("crew.ran");
        self.disarm(claim);
        claim.lot.commit_block(index, end, loan);
        self.committed();
        self.account();
    }

    /// Says how many calls of the task that runs are done: where a task is many calls, its death's report names the one that
    /// it ran. Say 0 before [`finish`](Self::finish).
    #[inline]
    pub fn inside(&self, calls: u64) {
        self.seat().inside.store(calls, Ordering::Relaxed);
    }

    /// Counts calls of a task beyond its first as runs.
    pub fn count_calls(&self, more: u64) {
        let tasks = &self.seat().tasks;
        tasks.store(tasks.load(Ordering::Relaxed) + more, Ordering::Relaxed);
    }

    /// First: what is committed in time must not be killed for.
    fn disarm(&self, claim: Claim) {
        if claim.timeout_ns != 0 {
            self.seat().deadline_ns.store(0, Ordering::SeqCst);
            set_timed(false);
        }
    }

    fn committed(&mut self) {
        if let Some(claim) = self.claim.as_mut() {
            claim.uncounted += 1;
        }
    }

    fn account(&mut self) {
        let seat = self.board.seat(self.number);
        let now = clock::now_ns();
        let took = now.saturating_sub(self.clock_ns);
        seat.busy_ns.store(
            seat.busy_ns.load(Ordering::Relaxed) + took,
            Ordering::Relaxed,
        );
        seat.tasks
            .store(seat.tasks.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
        self.clock_ns = now;
        self.announce(took, now);
    }

    fn announce(&mut self, took: u64, now: u64) {
        let Some(claim) = self.claim.as_mut() else {
            return;
        };
        let last = claim.next >= claim.to;
        if last || took > LONG_NS {
            self.count();
        }
        let Some(claim) = self.claim.as_ref() else {
            return;
        };
        if claim.streamed {
            self.silent += 1;
            if last || took > LONG_NS || now.saturating_sub(self.announced_ns) > LONG_NS {
                self.board.results.notify_all();
                self.announced_ns = now;
                self.silent = 0;
            }
        }
        if took > LONG_NS && !last && !claim.stolen {
            // Others may take from what is left.
            self.tasks.readable().notify(1);
        }
    }

    fn again(&self, lot: LotView, index: u32) {
        lot.put_back(index);
        points::point("crew.put-back");
        let range = Range {
            lot: lot.bits(),
            from: index,
            to: index + 1,
        };
        let _ = self.tasks.put(&[&range.to_bytes()], Patience::FOREVER);
    }

    /// Counts what was committed, and tells those who wait if it was the last.
    fn count(&mut self) {
        let Some(claim) = self.claim.as_mut() else {
            return;
        };
        let lot = claim.lot;
        let by = std::mem::take(&mut claim.uncounted);
        if by == 0 || !lot.count_down(by) {
            return;
        }
        points::point("crew.done");
        lot.wake();
        if lot.has(NOTIFY) {
            let _ = self
                .port
                .put(&[&lot.bits().to_le_bytes()], Patience::FOREVER);
            ring(&self.board, &self.bell);
        }
    }

    fn close(&mut self) {
        self.count();
        self.chunk.close();
        let streamed = self.claim.is_some_and(|claim| claim.streamed);
        self.claim = None;
        points::point("crew.told");
        self.leave_seat();
        if streamed && std::mem::take(&mut self.silent) > 0 {
            self.board.results.notify_all();
        }
    }
}
