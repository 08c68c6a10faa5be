//! A crew: workers of any make (processes that somebody else starts), tasks as opaque bytes.
//!
//! The maker of a crew starts worker processes as it likes and tells the crew their numbers and process ids; each becomes
//! a [`CrewWorker`] and takes tasks. One thread of the maker oversees: it sleeps in [`Crew::look`], settles what dead
//! workers left, and starts others in their place. What the arena holds, and what a death costs, is told in `lot`.

use std::collections::{HashMap, HashSet};
use std::fmt::Write;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use phalanx_channel::{Bounds, Loan, Message, RawPutError, RawQueue};
use phalanx_prim::{AtomicBool, AtomicU64, Deadline, Ordering, clock, fence};
use phalanx_shm::{
    Arena, BlockRef, Described, Flagged, Held, Patience, Subject, WaitError, Waiting, flag, session,
};
use phalanx_sync::{CreateError, Object};
use phalanx_sys::event::{Epoll, EventFd};
use phalanx_sys::pidfd::PidFd;

use crate::board::{self, Board, SEATS, Seat};
use crate::error::SubmitError;
use crate::lot::{self, End, LET_GO, LotSpec, LotView, NOTIFY, STREAMED, WHOLE};

const BELL: u64 = u64::MAX;
/// The most tasks that a worker takes at once.
const RANGE_MOST: usize = 64;
/// How long the overseer sleeps at most while a lot is not done.
const LOOK_AGAIN: Duration = Duration::from_millis(500);
/// So many ranges per worker, for a crew that starts a lot idle.
const RANGES_PER_SEAT: usize = 4;

/// A range of a lot, as it lies in the crew's queue.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Range {
    pub(crate) lot: u64,
    pub(crate) from: u32,
    pub(crate) to: u32,
}

impl Range {
    pub(crate) fn to_bytes(self) -> [u8; 16] {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&self.lot.to_le_bytes());
        bytes[8..12].copy_from_slice(&self.from.to_le_bytes());
        bytes[12..].copy_from_slice(&self.to.to_le_bytes());
        bytes
    }

    pub(crate) fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let bytes: &[u8; 16] = bytes.try_into().ok()?;
        let half = |at: usize| {
            u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
        };
        Some(Self {
            lot: u64::from(half(0)) | u64::from(half(4)) << 32,
            from: half(8),
            to: half(12),
        })
    }
}

/// A worker process as the crew's maker started it.
#[derive(Debug)]
struct Hired {
    pid: u32,
    /// `None` when it was gone before it could be opened.
    pidfd: Option<PidFd>,
    killed: Option<Killed>,
    /// When it must be ready.
    due: Option<Deadline>,
    late: bool,
}

/// A kill of ours: for which task.
#[derive(Clone, Copy, Debug)]
struct Killed {
    lot: u64,
    index: u32,
    end: End,
}

#[derive(Debug, Default)]
struct Inner {
    workers: HashMap<u32, Hired>,
    /// Lots that are neither done nor forgotten, and those that are done and not freed.
    lots: HashSet<u64>,
    /// Lots to free once no seat names them.
    graveyard: Vec<u64>,
    /// Tasks to cancel while they run.
    cancels: Vec<(u64, u32)>,
    ended: Vec<u32>,
    /// Functions that are kept for the crew's life.
    known: Vec<u64>,
}

/// Something for the overseer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum News {
    /// The worker with this number ended: collect it, then [`Crew::settle`].
    Ended(u32),
    /// A lot is done that somebody asked to hear of.
    Done(u64),
}

/// What a dead worker left.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Settled {
    /// It was running a task.
    pub had_task: bool,
    /// The crew had killed it.
    pub killed: bool,
    /// It had become a worker: its initializer was over.
    pub ready: bool,
    /// It was killed because it was not ready in time.
    pub late: bool,
}

/// A crew, as its maker has it.
#[derive(Debug)]
pub struct Crew {
    arena: &'static Arena,
    board: Object<Board>,
    tasks: RawQueue,
    port: RawQueue,
    bell: EventFd,
    epoll: Epoll,
    owner: u32,
    threads: u32,
    seats: u32,
    inner: Mutex<Inner>,
    closed: AtomicBool,
    submitted: AtomicU64,
    /// Nanoseconds that a worker may take to get ready, 0 for as long as it takes.
    start_timeout_ns: AtomicU64,
}

fn current_pid() -> u32 {
    (phalanx_shm::thread_identity() >> 32) as u32
}

const NOW: Patience = Patience {
    deadline: Some(Deadline::PAST),
    ..Patience::FOREVER
};

impl Crew {
    /// Makes a crew of `workers` processes with `threads` threads each. Nothing is started.
    ///
    /// # Errors
    ///
    /// [`SubmitError`] when memory or descriptors are short, or there are more than [`SEATS`] threads.
    pub fn new(workers: u32, threads: u32) -> Result<Arc<Self>, SubmitError> {
        let seats = workers as usize * threads as usize;
        if seats == 0 || seats > SEATS {
            return Err(SubmitError::Crew(format!(
                "a crew of {workers} x {threads} threads is not possible; 1 to {SEATS} are"
            )));
        }
        board::install();
        let system = |error: std::io::Error| SubmitError::Crew(error.to_string());
        let arena = session().map_err(|error| SubmitError::Crew(error.to_string()))?;
        let tasks = RawQueue::new(arena, Bounds::default())?;
        let port = RawQueue::new(arena, Bounds::default())?;
        let board = board::new_board(&tasks, &port, seats as u32).map_err(|error| match error {
            CreateError::Alloc(error) => SubmitError::Alloc(error),
            error => SubmitError::Crew(error.to_string()),
        })?;
        let (bell, epoll) = (
            EventFd::new().map_err(system)?,
            Epoll::new().map_err(system)?,
        );
        epoll.add(&bell, BELL).map_err(system)?;
        Ok(Arc::new(Self {
            arena,
            board,
            tasks,
            port,
            bell,
            epoll,
            owner: current_pid(),
            threads,
            seats: seats as u32,
            inner: Mutex::default(),
            closed: AtomicBool::new(false),
            submitted: AtomicU64::new(0),
            start_timeout_ns: AtomicU64::new(0),
        }))
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The board's hold: what a worker needs to find the crew, besides [`bell`](Self::bell).
    #[must_use]
    pub fn held(&self) -> &Held {
        self.board.held()
    }

    /// The overseer's bell, for the workers.
    #[must_use]
    pub fn bell(&self) -> &EventFd {
        &self.bell
    }

    /// Returns whether the calling process made the crew.
    #[must_use]
    pub fn is_mine(&self) -> bool {
        self.owner == current_pid()
    }

    // ---- submitting ----

    /// Keeps a function's bytes for the life of the crew and returns its name for [`LotSpec::function`].
    ///
    /// # Errors
    ///
    /// When memory is short.
    pub fn know(&self, bytes: &[u8], handles: &[Held]) -> Result<u64, SubmitError> {
        let mut loan = Loan::new(self.arena, bytes.len(), handles)?;
        loan.copy_from_slice(bytes);
        let name = loan.into_block().to_bits();
        self.inner().known.push(name);
        Ok(name)
    }

    /// Gives back what [`know`](Self::know) kept, before the crew ends. No task that names it is left.
    pub fn forget(&self, function: u64) {
        let was_known = self.is_mine() && {
            let known = &mut self.inner().known;
            let at = known.iter().position(|name| *name == function);
            at.map(|at| known.swap_remove(at)).is_some()
        };
        if was_known && let Some(block) = BlockRef::from_bits(function) {
            Message::discard(self.arena, block);
        }
    }

    /// Submits a lot.
    ///
    /// # Errors
    ///
    /// [`SubmitError`]: closed, broken, memory short, another process's crew.
    pub fn submit(self: &Arc<Self>, spec: &LotSpec, handles: &[Held]) -> Result<Lot, SubmitError> {
        if self.closed.load(Ordering::SeqCst) {
            return Err(SubmitError::Closed);
        }
        if self.board.broken.load(Ordering::Acquire) != 0 {
            return Err(SubmitError::Broken(
                "a worker could not be set up".to_owned(),
            ));
        }
        if !self.is_mine() {
            return Err(SubmitError::NotOwner(self.owner));
        }
        let flags =
            if spec.streamed { STREAMED } else { 0 } | if spec.together > 0 { WHOLE } else { 0 };
        let lot = LotView::new(self.arena, self.board.held().block(), spec, flags, handles)?;
        self.inner().lots.insert(lot.bits());
        let items = spec.spans.len();
        let step = match spec.together as usize {
            0 => (items / (self.seats as usize * RANGES_PER_SEAT)).clamp(1, RANGE_MOST),
            together => together,
        };
        let handle = Lot {
            crew: Arc::clone(self),
            view: lot,
        };
        let mut from = 0;
        while from < items {
            let to = (from + step).min(items);
            self.put(Range {
                lot: lot.bits(),
                from: from as u32,
                to: to as u32,
            })?;
            from = to;
        }
        self.submitted.fetch_add(items as u64, Ordering::Relaxed);
        Ok(handle)
    }

    fn put(&self, range: Range) -> Result<(), SubmitError> {
        match self.tasks.put(&[&range.to_bytes()], Patience::FOREVER) {
            Ok(()) => Ok(()),
            Err(RawPutError::Alloc(error)) => Err(error.into()),
            Err(_) => Err(SubmitError::Closed),
        }
    }

    // ---- handles ----

    fn let_go(&self, lot: LotView) {
        if !self.is_mine() {
            return;
        }
        // Done after the look: the overseer hears of it and frees it.
        if lot.flag(NOTIFY | LET_GO) & lot::DONE != 0 {
            self.bury(lot);
        }
    }

    /// Frees a lot that is done, now or when no worker looks at it.
    fn bury(&self, lot: LotView) {
        lot.condemn();
        let mut inner = self.inner();
        inner.lots.remove(&lot.bits());
        inner.graveyard.push(lot.bits());
        self.purge(&mut inner);
    }

    fn purge(&self, inner: &mut Inner) {
        inner.graveyard.retain(|bits| {
            if self.board.is_named(*bits) {
                return true;
            }
            if let Some(block) = BlockRef::from_bits(*bits) {
                LotView::of(self.arena, block).free();
            }
            false
        });
    }

    /// Cancels a task of a lot: one that waits never runs, one that runs is ended by killing its worker. Returns `false`
    /// if it was done already.
    fn cancel(&self, lot: LotView, index: u32, running_too: bool) -> bool {
        if !self.is_mine() {
            return false;
        }
        if lot.end(index, false, End::Cancelled, &[]) {
            self.ended(lot, 1);
            return true;
        }
        if lot.end_of(index).is_some() {
            return false;
        }
        if running_too {
            self.inner().cancels.push((lot.bits(), index));
            self.ring();
        }
        running_too
    }

    /// Tasks of a lot were ended by us.
    fn ended(&self, lot: LotView, by: u32) {
        if lot.count_down(by) {
            self.tell(lot);
        }
        if lot.has(STREAMED) {
            self.board.results.notify_all();
        }
    }

    fn tell(&self, lot: LotView) {
        lot.wake();
        if lot.has(NOTIFY) {
            let _ = self
                .port
                .put(&[&lot.bits().to_le_bytes()], Patience::FOREVER);
            self.ring();
        }
    }

    /// Makes the overseer look.
    pub fn ring(&self) {
        ring(&self.board, &self.bell);
    }

    // ---- overseeing ----

    /// Limits how long workers that are hired from now on may take to get ready; one that takes longer is killed.
    pub fn limit_starts(&self, most: Duration) {
        let most = u64::try_from(most.as_nanos()).unwrap_or(u64::MAX);
        self.start_timeout_ns.store(most, Ordering::Relaxed);
    }

    /// Watches a worker that was started under a number.
    pub fn hired(&self, number: u32, pid: u32) {
        let mut inner = self.inner();
        let pidfd = PidFd::open(pid).ok();
        let watched = pidfd
            .as_ref()
            .is_some_and(|pidfd| self.epoll.add(pidfd, u64::from(number)).is_ok());
        if !watched {
            // Nobody would hear of its end, and nobody could end it: it ends now. Its maker has not collected it yet, so the
            // number is still its own.
            let _ = phalanx_sys::process::signal(pid, SIGKILL);
            inner.ended.push(number);
        }
        let most = self.start_timeout_ns.load(Ordering::Relaxed);
        inner.workers.insert(
            number,
            Hired {
                pid,
                pidfd,
                killed: None,
                due: (most > 0).then(|| Deadline::after(Duration::from_nanos(most))),
                late: false,
            },
        );
        drop(inner);
        if !watched {
            self.ring();
        }
    }

    /// Sleeps until there is news, for at most `patience`; deadlines and cancellations are seen to on the way.
    ///
    /// # Errors
    ///
    /// [`WaitError::TimedOut`] when nothing happened, [`WaitError::Interrupted`] when somebody rang.
    pub fn look(&self, deadline: Option<Deadline>) -> Vec<News> {
        // Rung since the last look: what the caller looked at meanwhile may be old.
        let rung = self.board.asleep.swap(ASLEEP, Ordering::SeqCst) == RUNG;
        let mut news = Vec::new();
        let due = self.round(&mut news);
        if rung || !news.is_empty() {
            if self.board.asleep.swap(AWAKE, Ordering::SeqCst) == RUNG {
                self.bell.clear();
            }
            return news;
        }
        // Deadlines set from here on ring the bell if they are earlier.
        self.board
            .next_look_ns
            .store(due.map_or(u64::MAX, Deadline::as_ns), Ordering::SeqCst);
        // Everything that counts wakes us; whoever waits for a task shall not depend on that alone.
        let again = (!self.inner().lots.is_empty()).then(|| Deadline::after(LOOK_AGAIN));
        let timed = [due, self.earliest_deadline(), deadline];
        let timed = timed.into_iter().flatten().min();
        let ready = self.sleep(timed, again);
        self.board.asleep.store(AWAKE, Ordering::SeqCst);
        if ready.contains(&BELL) {
            self.bell.clear();
        }
        let inner = self.inner();
        for key in ready.into_iter().filter(|key| *key != BELL) {
            let number = key as u32;
            if let Some(hired) = inner.workers.get(&number)
                && let Some(pidfd) = &hired.pidfd
                && pidfd.is_dead()
            {
                self.epoll.remove(pidfd);
                news.push(News::Ended(number));
            }
        }
        drop(inner);
        self.round(&mut news);
        news
    }

    /// Sleeps until a worker has ended, somebody rings or the time is up; returns which. That it wakes up for `again` changes
    /// nothing for anybody else: all that counts has rung before.
    fn sleep(&self, timed: Option<Deadline>, again: Option<Deadline>) -> Vec<u64> {
        let due = timed.into_iter().chain(again).min();
        let patience = Patience {
            deadline: timed,
            ..Patience::FOREVER
        };
        let _idle = Flagged::new(flag::IDLE);
        let _described = Described::new(format_args!("pool for news of its workers"));
        let mut waiting = Waiting::new();
        loop {
            if waiting.is_cut() {
                waiting.looks();
                let ready = self.epoll.wait(Some(Deadline::PAST)).unwrap_or_default();
                if !ready.is_empty() {
                    return ready;
                }
            }
            let at = |_: &_| std::ptr::from_ref(self) as usize as u64;
            // It is not interruptible and not said to be able to fail.
            let _ = waiting.sleeps(Subject::SharedGate, at, 0, patience);
            let until = waiting.until(due);
            let ready = self.epoll.wait(until).unwrap_or_default();
            if !ready.is_empty() || until == due || due.is_some_and(Deadline::has_passed) {
                return ready;
            }
            waiting.cut();
        }
    }

    /// One round of the overseer's duties; returns when the next deadline is.
    fn round(&self, news: &mut Vec<News>) -> Option<Deadline> {
        let mut buffer = Vec::new();
        while self.port.get_into(&mut buffer, NOW).is_ok() {
            let Ok(bits) = <[u8; 8]>::try_from(&buffer[..]) else {
                continue;
            };
            let bits = u64::from_le_bytes(bits);
            match LotView::find(self.arena, bits) {
                Some(lot) if lot.has(LET_GO) => self.bury(lot),
                Some(_) => news.push(News::Done(bits)),
                None => {}
            }
        }
        let mut inner = self.inner();
        news.extend(inner.ended.drain(..).map(News::Ended));
        for (bits, index) in std::mem::take(&mut inner.cancels) {
            self.cancel_running(&mut inner, bits, index);
        }
        self.purge(&mut inner);
        let next_start = self.check_starts(&mut inner);
        let next_task = self.check_deadlines(&mut inner);
        next_start.into_iter().chain(next_task).min()
    }

    /// Kills workers that are not ready in time; returns when the next must be.
    fn check_starts(&self, inner: &mut Inner) -> Option<Deadline> {
        let mut next = None;
        for (number, hired) in &mut inner.workers {
            let Some(due) = hired.due else { continue };
            if self
                .board
                .seat(number * self.threads)
                .phase
                .load(Ordering::SeqCst)
                == READY
            {
                hired.due = None;
            } else if !due.has_passed() {
                next = next.into_iter().chain([due]).min();
            } else if let Some(pidfd) = &hired.pidfd {
                hired.due = None;
                hired.late = true;
                // Should it have got ready just now: what it took goes back.
                hired.killed.get_or_insert(Killed {
                    lot: NO_LOT,
                    index: 0,
                    end: End::Died,
                });
                let _ = pidfd.signal(SIGKILL);
            }
        }
        next
    }

    fn cancel_running(&self, inner: &mut Inner, bits: u64, index: u32) {
        let Some(lot) = LotView::find(self.arena, bits) else {
            return;
        };
        if let Some(seat) = lot.runner(index) {
            if !self.kill_runner(inner, seat, bits, index, End::Cancelled) {
                inner.cancels.push((bits, index));
            }
        } else if lot.end(index, false, End::Cancelled, &[]) {
            // A retry put it back meanwhile.
            self.ended(lot, 1);
        }
    }

    /// Returns whether the worker is on its way out; not, if it works already and we have not been told of it yet.
    fn kill_runner(&self, inner: &mut Inner, seat: u32, lot: u64, index: u32, end: End) -> bool {
        let Some(hired) = inner.workers.get_mut(&(seat / self.threads)) else {
            return false;
        };
        if hired.killed.is_none()
            && let Some(pidfd) = &hired.pidfd
        {
            hired.killed = Some(Killed { lot, index, end });
            let _ = pidfd.signal(SIGKILL);
        }
        true
    }

    fn earliest_deadline(&self) -> Option<Deadline> {
        self.board
            .seats()
            .iter()
            .map(|seat| seat.deadline_ns.load(Ordering::SeqCst))
            .filter(|at| *at != 0)
            .min()
            .map(Deadline::at_ns)
    }

    fn check_deadlines(&self, inner: &mut Inner) -> Option<Deadline> {
        let earliest = self.earliest_deadline()?;
        if !earliest.has_passed() {
            return Some(earliest);
        }
        let now = clock::now_ns();
        for (number, seat) in self.board.seats().iter().enumerate() {
            let at = seat.deadline_ns.load(Ordering::SeqCst);
            if at == 0 || at > now {
                continue;
            }
            let bits = seat.lot.load(Ordering::SeqCst);
            let index = seat.cursor.load(Ordering::SeqCst).wrapping_sub(1);
            // The deadline may be the last task's: look whether it is still the same.
            if let Some(lot) = LotView::find(self.arena, bits)
                && lot.is_run_by(index, number as u32)
                && seat.deadline_ns.load(Ordering::SeqCst) == at
                && self.kill_runner(inner, number as u32, bits, index, End::TimedOut)
            {
                // Settled when its end is reported.
                seat.deadline_ns.store(0, Ordering::SeqCst);
            }
        }
        self.earliest_deadline()
            .map(|at| at.max(Deadline::after(Duration::from_millis(1))))
    }

    /// Decides about what a dead worker left on its seats. `report` becomes the result of a task that died with it.
    pub fn settle(&self, number: u32, report: &[u8]) -> Settled {
        let hired = self.inner().workers.remove(&number);
        let killed = hired.as_ref().and_then(|hired| hired.killed);
        let mut settled = Settled {
            killed: killed.is_some(),
            late: hired.is_some_and(|hired| hired.late),
            ..Settled::default()
        };
        for seat_number in number * self.threads..(number + 1) * self.threads {
            let seat = self.board.seat(seat_number);
            settled.ready |= seat.phase.swap(0, Ordering::SeqCst) == READY;
            seat.deadline_ns.store(0, Ordering::SeqCst);
            let bits = seat.lot.load(Ordering::SeqCst);
            if let Some(lot) = LotView::find(self.arena, bits) {
                settled.had_task |= self.settle_seat(lot, seat_number, seat, killed, report);
            }
            seat.from.store(0, Ordering::SeqCst);
            seat.to.store(0, Ordering::SeqCst);
            seat.cursor.store(0, Ordering::SeqCst);
            seat.lot.store(0, Ordering::SeqCst);
        }
        // A wake that was meant for the dead one.
        self.tasks.readable().notify_all();
        settled
    }

    fn settle_seat(
        &self,
        lot: LotView,
        seat_number: u32,
        seat: &Seat,
        killed: Option<Killed>,
        report: &[u8],
    ) -> bool {
        let from = seat.from.load(Ordering::SeqCst);
        let to = seat.to.load(Ordering::SeqCst).min(lot.len());
        let victim = seat.cursor.load(Ordering::SeqCst).wrapping_sub(1);
        let ran = lot.is_run_by(victim, seat_number);
        if ran {
            self.settle_victim(lot, victim, seat, killed, report);
        }
        // The rest of its range goes back into the queue: once more than needed does no harm.
        if (from..to).any(|index| lot.is_todo(index)) {
            let range = Range {
                lot: lot.bits(),
                from,
                to,
            };
            if self.put(range).is_err() {
                self.end_rest(lot, End::Terminated, false);
            }
        }
        if lot.add_slack(to.saturating_sub(from) + 1) {
            self.tell(lot);
        } else if lot.has(lot::DONE) {
            // Done, and perhaps not everybody told.
            self.tell(lot);
        }
        if lot.has(STREAMED) {
            self.board.results.notify_all();
        }
        ran
    }

    fn settle_victim(
        &self,
        lot: LotView,
        victim: u32,
        seat: &Seat,
        killed: Option<Killed>,
        report: &[u8],
    ) {
        let meant = killed.filter(|killed| killed.lot == lot.bits() && killed.index == victim);
        let end = match (meant, killed) {
            (Some(killed), _) => killed.end,
            (None, Some(killed)) if killed.lot == 0 => killed.end,
            // Killed for another's sake.
            (None, Some(_)) => {
                lot.uncount(victim);
                self.again(lot, victim);
                return;
            }
            (None, None) => End::Died,
        };
        if matches!(end, End::Died | End::TimedOut) && lot.may_retry(victim) {
            self.again(lot, victim);
            return;
        }
        let since = seat.since_ns.load(Ordering::Relaxed);
        let ran = clock::now_ns().saturating_sub(since);
        let inside = seat.inside.swap(0, Ordering::Relaxed);
        let mut bytes = ran.to_le_bytes().to_vec();
        bytes.extend_from_slice(&inside.to_le_bytes());
        bytes.extend_from_slice(report);
        if lot.end(victim, true, end, &bytes) {
            self.ended(lot, 1);
        }
    }

    fn again(&self, lot: LotView, index: u32) {
        lot.put_back(index);
        let range = Range {
            lot: lot.bits(),
            from: index,
            to: index + 1,
        };
        if self.put(range).is_err() && lot.end(index, false, End::Terminated, &[]) {
            self.ended(lot, 1);
        }
    }

    /// Ends every task of a lot that is not done. With `running`, also those that run: their workers are dead.
    fn end_rest(&self, lot: LotView, end: End, running: bool) {
        let mut count = 0;
        for index in 0..lot.len() {
            let ended = lot.end(index, false, end, &[])
                || (running && lot.end_of(index).is_none() && lot.end(index, true, end, &[]));
            count += u32::from(ended);
        }
        if count > 0 {
            self.ended(lot, count);
        }
    }

    // ---- the end ----

    /// Returns whether some worker is ready.
    #[must_use]
    pub fn any_ready(&self) -> bool {
        let mut seats = self.board.seats().iter();
        seats.any(|seat| seat.phase.load(Ordering::SeqCst) == READY)
    }

    /// Takes no more lots.
    pub fn close(&self) {
        self.closed.store(true, Ordering::SeqCst);
        self.board.closing.store(1, Ordering::SeqCst);
        self.ring();
    }

    /// Returns whether every task that was submitted is done and nobody works.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        // A range is on a seat before it leaves the queue, so this order of looks misses none.
        self.tasks.is_empty()
            && self
                .board
                .seats()
                .iter()
                .all(|seat| seat.lot.load(Ordering::SeqCst) == 0)
    }

    /// Lets workers that have nothing to do go home.
    pub fn dismiss(&self) {
        self.closed.store(true, Ordering::SeqCst);
        self.tasks.close();
    }

    /// Sends every worker a signal.
    pub fn signal(&self, signal: i32, end: End) {
        let mut inner = self.inner();
        for hired in inner.workers.values_mut() {
            hired.killed.get_or_insert(Killed {
                lot: 0,
                index: 0,
                end,
            });
            if let Some(pidfd) = &hired.pidfd {
                let _ = pidfd.signal(signal);
            }
        }
    }

    /// Waits until every worker has ended; returns whether they have.
    pub fn wait_workers(&self, deadline: Deadline) -> bool {
        let fds: Vec<PidFd> = self
            .inner()
            .workers
            .values()
            .filter_map(|hired| PidFd::open(hired.pid).ok())
            .collect();
        fds.iter().all(|pidfd| {
            pidfd.is_dead() || {
                let _ = pidfd.poll(Some(deadline));
                pidfd.is_dead()
            }
        })
    }

    /// Ends everything that is not done. No worker is alive any more.
    pub fn end_all(&self, end: End) {
        self.dismiss();
        for seat in self.board.seats() {
            seat.lot.store(0, Ordering::SeqCst);
            seat.deadline_ns.store(0, Ordering::SeqCst);
        }
        let lots: Vec<u64> = self.inner().lots.iter().copied().collect();
        for lot in lots {
            if let Some(lot) = LotView::find(self.arena, lot) {
                self.end_rest(lot, end, true);
                if lot.add_slack(lot.len()) {
                    self.tell(lot);
                }
            }
        }
        self.board.results.notify_all();
    }

    /// Why the crew is broken, as the worker said it; `None` while it is not.
    #[must_use]
    pub fn broken(&self) -> Option<Vec<u8>> {
        self.board.broken_reason(self.arena)
    }

    /// Breaks the crew for a reason.
    pub fn break_with(&self, reason: &[u8]) {
        self.board.break_with(self.arena, reason);
        self.ring();
    }

    // ---- looking ----

    /// Sleeps until `ready` answers; it is asked whenever a result of a streamed lot is there.
    ///
    /// # Errors
    ///
    /// [`WaitError`] as `patience` says.
    pub fn wait_results<T>(
        &self,
        patience: Patience,
        ready: impl FnMut() -> Option<T>,
    ) -> Result<T, WaitError> {
        self.board.results.wait_until(patience, ready)
    }

    /// Makes those who wait for results look again.
    pub fn announce(&self) {
        self.board.results.notify_all();
    }

    /// Runs of tasks so far, by seat: how many, and nanoseconds spent in them.
    #[must_use]
    pub fn runs(&self) -> Vec<(u64, u64)> {
        let seats = self.board.seats().iter();
        seats
            .map(|seat| {
                (
                    seat.tasks.load(Ordering::Relaxed),
                    seat.busy_ns.load(Ordering::Relaxed),
                )
            })
            .collect()
    }

    /// What the board says: ranges in the queue, and each seat in use.
    #[must_use]
    pub fn describe(&self) -> String {
        let mut text = format!(
            "{} ranges wait, overseer {}",
            self.tasks.len(),
            self.board.asleep.load(Ordering::Relaxed)
        );
        for (number, seat) in self.board.seats().iter().enumerate() {
            let lot = seat.lot.load(Ordering::Relaxed);
            let _ = write!(
                text,
                "; seat {number}: phase {}, lot {lot:x} {}..{} at {}, {} done, deadline {}",
                seat.phase.load(Ordering::Relaxed),
                seat.from.load(Ordering::Relaxed),
                seat.to.load(Ordering::Relaxed),
                seat.cursor.load(Ordering::Relaxed),
                seat.tasks.load(Ordering::Relaxed),
                seat.deadline_ns.load(Ordering::Relaxed),
            );
        }
        text
    }

    /// Tasks that were submitted.
    #[must_use]
    pub fn submitted(&self) -> u64 {
        self.submitted.load(Ordering::Relaxed)
    }
}

impl Drop for Crew {
    fn drop(&mut self) {
        if !self.is_mine() {
            return;
        }
        let mut inner = self.inner();
        // No handle on a lot is left, or the crew would live.
        let lots: Vec<u64> = inner.lots.drain().collect();
        for lot in lots.into_iter().filter_map(BlockRef::from_bits) {
            LotView::of(self.arena, lot).condemn();
            inner.graveyard.push(lot.to_bits());
        }
        for seat in self.board.seats() {
            seat.lot.store(0, Ordering::SeqCst);
        }
        self.purge(&mut inner);
        for function in inner.known.drain(..).filter_map(BlockRef::from_bits) {
            Message::discard(self.arena, function);
        }
    }
}

/// No lot's name.
const NO_LOT: u64 = u64::MAX;
const SIGKILL: i32 = 9;
pub(crate) const STARTING: u32 = 1;
pub(crate) const READY: u32 = 2;

// What the overseer does, as those know who ring for it.
const AWAKE: u32 = 0;
const ASLEEP: u32 = 1;
const RUNG: u32 = 2;

pub(crate) fn ring(board: &Board, bell: &EventFd) {
    fence(Ordering::SeqCst);
    if board.asleep.load(Ordering::SeqCst) != RUNG
        && board.asleep.swap(RUNG, Ordering::SeqCst) == ASLEEP
    {
        bell.ring();
    }
}

/// A lot that was submitted. Dropping it lets its tasks run and forgets the results.
#[derive(Debug)]
pub struct Lot {
    crew: Arc<Crew>,
    view: LotView,
}

impl Lot {
    /// Names the lot in [`News::Done`].
    #[must_use]
    pub fn id(&self) -> u64 {
        self.view.bits()
    }

    /// Returns how many tasks it has.
    #[must_use]
    pub fn len(&self) -> usize {
        self.view.len() as usize
    }

    /// Returns whether it has none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Returns whether all its tasks are done.
    #[must_use]
    pub fn is_done(&self) -> bool {
        self.view.has(lot::DONE)
    }

    /// Returns how many are not done.
    #[must_use]
    pub fn pending(&self) -> usize {
        self.view.pending() as usize
    }

    /// Blocks until all are done.
    ///
    /// # Errors
    ///
    /// [`WaitError`] as `patience` says.
    pub fn wait(&self, patience: Patience) -> Result<(), WaitError> {
        self.view.wait(patience)
    }

    /// Asks for [`News::Done`]; `false` if it is done already.
    #[must_use]
    pub fn notify(&self) -> bool {
        self.view.flag(NOTIFY) & lot::DONE == 0
    }

    /// How a task ended; `None` while it has not.
    #[must_use]
    pub fn end_of(&self, index: usize) -> Option<End> {
        self.view.end_of(index as u32)
    }

    /// Returns whether a worker runs the task now.
    #[must_use]
    pub fn is_running(&self, index: usize) -> bool {
        self.view.runner(index as u32).is_some()
    }

    /// Reads the result of a task that has ended.
    pub fn with_result<R>(&self, index: usize, f: impl FnOnce(&[u8]) -> R) -> R {
        self.view.with_result(index as u32, f)
    }

    /// Takes the result of a task whose result has a block of its own: once.
    #[must_use]
    pub fn take_block(&self, index: usize) -> Option<Message> {
        self.view.take_block(index as u32)
    }

    /// A task's arguments, as they were submitted.
    #[must_use]
    pub fn args(&self, index: usize) -> &[u8] {
        self.view.args(index as u32, self.view.payload())
    }

    /// How often a task was begun.
    #[must_use]
    pub fn tries(&self, index: usize) -> u32 {
        self.view.tries(index as u32)
    }

    /// Cancels a task: one that waits never runs; with `running_too`, one that runs is ended by killing its worker. Returns
    /// `false` if it was done already, or runs and may.
    pub fn cancel(&self, index: usize, running_too: bool) -> bool {
        self.crew.cancel(self.view, index as u32, running_too)
    }
}

impl Drop for Lot {
    fn drop(&mut self) {
        self.crew.let_go(self.view);
    }
}
