//! Locks whose state the other primitives read without a call: what a queue's `mutex` and a condition's lock are made of.

use phalanx_prim::Deadline;
use phalanx_prim::global::{AtomicBool, AtomicU32, Ordering};
use phalanx_shm::{Described, Flagged, flag, local_token};
use pyo3::exceptions::{PyOverflowError, PyRuntimeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyTuple};

use crate::door::Timeout;
use crate::places::{self, About};
use crate::thread_wait::{Truth, WaitList, What};

pub(crate) fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<Lock>()?;
    module.add_class::<RLock>()?;
    Ok(())
}

/// `threading.TIMEOUT_MAX`: what fits into nanoseconds.
const TIMEOUT_MAX: f64 = 9_223_372_036.0;

/// Reads what `acquire` of a lock is given: `None` for "do not block", else the deadline.
fn patience(blocking: bool, timeout: f64) -> PyResult<Option<Option<Deadline>>> {
    if !blocking {
        if timeout != -1.0 {
            return Err(PyValueError::new_err(
                "can't specify a timeout for a non-blocking call",
            ));
        }
        return Ok(None);
    }
    if timeout == -1.0 {
        return Ok(Some(None));
    }
    if timeout < 0.0 {
        return Err(PyValueError::new_err(
            "timeout value must be a non-negative number",
        ));
    }
    if timeout > TIMEOUT_MAX {
        return Err(PyOverflowError::new_err("timeout value is too large"));
    }
    Ok(Some(Timeout::from_seconds(Some(timeout))?.deadline()))
}

/// A lock of the threads of this process.
#[pyclass(frozen, weakref, module = "phalanx._engine", name = "ThreadLock")]
#[derive(Default)]
pub(crate) struct Lock {
    /// The ordinal of the thread that took it, 0 for nobody.
    owner: AtomicU32,
    /// Somebody freed it who did not have it: to its users it is a signal.
    signal: AtomicBool,
    waiting: WaitList,
    about: About,
}

impl Lock {
    pub(crate) fn is_locked(&self) -> bool {
        self.owner.load(Ordering::Relaxed) != 0
    }

    /// Takes it if it is free.
    #[inline]
    pub(crate) fn try_lock(&self) -> bool {
        let free = !self.is_locked();
        if free {
            self.owner.store(local_token(), Ordering::Relaxed);
        }
        free
    }

    fn what(&self) -> What<'_> {
        What::Lock(self.waiting.address(), &self.owner)
    }

    fn noted(&self) -> (Flagged, Described) {
        let signal = if self.signal.load(Ordering::Relaxed) {
            flag::SIGNAL
        } else {
            0
        };
        (Flagged::new(signal), self.about.described("Lock"))
    }

    /// Takes it, or returns `false` when the deadline passed.
    pub(crate) fn lock(&self, py: Python<'_>, deadline: Option<Deadline>) -> PyResult<bool> {
        while !self.try_lock() {
            if deadline.is_none() && places::wanted() {
                self.waited_for(py);
            }
            let sleeper = self.waiting.enter();
            let _noted = self.noted();
            if !self.waiting.wait_for(py, &sleeper, deadline, self.what())? {
                return Ok(self.try_lock());
            }
        }
        Ok(true)
    }

    /// Takes it, whatever signals come.
    pub(crate) fn lock_deaf(&self, py: Python<'_>) {
        while !self.try_lock() {
            let _noted = self.noted();
            self.waiting.enter().block_deaf(py, self.what());
        }
    }

    /// Frees it. Returns `false` if it was free.
    #[inline]
    pub(crate) fn unlock(&self) -> bool {
        let owner = self.owner.load(Ordering::Relaxed);
        if owner != local_token() && owner != 0 {
            self.signal.store(true, Ordering::Relaxed);
            self.about.forget();
        }
        self.owner.store(0, Ordering::Relaxed);
        self.waiting.notify(1);
        owner != 0
    }
}

#[pymethods]
impl Lock {
    #[new]
    #[pyo3(signature = (*, name=None))]
    fn new(py: Python<'_>, name: Option<&str>) -> Self {
        Self {
            about: About::new(py, name),
            ..Self::default()
        }
    }

    /// Takes the lock, waiting for it if asked to; tells whether it was taken.
    #[pyo3(signature = (blocking=Truth(true), timeout=-1.0), text_signature = "($self, blocking=True, timeout=-1)")]
    fn acquire(&self, py: Python<'_>, blocking: Truth, timeout: f64) -> PyResult<bool> {
        let patience = patience(blocking.0, timeout)?;
        match patience {
            _ if self.try_lock() => Ok(true),
            None => Ok(false),
            Some(deadline) => self.lock(py, deadline),
        }
        .inspect(|had| self.taken(py, *had, patience == Some(None)))
    }

    /// As `acquire`.
    #[pyo3(signature = (blocking=Truth(true), timeout=-1.0), text_signature = "($self, blocking=True, timeout=-1)")]
    fn acquire_lock(&self, py: Python<'_>, blocking: Truth, timeout: f64) -> PyResult<bool> {
        self.acquire(py, blocking, timeout)
    }

    /// Frees the lock.
    pub(crate) fn release(&self) -> PyResult<()> {
        if self.unlock() {
            places::freed(self.waiting.address());
            Ok(())
        } else {
            Err(PyRuntimeError::new_err("release unlocked lock"))
        }
    }

    /// As `release`.
    fn release_lock(&self) -> PyResult<()> {
        self.release()
    }

    /// Tells whether somebody holds the lock.
    fn locked(&self) -> bool {
        self.is_locked()
    }

    /// As `locked`.
    fn locked_lock(&self) -> bool {
        self.is_locked()
    }

    fn __enter__(&self, py: Python<'_>) -> PyResult<bool> {
        self.enter(py)
    }

    #[pyo3(signature = (*_error))]
    fn __exit__(&self, _error: &Bound<'_, PyTuple>) -> PyResult<()> {
        self.release()
    }

    fn _at_fork_reinit(&self) {
        self.owner.store(0, Ordering::Relaxed);
        self.signal.store(false, Ordering::Relaxed);
        self.waiting.clear();
    }

    fn __repr__(slf: &Bound<'_, Self>) -> String {
        let state = if slf.get().is_locked() {
            "locked"
        } else {
            "unlocked"
        };
        format!("<{state} phalanx.Lock object at {:p}>", slf.as_ptr())
    }
}

impl Lock {
    /// Takes it for a `with`.
    pub(crate) fn enter(&self, py: Python<'_>) -> PyResult<bool> {
        self.lock(py, None)
            .inspect(|had| self.taken(py, *had, true))
    }

    #[inline]
    fn taken(&self, py: Python<'_>, had: bool, waits: bool) {
        if had && places::wanted() {
            places::taken(py, self.described(), waits && self.is_ordered());
        }
    }

    #[cold]
    fn waited_for(&self, py: Python<'_>) {
        if self.is_ordered() {
            places::waits_for(py, self.described());
        }
    }

    /// Not one that others than its owner free: that is a signal.
    fn is_ordered(&self) -> bool {
        !self.signal.load(Ordering::Relaxed)
    }

    fn described(&self) -> places::Lock<'_> {
        places::Lock {
            at: self.at(),
            kind: "Lock",
            name: self.about.name(),
            node: self.about.node(),
        }
    }

    /// What tells it from other locks of this process.
    pub(crate) fn at(&self) -> u64 {
        self.waiting.address()
    }
}

/// A lock that its owner may take again.
#[pyclass(
    frozen,
    subclass,
    weakref,
    module = "phalanx._engine",
    name = "ThreadRLock"
)]
#[derive(Default)]
pub(crate) struct RLock {
    /// The owner's token, 0 for nobody.
    owner: AtomicU32,
    count: AtomicU32,
    waiting: WaitList,
    about: About,
}

impl RLock {
    #[inline]
    pub(crate) fn is_mine(&self) -> bool {
        self.owner.load(Ordering::Relaxed) == local_token()
    }

    #[inline]
    fn try_lock(&self) -> bool {
        let me = local_token();
        match self.owner.load(Ordering::Relaxed) {
            0 => self.owner.store(me, Ordering::Relaxed),
            owner if owner != me => return false,
            _ => {}
        }
        self.count
            .store(self.count.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
        true
    }

    pub(crate) fn lock(&self, py: Python<'_>, deadline: Option<Deadline>) -> PyResult<bool> {
        while !self.try_lock() {
            if deadline.is_none() && places::wanted() {
                places::waits_for(py, self.described());
            }
            let sleeper = self.waiting.enter();
            let _described = self.about.described("RLock");
            if !self.waiting.wait_for(py, &sleeper, deadline, self.what())? {
                return Ok(self.try_lock());
            }
        }
        Ok(true)
    }

    fn what(&self) -> What<'_> {
        What::Lock(self.waiting.address(), &self.owner)
    }

    #[inline]
    fn taken(&self, py: Python<'_>, had: bool, waits: bool) {
        if had && places::wanted() && self.count.load(Ordering::Relaxed) == 1 {
            places::taken(py, self.described(), waits);
        }
    }

    fn described(&self) -> places::Lock<'_> {
        places::Lock {
            at: self.at(),
            kind: "RLock",
            name: self.about.name(),
            node: self.about.node(),
        }
    }

    /// What tells it from other locks of this process.
    pub(crate) fn at(&self) -> u64 {
        self.waiting.address()
    }

    /// Takes it for a `with`.
    pub(crate) fn enter(&self, py: Python<'_>) -> PyResult<bool> {
        self.lock(py, None)
            .inspect(|had| self.taken(py, *had, true))
    }

    /// Frees it altogether and returns how often it was held. To note that is the caller's.
    pub(crate) fn unlock_all(&self) -> PyResult<u32> {
        let count = self.count.load(Ordering::Relaxed);
        if count == 0 {
            return Err(PyRuntimeError::new_err("cannot release un-acquired lock"));
        }
        self.count.store(0, Ordering::Relaxed);
        self.owner.store(0, Ordering::Relaxed);
        self.waiting.notify(1);
        Ok(count)
    }

    /// Takes it `count` times, whatever signals come.
    pub(crate) fn lock_all(&self, py: Python<'_>, count: u32) {
        while !self.try_lock() {
            let _described = self.about.described("RLock");
            self.waiting.enter().block_deaf(py, self.what());
        }
        self.count.store(count, Ordering::Relaxed);
    }
}

#[pymethods]
impl RLock {
    #[new]
    #[pyo3(signature = (*_args, **kwargs))]
    fn new(
        py: Python<'_>,
        _args: &Bound<'_, PyTuple>,
        kwargs: Option<&Bound<'_, PyDict>>,
    ) -> PyResult<Self> {
        let name: Option<String> = match kwargs {
            Some(kwargs) => kwargs
                .get_item("name")?
                .map(|name| name.extract())
                .transpose()?,
            None => None,
        };
        Ok(Self {
            about: About::new(py, name.as_deref()),
            ..Self::default()
        })
    }

    /// Takes the lock once more, waiting for it if asked to; tells whether it was taken.
    #[pyo3(signature = (blocking=Truth(true), timeout=-1.0), text_signature = "($self, blocking=True, timeout=-1)")]
    fn acquire(&self, py: Python<'_>, blocking: Truth, timeout: f64) -> PyResult<bool> {
        let patience = patience(blocking.0, timeout)?;
        match patience {
            _ if self.try_lock() => Ok(true),
            None => Ok(false),
            Some(deadline) => self.lock(py, deadline),
        }
        .inspect(|had| self.taken(py, *had, patience == Some(None)))
    }

    /// Gives the lock back once.
    pub(crate) fn release(&self) -> PyResult<()> {
        if !self.is_mine() {
            return Err(PyRuntimeError::new_err("cannot release un-acquired lock"));
        }
        match self.count.load(Ordering::Relaxed) {
            count @ 2.. => self.count.store(count - 1, Ordering::Relaxed),
            _ => {
                self.unlock_all()?;
                places::freed(self.at());
            }
        }
        Ok(())
    }

    fn __enter__(&self, py: Python<'_>) -> PyResult<bool> {
        self.enter(py)
    }

    #[pyo3(signature = (*_error))]
    fn __exit__(&self, _error: &Bound<'_, PyTuple>) -> PyResult<()> {
        self.release()
    }

    fn _is_owned(&self) -> bool {
        self.is_mine()
    }

    fn _release_save(&self) -> PyResult<(u32, u32)> {
        let owner = self.owner.load(Ordering::Relaxed);
        let count = self.unlock_all()?;
        places::freed(self.at());
        Ok((count, owner))
    }

    fn _acquire_restore(&self, py: Python<'_>, state: (u32, u32)) {
        if places::wanted() {
            places::waits_for(py, self.described());
        }
        self.lock_all(py, state.0);
        if places::wanted() {
            places::taken(py, self.described(), false);
        }
    }

    fn _recursion_count(&self) -> u32 {
        if self.is_mine() {
            self.count.load(Ordering::Relaxed)
        } else {
            0
        }
    }

    fn _at_fork_reinit(&self) {
        self.owner.store(0, Ordering::Relaxed);
        self.count.store(0, Ordering::Relaxed);
        self.waiting.clear();
    }

    fn __repr__(slf: &Bound<'_, Self>) -> String {
        let lock = slf.get();
        let count = lock.count.load(Ordering::Relaxed);
        format!(
            "<{} phalanx.RLock object owner={} count={count} at {:p}>",
            if count == 0 { "unlocked" } else { "locked" },
            lock.owner.load(Ordering::Relaxed),
            slf.as_ptr()
        )
    }
}
