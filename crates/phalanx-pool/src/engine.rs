//! The submitter's side: submitting, and the supervisor that keeps the workers at work.
//!
//! Everything here deals in bytes; the typed faces are above.
//!
//! The supervisor is one thread of the process that made the pool. It sleeps on the board's bell and wakes when a worker
//! process ended, a deadline comes, a cancellation or the end of the pool is asked for, or a task with a waker is done. It
//! is on no task's path: submitters put references into the queue, workers take them, and whoever waits for a result
//! sleeps on the task itself.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};
use std::task::Waker;
use std::time::Duration;

use phalanx_channel::{Loan, RawQueue, codec};
use phalanx_prim::{AtomicBool, AtomicU32, AtomicU64, Deadline, Ordering, clock};
use phalanx_process::{ExitStatus, Process, ProcessError, StartMethod, TaskRef};
use phalanx_shm::{Arena, BlockRef, Flagged, Held, Patience, WaitError, flag, session};
use phalanx_sync::{Gate, Object};

use crate::error::{BuildError, SubmitError, WorkerDeath, describe_arguments};
use crate::record::{
    self, ABANDONED, Board, CANCEL, Choices, DONE, NOTIFY, ORPHAN, Outcome, QUEUED, READY,
    RENEWED_MOST, RUNNING, STARTING, TaskView,
};
use crate::worker::{self, Orders, Served};
use rustc_hash::FxHashMap;

/// What a pool is made of.
#[derive(Clone, Debug)]
pub(crate) struct Config {
    pub(crate) workers: u32,
    pub(crate) threads: u32,
    pub(crate) max_tasks: u64,
    pub(crate) memory_limit: Option<u64>,
    pub(crate) start_timeout: Option<Duration>,
    pub(crate) method: StartMethod,
    pub(crate) name: String,
    pub(crate) init: Option<(TaskRef, Vec<u8>)>,
    /// Keep alive what the initializer's arguments name.
    #[expect(dead_code, reason = "held for their destructors")]
    pub(crate) init_handles: Vec<Held>,
}

/// A worker process as the supervisor sees it.
#[derive(Debug)]
struct Worker {
    process: Process<Served>,
    /// Why we killed it, if we did.
    killed: Option<Killed>,
    /// When it must be ready.
    due: Option<Deadline>,
    /// It was killed because it was not.
    late: bool,
}

/// A kill of ours: which task it was meant for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Killed {
    task: u64,
    outcome: Outcome,
}

#[derive(Debug, Default)]
struct Inner {
    workers: Vec<Option<Worker>>,
    /// Tasks to cancel while they run.
    cancels: Vec<u64>,
    /// Deaths in a row of workers that had no task.
    barren: u32,
    barren_since: Option<Deadline>,
    barren_began: u64,
    barren_tasks: u64,
    /// Workers that were not ready in time while no other was ready, in a row.
    late: u32,
    /// No restart before this.
    not_before: Option<Deadline>,
    restarts: u64,
    started: u64,
}

/// By [`phalanx_process::key_of`]: the reference of the name in the arena, and the name.
type Functions = FxHashMap<(usize, usize), (u64, Arc<str>)>;

type Callback = Box<dyn FnOnce() + Send>;

#[derive(Default)]
struct Told {
    wakers: HashMap<u64, Vec<Waker>>,
    callbacks: HashMap<u64, Callback>,
    runner: Option<mpsc::Sender<Callback>>,
    /// Callbacks whose tasks are done, while there is no thread to run them.
    waiting: Vec<Callback>,
}

impl std::fmt::Debug for Told {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{} wakers, {} callbacks",
            self.wakers.len(),
            self.callbacks.len()
        )
    }
}

/// No task's name.
const NO_TASK: u64 = u64::MAX;

const OPEN: u32 = 0;
const CLOSING: u32 = 1;
const TERMINATING: u32 = 2;
const OVER: u32 = 3;

/// A pool, as its maker has it.
#[derive(Debug)]
pub(crate) struct Engine {
    pub(crate) arena: &'static Arena,
    pub(crate) config: Config,
    pub(crate) owner: u32,
    board: Object<Board>,
    tasks: RawQueue,
    port: RawQueue,
    inner: Mutex<Inner>,
    /// Number and process id of workers that ended. A lock of its own: it is taken wherever an end is noticed.
    ended: Mutex<Vec<(u32, u32)>>,
    told: Mutex<Told>,
    broken: Mutex<Option<String>>,
    is_broken: AtomicBool,
    phase: AtomicU32,
    /// Notified when the pool is over.
    over: Gate<phalanx_shm::Local>,
    functions: Mutex<Functions>,
    deaths: Mutex<HashMap<u64, Arc<WorkerDeath>>>,
    /// Records of tasks that are done, for the next tasks: neither is a block freed and taken, nor do the lines that say so
    /// travel.
    renewable: Mutex<Vec<TaskView>>,
    submitted: AtomicU64,
    supervisor: Mutex<Option<std::thread::JoinHandle<()>>>,
}

fn current_pid() -> u32 {
    (phalanx_shm::thread_identity() >> 32) as u32
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Records of 256 bytes that a pool keeps at most.
const RENEWABLE_MOST: usize = 128;

/// When to try again to start the thread that runs callbacks.
const CALLBACKS_AGAIN: Duration = Duration::from_millis(100);

/// How long workers must have died before their first task, at least, before a pool gives up.
const BARREN_FOR: Duration = Duration::from_secs(10);

/// Deaths in a row of workers that never got ready, after which a pool gives up.
fn patience_with_barren(workers: u32) -> u32 {
    10 + 4 * workers
}

impl Engine {
    pub(crate) fn start(config: Config) -> Result<Arc<Self>, BuildError> {
        record::install();
        let arena = session().map_err(phalanx_sync::CreateError::from)?;
        check_budget(arena, config.workers as usize)?;
        let queue = || {
            RawQueue::new(arena, phalanx_channel::Bounds::default())
                .map_err(phalanx_sync::CreateError::from)
        };
        let (tasks, port) = (queue()?, queue()?);
        let board = record::new_board(&tasks, &port)?;
        let workers = config.workers;
        let engine = Arc::new(Self {
            arena,
            config,
            owner: current_pid(),
            board,
            tasks,
            port,
            inner: Mutex::default(),
            ended: Mutex::default(),
            told: Mutex::default(),
            broken: Mutex::default(),
            is_broken: AtomicBool::new(false),
            phase: AtomicU32::new(OPEN),
            over: Gate::new(),
            functions: Mutex::default(),
            deaths: Mutex::default(),
            renewable: Mutex::default(),
            submitted: AtomicU64::new(0),
            supervisor: Mutex::default(),
        });
        {
            let mut inner = lock(&engine.inner);
            inner.workers.resize_with(workers as usize, || None);
            for number in 0..workers {
                match engine.start_worker(&mut inner, number) {
                    Ok(worker) => inner.workers[number as usize] = Some(worker),
                    Err(error) => {
                        for worker in inner.workers.iter_mut().filter_map(Option::take) {
                            let _ = worker.process.kill();
                        }
                        return Err(error.into());
                    }
                }
            }
        }
        let supervised = Arc::clone(&engine);
        let thread = std::thread::Builder::new()
            .name(format!("{}-supervisor", engine.config.name))
            .spawn(move || supervised.supervise())
            .map_err(phalanx_process::StartError::from)?;
        *lock(&engine.supervisor) = Some(thread);
        Ok(engine)
    }

    fn start_worker(
        self: &Arc<Self>,
        inner: &mut Inner,
        number: u32,
    ) -> Result<Worker, phalanx_process::StartError> {
        let config = &self.config;
        for thread in 0..config.threads {
            self.seat(number, thread)
                .phase
                .store(STARTING, Ordering::Release);
        }
        let orders = Orders {
            board: self.board.clone(),
            worker: number,
            threads: config.threads,
            max_tasks: config.max_tasks,
            init: config.init.clone(),
        };
        let mut builder = Process::builder()
            .name(format!("{}-{number}", config.name))
            .start_method(config.method)
            .daemon()
            .capture_stderr()
            .ignore_interrupt();
        if let Some(bytes) = config.memory_limit {
            builder = builder.memory_limit(bytes);
        }
        let process = builder.spawn(worker::serve, orders)?;
        inner.started += 1;
        let pid = process.pid();
        let engine = Arc::downgrade(self);
        process.at_end(move |_| {
            if let Some(engine) = engine.upgrade() {
                lock(&engine.ended).push((number, pid));
                engine.board.bell.notify_all();
            }
        });
        Ok(Worker {
            process,
            killed: None,
            due: config.start_timeout.map(Deadline::after),
            late: false,
        })
    }

    fn seat(&self, worker: u32, thread: u32) -> &record::Seat {
        &self.board.seats[(worker * self.config.threads + thread) as usize % record::SEATS]
    }

    fn seats_of(&self, worker: u32) -> impl Iterator<Item = (u32, &record::Seat)> {
        let first = worker * self.config.threads;
        (first..first + self.config.threads)
            .map(|number| (number, &self.board.seats[number as usize % record::SEATS]))
    }

    fn seats(&self) -> &[record::Seat] {
        &self.board.seats[..(self.config.workers * self.config.threads) as usize]
    }

    // ---- submitting ----

    /// Returns the reference of a function's name in the arena, which the pool keeps while it lives.
    pub(crate) fn function(
        &self,
        key: (usize, usize),
        name: impl FnOnce() -> Result<TaskRef, phalanx_process::TaskError>,
    ) -> Result<u64, SubmitError> {
        let mut functions = lock(&self.functions);
        if let Some((bits, _)) = functions.get(&key) {
            return Ok(*bits);
        }
        let name = name()?;
        let mut bytes = Vec::new();
        codec::encode(&name, &mut bytes)?;
        let mut loan = Loan::new(self.arena, bytes.len(), &[])?;
        loan.copy_from_slice(&bytes);
        let bits = loan.into_block().to_bits();
        functions.insert(key, (bits, name.name().into()));
        Ok(bits)
    }

    pub(crate) fn name_of(&self, function: u64) -> String {
        let functions = lock(&self.functions);
        functions
            .values()
            .find(|(bits, _)| *bits == function)
            .map_or_else(String::new, |(_, name)| name.to_string())
    }

    #[inline]
    pub(crate) fn check_open(&self) -> Result<(), SubmitError> {
        if self.phase.load(Ordering::SeqCst) != OPEN || self.is_broken.load(Ordering::Acquire) {
            return Err(self.refusal());
        }
        if self.owner != current_pid() {
            return Err(SubmitError::NotOwner(self.owner));
        }
        Ok(())
    }

    #[cold]
    fn refusal(&self) -> SubmitError {
        match lock(&self.broken).clone() {
            Some(reason) => SubmitError::Broken(reason),
            None => SubmitError::Closed,
        }
    }

    pub(crate) fn submit(
        &self,
        choices: Choices,
        args: &[u8],
        handles: &[Held],
    ) -> Result<TaskView, SubmitError> {
        self.check_open()?;
        let task = match self.renewable(args, handles) {
            Some(task) => {
                task.renew(choices, args);
                task
            }
            None => TaskView::new(self.arena, choices, args, handles)?,
        };
        match self
            .tasks
            .put(&[&task.bits().to_le_bytes()], Patience::FOREVER)
        {
            Ok(()) => {
                self.submitted.fetch_add(1, Ordering::Relaxed);
                Ok(task)
            }
            Err(error) => {
                task.free();
                Err(match error {
                    phalanx_channel::RawPutError::Alloc(error) => error.into(),
                    // Closed between the look and the put.
                    _ => self.refusal(),
                })
            }
        }
    }

    fn renewable(&self, args: &[u8], handles: &[Held]) -> Option<TaskView> {
        if args.len() > RENEWED_MOST || !handles.is_empty() {
            return None;
        }
        lock(&self.renewable).pop()
    }

    /// Makes a queue that is told of tasks that are done.
    pub(crate) fn new_port(&self) -> Result<RawQueue, SubmitError> {
        Ok(RawQueue::new(
            self.arena,
            phalanx_channel::Bounds::default(),
        )?)
    }

    // ---- handles ----

    /// Lets go of a task: frees it now, or when it is done.
    pub(crate) fn let_go(&self, task: TaskView) {
        if self.owner != current_pid() {
            return;
        }
        if task.state() == DONE || TaskView::is_done_in(task.flag(ABANDONED)) {
            self.free(task);
        }
    }

    pub(crate) fn free(&self, task: TaskView) {
        if task.is_renewable() {
            let mut renewable = lock(&self.renewable);
            if renewable.len() < RENEWABLE_MOST {
                renewable.push(task);
                return;
            }
        }
        if task.outcome() == Outcome::Died {
            lock(&self.deaths).remove(&task.bits());
        }
        task.free();
    }

    pub(crate) fn death_of(&self, task: TaskView) -> Option<Arc<WorkerDeath>> {
        lock(&self.deaths).get(&task.bits()).cloned()
    }

    pub(crate) fn broken_reason(&self) -> String {
        lock(&self.broken).clone().unwrap_or_default()
    }

    /// Cancels a task; `false` if it was done already. One that runs ends with its worker, a moment later.
    pub(crate) fn cancel(&self, task: TaskView) -> bool {
        if let Some(flags) = task.finish(QUEUED, Outcome::Cancelled) {
            self.told(task.bits(), task.port(), flags);
            return true;
        }
        let before = task.flag(CANCEL);
        if TaskView::is_done_in(before) {
            return false;
        }
        lock(&self.inner).cancels.push(task.bits());
        self.board.bell.notify_all();
        true
    }

    /// Cancels a task that has not begun.
    pub(crate) fn cancel_waiting(&self, task: TaskView) {
        if self.is_mine() {
            self.end_task(task, QUEUED, Outcome::Cancelled);
        }
    }

    /// Wakes `waker` when the task is done; `false` if it is done already.
    pub(crate) fn wake_when_done(&self, task: TaskView, waker: &Waker) -> bool {
        {
            let mut told = lock(&self.told);
            let wakers = told.wakers.entry(task.bits()).or_default();
            if !wakers.iter().any(|known| known.will_wake(waker)) {
                wakers.push(waker.clone());
            }
        }
        if TaskView::is_done_in(task.flag(NOTIFY)) {
            lock(&self.told).wakers.remove(&task.bits());
            return false;
        }
        true
    }

    /// Runs `callback` in a thread of its own kind when the task is done.
    pub(crate) fn call_when_done(&self, task: TaskView, callback: Callback) {
        lock(&self.told).callbacks.insert(task.bits(), callback);
        if TaskView::is_done_in(task.flag(NOTIFY)) {
            self.run_told(task.bits());
        }
    }

    fn run_told(&self, bits: u64) {
        let (wakers, callback) = {
            let mut told = lock(&self.told);
            (told.wakers.remove(&bits), told.callbacks.remove(&bits))
        };
        wakers.into_iter().flatten().for_each(Waker::wake);
        if let Some(callback) = callback {
            self.run_callback(callback);
        }
    }

    /// A callback may block: it must not hold up the supervisor.
    fn run_callback(&self, callback: Callback) {
        lock(&self.told).waiting.push(callback);
        self.run_waiting(self.phase.load(Ordering::SeqCst) == OVER);
    }

    /// Hands callbacks to the thread that runs them, which is started for the first. Without room for it they wait; with
    /// `last`, they run here.
    fn run_waiting(&self, last: bool) {
        fn run(callback: Callback) {
            // A panicking callback is reported by the panic hook, and the others still run.
            let _ = std::panic::catch_unwind(std::panic::AssertUnwindSafe(callback));
        }
        let mut told = lock(&self.told);
        if told.waiting.is_empty() {
            return;
        }
        if told.runner.is_none() {
            let (sender, receiver) = mpsc::channel::<Callback>();
            let name = format!("{}-callbacks", self.config.name);
            let thread = std::thread::Builder::new().name(name);
            if thread
                .spawn(move || receiver.into_iter().for_each(run))
                .is_ok()
            {
                told.runner = Some(sender);
            } else if last {
                let waiting = std::mem::take(&mut told.waiting);
                drop(told);
                waiting.into_iter().for_each(run);
                return;
            }
        }
        let Told {
            runner, waiting, ..
        } = &mut *told;
        if let Some(runner) = runner {
            for callback in waiting.drain(..) {
                let _ = runner.send(callback);
            }
        }
    }

    // ---- the end ----

    /// No more submissions; what was submitted is still done.
    pub(crate) fn close(&self) {
        let _ = self
            .phase
            .compare_exchange(OPEN, CLOSING, Ordering::SeqCst, Ordering::SeqCst);
        self.board.closing.store(1, Ordering::SeqCst);
        self.board.bell.notify_all();
    }

    /// Ends everything now.
    pub(crate) fn terminate(&self) {
        let mut now = self.phase.load(Ordering::SeqCst);
        while now < TERMINATING {
            match self
                .phase
                .compare_exchange(now, TERMINATING, Ordering::SeqCst, Ordering::SeqCst)
            {
                Ok(_) => break,
                Err(seen) => now = seen,
            }
        }
        self.board.closing.store(1, Ordering::SeqCst);
        self.board.bell.notify_all();
    }

    /// Blocks until no worker is left.
    pub(crate) fn join(&self, patience: Patience) -> Result<(), WaitError> {
        self.over.wait_until(patience, || {
            (self.phase.load(Ordering::SeqCst) == OVER).then_some(())
        })?;
        if let Some(thread) = lock(&self.supervisor).take()
            && thread.thread().id() != std::thread::current().id()
        {
            let _ = thread.join();
        }
        Ok(())
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.phase.load(Ordering::SeqCst) != OPEN
    }

    pub(crate) fn is_mine(&self) -> bool {
        self.owner == current_pid()
    }

    // ---- supervising ----

    fn supervise(self: Arc<Self>) {
        // What wakes it is what others do: as long as nobody does anything, neither does it.
        let _idle = Flagged::new(flag::IDLE);
        loop {
            let seen = self.board.bell.prepare();
            self.collect_told();
            let mut inner = lock(&self.inner);
            let ended = std::mem::take(&mut *lock(&self.ended));
            for (number, pid) in ended {
                self.worker_ended(&mut inner, number, pid);
            }
            for task in std::mem::take(&mut inner.cancels) {
                self.cancel_running(&mut inner, task);
            }
            let phase = self.phase.load(Ordering::SeqCst);
            let broken = self.is_broken.load(Ordering::Acquire);
            if phase == TERMINATING || broken {
                let outcome = if broken {
                    Outcome::Broken
                } else {
                    Outcome::Terminated
                };
                self.end_all(&mut inner, outcome);
            } else if phase == CLOSING && self.is_idle() {
                self.tasks.close();
            }
            let ending = phase != OPEN && self.tasks.closed().is_some();
            let alive = inner.workers.iter().any(Option::is_some);
            if ending && !alive {
                drop(inner);
                self.collect_told();
                self.run_waiting(true);
                self.phase.store(OVER, Ordering::SeqCst);
                self.over.notify_all();
                return;
            }
            let mut next = None;
            if !ending && !broken {
                next = self.refill(&mut inner);
            }
            let start_due = self.check_starts(&mut inner);
            let due = self.check_deadlines(&mut inner);
            drop(inner);
            // Deadlines set from here on ring the bell if they are earlier.
            self.board
                .next_look_ns
                .store(due.map_or(u64::MAX, Deadline::as_ns), Ordering::SeqCst);
            let again = self.earliest_deadline();
            self.run_waiting(false);
            let retry = !lock(&self.told).waiting.is_empty();
            let retry = retry.then(|| Deadline::after(CALLBACKS_AGAIN));
            let next = [next, due, start_due, again, retry]
                .into_iter()
                .flatten()
                .min();
            let patience = Patience {
                deadline: next,
                ..Patience::FOREVER
            };
            let _ = self.board.bell.wait(seen, patience);
        }
    }

    fn collect_told(&self) {
        let mut buffer = Vec::new();
        let now = Patience {
            deadline: Some(Deadline::PAST),
            ..Patience::FOREVER
        };
        while self.port.get_into(&mut buffer, now).is_ok() {
            if let Ok(bits) = <[u8; 8]>::try_from(&buffer[..]) {
                self.hear(u64::from_le_bytes(bits));
            }
        }
    }

    /// A task is done that somebody wants to hear of, or nobody any more.
    fn hear(&self, bits: u64) {
        self.run_told(bits);
        // One whose handle was dropped before it was done is ours to free; a second message about it finds nothing.
        if let Some(task) = TaskView::find(self.arena, bits)
            && task.has(ORPHAN)
        {
            self.free(task);
        }
    }

    /// Tells those who do not sleep on the task itself. For tasks that the supervisor or a submitter ended.
    fn told(&self, bits: u64, port: u64, flags: u32) {
        if let Some(port) = BlockRef::from_bits(port).and_then(|block| self.arena.hold(block).ok())
        {
            let _ = RawQueue::from_held(port).put(&[&bits.to_le_bytes()], Patience::FOREVER);
        }
        if flags & (NOTIFY | ABANDONED) != 0 {
            let _ = self.port.put(&[&bits.to_le_bytes()], Patience::FOREVER);
            self.board.bell.notify_all();
        }
    }

    fn end_task(&self, task: TaskView, from: u32, outcome: Outcome) {
        let (bits, port) = (task.bits(), task.port());
        if let Some(flags) = task.finish(from, outcome) {
            self.told(bits, port, flags);
        }
    }

    fn requeue(&self, task: TaskView) {
        task.requeue();
        self.put_back(task);
    }

    /// Puts a queued task into the queue; ends it where there is none any more.
    fn put_back(&self, task: TaskView) {
        // Unbounded and, until idle or the pool's end, open: only memory can be missing.
        let put = self
            .tasks
            .put(&[&task.bits().to_le_bytes()], Patience::FOREVER);
        if put.is_err() {
            let broken = self.is_broken.load(Ordering::Acquire);
            let outcome = if broken {
                Outcome::Broken
            } else {
                Outcome::Terminated
            };
            self.end_task(task, QUEUED, outcome);
        }
    }

    fn is_idle(&self) -> bool {
        // A task is on a seat before it leaves the queue, so this order of looks misses none.
        self.tasks.is_empty()
            && self
                .seats()
                .iter()
                .all(|seat| seat.current.load(Ordering::SeqCst) == 0)
    }

    fn worker_ended(self: &Arc<Self>, inner: &mut Inner, number: u32, pid: u32) {
        let slot = &mut inner.workers[number as usize];
        // A report of one that was replaced already.
        let Some(worker) = slot.take_if(|worker| worker.process.pid() == pid) else {
            return;
        };
        let status = worker.process.exit_status().unwrap_or(ExitStatus::Unknown);
        let starting = self.seat(number, 0).phase.load(Ordering::Acquire) == STARTING;
        let ended = worker.process.join();
        let retired = matches!(ended, Ok(Ok(())));
        let mut had_task = false;
        for (seat_number, seat) in self.seats_of(number) {
            let bits = seat.current.load(Ordering::SeqCst);
            seat.deadline_ns.store(0, Ordering::SeqCst);
            if let Some(task) = TaskView::find(self.arena, bits) {
                had_task |= self.settle(task, seat_number, seat, &worker, retired);
            }
            seat.current.store(0, Ordering::SeqCst);
        }
        if worker.late {
            self.was_late(inner);
            return;
        }
        if starting && let Some(reason) = init_failure(&ended, status) {
            self.break_with(reason);
            return;
        }
        if had_task || retired || worker.killed.is_some() {
            inner.barren = 0;
            return;
        }
        if !starting {
            // Killed while it had nothing to do: that says nothing about the next one.
            return;
        }
        let tasks = self
            .seats()
            .iter()
            .map(|seat| seat.tasks.load(Ordering::Relaxed))
            .sum();
        if inner.barren_tasks != tasks || inner.barren_since.is_none_or(Deadline::has_passed) {
            // The others get on, or it is a while ago: an accident, no rule.
            inner.barren = 0;
        }
        inner.barren_tasks = tasks;
        if inner.barren == 0 {
            inner.barren_began = clock::now_ns();
        }
        inner.barren_since = Some(Deadline::after(Duration::from_secs(5)));
        inner.barren += 1;
        // Somebody may be killing workers faster than this machine starts them: that takes a while to be a verdict.
        let long =
            clock::now_ns().saturating_sub(inner.barren_began) > BARREN_FOR.as_nanos() as u64;
        if long && inner.barren > patience_with_barren(self.config.workers) {
            let last = worker
                .process
                .death()
                .map_or_else(|| status.to_string(), |death| death.to_string());
            self.break_with(format!(
                "{} workers in a row died before they got to a task; the last: {last}",
                inner.barren
            ));
        } else if inner.barren > self.config.workers {
            let wait = Duration::from_millis(10)
                * 2_u32.saturating_pow((inner.barren - self.config.workers).min(6));
            inner.not_before = Some(Deadline::after(wait));
        }
    }

    /// A worker was killed because it was not ready in time. When none gets ready, none will.
    fn was_late(&self, inner: &mut Inner) {
        let is_ready = |seat: &record::Seat| seat.phase.load(Ordering::Acquire) == READY;
        if self.seats().iter().any(is_ready) {
            inner.late = 0;
            return;
        }
        inner.late += 1;
        if inner.late > self.config.workers {
            let limit = self.config.start_timeout.unwrap_or_default();
            self.break_with(format!(
                "{} workers in a row were not ready after {limit:?} and were killed: the initializer hangs, or start_timeout is too short",
                inner.late
            ));
        }
    }

    /// Kills workers that are not ready in time; returns when the next must be.
    fn check_starts(&self, inner: &mut Inner) -> Option<Deadline> {
        let mut next = None;
        for (number, worker) in inner.workers.iter_mut().enumerate() {
            let Some(worker) = worker else { continue };
            let Some(due) = worker.due else { continue };
            let phase = &self.seat(number as u32, 0).phase;
            if phase.load(Ordering::Acquire) == READY || worker.killed.is_some() {
                worker.due = None;
            } else if due.has_passed() {
                worker.due = None;
                worker.late = true;
                // Should it have got ready just now: what it took goes back.
                worker.killed = Some(Killed {
                    task: NO_TASK,
                    outcome: Outcome::Died,
                });
                let _ = worker.process.kill();
            } else {
                next = next.into_iter().chain([due]).min();
            }
        }
        next
    }

    /// Decides about a task on the seat of a process that ended. Returns whether it was running there.
    fn settle(
        &self,
        task: TaskView,
        seat_number: u32,
        seat: &record::Seat,
        worker: &Worker,
        retired: bool,
    ) -> bool {
        match task.state() {
            DONE => {
                // Done, and perhaps not everybody told.
                let (bits, port, has) = (task.bits(), task.port(), task.has(NOTIFY | ABANDONED));
                task.wake();
                self.told(bits, port, if has { NOTIFY } else { 0 });
                false
            }
            QUEUED => {
                // It was about to put it back.
                self.put_back(task);
                false
            }
            RUNNING if task.claimed_by() == seat_number => {
                self.settle_running(task, seat, worker, retired);
                true
            }
            _ => false,
        }
    }

    fn settle_running(&self, task: TaskView, seat: &record::Seat, worker: &Worker, retired: bool) {
        if task.has(CANCEL) {
            return self.end_task(task, RUNNING, Outcome::Cancelled);
        }
        match worker.killed {
            // The pool's end.
            Some(killed) if killed.task == 0 => self.end_task(task, RUNNING, killed.outcome),
            Some(killed) if killed.task == task.bits() => {
                if task.may_retry() && killed.outcome == Outcome::TimedOut {
                    self.requeue(task);
                } else {
                    self.end_task(task, RUNNING, killed.outcome);
                }
            }
            // It was killed for another's sake, or left while this one was being claimed.
            Some(_) => {
                task.uncount_attempt();
                self.requeue(task);
            }
            None if retired => {
                task.uncount_attempt();
                self.requeue(task);
            }
            None if task.may_retry() => self.requeue(task),
            None => {
                if let Some(death) = worker.process.death() {
                    let since = seat.since_ns.load(Ordering::Relaxed);
                    let ran = Duration::from_nanos(clock::now_ns().saturating_sub(since));
                    let task_name = self.name_of(task.function());
                    let report = WorkerDeath {
                        death,
                        task: task_name,
                        arguments: task.with_args(describe_arguments),
                        ran,
                        attempts: task.attempts(),
                    };
                    lock(&self.deaths).insert(task.bits(), Arc::new(report));
                }
                self.end_task(task, RUNNING, Outcome::Died);
            }
        }
    }

    fn break_with(&self, reason: String) {
        lock(&self.broken).get_or_insert(reason);
        self.is_broken.store(true, Ordering::Release);
        let _ = self
            .phase
            .compare_exchange(OPEN, CLOSING, Ordering::SeqCst, Ordering::SeqCst);
        self.board.bell.notify_all();
    }

    fn cancel_running(&self, inner: &mut Inner, bits: u64) {
        let Some(task) = TaskView::find(self.arena, bits) else {
            return;
        };
        match task.state() {
            RUNNING => self.kill_runner_of(inner, task, Outcome::Cancelled),
            // A retry put it back meanwhile.
            QUEUED => self.end_task(task, QUEUED, Outcome::Cancelled),
            _ => {}
        }
    }

    fn kill_runner_of(&self, inner: &mut Inner, task: TaskView, outcome: Outcome) {
        let number = task.claimed_by() / self.config.threads.max(1);
        if let Some(Some(worker)) = inner.workers.get_mut(number as usize)
            && worker.killed.is_none()
        {
            worker.killed = Some(Killed {
                task: task.bits(),
                outcome,
            });
            let _ = worker.process.kill();
        }
    }

    fn earliest_deadline(&self) -> Option<Deadline> {
        let all = self
            .seats()
            .iter()
            .map(|seat| seat.deadline_ns.load(Ordering::SeqCst));
        all.filter(|at| *at != 0).min().map(Deadline::at_ns)
    }

    /// Kills workers whose task is past its deadline; returns the next deadline.
    fn check_deadlines(&self, inner: &mut Inner) -> Option<Deadline> {
        let earliest = self.earliest_deadline()?;
        if !earliest.has_passed() {
            return Some(earliest);
        }
        let now = clock::now_ns();
        for number in 0..self.config.workers {
            for (seat_number, seat) in self.seats_of(number) {
                let at = seat.deadline_ns.load(Ordering::SeqCst);
                if at == 0 || at > now {
                    continue;
                }
                let task = TaskView::find(self.arena, seat.current.load(Ordering::SeqCst));
                match task {
                    // The deadline may be the last task's: look whether it is still the same.
                    Some(task)
                        if task.state() == RUNNING
                            && task.claimed_by() == seat_number
                            && seat.deadline_ns.load(Ordering::SeqCst) == at =>
                    {
                        self.kill_runner_of(inner, task, Outcome::TimedOut);
                        // Settled when its end is reported.
                        seat.deadline_ns.store(0, Ordering::SeqCst);
                    }
                    _ => {}
                }
            }
        }
        self.earliest_deadline()
            .map(|at| at.max(Deadline::after(Duration::from_millis(1))))
    }

    /// Starts workers up to the number wanted; returns when to try again, if that is not now.
    fn refill(self: &Arc<Self>, inner: &mut Inner) -> Option<Deadline> {
        if inner.workers.iter().all(Option::is_some) {
            return None;
        }
        if let Some(not_before) = inner.not_before
            && !not_before.has_passed()
        {
            return Some(not_before);
        }
        inner.not_before = None;
        for number in 0..self.config.workers {
            if inner.workers[number as usize].is_some() {
                continue;
            }
            inner.restarts += 1;
            match self.start_worker(inner, number) {
                Ok(worker) => inner.workers[number as usize] = Some(worker),
                Err(error) => {
                    inner.barren += 1;
                    if inner.barren > patience_with_barren(self.config.workers) {
                        self.break_with(format!("no worker can be started: {error}"));
                    }
                    inner.not_before = Some(Deadline::after(Duration::from_millis(100)));
                    return inner.not_before;
                }
            }
        }
        None
    }

    /// Ends every worker and every task.
    fn end_all(&self, inner: &mut Inner, outcome: Outcome) {
        self.tasks.close();
        for worker in inner.workers.iter_mut().flatten() {
            if worker.killed.is_none() {
                worker.killed = Some(Killed { task: 0, outcome });
                let _ = worker.process.kill();
            }
        }
        let mut buffer = Vec::new();
        let now = Patience {
            deadline: Some(Deadline::PAST),
            ..Patience::FOREVER
        };
        while self.tasks.get_into(&mut buffer, now).is_ok() {
            let Ok(bits) = <[u8; 8]>::try_from(&buffer[..]) else {
                continue;
            };
            if let Some(task) = TaskView::find(self.arena, u64::from_le_bytes(bits)) {
                self.end_task(task, QUEUED, outcome);
            }
        }
    }

    // ---- looking ----

    pub(crate) fn pids(&self) -> Vec<u32> {
        lock(&self.inner)
            .workers
            .iter()
            .flatten()
            .map(|worker| worker.process.pid())
            .collect()
    }

    pub(crate) fn stats(&self) -> PoolStats {
        let inner = lock(&self.inner);
        let workers = inner.workers.iter().enumerate().map(|(number, worker)| {
            let sum = |f: fn(&record::Seat) -> &AtomicU64| {
                self.seats_of(number as u32)
                    .map(|(_, seat)| f(seat).load(Ordering::Relaxed))
                    .sum::<u64>()
            };
            WorkerStats {
                pid: worker.as_ref().map(|worker| worker.process.pid()),
                tasks: sum(|seat| &seat.tasks),
                busy: Duration::from_nanos(sum(|seat| &seat.busy_ns)),
            }
        });
        PoolStats {
            workers: workers.collect(),
            submitted: self.submitted.load(Ordering::Relaxed),
            queued: self.tasks.len(),
            restarts: inner.restarts,
        }
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        if !self.is_mine() {
            return;
        }
        // Workers are gone: nobody reads records and names any more.
        lock(&self.renewable).drain(..).for_each(TaskView::free);
        for (bits, _) in lock(&self.functions).values() {
            if let Some(block) = BlockRef::from_bits(*bits) {
                phalanx_channel::Message::discard(self.arena, block);
            }
        }
    }
}

/// What a pool has done so far.
///
/// ```
/// use phalanx_pool::Pool;
///
/// fn square(x: u64) -> u64 {
///     x * x
/// }
///
/// # #[phalanx_macros::main(crate = phalanx_process)]
/// fn main() -> Result<(), Box<dyn std::error::Error>> {
///     let pool = Pool::new(2)?;
///     pool.map(square, 0..10)?;
///     let stats = pool.stats();
///     assert_eq!((stats.submitted, stats.workers.len(), stats.restarts), (10, 2, 0));
///     Ok(())
/// }
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct PoolStats {
    /// One entry per worker process.
    pub workers: Vec<WorkerStats>,
    /// Tasks that were submitted.
    pub submitted: u64,
    /// Tasks that wait for a worker at this moment.
    pub queued: u64,
    /// Workers that were started in place of others.
    pub restarts: u64,
}

/// What a worker process and its predecessors under the same number have done.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct WorkerStats {
    /// Its process, if it runs.
    pub pid: Option<u32>,
    /// Runs of tasks. One is counted a moment after its result is there.
    pub tasks: u64,
    /// Time spent in tasks, all threads together.
    pub busy: Duration,
}

fn init_failure(ended: &Result<Served, ProcessError>, status: ExitStatus) -> Option<String> {
    match ended {
        Ok(Err(reason)) => Some(format!("the initializer failed: {reason}")),
        Err(ProcessError::Panicked(report)) => Some(format!("the initializer failed: {report}")),
        Err(ProcessError::Task(error)) => Some(format!("a worker cannot run here: {error}")),
        // Somebody else's kill is no verdict on the initializer; the limit on restarts is.
        Err(ProcessError::Died(_))
            if matches!(status, ExitStatus::Signaled { signal: 9 | 15, .. }) =>
        {
            None
        }
        Err(ProcessError::Died(death)) => Some(format!("a worker ended while it started: {death}")),
        _ => None,
    }
}

fn check_budget(arena: &'static Arena, wanted: usize) -> Result<(), BuildError> {
    if phalanx_process::parent_pid().is_none() {
        return Ok(());
    }
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    let budget = std::env::var("PHALANX_PROCESS_BUDGET")
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or_else(|| (16 * cpus).max(128));
    let total = arena.processes().len() + wanted;
    if total > budget {
        Err(BuildError::Budget {
            wanted,
            total,
            budget,
        })
    } else {
        Ok(())
    }
}
