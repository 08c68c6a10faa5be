//! Threads of this process that sleep, in the order in which they came.
//!
//! Everything built on a [`WaitList`] decides under the interpreter's lock, enters the list under it, and only then lets it
//! go: a change that comes later finds the sleeper in the list, so none is missed and no further lock is needed.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, Once, PoisonError};

use phalanx_prim::global::{AtomicU32, AtomicUsize, Ordering};
use phalanx_prim::{Arc, Deadline, Scope, Spin, Word, clock, hint};
use phalanx_shm::{Patience, Subject, WaitError, Waiting};
use pyo3::prelude::*;

use crate::door;

/// A yes or no as Python takes it: anything that is true or false.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Truth(pub(crate) bool);

impl<'a, 'py> FromPyObject<'a, 'py> for Truth {
    type Error = PyErr;

    fn extract(object: Borrowed<'a, 'py, PyAny>) -> PyResult<Self> {
        object.is_truthy().map(Self)
    }
}

/// How often this process was forked from another since the first sleeper: those of a parent's threads are not here.
static FORKS: AtomicU32 = AtomicU32::new(0);

extern "C" fn nothing() {}

extern "C" fn forked() {
    FORKS.fetch_add(1, Ordering::Relaxed);
}

fn forks() -> u32 {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| phalanx_sys::process::at_fork(nothing, nothing, forked));
    FORKS.load(Ordering::Relaxed)
}

/// How often a thread let the interpreter's lock go to sleep here.
static PARKS: AtomicU32 = AtomicU32::new(0);
/// How long a thread that was notified leaves the interpreter's lock to the notifier, in nanoseconds. The notifier often goes
/// to sleep itself right away; asking for its lock before that would cost both of them a call of the kernel.
const COURTESY_NS: u64 = 1_500;

const WAITING: u32 = 0;
const NOTIFIED: u32 = 1;
const ASLEEP: u32 = 2;

/// What those in a list wait for, for the detective.
#[derive(Clone, Copy, Debug)]
pub(crate) enum What<'a> {
    /// A lock: its address, and the ordinal of the thread that has it.
    Lock(u64, &'a AtomicU32),
    /// Something else, named by an address.
    Other(u64),
}

impl What<'_> {
    fn note(self, waiting: &mut Waiting, patience: Patience) -> Result<(), WaitError> {
        match self {
            Self::Lock(at, owner) => {
                let owner = owner.load(Ordering::Relaxed);
                waiting.sleeps(Subject::PrivateLock, |_| at, owner, patience)
            }
            Self::Other(at) => waiting.sleeps(Subject::PrivateGate, |_| at, 0, patience),
        }
    }
}

/// One thread's place in a list.
#[derive(Debug)]
pub(crate) struct Sleeper {
    /// Waiting (its thread looks by itself), asleep (it wants a wake), or notified.
    word: Word,
    /// What `PARKS` was when it was notified.
    parks: AtomicU32,
    forks: u32,
}

impl Sleeper {
    /// Tells whether somebody notified this sleeper.
    pub(crate) fn is_notified(&self) -> bool {
        // Acquire: pairs with the notifier's release.
        self.word.load(Ordering::Acquire) == NOTIFIED
    }

    /// Sleeps without the interpreter's lock until notified. Returns `false` when the deadline passed.
    ///
    /// # Errors
    ///
    /// What a signal handler raises.
    pub(crate) fn block(
        &self,
        py: Python<'_>,
        deadline: Option<Deadline>,
        what: What<'_>,
    ) -> PyResult<bool> {
        let slept = door::blocking_until(py, deadline, |patience| self.sleep(patience, what));
        Ok(slept?.is_some())
    }

    /// As [`block`](Self::block), for as long as it takes and whatever signals come.
    pub(crate) fn block_deaf(&self, py: Python<'_>, what: What<'_>) {
        py.detach(|| {
            // Without a deadline and deaf to signals it ends in one way only.
            let _ = self.sleep(Patience::FOREVER, what);
        });
    }

    fn sleep(&self, patience: Patience, what: What<'_>) -> Result<(), WaitError> {
        // Relaxed: a hint.
        PARKS.fetch_add(1, Ordering::Relaxed);
        if Spin::until(|| self.is_notified().then_some(())).is_some() {
            // The notifier runs on another core at this moment. One who was woken by the kernel may be on its core instead, and
            // has slept long enough.
            if self.parks.load(Ordering::Relaxed) == PARKS.load(Ordering::Relaxed) {
                self.be_courteous();
            }
            return Ok(());
        }
        let mut waiting = Waiting::new();
        loop {
            waiting.looks();
            // Acquire: pairs with the notifier's release.
            match self
                .word
                .compare_exchange(WAITING, ASLEEP, Ordering::Acquire, Ordering::Acquire)
            {
                Err(NOTIFIED) => return Ok(()),
                _ => {
                    what.note(&mut waiting, patience)?;
                    let deadline = patience.deadline;
                    patience.check(waiting.wait(&self.word, ASLEEP, deadline, Scope::Private))?;
                }
            }
        }
    }

    #[cold]
    fn be_courteous(&self) {
        let parks = self.parks.load(Ordering::Relaxed);
        let until = clock::now_ns() + COURTESY_NS;
        while PARKS.load(Ordering::Relaxed) == parks && clock::now_ns() < until {
            hint::spin_loop();
        }
    }

    fn notify(&self) {
        self.parks
            .store(PARKS.load(Ordering::Relaxed), Ordering::Relaxed);
        // Release: what was decided before is seen by the one who was notified.
        if self.word.swap(NOTIFIED, Ordering::Release) == ASLEEP {
            self.word.wake(1, Scope::Private);
        }
    }
}

/// Sleepers, oldest first.
#[derive(Debug, Default)]
pub(crate) struct WaitList {
    sleepers: Mutex<VecDeque<Arc<Sleeper>>>,
    /// Their number, to be read without the lock.
    len: AtomicUsize,
}

impl WaitList {
    fn sleepers(&self) -> MutexGuard<'_, VecDeque<Arc<Sleeper>>> {
        self.sleepers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn note(&self, sleepers: &VecDeque<Arc<Sleeper>>) {
        self.len.store(sleepers.len(), Ordering::Relaxed);
    }

    /// Returns how many are in the list.
    pub(crate) fn len(&self) -> usize {
        self.len.load(Ordering::Relaxed)
    }

    /// Adds the calling thread at the end.
    pub(crate) fn enter(&self) -> Arc<Sleeper> {
        let sleeper = Arc::new(Sleeper {
            word: Word::new(WAITING),
            parks: AtomicU32::new(0),
            forks: forks(),
        });
        let mut sleepers = self.sleepers();
        sleepers.push_back(Arc::clone(&sleeper));
        self.note(&sleepers);
        sleeper
    }

    /// Takes a sleeper out that was not notified.
    pub(crate) fn leave(&self, sleeper: &Arc<Sleeper>) {
        let mut sleepers = self.sleepers();
        sleepers.retain(|other| !Arc::ptr_eq(other, sleeper));
        self.note(&sleepers);
    }

    /// Wakes the `count` oldest.
    #[inline]
    pub(crate) fn notify(&self, count: usize) {
        if self.len() != 0 {
            self.notify_some(count);
        }
    }

    #[cold]
    fn notify_some(&self, mut count: usize) {
        let now = forks();
        let mut sleepers = self.sleepers();
        while count > 0 {
            let Some(sleeper) = sleepers.pop_front() else {
                break;
            };
            // A thread of the process this one was forked from does not hear it, and must not use it up.
            if sleeper.forks == now {
                sleeper.notify();
                count -= 1;
            }
        }
        self.note(&sleepers);
    }

    /// Forgets all, in a forked child.
    pub(crate) fn clear(&self) {
        let mut sleepers = self.sleepers();
        sleepers.clear();
        self.note(&sleepers);
    }

    /// Sleeps until notified or until the deadline. A notification that comes together with a signal is passed on to the
    /// next in the list, for whom it may be the only one.
    ///
    /// # Errors
    ///
    /// What a signal handler raises.
    pub(crate) fn wait(
        &self,
        py: Python<'_>,
        sleeper: &Arc<Sleeper>,
        deadline: Option<Deadline>,
    ) -> PyResult<bool> {
        self.wait_for(py, sleeper, deadline, What::Other(self.address()))
    }

    /// Names the list.
    pub(crate) fn address(&self) -> u64 {
        std::ptr::from_ref(self) as usize as u64
    }

    /// As [`wait`](Self::wait), for something in particular.
    ///
    /// # Errors
    ///
    /// What a signal handler raises.
    pub(crate) fn wait_for(
        &self,
        py: Python<'_>,
        sleeper: &Arc<Sleeper>,
        deadline: Option<Deadline>,
        what: What<'_>,
    ) -> PyResult<bool> {
        match sleeper.block(py, deadline, what) {
            Ok(true) => Ok(true),
            Ok(false) => {
                self.leave(sleeper);
                Ok(sleeper.is_notified())
            }
            Err(error) => {
                self.leave(sleeper);
                if sleeper.is_notified() {
                    self.notify(1);
                }
                Err(error)
            }
        }
    }
}
