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
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use phalanx_prim::global::Ordering;
use phalanx_shm::{ExitRecord, ProcessInfo, session_if_any};
use phalanx_sys::event::{Epoll, EventFd};
use phalanx_sys::pidfd::PidFd;
use phalanx_sys::{ids, process};

use crate::child::Child;

const BELL: u64 = 0;
const STDERR: u64 = 1 << 62;
const ORPHAN: u64 = 1 << 61;
const MASK: u64 = ORPHAN - 1;

struct Reaper {
    pid: u32,
    epoll: Epoll,
    bell: EventFd,
    children: HashMap<u64, Arc<Child>>,
    orphans: HashMap<u64, (PidFd, ProcessInfo)>,
    next: u64,
}

static REAPER: Mutex<Option<Reaper>> = Mutex::new(None);

fn reaper() -> MutexGuard<'static, Option<Reaper>> {
    let mut guard = REAPER.lock().unwrap_or_else(PoisonError::into_inner);
    if guard
        .as_ref()
        .is_some_and(|reaper| reaper.pid != ids::pid())
    {
        // We are a forked child: these children are our parent's, and so is the thread. Letting go of the copies would
        // close the parent's ends of their ties in us, which is what we want.
        *guard = None;
    }
    guard
}

/// Keeps the table whole while the process forks.
pub(crate) fn freeze() -> impl Sized + 'static {
    REAPER.lock().unwrap_or_else(PoisonError::into_inner)
}

fn started() -> std::io::Result<MutexGuard<'static, Option<Reaper>>> {
    let mut guard = reaper();
    if guard.is_none() {
        let epoll = Epoll::new()?;
        let bell = EventFd::new()?;
        epoll.add(&bell, BELL)?;
        *guard = Some(Reaper {
            pid: ids::pid(),
            epoll,
            bell,
            children: HashMap::new(),
            orphans: HashMap::new(),
            next: 1,
        });
        crate::fork::install_hooks();
        phalanx_shm::on_join(joined_by_fork);
        let spawned = std::thread::Builder::new()
            .name("phalanx-reaper".to_owned())
            .stack_size(256 * 1024)
            .spawn(run);
        if let Err(error) = spawned {
            *guard = None;
            return Err(error);
        }
    }
    Ok(guard)
}

/// Starts the thread, so that children of plain forks are noticed too.
pub(crate) fn ensure() {
    // Without a thread the next start of a process reports why.
    drop(started());
}

/// Watches a child from now on.
pub(crate) fn add(child: &Arc<Child>) -> std::io::Result<()> {
    let mut guard = started()?;
    let Some(reaper) = guard.as_mut() else {
        return Ok(());
    };
    let key = reaper.next;
    reaper.next += 1;
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
            let Ok(mut guard) = started() else { return };
            let Some(reaper) = guard.as_mut() else { return };
            let key = ORPHAN | reaper.next;
            reaper.next += 1;
            if reaper.epoll.add(&pidfd, key).is_ok() {
                reaper.orphans.insert(key, (pidfd, orphan));
            }
        }
        _ => bury(orphan),
    }
}

fn bury(orphan: ProcessInfo) {
    let Some(arena) = session_if_any() else {
        return;
    };
    if arena.process(orphan.slot).pid != orphan.pid {
        return;
    }
    arena.record_exit(orphan.slot, ExitRecord::Unknown);
    for next in arena.sweep(orphan.slot).orphans {
        adopt(next);
    }
}

/// Called in a child of a plain fork when it joins the tree: its parent's reaper (whose bell it inherited) looks for it.
fn joined_by_fork(_: u16) {
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

fn run() {
    phalanx_sys::process::set_name("phalanx-reaper");
    // The next death is for this thread to see, whatever it sleeps on.
    let _looking = phalanx_shm::LookAgain::new();
    // The table outlives the thread: it is only replaced in a forked child, which has no such thread.
    let epoll = {
        let guard = reaper();
        let Some(reaper) = guard.as_ref() else { return };
        match reaper.epoll.share() {
            Ok(epoll) => epoll,
            Err(_) => return,
        }
    };
    loop {
        let Ok(ready) = epoll.wait(None) else {
            std::thread::sleep(Duration::from_millis(1));
            continue;
        };
        for key in ready {
            handle(key);
        }
    }
}

fn handle(key: u64) {
    if key == BELL {
        if let Some(reaper) = reaper().as_ref() {
            reaper.bell.clear();
        }
        find_unwatched();
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
