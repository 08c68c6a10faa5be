//! This process's arena: made on first use by the root, inherited by everybody else.

use phalanx_prim::global::{AtomicUsize, Ordering};
use std::os::fd::OwnedFd;
use std::sync::OnceLock;
use std::sync::{Mutex, PoisonError};

use phalanx_sys::map::SharedFile;
use phalanx_sys::process;

use crate::arena::Arena;
use crate::error::OpenError;
use crate::slots::Ticket;
use crate::{hold, sweep, token};

const GIB: usize = 1 << 30;
const RESERVE: usize = 256 * GIB;
const LEAST: usize = 32 << 20;

static ARENA: OnceLock<Arena> = OnceLock::new();
static JOINING: Mutex<()> = Mutex::new(());
static WANTED: AtomicUsize = AtomicUsize::new(0);

/// Choices for the arena; set before the first use of anything else.
#[derive(Clone, Copy, Debug, Default)]
#[non_exhaustive]
pub struct SessionOptions {
    /// Bytes of address range to reserve (not memory); 0 means 256 GiB, less where the system allows only less.
    pub reserve: usize,
}

/// Sets the options of the arena this process will make. Without effect once it has one.
pub fn session_options(options: SessionOptions) {
    WANTED.store(options.reserve, Ordering::Relaxed);
}

/// Returns this process's arena, making it on first use.
///
/// # Errors
///
/// [`OpenError`] when the system refuses the file or the mapping.
pub fn session() -> Result<&'static Arena, OpenError> {
    #[cfg(any(phalanx_loom, phalanx_shuttle))]
    if let Some(arena) = crate::modelled::arena() {
        return Ok(arena);
    }
    if let Some(arena) = ARENA.get() {
        if token::slot_if_joined() == 0 {
            join_tree();
        }
        return Ok(arena);
    }
    let _one = JOINING.lock().unwrap_or_else(PoisonError::into_inner);
    if ARENA.get().is_none() {
        let arena = create()?;
        // Root: slot 1 of a table that nobody else has seen.
        start_root(&arena)?;
        sweep::install_kinds();
        let _ = ARENA.set(arena);
        install_fork_hooks();
    }
    ARENA
        .get()
        .ok_or(OpenError::Foreign("it vanished while it was made"))
}

/// Returns this process's arena if it has one.
#[inline]
#[must_use]
pub fn session_if_any() -> Option<&'static Arena> {
    #[cfg(any(phalanx_loom, phalanx_shuttle))]
    if let Some(arena) = crate::modelled::arena() {
        return Some(arena);
    }
    ARENA.get()
}

/// Returns `true` if this process has a slot. A child of a plain fork has none before its first use of anything shared.
#[must_use]
pub fn has_joined() -> bool {
    token::slot_if_joined() != 0
}

fn create() -> Result<Arena, OpenError> {
    if cfg!(miri) {
        // Miri has no memory files; its heap tells it more about each byte anyhow.
        return Ok(Arena::on_heap(LEAST));
    }
    let wanted = match WANTED.load(Ordering::Relaxed) {
        0 => std::env::var("PHALANX_ARENA_BYTES")
            .ok()
            .and_then(|text| text.parse().ok())
            .unwrap_or(RESERVE),
        bytes => bytes,
    };
    // The address space may be limited (RLIMIT_AS, RLIMIT_FSIZE, a sandbox): a smaller reserve serves as long as it lasts.
    let mut len = wanted.max(LEAST).next_multiple_of(1 << 20);
    loop {
        match Arena::create(len) {
            Ok(arena) => return Ok(arena),
            Err(error) if len <= LEAST => return Err(error),
            Err(_) => len = (len / 2).max(LEAST).next_multiple_of(1 << 20),
        }
    }
}

fn start_root(arena: &Arena) -> Result<(), OpenError> {
    let slot = arena
        .reserve_slot_for(0)
        .map_err(|error| OpenError::Io(std::io::Error::other(error)))?;
    arena.occupy_slot(slot.into())?;
    token::set_slot(slot, arena.generation_of(slot));
    Ok(())
}

/// Joins the arena that the parent handed down, as the process that has this ticket.
///
/// # Errors
///
/// [`OpenError`] if the file is not an arena of this version, or this process has one already.
pub fn adopt(file: OwnedFd, ticket: impl Into<Ticket>) -> Result<&'static Arena, OpenError> {
    let ticket = ticket.into();
    let slot = ticket.slot();
    let _one = JOINING.lock().unwrap_or_else(PoisonError::into_inner);
    if ARENA.get().is_some() {
        return Err(OpenError::AlreadyJoined);
    }
    let arena = Arena::open(SharedFile::from_fd(file))?;
    if slot == 0 || usize::from(slot) > crate::MAX_PROCESSES {
        return Err(OpenError::Foreign("the slot number is out of range"));
    }
    arena.occupy_slot(ticket)?;
    token::set_slot(slot, arena.generation_of(slot));
    sweep::install_kinds();
    let _ = ARENA.set(arena);
    install_fork_hooks();
    ARENA
        .get()
        .ok_or(OpenError::Foreign("it vanished while it was joined"))
}

/// Joins the tree as a process that was not started by phalanx: the root on its first use, or a child of a plain fork.
///
/// # Panics
///
/// If the arena cannot be made or has no process slot left.
#[cold]
pub(crate) fn join_tree() -> u16 {
    let Some(arena) = ARENA.get() else {
        return match session() {
            Ok(_) => token::slot_if_joined(),
            Err(error) => panic!("{error}"),
        };
    };
    let one = JOINING.lock().unwrap_or_else(PoisonError::into_inner);
    let mut joined = None;
    if token::slot_if_joined() == 0 {
        let parent = token::forked_from();
        match arena.reserve_slot_for(u32::from(parent)) {
            Ok(slot) => {
                occupy(arena, slot);
                joined = Some(slot);
            }
            Err(error) => panic!("a forked child cannot join the process tree: {error}"),
        }
    }
    // First: who is told takes a lock that a fork takes before this one.
    drop(one);
    if let (Some(slot), Some(told)) = (joined, JOINED.get()) {
        told(slot);
    }
    token::slot_if_joined()
}

static JOINED: OnceLock<fn(u16)> = OnceLock::new();

/// Registers what to call in a child of a plain fork once it has joined the tree (to tell its parent to watch it).
pub fn on_join(told: fn(u16)) {
    let _ = JOINED.set(told);
}

/// Makes the calling process, a fresh fork child, the process of the place that was reserved for it.
///
/// # Errors
///
/// [`OpenError::Abandoned`] if the slot was taken back (its parent died); [`OpenError::Foreign`] if this process has no arena.
pub fn adopt_forked(ticket: impl Into<Ticket>) -> Result<(), OpenError> {
    let ticket = ticket.into();
    let slot = ticket.slot();
    if slot != 0 && token::slot_if_joined() == slot {
        // It was promised.
        return Ok(());
    }
    token::after_fork_in_child();
    let arena = ARENA
        .get()
        .ok_or(OpenError::Foreign("the parent had none"))?;
    arena.occupy_slot(ticket)?;
    token::set_slot(slot, arena.generation_of(slot));
    arena.rebuild_holds();
    Ok(())
}

/// Becomes the process of a reserved slot. A forked child whose parent died meanwhile has no place any more.
fn occupy(arena: &'static Arena, slot: u16) {
    if let Err(error) = arena.occupy_slot(slot.into()) {
        panic!("a forked child cannot join the process tree: {error}");
    }
    token::set_slot(slot, arena.generation_of(slot));
    arena.rebuild_holds();
}

thread_local! {
    static FROZEN: std::cell::RefCell<Option<Locks>> = const { std::cell::RefCell::new(None) };
    static PROMISED: std::cell::Cell<u32> = const { std::cell::Cell::new(0) };
}

/// What nobody may be in the middle of at a fork.
struct Locks {
    holds: hold::Frozen,
    promised: Ticket,
    #[expect(dead_code, reason = "held for its destructor")]
    others: Box<dyn std::any::Any>,
}

/// Promises a reserved place to the child of the calling thread's next fork: it joins the tree in the fork itself, with a
/// hold on everything this process holds at that moment.
///
/// The caller gives the slot back ([`Arena::unreserve_slot`]) if there was no fork or no child.
pub fn promise_slot(ticket: impl Into<Ticket>) {
    PROMISED.set(ticket.into().to_bits());
}

fn install_fork_hooks() {
    static ONCE: OnceLock<()> = OnceLock::new();
    ONCE.get_or_init(|| {
        process::at_fork(before_fork, after_fork_in_parent, after_fork_child);
    });
}

extern "C" fn before_fork() {
    // In the order in which they are taken elsewhere.
    let joining = JOINING.lock().unwrap_or_else(PoisonError::into_inner);
    let promised = Ticket::from_bits(PROMISED.take());
    let holds = hold::freeze(promised.slot());
    let locks = Locks {
        holds,
        promised,
        others: Box::new((joining, token::freeze())),
    };
    FROZEN.with_borrow_mut(|frozen| *frozen = Some(locks));
}

extern "C" fn after_fork_in_parent() {
    if let Some(locks) = FROZEN.take() {
        locks.holds.thaw();
    }
}

extern "C" fn after_fork_child() {
    let promised = FROZEN
        .take()
        .and_then(|locks| locks.holds.thaw_in_child().map(|_| locks.promised));
    token::after_fork_in_child();
    if let (Some(ticket), Some(arena)) = (promised, ARENA.get())
        // Otherwise its parent died already and somebody gave the slot back: the child joins by itself when it must.
        && arena.occupy_slot(ticket).is_ok()
    {
        let slot = ticket.slot();
        token::set_slot(slot, arena.generation_of(slot));
    }
}
