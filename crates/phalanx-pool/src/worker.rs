//! The worker's side: claim, run, tell.

use std::any::Any;
use std::cell::Cell;
use std::collections::HashMap;
use std::sync::OnceLock;

use phalanx_channel::{RawQueue, codec};
use phalanx_prim::{AtomicBool, Ordering, clock, points};
use phalanx_process::{Payload, TaskError, TaskRef};
use phalanx_shm::{Arena, BlockRef, Flagged, Held, Patience, flag, set_timed};
use phalanx_sync::{Object, handle};
use phalanx_thread::panics;
use serde::{Deserialize, Serialize};

use crate::record::{
    self, ABANDONED, Board, NOTIFY, Outcome, READY, RUNNING, STARTING, Seat, TaskView,
};
use rustc_hash::FxHashMap;

/// What a worker process is told.
#[derive(Serialize, Deserialize)]
pub(crate) struct Orders {
    pub(crate) board: Object<Board>,
    pub(crate) worker: u32,
    pub(crate) threads: u32,
    pub(crate) max_tasks: u64,
    pub(crate) init: Option<(TaskRef, Vec<u8>)>,
}

/// The exit of a worker whose initializer failed; the reason is its result.
pub(crate) type Served = Result<(), String>;

static STATE: OnceLock<Box<dyn Any + Send + Sync>> = OnceLock::new();

thread_local! {
    static SELF: Cell<Option<WorkerId>> = const { Cell::new(None) };
}

/// Which worker of its pool the calling thread is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WorkerId {
    /// The process's number in its pool, from 0. A replacement has the number of the one it replaces.
    pub process: u32,
    /// The thread's number in its process, from 0.
    pub thread: u32,
}

/// Returns which worker the calling thread is; `None` outside of a pool's worker.
///
/// ```
/// use phalanx_pool::{Pool, current_worker};
///
/// fn who() -> u32 {
///     current_worker().map_or(u32::MAX, |worker| worker.process)
/// }
///
/// # #[phalanx_macros::main(crate = phalanx_process)]
/// fn main() -> Result<(), Box<dyn std::error::Error>> {
///     assert_eq!(current_worker(), None);
///     assert_eq!(Pool::new(1)?.apply(who, ())?, 0);
///     Ok(())
/// }
/// ```
#[must_use]
pub fn current_worker() -> Option<WorkerId> {
    SELF.get()
}

/// Returns what this worker's initializer made; `None` outside of a worker, or if it made something of another type.
///
/// All threads of a worker process share it.
///
/// ```
/// use phalanx_pool::{Pool, worker_state};
///
/// fn load() -> Vec<u64> {
///     vec![2, 3, 5]
/// }
///
/// fn nth(index: usize) -> Option<u64> {
///     worker_state::<Vec<u64>>()?.get(index).copied()
/// }
///
/// # #[phalanx_macros::main(crate = phalanx_process)]
/// fn main() -> Result<(), Box<dyn std::error::Error>> {
///     let pool = Pool::builder().workers(1).initializer(load, ()).build()?;
///     assert_eq!(pool.apply(nth, 2)?, Some(5));
///     Ok(())
/// }
/// ```
#[must_use]
pub fn worker_state<S: Any + Send + Sync>() -> Option<&'static S> {
    STATE.get()?.downcast_ref()
}

pub(crate) fn set_state<S: Any + Send + Sync>(state: S) {
    let _ = STATE.set(Box::new(state));
}

/// The body of a worker process.
pub(crate) fn serve(orders: Orders) -> Served {
    record::install();
    let Some((tasks, port)) = record::queues_of(&orders.board) else {
        return Err("the pool is gone".to_owned());
    };
    let seat_of = |thread: u32| orders.worker * orders.threads + thread;
    for thread in 0..orders.threads {
        seat(&orders.board, seat_of(thread))
            .phase
            .store(STARTING, Ordering::Release);
    }
    if let Some((init, args)) = &orders.init {
        let task = init.resolve().map_err(|error| error.to_string())?;
        let mut out = Vec::new();
        task.call(Payload::Borrowed(args), &mut out)
            .map_err(|error| TaskError::from_codec(init.name(), &error).to_string())?;
        let failed: Option<String> = codec::decode(&out).map_err(|error| error.to_string())?;
        if let Some(reason) = failed {
            return Err(reason);
        }
    }
    for thread in 0..orders.threads {
        seat(&orders.board, seat_of(thread))
            .phase
            .store(READY, Ordering::Release);
    }
    let leaving = AtomicBool::new(false);
    let line = |thread: u32| Line {
        board: &orders.board,
        arena: orders.board.held().arena(),
        tasks: tasks.clone(),
        port: port.clone(),
        id: WorkerId {
            process: orders.worker,
            thread,
        },
        seat_number: seat_of(thread),
        seat: seat(&orders.board, seat_of(thread)),
        leaving: &leaving,
        max_tasks: orders.max_tasks,
        functions: HashMap::default(),
        other_port: None,
    };
    std::thread::scope(|scope| {
        for thread in 1..orders.threads {
            let mut line = line(thread);
            let name = format!("worker-{}-{thread}", orders.worker);
            if std::thread::Builder::new()
                .name(name)
                .spawn_scoped(scope, move || {
                    phalanx_sys::crash::roomy_stack();
                    line.run();
                })
                .is_err()
            {
                eprintln!(
                    "phalanx: worker {} runs with {thread} of {} threads: no more can be started",
                    orders.worker, orders.threads
                );
                break;
            }
        }
        line(0).run();
    });
    Ok(())
}

fn seat(board: &Object<Board>, number: u32) -> &Seat {
    &board.seats[number as usize % record::SEATS]
}

/// One thread's work.
struct Line<'a> {
    board: &'a Object<Board>,
    arena: &'static Arena,
    tasks: RawQueue,
    port: RawQueue,
    id: WorkerId,
    seat_number: u32,
    seat: &'a Seat,
    leaving: &'a AtomicBool,
    max_tasks: u64,
    functions: FxHashMap<u64, Result<(TaskRef, phalanx_process::Task), TaskError>>,
    /// The last port that was not the pool's own.
    other_port: Option<(u64, RawQueue)>,
}

impl Line<'_> {
    fn run(&mut self) {
        SELF.set(Some(self.id));
        let (mut buffer, mut out) = (Vec::new(), Vec::new());
        let mut done = 0;
        // When the last task ended, while no wait came between.
        let mut clock_ns = 0;
        loop {
            if self.leaving.load(Ordering::Acquire) {
                // The wake that brought us here may have been for somebody who stays.
                if !self.tasks.is_empty() {
                    self.tasks.readable().notify(1);
                }
                return;
            }
            let mut claimed = None;
            let (arena, seat, number) = (self.arena, self.seat, self.seat_number);
            let taken = self.tasks.try_get_claimed(&mut buffer, |bytes| {
                let Ok(bits) = <[u8; 8]>::try_from(bytes) else {
                    return;
                };
                let bits = u64::from_le_bytes(bits);
                // The seat first: from the claim on somebody must know who has it.
                // Release is enough: the claim is a read-modify-write behind it, and so is the queue's unlocking.
                seat.current.store(bits, Ordering::Release);
                points::point("pool.seated");
                claimed = TaskView::find_and_claim(arena, bits, number);
                points::point("pool.claimed");
            });
            if !taken {
                if self.tasks.closed().is_some() && self.tasks.is_empty() {
                    return;
                }
                clock_ns = 0;
                let (tasks, leaving) = (&self.tasks, self.leaving);
                // Not the counts: they share lines with what a submitter writes under its lock.
                let more = || (tasks.is_ready() || leaving.load(Ordering::Acquire)).then_some(());
                let _idle = Flagged::new(flag::IDLE);
                let waited = self.tasks.readable().wait_until(Patience::FOREVER, more);
                debug_assert!(waited.is_ok());
                continue;
            }
            let Some(task) = claimed else {
                self.seat.current.store(0, Ordering::Release);
                continue;
            };
            if clock_ns == 0 {
                clock_ns = clock::now_ns();
            }
            self.seat.since_ns.store(clock_ns, Ordering::Relaxed);
            let timeout = task.timeout_ns();
            if timeout != 0 {
                self.set_deadline(clock_ns.saturating_add(timeout));
                set_timed(true);
            }
            task.count_attempt();
            self.run_one(task, &mut out);
            if timeout != 0 {
                set_timed(false);
                self.seat.deadline_ns.store(0, Ordering::Release);
            }
            let now = clock::now_ns();
            let seat = self.seat;
            seat.busy_ns.store(
                seat.busy_ns.load(Ordering::Relaxed) + (now - clock_ns),
                Ordering::Relaxed,
            );
            seat.tasks
                .store(seat.tasks.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
            clock_ns = now;
            points::point("pool.told");
            seat.current.store(0, Ordering::SeqCst);
            if self.board.closing.load(Ordering::SeqCst) != 0 {
                self.board.bell.notify_all();
            }
            done += 1;
            if self.max_tasks != 0
                && done >= self.max_tasks
                && !self.leaving.swap(true, Ordering::AcqRel)
            {
                // This process's other threads may sleep; all of the pool's look again.
                self.tasks.readable().rouse();
            }
        }
    }

    fn set_deadline(&self, at: u64) {
        self.seat.deadline_ns.store(at, Ordering::SeqCst);
        if at < self.board.next_look_ns.load(Ordering::SeqCst) {
            self.board.bell.notify_all();
        }
    }

    fn run_one(&mut self, task: TaskView, out: &mut Vec<u8>) {
        out.clear();
        let function = task.function();
        let (outcome, handles) = match self.function(function) {
            Err(error) => {
                let error = error.clone();
                encode_report(&error, out);
                (Outcome::Refused, Vec::new())
            }
            Ok((name, call)) => {
                let call = *call;
                let ran = panics::catch(|| {
                    handle::collect(|| {
                        task.with_args(|args| call.call(Payload::Borrowed(args), out))
                    })
                });
                match ran {
                    Ok((Ok(()), handles)) => (Outcome::Value, handles),
                    Ok((Err(error), _)) => {
                        let error = TaskError::from_codec(name.name(), &error);
                        encode_report(&error, out);
                        (Outcome::Refused, Vec::new())
                    }
                    Err(report) => {
                        if task.may_retry() {
                            return self.again(task);
                        }
                        encode_report(&report, out);
                        (Outcome::Panic, Vec::new())
                    }
                }
            }
        };
        points::point("pool.ran");
        let outcome = match task.set_result(out, &handles) {
            Ok(()) => outcome,
            Err(error) => {
                let name = self.name_of(function);
                let error = TaskError::Result {
                    task: name,
                    reason: error.to_string(),
                };
                encode_report(&error, out);
                // A sentence fits behind the record, or the task's outcome alone must do.
                let _ = task.set_result(out, &[]);
                Outcome::Refused
            }
        };
        // Once it is done its submitter may free it: nothing of it is read after that.
        let port = task.port();
        if let Some(flags) = task.finish(RUNNING, outcome) {
            self.tell(task.bits(), port, flags);
        }
    }

    fn again(&self, task: TaskView) {
        task.requeue();
        points::point("pool.requeued");
        let _ = self
            .tasks
            .put(&[&task.bits().to_le_bytes()], Patience::FOREVER);
    }

    /// Tells those who do not sleep on the task itself.
    fn tell(&mut self, bits: u64, port: u64, flags: u32) {
        if port != 0 {
            if self
                .other_port
                .as_ref()
                .is_none_or(|(known, _)| *known != port)
            {
                let held = BlockRef::from_bits(port).and_then(|block| self.arena.hold(block).ok());
                self.other_port = held.map(|held: Held| (port, RawQueue::from_held(held)));
            }
            if let Some((_, queue)) = &self.other_port {
                let _ = queue.put(&[&bits.to_le_bytes()], Patience::FOREVER);
            }
        }
        if flags & (NOTIFY | ABANDONED) != 0 {
            let _ = self.port.put(&[&bits.to_le_bytes()], Patience::FOREVER);
            self.board.bell.notify_all();
        }
    }

    fn name_of(&self, function: u64) -> String {
        match self.functions.get(&function) {
            Some(Ok((name, _))) => name.name().to_owned(),
            _ => "a task".to_owned(),
        }
    }

    fn function(&mut self, bits: u64) -> Result<(&TaskRef, &phalanx_process::Task), &TaskError> {
        let arena = self.arena;
        let entry = self.functions.entry(bits).or_insert_with(|| {
            let name = read_function(arena, bits)?;
            let task = name.resolve()?;
            Ok((name, task))
        });
        entry.as_ref().map(|(name, task)| (name, task))
    }
}

/// Reads the name of a function that the submitter keeps in the arena.
pub(crate) fn read_function(arena: &'static Arena, bits: u64) -> Result<TaskRef, TaskError> {
    let block = BlockRef::from_bits(bits)
        .filter(|block| arena.kind_of(*block).is_some())
        .ok_or_else(|| TaskError::Broken("a task without a function".to_owned()))?;
    // The pool owns the block.
    let message = std::mem::ManuallyDrop::new(phalanx_channel::Message::from_block(arena, block));
    codec::decode(&message).map_err(|error| TaskError::Broken(error.to_string()))
}

fn encode_report<T: Serialize>(report: &T, out: &mut Vec<u8>) {
    out.clear();
    // Reports are plain strings and numbers: they always serialize.
    let _ = codec::encode(report, out);
}
