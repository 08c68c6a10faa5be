//! A child of this process: its descriptor, its end, and what to do when it comes.

use phalanx_prim::global::{AtomicBool, AtomicU64, Ordering};
use std::collections::VecDeque;
use std::fs::File;
use std::io::{IoSlice, Read};
use std::os::fd::AsFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Waker;
use std::time::Duration;

use phalanx_shm::{ExitRecord, LookAgain, Patience, Subject, Ticket, WaitError, session_if_any};
use phalanx_sys::event::Epoll;
use phalanx_sys::pidfd::{ExitStatus, PidFd, Polled};
use phalanx_sys::tie::ParentEnd;
use phalanx_sys::{ids, signal};

use crate::crash::CrashStack;
use crate::error::{Death, MemoryVerdict};
use crate::oom;
use crate::reaper;
use crate::start::{DIED, StartHandle};

const NO_SUCH_PROCESS: i32 = 3;
/// Bytes of a child's stderr that are kept.
const TAIL: usize = 4096;

/// What a child's handles and the reaper share.
#[derive(Debug)]
pub struct Child {
    pub(crate) pid: u32,
    pub(crate) ticket: Ticket,
    pub(crate) name: Mutex<String>,
    pub(crate) daemon: AtomicBool,
    /// The process that started it; a forked child that inherits the handle is another.
    pub(crate) owner: u32,
    pub(crate) pidfd: PidFd,
    pub(crate) start: Option<StartHandle>,
    pub(crate) task: String,
    pub(crate) memory_limit: Option<u64>,
    /// We sent it SIGKILL.
    ended_by_us: AtomicBool,
    /// The out-of-memory killer was at work when it was killed.
    out_of_memory: AtomicBool,
    stderr: Mutex<Captured>,
    /// The reaper's number for it.
    pub(crate) key: AtomicU64,
    /// Threads that wait for its end: while there are any, the reaper is not woken for it.
    waiters: Mutex<u32>,
    /// Dropping it ends the child.
    tie: Mutex<Option<ParentEnd>>,
    end: Mutex<End>,
}

#[derive(Debug, Default)]
struct Captured {
    pipe: Option<File>,
    tail: VecDeque<u8>,
}

type Then = Box<dyn FnOnce(ExitStatus) + Send>;

#[derive(Default)]
struct End {
    status: Option<ExitStatus>,
    wakers: Vec<Waker>,
    then: Vec<Then>,
}

impl std::fmt::Debug for End {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.status.fmt(f)
    }
}

/// A thread that waits for a child's end and collects it.
struct Waiting<'a>(&'a Arc<Child>);

impl<'a> Waiting<'a> {
    fn new(child: &'a Arc<Child>) -> Self {
        let mut waiters = lock(&child.waiters);
        *waiters += 1;
        if *waiters == 1 {
            reaper::leave_to_waiter(child);
        }
        Self(child)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        let mut waiters = lock(&self.0.waiters);
        *waiters -= 1;
        if *waiters == 0 && lock(&self.0.end).status.is_none() {
            reaper::take_back(self.0);
        }
    }
}

fn was_killed(status: ExitStatus) -> bool {
    matches!(
        status,
        ExitStatus::Signaled {
            signal: signal::SIGKILL,
            ..
        }
    )
}

/// What a new child is made of.
pub(crate) struct Parts {
    pub(crate) pid: u32,
    pub(crate) ticket: Ticket,
    pub(crate) name: String,
    pub(crate) daemon: bool,
    pub(crate) start: Option<StartHandle>,
    pub(crate) task: String,
    pub(crate) memory_limit: Option<u64>,
    pub(crate) stderr: Option<File>,
    pub(crate) tie: Option<ParentEnd>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Writes to this process's stderr, without the standard library's lock: a fork in the middle would leave it taken in the
/// child.
fn pass_on(mut bytes: &[u8]) {
    let stderr = std::io::stderr();
    while !bytes.is_empty() {
        match phalanx_sys::stream::write(stderr.as_fd(), &[IoSlice::new(bytes)]) {
            Ok(written) if written > 0 => bytes = &bytes[written..],
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            // Nobody may read our stderr any more: that is no reason to stop.
            _ => return,
        }
    }
}

/// Gives back what the dead process of a slot held, and sees to its children.
fn sweep(ticket: Ticket, status: ExitStatus) {
    let slot = ticket.slot();
    // Whoever found it as an orphan may have been first, and the slot may have its next process.
    let Some(arena) = session_if_any().filter(|arena| slot != 0 && arena.ticket(slot) == ticket)
    else {
        return;
    };
    let spare = arena.spare_of(slot);
    if spare != 0 {
        Child::collect_spare(spare);
    }
    arena.record_exit(
        slot,
        match status {
            ExitStatus::Exited(code) => ExitRecord::Code(code),
            ExitStatus::Signaled { signal, .. } => ExitRecord::Signal(signal),
            ExitStatus::Unknown => ExitRecord::Unknown,
        },
    );
    for orphan in arena.sweep(ticket).orphans {
        reaper::adopt(orphan);
    }
}

impl Child {
    /// Takes charge of a process that was just started: watched from now on.
    ///
    /// # Errors
    ///
    /// When no descriptor or no room for the reaper's thread is left; the process was ended and swept then.
    pub(crate) fn watch(parts: Parts) -> std::io::Result<Arc<Self>> {
        let (pid, ticket) = (parts.pid, parts.ticket);
        let watched = Self::try_watch(parts);
        if let Err(error) = &watched {
            // Somebody who waits for any child was first if there is none of this id. Otherwise the id still means this child.
            if error.raw_os_error() != Some(NO_SUCH_PROCESS) {
                let _ = phalanx_sys::process::signal(pid, signal::SIGKILL);
                phalanx_sys::process::collect(pid);
            }
            sweep(ticket, ExitStatus::Unknown);
        }
        watched
    }

    fn try_watch(parts: Parts) -> std::io::Result<Arc<Self>> {
        let pidfd = PidFd::open(parts.pid)?;
        oom::begin();
        let child = Arc::new(Self {
            pid: parts.pid,
            ticket: parts.ticket,
            name: Mutex::new(parts.name),
            daemon: AtomicBool::new(parts.daemon),
            owner: ids::pid(),
            pidfd,
            start: parts.start,
            task: parts.task,
            ended_by_us: AtomicBool::new(false),
            out_of_memory: AtomicBool::new(false),
            memory_limit: parts.memory_limit,
            stderr: Mutex::new(Captured {
                pipe: parts.stderr,
                tail: VecDeque::new(),
            }),
            key: AtomicU64::new(0),
            waiters: Mutex::new(0),
            tie: Mutex::new(parts.tie),
            end: Mutex::new(End::default()),
        });
        reaper::add(&child)?;
        Ok(child)
    }

    /// Returns `true` if the calling process started it.
    pub(crate) fn is_mine(&self) -> bool {
        self.owner == ids::pid()
    }

    /// Collects the child's end if it has come: sweeps what it held, then tells everybody who waits.
    pub(crate) fn try_reap(self: &Arc<Self>) -> Option<ExitStatus> {
        // The reaper may wait for `end`: nobody else would see the death of whoever holds a lock we need.
        let _looking = LookAgain::new();
        if !self.is_mine() {
            // In a forked child: a thread of the parent's may have been at it, and never lets go here.
            return self.end.try_lock().ok().and_then(|end| end.status);
        }
        let mut end = lock(&self.end);
        if end.status.is_some() {
            return end.status;
        }
        let status = match self.pidfd.wait_exit() {
            Ok(status) => status?,
            Err(_) => ExitStatus::Unknown,
        };
        if was_killed(status) && !self.ended_by_us.load(Ordering::Relaxed) {
            self.out_of_memory
                .store(oom::was_at_work(), Ordering::Relaxed);
        }
        self.drain_stderr(true);
        // A grandchild may hold the other end open for ever; nobody would listen to it.
        lock(&self.stderr).pipe = None;
        sweep(self.ticket, status);
        end.status = Some(status);
        if let Some(start) = &self.start {
            // Those it never read: handles in them hold their objects.
            drop(start.take_args());
            start.finish(DIED, None);
        }
        let wakers = std::mem::take(&mut end.wakers);
        let then = std::mem::take(&mut end.then);
        drop(end);
        lock(&self.tie).take();
        reaper::forget(self);
        for then in then {
            then(status);
        }
        wakers.into_iter().for_each(Waker::wake);
        Some(status)
    }

    /// Watches a process that a zygote forked ahead and cannot hand over any more: it is a child of ours, without a slot, and
    /// about to end.
    pub(crate) fn collect_spare(pid: u32) {
        let parts = Parts {
            pid,
            ticket: Ticket::default(),
            name: "spare".to_owned(),
            daemon: true,
            start: None,
            task: String::new(),
            memory_limit: None,
            stderr: None,
            tie: None,
        };
        // Somebody waits for any child and was first: then it is collected.
        let _ = Self::watch(parts);
    }

    /// Blocks until the child has ended and was swept; `None` when the deadline came first.
    pub(crate) fn wait(
        self: &Arc<Self>,
        patience: Patience,
    ) -> Result<Option<ExitStatus>, WaitError> {
        if let Some(status) = self.try_reap() {
            return Ok(Some(status));
        }
        let _waiting = Waiting::new(self);
        let mut noted = phalanx_shm::Waiting::new();
        let deadline = patience.deadline;
        loop {
            noted.looks();
            if let Some(status) = self.try_reap() {
                return Ok(Some(status));
            }
            let pid = |_: &_| u64::from(self.pid);
            noted.sleeps(Subject::Process, pid, 0, patience)?;
            let until = noted.until(deadline);
            match self.pidfd.poll(until) {
                Polled::TimedOut if until != deadline => noted.cut(),
                Polled::TimedOut => return Ok(self.try_reap()),
                Polled::Interrupted if patience.interruptible => {
                    return Err(WaitError::Interrupted);
                }
                Polled::Interrupted | Polled::Ready => {}
            }
        }
    }

    /// Returns the status if the child has ended.
    pub(crate) fn status(self: &Arc<Self>) -> Option<ExitStatus> {
        self.try_reap()
    }

    /// Wakes `waker` once the child has ended; at once if it has.
    pub(crate) fn wake_at_end(self: &Arc<Self>, waker: &Waker) -> Option<ExitStatus> {
        let mut end = lock(&self.end);
        if end.status.is_none() && !end.wakers.iter().any(|known| known.will_wake(waker)) {
            end.wakers.push(waker.clone());
        }
        end.status
    }

    /// Calls `then` once the child has ended and was swept, in whichever thread notices; at once if it has.
    pub(crate) fn at_end(self: &Arc<Self>, then: Then) {
        let mut end = lock(&self.end);
        match end.status {
            None => end.then.push(then),
            Some(status) => {
                drop(end);
                then(status);
            }
        }
    }

    pub(crate) fn signal(&self, signal: i32) -> std::io::Result<()> {
        if signal == signal::SIGKILL {
            self.ended_by_us.store(true, Ordering::Relaxed);
        }
        self.pidfd.signal(signal)
    }

    /// Asks the child to end, waits for `grace`, then ends it.
    pub(crate) fn end_within(self: &Arc<Self>, grace: Duration) {
        let _ = self.signal(signal::SIGTERM);
        if let Ok(None) = self.wait(Patience::timeout(grace)) {
            let _ = self.signal(signal::SIGKILL);
            let _ = self.wait(Patience::FOREVER);
        }
    }

    /// Lets the reaper hear of what the child writes to stderr, if that is captured.
    pub(crate) fn register_stderr(&self, epoll: &Epoll, key: u64) -> std::io::Result<()> {
        match &lock(&self.stderr).pipe {
            Some(pipe) => epoll.add(pipe, key),
            None => Ok(()),
        }
    }

    /// Passes on what the child wrote to stderr, keeping the last of it. `false` when the pipe has ended.
    pub(crate) fn drain_stderr(&self, until_empty: bool) -> bool {
        let mut captured = lock(&self.stderr);
        let Captured { pipe, tail } = &mut *captured;
        let Some(file) = pipe else { return false };
        let mut buffer = [0_u8; 8192];
        loop {
            match file.read(&mut buffer) {
                Ok(0) => {
                    *pipe = None;
                    return false;
                }
                Ok(count) => {
                    let bytes = &buffer[..count];
                    pass_on(bytes);
                    tail.extend(bytes);
                    let surplus = tail.len().saturating_sub(TAIL);
                    tail.drain(..surplus);
                    if !until_empty {
                        return true;
                    }
                }
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                // The read end does not block.
                Err(_) => return true,
            }
        }
    }

    pub(crate) fn name(&self) -> String {
        lock(&self.name).clone()
    }

    pub(crate) fn set_name(&self, name: &str) {
        name.clone_into(&mut lock(&self.name));
    }

    pub(crate) fn is_daemon(&self) -> bool {
        self.daemon.load(Ordering::Relaxed)
    }

    /// Returns all that is known about the child's death.
    pub(crate) fn death(&self, exit: ExitStatus) -> Death {
        let stderr = {
            let mut captured = lock(&self.stderr);
            String::from_utf8_lossy(captured.tail.make_contiguous()).into_owned()
        };
        let failed = stderr.contains("memory allocation of") && stderr.contains("failed");
        let aborted = matches!(
            exit,
            ExitStatus::Signaled {
                signal: signal::SIGABRT,
                ..
            }
        );
        let memory = match (self.memory_limit, aborted && failed) {
            (Some(limit), true) => MemoryVerdict::OwnLimit(limit),
            (None, true) => MemoryVerdict::AllocationFailed,
            _ if self.out_of_memory.load(Ordering::Relaxed) => MemoryVerdict::OomKiller,
            _ => MemoryVerdict::NoSign,
        };
        let stack = match (exit, &self.start) {
            (ExitStatus::Signaled { signal, .. }, Some(start)) => start.view().crash.stack(signal),
            _ => CrashStack::default(),
        };
        Death {
            name: self.name(),
            pid: self.pid,
            exit,
            task: self.task.clone(),
            stderr,
            stack,
            memory,
        }
    }
}
