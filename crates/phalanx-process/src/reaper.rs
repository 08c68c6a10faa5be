//! One thread per process that has children: notices their ends at once, passes on their stderr, adopts orphans.
//!
//! Whoever joins a child collects its end itself; the reaper is for the ends nobody waits for, since somebody else may be
//! waiting for what the dead child held. It starts with the first child and is built anew after a fork.
//!
//! | a child is | its end is collected by | next |
//! |---|---|---|
//! | watched: its pidfd is with the reaper | the reaper | ended, or waited for |
//! | waited for: taken off, a thread polls it | that thread; it gives it back if it stops waiting | ended, or watched |
//! | ended | nobody: the status is kept, under the child's lock | |
//! | an orphan: a dead process's child, adopted | the reaper, by pidfd; there is no status | ended |
//!
//! Whoever collects an end reads the status, empties stderr, sweeps the arena and writes the outcome, in this order and under
//! the child's lock, and only then tells those who wait. So whoever hears of a death finds everything given back. An orphan dies of
//! its broken tie; it is adopted so that its things are given back too, and its own children are adopted in turn.

use std::collections::HashMap;
use std::mem::ManuallyDrop;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use phalanx_prim::global::{AtomicBool, AtomicU32, Ordering};
use phalanx_shm::{AllocError, Arena, ExitRecord, ProcessInfo, Ticket, session_if_any};
use phalanx_sys::clock::Deadline;
use phalanx_sys::event::{Epoll, EventFd};
use phalanx_sys::pidfd::{ExitStatus, PidFd, Polled};
use phalanx_sys::{ids, process, signal};

use crate::child::Child;

const BELL: u64 = 0;
const STDERR: u64 = 1 << 62;
const ORPHAN: u64 = 1 << 61;
const WARD: u64 = 1 << 60;
const MASK: u64 = WARD - 1;

/// How long a process that is not to outlive its parent may do so, if only the parent died and not the whole tree: time
/// to notice it and to say goodbye.
const GRACE: Duration = Duration::from_millis(600);
/// How long a slot that was promised to the child of a fork waits for it. The child takes it in the fork itself, so that
/// only a fork that failed or a child that was killed in it leaves one.
const PROMISE: Duration = Duration::from_secs(30);

/// A child that somebody else starts and collects.
#[derive(Debug)]
struct Ward {
    /// Shared with the threads that wait for it.
    pidfd: Arc<PidFd>,
    pid: u32,
    ticket: Ticket,
}

/// An orphan that is to end.
struct Doomed {
    at: Deadline,
    orphan: ProcessInfo,
}

/// While above 0 no thread is started: some process is about to fork.
static PAUSED: AtomicU32 = AtomicU32::new(0);
/// The thread is to be started when there is an occasion.
static DEFERRED: AtomicBool = AtomicBool::new(false);
/// The thread is to end.
static STOP: AtomicBool = AtomicBool::new(false);
/// The thread's id, for the kernel.
static TID: AtomicU32 = AtomicU32::new(0);

struct Reaper {
    pid: u32,
    /// Shared with the thread: no descriptor is needed to start it again.
    epoll: Arc<Epoll>,
    bell: EventFd,
    children: HashMap<u64, Arc<Child>>,
    orphans: HashMap<u64, (PidFd, ProcessInfo)>,
    wards: HashMap<u64, Ward>,
    doomed: Vec<Doomed>,
    promised: Vec<(Deadline, Ticket)>,
    thread: Option<JoinHandle<()>>,
    next: u64,
}

static REAPER: Mutex<Option<Reaper>> = Mutex::new(None);
/// Held by whoever ends the thread, until it is gone.
static PAUSING: Mutex<()> = Mutex::new(());

fn reaper() -> MutexGuard<'static, Option<Reaper>> {
    let mut guard = REAPER.lock().unwrap_or_else(PoisonError::into_inner);
    if guard
        .as_ref()
        .is_some_and(|reaper| reaper.pid != ids::pid())
    {
        // We are a forked child: these children are our parent's, and so is the thread. Letting go of the copies would
        // close the parent's ends of their ties in us, which is what we want. Not so the thread: its handle may name one
        // that this process has made since, on the same stack.
        let thread = guard.take().and_then(|reaper| reaper.thread);
        let _ = ManuallyDrop::new(thread);
    }
    guard
}

/// Keeps the table whole while the process forks, and anybody out of a pause: the child has neither thread of it.
pub(crate) fn freeze() -> impl Sized + 'static {
    // In the order in which a pause takes them.
    let pausing = PAUSING.lock().unwrap_or_else(PoisonError::into_inner);
    let reaper = REAPER.lock().unwrap_or_else(PoisonError::into_inner);
    (reaper, pausing)
}

/// Returns the table. Its thread starts as soon as the system has room for one: whoever waits next tries again.
fn table() -> std::io::Result<MutexGuard<'static, Option<Reaper>>> {
    let mut guard = reaper();
    if guard.is_none() {
        let epoll = Epoll::new()?;
        let bell = EventFd::new()?;
        epoll.add(&bell, BELL)?;
        *guard = Some(Reaper {
            pid: ids::pid(),
            epoll: Arc::new(epoll),
            bell,
            children: HashMap::new(),
            orphans: HashMap::new(),
            wards: HashMap::new(),
            doomed: Vec::new(),
            promised: Vec::new(),
            thread: None,
            next: 1,
        });
        crate::fork::install_hooks();
        phalanx_shm::on_join(joined_by_fork);
    }
    if let Some(reaper) = guard.as_mut() {
        let _ = reaper.start();
    }
    Ok(guard)
}

/// As [`table`], with its thread running or about to.
fn started() -> std::io::Result<MutexGuard<'static, Option<Reaper>>> {
    let mut guard = table()?;
    if let Some(reaper) = guard.as_mut()
        && let Err(error) = reaper.start()
    {
        // What it watches stays watched.
        if reaper.is_idle() {
            *guard = None;
        }
        return Err(error);
    }
    Ok(guard)
}

impl Reaper {
    /// Starts the thread unless it runs or may not.
    fn start(&mut self) -> std::io::Result<()> {
        if self.thread.is_some() || PAUSED.load(Ordering::Relaxed) > 0 {
            return Ok(());
        }
        STOP.store(false, Ordering::Relaxed);
        let epoll = Arc::clone(&self.epoll);
        let thread = std::thread::Builder::new()
            .name("phalanx-reaper".to_owned())
            .stack_size(256 * 1024)
            .spawn(move || run(&epoll));
        // Without room for a thread now, whoever waits next tries again.
        DEFERRED.store(thread.is_err(), Ordering::Relaxed);
        self.thread = Some(thread?);
        Ok(())
    }

    /// Returns `true` if there is nothing to watch.
    fn is_idle(&self) -> bool {
        self.children.is_empty()
            && self.orphans.is_empty()
            && self.wards.is_empty()
            && self.doomed.is_empty()
            && self.promised.is_empty()
    }

    fn number(&mut self) -> u64 {
        self.next += 1;
        self.next - 1
    }

    fn next_deadline(&self) -> Option<Deadline> {
        let doomed = self.doomed.iter().map(|doomed| doomed.at);
        let promised = self.promised.iter().map(|(at, _)| *at);
        doomed.chain(promised).min()
    }
}

/// Ends the thread and starts none until [`resume`]: for a fork that wants a process with one thread. Calls nest.
///
/// Deaths meanwhile are noticed afterwards.
pub(crate) fn pause() {
    PAUSED.fetch_add(1, Ordering::Relaxed);
    // Whoever pauses beside another waits until the thread is gone as well.
    let _one = PAUSING.lock().unwrap_or_else(PoisonError::into_inner);
    let thread = reaper().as_mut().and_then(|reaper| {
        let thread = reaper.thread.take()?;
        STOP.store(true, Ordering::Relaxed);
        reaper.bell.ring();
        Some(thread)
    });
    if let Some(thread) = thread {
        let _ = thread.join();
        // The kernel tells those who join a little before it stops counting.
        let tid = TID.load(Ordering::Relaxed);
        for _ in 0..1000 {
            if !process::has_thread(tid) {
                break;
            }
            std::thread::yield_now();
        }
    }
}

/// Undoes one [`pause`].
pub(crate) fn resume() {
    if PAUSED.fetch_sub(1, Ordering::Relaxed) == 1
        && let Some(reaper) = reaper().as_mut()
    {
        // Without a thread the next start of a process reports why.
        let _ = reaper.start();
    }
}

/// Undoes one [`pause`], but leaves it to [`resume_now`] to start the thread: whoever forked still looks at the threads.
pub(crate) fn resume_later() {
    if PAUSED.fetch_sub(1, Ordering::Relaxed) == 1 {
        DEFERRED.store(true, Ordering::Relaxed);
    }
}

/// Starts the thread if a fork has left that for later.
#[inline]
pub(crate) fn resume_now() {
    if DEFERRED.load(Ordering::Relaxed) {
        start_deferred();
    }
}

#[cold]
fn start_deferred() {
    if let Some(reaper) = reaper().as_mut() {
        // As above.
        let _ = reaper.start();
    }
}

/// In a forked child: its parent's pauses are not its own.
pub(crate) fn forget_pauses() {
    PAUSED.store(0, Ordering::Relaxed);
    DEFERRED.store(false, Ordering::Relaxed);
}

/// Notes a place that was promised to the child of a fork by hand.
pub(crate) fn note_promise(ticket: Ticket) {
    let Ok(mut guard) = table() else { return };
    if let Some(reaper) = guard.as_mut() {
        reaper.promised.push((Deadline::after(PROMISE), ticket));
    }
}

/// Watches a child that somebody else starts and collects. One that cannot be watched is ended.
pub(crate) fn add_ward(pid: u32, ticket: Ticket) -> std::io::Result<()> {
    let added = try_add_ward(pid, ticket);
    if added.is_err() {
        // Its owner has not collected it, so the number is still its own.
        let _ = process::signal(pid, signal::SIGKILL);
        while process::is_running(pid) {
            std::thread::sleep(Duration::from_millis(1));
        }
        end_ward(pid, ticket, ExitStatus::Unknown);
    }
    added
}

fn try_add_ward(pid: u32, ticket: Ticket) -> std::io::Result<()> {
    let ward = match PidFd::open(pid) {
        Ok(pidfd) => Ward {
            pidfd: Arc::new(pidfd),
            pid,
            ticket,
        },
        Err(error) if error.raw_os_error() == Some(3) => {
            // Collected already, by somebody who ignores SIGCHLD for instance.
            end_ward(pid, ticket, ExitStatus::Unknown);
            return Ok(());
        }
        Err(error) => return Err(error),
    };
    let mut guard = table()?;
    let Some(reaper) = guard.as_mut() else {
        return Ok(());
    };
    let key = WARD | reaper.number();
    reaper.epoll.add(&*ward.pidfd, key)?;
    reaper.wards.insert(key, ward);
    Ok(())
}

/// Sweeps after a ward whose end its owner has seen. One that the thread has swept already is none any more.
pub(crate) fn ward_ended(pid: u32, status: ExitStatus) {
    let key = reaper().as_ref().and_then(|reaper| {
        let found = reaper.wards.iter().find(|(_, ward)| ward.pid == pid);
        found.map(|(key, _)| *key)
    });
    if let Some(key) = key {
        settle_ward(key, |_| status);
    }
}

/// Sweeps after a ward that has ended, unless somebody else has it in hand.
fn settle_ward(key: u64, status: impl FnOnce(&PidFd) -> ExitStatus) {
    let ward = reaper().as_mut().and_then(|reaper| {
        let ward = reaper.wards.remove(&key)?;
        reaper.epoll.remove(&*ward.pidfd);
        Some(ward)
    });
    if let Some(ward) = ward {
        end_ward(ward.pid, ward.ticket, status(&ward.pidfd));
    }
}

fn seen(pidfd: &PidFd) -> ExitStatus {
    let status = pidfd.peek_exit().ok().flatten();
    status.unwrap_or(ExitStatus::Unknown)
}

/// Blocks until a ward has ended and sweeps after it, or until a signal comes: `false`, and it may not have ended.
///
/// Meanwhile its end is this thread's to notice, and the engine's is not woken for it.
pub(crate) fn await_ward(pid: u32) -> bool {
    let found = reaper().as_ref().and_then(|reaper| {
        let (key, ward) = reaper.wards.iter().find(|(_, ward)| ward.pid == pid)?;
        reaper.epoll.remove(&*ward.pidfd);
        Some((*key, Arc::clone(&ward.pidfd)))
    });
    // Swept already, or never ours.
    let Some((key, pidfd)) = found else {
        return true;
    };
    if pidfd.poll(None) == Polled::Ready {
        settle_ward(key, seen);
        return true;
    }
    if let Some(reaper) = reaper().as_mut()
        && reaper.wards.contains_key(&key)
    {
        // It was watched before, so there is room for it; another thread that waits may have put it back.
        let _ = reaper.epoll.add(&*pidfd, key);
    }
    false
}

/// Returns a descriptor that is readable once the ward has ended; `None` if it has, and was swept.
pub(crate) fn ward_descriptor(pid: u32) -> std::io::Result<Option<OwnedFd>> {
    let guard = reaper();
    let Some(reaper) = guard.as_ref() else {
        return Ok(None);
    };
    let ward = reaper.wards.values().find(|ward| ward.pid == pid);
    ward.map(|ward| ward.pidfd.as_fd().try_clone_to_owned())
        .transpose()
}

fn end_ward(pid: u32, ticket: Ticket, status: ExitStatus) {
    let Some(arena) = session_if_any() else {
        return;
    };
    let slot = ticket.slot();
    let process = arena.process(slot);
    if process.ticket != ticket {
        return;
    }
    if process.state == phalanx_shm::SlotState::Reserved {
        arena.unreserve_slot(ticket);
    } else if process.pid == pid {
        let record = match status {
            ExitStatus::Exited(code) => ExitRecord::Code(code),
            ExitStatus::Signaled { signal, .. } => ExitRecord::Signal(signal),
            ExitStatus::Unknown => ExitRecord::Unknown,
        };
        arena.record_exit(slot, record);
        for orphan in arena.sweep(ticket).orphans {
            adopt(orphan);
        }
    }
}

/// Reserves a place for a process that its starter watches by its id. Noted before there is a process: a look for children
/// of plain forks must not take it for one.
pub(crate) fn reserve(arena: &Arena) -> Result<Ticket, AllocError> {
    let slot = arena.reserve_slot()?;
    arena.set_watched(slot);
    Ok(arena.ticket(slot))
}

/// Gives a place back whose process was not started, as far as the caller knows. One that was, and whose starter died before
/// it could say so, is ended: nobody has a handle on it.
pub(crate) fn give_back(ticket: Ticket) {
    let Some(arena) = session_if_any() else {
        return;
    };
    if arena.unreserve_slot(ticket) {
        return;
    }
    let process = arena.process(ticket.slot());
    if process.state == phalanx_shm::SlotState::Live && process.ticket == ticket {
        kill_family(process);
        adopt(process);
    }
}

/// Starts the thread, so that children of plain forks are noticed too.
pub(crate) fn ensure() {
    // Without a thread the next start of a process reports why.
    drop(table());
}

/// Calls `f` with the bell: whoever rings it makes the thread look for children of plain forks and for dead spares.
pub(crate) fn with_bell<R>(f: impl FnOnce(BorrowedFd<'_>) -> R) -> std::io::Result<R> {
    let guard = table()?;
    let reaper = guard
        .as_ref()
        .ok_or_else(|| std::io::Error::other("no reaper"))?;
    Ok(f(reaper.bell.as_fd()))
}

/// Watches a child from now on.
pub(crate) fn add(child: &Arc<Child>) -> std::io::Result<()> {
    let mut guard = started()?;
    let Some(reaper) = guard.as_mut() else {
        return Ok(());
    };
    let key = reaper.number();
    child.key.store(key, Ordering::Relaxed);
    reaper.epoll.add(&child.pidfd, key)?;
    child.register_stderr(&reaper.epoll, key | STDERR)?;
    reaper.children.insert(key, Arc::clone(child));
    Ok(())
}

/// Leaves a child's end to a thread that waits for it now.
pub(crate) fn leave_to_waiter(child: &Child) {
    if let Some(reaper) = reaper().as_mut() {
        reaper.epoll.remove(&child.pidfd);
    }
}

/// Watches a child again whose last waiter gave up.
pub(crate) fn take_back(child: &Child) {
    if let Some(reaper) = reaper().as_mut() {
        let key = child.key.load(Ordering::Relaxed);
        if reaper.children.contains_key(&key) {
            // It was watched before, so there is room for it.
            let _ = reaper.epoll.add(&child.pidfd, key);
        }
    }
}

/// Stops watching a child that was reaped.
pub(crate) fn forget(child: &Arc<Child>) {
    let mut guard = reaper();
    if let Some(reaper) = guard.as_mut() {
        reaper.epoll.remove(&child.pidfd);
        reaper.children.remove(&child.key.load(Ordering::Relaxed));
    }
}

/// Watches a process of the tree whose parent died: it is about to be killed by its tie, and somebody must sweep it.
pub(crate) fn adopt(orphan: ProcessInfo) {
    let opened = PidFd::open(orphan.pid).ok();
    // Asked after the descriptor was had: the id is not given away again while that is open.
    let opened =
        opened.filter(|_| process::was_there(orphan.pid, orphan.joined_at).unwrap_or(false));
    match opened {
        Some(pidfd) if !pidfd.is_dead() => {
            let Ok(mut guard) = table() else { return };
            let Some(reaper) = guard.as_mut() else { return };
            let key = ORPHAN | reaper.number();
            if reaper.epoll.add(&pidfd, key).is_ok() {
                reaper.orphans.insert(key, (pidfd, orphan));
            }
            let bound = session_if_any().is_some_and(|arena| arena.is_bound(orphan.slot));
            if bound {
                let at = Deadline::after(GRACE);
                reaper.doomed.push(Doomed { at, orphan });
                // The thread waits for the earliest: it must look again.
                reaper.bell.ring();
            }
        }
        _ => bury(orphan),
    }
}

fn bury(orphan: ProcessInfo) {
    let Some(arena) = session_if_any() else {
        return;
    };
    if arena.ticket(orphan.slot) != orphan.ticket {
        return;
    }
    arena.record_exit(orphan.slot, ExitRecord::Unknown);
    for next in arena.sweep(orphan.ticket).orphans {
        adopt(next);
    }
}

/// Called in a child of a plain fork when it joins the tree: its parent's reaper (whose bell it inherited) looks for it.
pub(crate) fn joined_by_fork(_: u16) {
    let guard = REAPER.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(reaper) = guard.as_ref().filter(|reaper| reaper.pid != ids::pid()) {
        reaper.bell.ring();
    }
}

fn find_unwatched() {
    let Some(arena) = session_if_any() else {
        return;
    };
    let me = phalanx_shm::current_slot();
    for process in arena.processes() {
        let unwatched =
            process.state == phalanx_shm::SlotState::Live && !arena.is_watched(process.slot);
        if process.parent == me && unwatched {
            arena.set_watched(process.slot);
            adopt(process);
        }
    }
}

/// Collects what a zygote forked ahead and somebody killed.
fn find_dead_spares() {
    let Some(arena) = session_if_any() else {
        return;
    };
    for zygote in children() {
        let slot = zygote.ticket.slot();
        let spare = arena.spare_of(slot);
        if spare != 0
            && PidFd::open(spare).is_ok_and(|pidfd| pidfd.is_dead())
            && arena.claim_spare(slot, spare)
        {
            Child::collect_spare(spare);
        }
    }
}

/// Returns the children that have not been reaped.
pub(crate) fn children() -> Vec<Arc<Child>> {
    let guard = reaper();
    let mut children: Vec<_> = guard
        .iter()
        .flat_map(|reaper| reaper.children.values().cloned())
        .collect();
    children.sort_by_key(|child| child.pid);
    children
}

fn run(epoll: &Epoll) {
    phalanx_sys::process::set_name("phalanx-reaper");
    // The next death is for this thread to see, whatever it sleeps on.
    let _looking = phalanx_shm::LookAgain::new();
    phalanx_shm::mark_helper();
    // Handlers are the program's own threads' business.
    signal::block_all();
    TID.store(ids::tid(), Ordering::Relaxed);
    // Rings that a thread before this one did not answer.
    find_unwatched();
    find_dead_spares();
    while !STOP.load(Ordering::Relaxed) {
        let deadline = reaper().as_ref().and_then(Reaper::next_deadline);
        let Ok(ready) = epoll.wait(deadline) else {
            std::thread::sleep(Duration::from_millis(1));
            continue;
        };
        if STOP.load(Ordering::Relaxed) {
            // What is ready stays ready for the next thread.
            return;
        }
        for key in ready {
            handle(key);
        }
        if deadline.is_some_and(Deadline::has_passed) {
            what_is_due();
        }
    }
}

fn what_is_due() {
    let Some(arena) = session_if_any() else {
        return;
    };
    let (mut doomed, mut promised) = (Vec::new(), Vec::new());
    if let Some(reaper) = reaper().as_mut() {
        doomed.extend(reaper.doomed.extract_if(.., |one| one.at.has_passed()));
        promised.extend(reaper.promised.extract_if(.., |(at, _)| at.has_passed()));
    }
    for (_, ticket) in promised {
        arena.unreserve_slot(ticket);
    }
    for Doomed { orphan, .. } in doomed {
        kill_family(orphan);
    }
}

/// Kills a process and all below it that are not to outlive their parents.
fn kill_family(head: ProcessInfo) {
    let Some(arena) = session_if_any() else {
        return;
    };
    let processes = arena.processes();
    let mut family = vec![head];
    let mut at = 0;
    while let Some(parent) = family.get(at).map(|one| one.slot) {
        let below = processes
            .iter()
            .filter(|one| one.parent == parent && one.slot != parent && arena.is_bound(one.slot));
        family.extend(below);
        at += 1;
    }
    for one in family {
        if let Ok(pidfd) = PidFd::open(one.pid)
            // Asked after the descriptor was had: the id is not given away again while that is open.
            && arena.process(one.slot).pid == one.pid
            && process::was_there(one.pid, one.joined_at).unwrap_or(false)
        {
            let _ = pidfd.signal(signal::SIGKILL);
        }
    }
}

fn handle(key: u64) {
    if key == BELL {
        if let Some(reaper) = reaper().as_ref() {
            reaper.bell.clear();
        }
        find_unwatched();
        find_dead_spares();
        return;
    }
    if key & WARD != 0 {
        settle_ward(key, seen);
        return;
    }
    if key & ORPHAN != 0 {
        let orphan = reaper().as_mut().and_then(|reaper| {
            let (pidfd, orphan) = reaper.orphans.remove(&key)?;
            reaper.epoll.remove(&pidfd);
            Some(orphan)
        });
        if let Some(orphan) = orphan {
            bury(orphan);
        }
        return;
    }
    let child = reaper()
        .as_ref()
        .and_then(|reaper| reaper.children.get(&(key & MASK)).cloned());
    if let Some(child) = child {
        if key & STDERR != 0 {
            child.drain_stderr(false);
        } else {
            child.try_reap();
        }
    }
}

/// Lets go of the parent's table in a forked child.
pub(crate) fn forget_parent() {
    drop(reaper());
}
