//! Wards: children that somebody else starts and collects, here the standard library of another language.
//!
//! The engine gives a ward what its own children have: a slot, holds on all it inherits, an end that is noticed at once and
//! swept, and no life after its parent's. Its start, its exit status and its handles are the other library's.
//!
//! A ward's life is tied in two ways. All wards below a process that is none itself (the *head*) are on one line, which
//! breaks when the head dies, however it does; the kernel kills them then. When another of them dies, the reaper of its
//! nearest living ancestor gives those below it a moment, then kills them.
#![expect(
    unsafe_code,
    reason = "descriptors that another library passed on by number"
)]

use std::cell::Cell;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use phalanx_prim::global::{AtomicBool, Ordering};
use phalanx_shm::{OpenError, Ticket, session_if_any};
use phalanx_sys::pidfd::ExitStatus;
use phalanx_sys::tie::{self, LineEnd, LineHolder, OnLine};
use phalanx_sys::{ids, process};

use crate::entry::REFUSED_CODE;
use crate::error::StartError;
use crate::{fork, reaper, start};

/// The line of the head that this process is, or is below of.
#[derive(Debug)]
struct Line {
    end: Arc<LineEnd>,
    /// In the head.
    #[expect(dead_code, reason = "held to be closed")]
    holder: Option<LineHolder>,
    /// In everybody else.
    #[expect(dead_code, reason = "held to be closed")]
    place: Option<OnLine>,
}

static LINE: Mutex<Option<Line>> = Mutex::new(None);

thread_local! {
    /// The next fork of this thread makes a ward.
    static FORKS_WARD: Cell<bool> = const { Cell::new(false) };
    /// Pauses of the reaper that this thread's forks have asked for.
    static PAUSES: Cell<u32> = const { Cell::new(0) };
}

/// This process only forks wards of others.
static SERVES: AtomicBool = AtomicBool::new(false);

fn line() -> MutexGuard<'static, Option<Line>> {
    LINE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Keeps the line whole while the process forks.
pub(crate) fn freeze() -> impl Sized + 'static {
    line()
}

fn own_line() -> io::Result<Arc<LineEnd>> {
    let mut current = line();
    if let Some(line) = current.as_ref() {
        return Ok(Arc::clone(&line.end));
    }
    let (holder, end) = tie::line()?;
    let end = Arc::new(end);
    *current = Some(Line {
        end: Arc::clone(&end),
        holder: Some(holder),
        place: None,
    });
    Ok(end)
}

/// The place of a ward that is about to be started. Dropped before it was, it is given back.
#[derive(Debug)]
pub struct Ward {
    ticket: Ticket,
    line: Arc<LineEnd>,
    owner: u32,
    started: bool,
}

impl Ward {
    /// Makes a place for a child.
    ///
    /// # Errors
    ///
    /// When no process slot, memory or descriptor is left.
    pub fn reserve() -> Result<Self, StartError> {
        let arena = phalanx_shm::session()?;
        start::install();
        fork::install_hooks();
        let line = own_line()?;
        let ticket = reaper::reserve(arena)?;
        arena.set_bound(ticket.slot());
        Ok(Self {
            ticket,
            line,
            owner: ids::pid(),
            started: false,
        })
    }

    /// Returns the place, to be told to the child for [`enter`].
    #[must_use]
    pub fn ticket(&self) -> Ticket {
        self.ticket
    }

    /// Returns the line's end, of which the child needs a copy for [`enter`].
    #[must_use]
    pub fn line(&self) -> BorrowedFd<'_> {
        self.line.as_fd()
    }

    /// Makes the child of this thread's next fork the ward: nothing is left for it to do then.
    ///
    /// The C library's fork is meant, whoever calls it, after [`before_fork`].
    pub fn fork_next(&self) {
        FORKS_WARD.set(true);
        phalanx_shm::promise_slot(self.ticket);
    }

    /// Watches the process that was started in this place.
    ///
    /// # Errors
    ///
    /// When no descriptor is left; the process was ended then, and is the caller's to collect.
    pub fn started(mut self, pid: u32) -> io::Result<()> {
        self.started = true;
        reaper::add_ward(pid, self.ticket)
    }
}

impl Drop for Ward {
    fn drop(&mut self) {
        if !self.started && self.owner == ids::pid() {
            reaper::give_back(self.ticket);
        }
    }
}

/// Sweeps after a ward whose end the caller has seen, so that what it held is free when this returns.
pub fn ward_ended(pid: u32, status: ExitStatus) {
    reaper::ward_ended(pid, status);
}

/// Blocks until the ward with this id has ended, and sweeps after it; the caller collects it. `false` when a signal came: the
/// caller lets its handlers run and calls again. One that was swept already, or is no ward of this process, is not waited for.
pub fn await_ward(pid: u32) -> bool {
    reaper::await_ward(pid)
}

/// Returns a descriptor that is readable once the ward with this id has ended; `None` if it has ended and was swept.
///
/// For a library that has lost the process by which it would have heard of the end.
///
/// # Errors
///
/// When no descriptor is left.
pub fn ward_descriptor(pid: u32) -> io::Result<Option<OwnedFd>> {
    reaper::ward_descriptor(pid)
}

/// To be called before each fork that the other library makes by itself: the child gets a slot and holds of its own. Unless
/// it is a [`Ward`], it is a process like any other: on no line. Without an arena nothing happens.
///
/// With `alone`, the engine's thread is ended first, so that a process with one thread forks as one. That is for those who
/// count: a fork beside the thread is as sound.
pub fn before_fork(alone: bool) {
    let Some(arena) = session_if_any() else {
        return;
    };
    fork::install_hooks();
    if alone {
        reaper::pause();
        PAUSES.set(PAUSES.get() + 1);
    }
    if FORKS_WARD.get() || SERVES.load(Ordering::Relaxed) {
        return;
    }
    // Without a slot left the child joins by itself when it must, and learns then why it cannot.
    if let Ok(slot) = arena.reserve_slot() {
        let ticket = arena.ticket(slot);
        phalanx_shm::promise_slot(ticket);
        reaper::note_promise(ticket);
    }
}

/// To be called in the parent after each fork, also after one that failed. With `later`, the engine's thread is not started
/// before [`resume`] or the next start of a process.
pub fn after_fork(later: bool) {
    for _ in 0..PAUSES.take() {
        if later {
            reaper::resume_later();
        } else {
            reaper::resume();
        }
    }
}

/// Starts the engine's thread if [`after_fork`] has left that for later. Cheap otherwise.
#[inline]
pub fn resume() {
    reaper::resume_now();
}

/// Makes this process one that only forks wards of others: it has no thread of the engine's, and its children have no place
/// in the tree before they [`enter`].
pub fn serve_forks() {
    SERVES.store(true, Ordering::Relaxed);
    reaper::pause();
}

/// In the parent, after any fork.
pub(crate) fn in_parent() {
    FORKS_WARD.set(false);
}

/// In the child of any fork.
pub(crate) fn in_child() {
    PAUSES.set(0);
    SERVES.store(false, Ordering::Relaxed);
    let mut current = line();
    if !FORKS_WARD.take() {
        // A head of its own once it has wards. Its copies would keep its parent's wards alive.
        *current = None;
        drop(current);
        if phalanx_shm::has_joined() {
            reaper::joined_by_fork(0);
        }
        return;
    }
    let Some(end) = current.take().map(|line| line.end) else {
        return;
    };
    *current = Some(on_line(end));
}

/// Puts this process on a line; it ends if the head is gone.
fn on_line(end: Arc<LineEnd>) -> Line {
    let place = match end.arm() {
        Ok(place) => Some(place),
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => process::exit_now(REFUSED_CODE),
        // Where /proc is missing, for instance: a parent's death is noticed then as long as an ancestor lives.
        Err(_) => None,
    };
    Line {
        end,
        holder: None,
        place,
    }
}

/// Makes this process the ward that has this ticket, with the arena and the line that it was handed. Ends the process if its parent is
/// gone.
///
/// # Errors
///
/// [`OpenError`] if the arena is of another version, or this process is in another one.
pub fn enter(
    arena: OwnedFd,
    line_end: OwnedFd,
    ticket: Ticket,
    identity: u64,
) -> Result<(), OpenError> {
    *line() = Some(on_line(Arc::new(LineEnd::from_fd(line_end))));
    match session_if_any() {
        None => {
            phalanx_shm::adopt(arena, ticket)?;
        }
        Some(inherited) if inherited.identity() == identity && !phalanx_shm::has_joined() => {
            phalanx_shm::adopt_forked(ticket)?;
        }
        Some(_) => return Err(OpenError::AlreadyJoined),
    }
    start::install();
    fork::install_hooks();
    Ok(())
}

/// As [`enter`], with the numbers of descriptors that are this process's to own.
///
/// # Errors
///
/// As [`enter`], and when a number is not open.
///
/// # Safety
///
/// Nothing else in this process owns the descriptors.
pub unsafe fn enter_by_number(
    arena: RawFd,
    line: RawFd,
    ticket: Ticket,
    identity: u64,
) -> Result<(), OpenError> {
    for fd in [arena, line] {
        if !std::fs::exists(format!("/proc/self/fd/{fd}")).unwrap_or(false) {
            let what = format!("descriptor {fd} was not passed on");
            return Err(OpenError::Io(io::Error::other(what)));
        }
    }
    // SAFETY: open (checked), and nobody else's (the caller's promise).
    let arena = unsafe { OwnedFd::from_raw_fd(arena) };
    // SAFETY: as above.
    let line = unsafe { OwnedFd::from_raw_fd(line) };
    for fd in [&arena, &line] {
        // Inherited descriptors are not for the programs this process starts.
        phalanx_sys::socket::set_cloexec(fd).map_err(OpenError::Io)?;
    }
    enter(arena, line, ticket, identity)
}
