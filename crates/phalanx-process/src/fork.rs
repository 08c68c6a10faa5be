//! Fork, as plain as it is: returns twice; and what must happen around every fork of this process.
#![expect(unsafe_code, reason = "fork")]

use std::cell::RefCell;
use std::io;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use phalanx_shm::Ticket;
use phalanx_sys::{ids, process, tie};

use crate::child::{Child, Parts};
use crate::error::StartError;
use crate::{entry, reaper, start, ward, zygote};

/// The two returns of [`fork`].
#[derive(Debug)]
pub enum Fork {
    /// In the parent, with a handle on the child.
    Parent(ForkedChild),
    /// In the child.
    Child,
}

/// A child made by [`fork`]. Dropping the handle lets it run on.
#[derive(Clone, Debug)]
pub struct ForkedChild(pub(crate) Arc<Child>);

type Hook = Box<dyn Fn() + Send>;

#[derive(Default)]
struct Hooks {
    before: Vec<Hook>,
    parent: Vec<Hook>,
    child: Vec<Hook>,
}

static HOOKS: Mutex<Option<Hooks>> = Mutex::new(None);

/// Where a hook runs; see [`at_fork`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum When {
    /// In the parent, before the fork; last registered first.
    Before,
    /// In the parent, after it; in order of registration.
    InParent,
    /// In the child, after it; in order of registration.
    InChild,
}

/// Runs `hook` around every fork of this process from now on: ours, the standard library's and C code's.
///
/// A hook must not fork, nor register hooks.
///
/// ```
/// use phalanx_process::{When, at_fork};
///
/// at_fork(When::InChild, || { /* forget connections that belong to the parent */ });
/// ```
pub fn at_fork(when: When, hook: impl Fn() + Send + 'static) {
    install_hooks();
    let mut hooks = HOOKS.lock().unwrap_or_else(PoisonError::into_inner);
    let hooks = hooks.get_or_insert_with(Hooks::default);
    match when {
        When::Before => hooks.before.insert(0, Box::new(hook)),
        When::InParent => hooks.parent.push(Box::new(hook)),
        When::InChild => hooks.child.push(Box::new(hook)),
    }
}

thread_local! {
    static FROZEN: RefCell<Vec<Box<dyn std::any::Any>>> = const { RefCell::new(Vec::new()) };
}

pub(crate) fn install_hooks() {
    static ONCE: OnceLock<()> = OnceLock::new();
    ONCE.get_or_init(|| process::at_fork(before, in_parent, in_child));
}

fn run_hooks(pick: impl Fn(&Hooks) -> &Vec<Hook>) {
    if let Some(hooks) = HOOKS
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .as_ref()
    {
        pick(hooks).iter().for_each(|hook| hook());
    }
}

extern "C" fn before() {
    run_hooks(|hooks| &hooks.before);
    // Other threads must be out of our tables at the moment of the fork.
    let locks: Vec<Box<dyn std::any::Any>> = vec![
        Box::new(HOOKS.lock().unwrap_or_else(PoisonError::into_inner)),
        Box::new(zygote::freeze()),
        Box::new(ward::freeze()),
        Box::new(reaper::freeze()),
    ];
    FROZEN.with_borrow_mut(|frozen| *frozen = locks);
}

extern "C" fn in_parent() {
    FROZEN.with_borrow_mut(Vec::clear);
    ward::in_parent();
    run_hooks(|hooks| &hooks.parent);
    if phalanx_shm::session_if_any().is_some() {
        // The child may take a lock and die: somebody has to notice.
        reaper::ensure();
    }
}

extern "C" fn in_child() {
    FROZEN.with_borrow_mut(Vec::clear);
    reaper::forget_pauses();
    ward::in_child();
    run_hooks(|hooks| &hooks.child);
}

/// Forks this process: returns in the parent with a handle on the child, and in the child.
///
/// The child is a process of the tree: its own slot, its own holds on every handle it inherits, tied to its parent's life.
/// It has only the calling thread. When it ends without [`std::process::exit`], use [`exit_now`](phalanx_sys::process::exit_now).
///
/// # Errors
///
/// [`StartError`] when the system has no room for another process.
///
/// # Safety
///
/// The child uses nothing that another thread of the parent may have held at the moment of the fork (a lock of a library
/// without at-fork handlers, for instance). With a single thread nothing can go wrong.
///
/// ```
/// use phalanx_process::{Fork, fork};
///
/// // SAFETY: the child only exits.
/// match unsafe { fork() }? {
///     Fork::Child => std::process::exit(7),
///     Fork::Parent(child) => assert_eq!(child.join()?.code(), Some(7)),
/// }
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub unsafe fn fork() -> Result<Fork, StartError> {
    let parts = |pid, ticket, tie| Parts {
        pid,
        ticket,
        name: format!("Fork-{pid}"),
        daemon: false,
        start: None,
        task: String::new(),
        memory_limit: None,
        stderr: None,
        tie: Some(tie),
    };
    // SAFETY: the caller's promise.
    match unsafe { fork_with(parts) }? {
        Some(child) => Ok(Fork::Parent(ForkedChild(child))),
        None => Ok(Fork::Child),
    }
}

/// Forks; in the parent returns the watched child, in the child `None`.
///
/// # Safety
///
/// As for [`fork`].
pub(crate) unsafe fn fork_with(
    parts: impl FnOnce(u32, Ticket, tie::ParentEnd) -> Parts,
) -> Result<Option<Arc<Child>>, StartError> {
    let arena = phalanx_shm::session()?;
    start::install();
    install_hooks();
    let ticket = reaper::reserve(arena)?;
    let made = tie::tie_pair().and_then(|(parent_end, child_end)| {
        entry::flush();
        phalanx_shm::promise_slot(ticket);
        // SAFETY: the caller's promise.
        let forked = unsafe { process::fork() }?;
        Ok((forked, parent_end, child_end))
    });
    match made {
        Err(error) => {
            reaper::give_back(ticket);
            Err(error.into())
        }
        Ok((process::Forked::Child, parent_end, child_end)) => {
            drop(parent_end);
            become_child(ticket, child_end);
            Ok(None)
        }
        Ok((process::Forked::Parent(pid), parent_end, child_end)) => {
            drop(child_end);
            Ok(Some(Child::watch(parts(pid, ticket, parent_end))?))
        }
    }
}

/// What a fresh fork child does before anything else.
pub(crate) fn become_child(ticket: Ticket, tie: tie::ChildEnd) {
    // Our copies of the ends of our siblings' ties: closing them leaves the parent the only one who holds them.
    reaper::forget_parent();
    if let Err(error) = tie.arm() {
        eprintln!("phalanx: a forked child cannot be tied to its parent: {error}");
        process::exit_now(entry::REFUSED_CODE);
    }
    // Otherwise the parent died, and so do we in a moment.
    if let Err(error) = phalanx_shm::adopt_forked(ticket) {
        eprintln!("phalanx: a forked child cannot join the process tree: {error}");
        process::exit_now(entry::REFUSED_CODE);
    }
}

impl ForkedChild {
    /// Returns the child's process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.0.pid
    }

    /// Returns `true` while the child runs.
    #[must_use]
    pub fn is_alive(&self) -> bool {
        self.0.status().is_none()
    }

    /// Blocks until the child has ended and returns how.
    ///
    /// # Errors
    ///
    /// When the caller is the child itself or another process that inherited the handle.
    pub fn join(&self) -> io::Result<phalanx_sys::pidfd::ExitStatus> {
        if !self.0.is_mine() {
            let what = if self.0.pid == ids::pid() {
                "a process cannot join itself"
            } else {
                "not a child of this process"
            };
            return Err(io::Error::new(io::ErrorKind::InvalidInput, what));
        }
        loop {
            if let Ok(Some(status)) = self.0.wait(phalanx_shm::Patience::FOREVER) {
                return Ok(status);
            }
        }
    }

    /// Ends the child at once.
    ///
    /// # Errors
    ///
    /// When this process may not signal it.
    pub fn kill(&self) -> io::Result<()> {
        self.0.signal(phalanx_sys::signal::SIGKILL)
    }

    /// Asks the child to end.
    ///
    /// # Errors
    ///
    /// When this process may not signal it.
    pub fn terminate(&self) -> io::Result<()> {
        self.0.signal(phalanx_sys::signal::SIGTERM)
    }
}
