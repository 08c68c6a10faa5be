//! The lock and the semaphores: one class with the surface of `_multiprocessing.SemLock`, from which the classes of
//! `multiprocessing.synchronize` derive.
//!
//! A lock with one permit is an engine lock, which knows its owner; a recursive one an engine recursive lock; all others are
//! the engine's permits, whose quick functions the interpreter's lock keeps apart. One that is to keep its name in the file system (`unlink=False`) is the standard library's: whoever
//! asks for a name opens it elsewhere.

use std::sync::OnceLock;

use phalanx_prim::{AtomicU64, Ordering};
use phalanx_shm::{Acquired, BlockRef, Kind, Patience, WaitError, current_slot, session};
use phalanx_sync::handle::Handle;
use phalanx_sync::{CreateError, Hint, Lock, Permits, RLock, SEMAPHORE_MOST};
use pyo3::exceptions::{
    PyAssertionError, PyFileNotFoundError, PyOSError, PyRuntimeError, PyRuntimeWarning,
    PyTypeError, PyValueError,
};
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyDict, PyTuple, PyType};

use crate::door::{Timeout, blocking, create_error};
use crate::handle::{extras, give, take};
use crate::places;

const RECURSIVE_MUTEX: i32 = 0;
const SEMAPHORE: i32 = 1;

pyo3::create_exception!(
    phalanx,
    OwnerDiedWarning,
    PyRuntimeWarning,
    "The process that held a lock died. The lock is yours now; what it protects may be half-changed."
);

static STOCK: PyOnceLock<Py<PyAny>> = PyOnceLock::new();

pub(crate) fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<SemLock>()?;
    module.add(
        "OwnerDiedWarning",
        module.py().get_type::<OwnerDiedWarning>(),
    )?;
    module.add_function(wrap_pyfunction!(_rebuild_semlock, module)?)?;
    module.add_function(wrap_pyfunction!(_set_stock_semlock, module)?)?;
    Ok(())
}

/// Takes the class for semaphores with a name in the file system.
#[pyfunction]
fn _set_stock_semlock(class: Py<PyAny>) {
    Python::attach(|py| {
        let _ = STOCK.set(py, class);
    });
}

/// What is behind a `SemLock`.
pub(crate) enum Inner {
    /// One permit; knows its owner.
    Lock(Lock),
    /// The same, for its owner any number of times.
    RLock(RLock),
    /// Any number of permits, and which process holds how many.
    Semaphore(Permits, Hint),
    /// The standard library's, with a name.
    Stock(Py<PyAny>),
}

/// A lock or semaphore that any process of the tree can use, with the surface of ``_multiprocessing.SemLock``.
///
/// It lives in the arena: no descriptor, no name. It can be pickled at any time. When the process that holds a lock dies, the
/// next one to acquire it has it at once, with an ``OwnerDiedWarning``; permits of a semaphore come back by themselves.
#[pyclass(module = "phalanx._engine", subclass, frozen, dict, weakref)]
pub(crate) struct SemLock {
    inner: OnceLock<Inner>,
    maxvalue: OnceLock<i32>,
    name: OnceLock<String>,
    /// For a semaphore: acquisitions minus releases of this process (`slot << 32 | count`).
    count: AtomicU64,
}

impl SemLock {
    #[inline]
    pub(crate) fn inner(&self) -> PyResult<&Inner> {
        match self.inner.get() {
            Some(inner) => Ok(inner),
            None => Err(unbound()),
        }
    }

    #[inline]
    pub(crate) fn made(&self) -> Option<&Inner> {
        self.inner.get()
    }

    /// Acquire it; returns False if that was not possible at once (block=False) or in time.
    pub(crate) fn acquire_with(
        &self,
        py: Python<'_>,
        block: Option<&Bound<'_, PyAny>>,
        timeout: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<bool> {
        let inner = self.inner()?;
        if self.take(inner) {
            if places::wanted() {
                let tries = block.is_some_and(|block| !block.is_truthy().unwrap_or(true));
                self.taken(py, !tries && timeout.is_none());
            }
            return Ok(true);
        }
        if let Inner::Stock(stock) = inner {
            return stock
                .call_method1(
                    py,
                    "acquire",
                    (
                        block.map_or_else(
                            || true.into_pyobject(py).map(|b| b.to_owned().into_any()),
                            |b| Ok(b.clone()),
                        )?,
                        timeout,
                    ),
                )?
                .extract(py);
        }
        // Only the integer 0 and its like are false; None was given where nothing was.
        if let Some(block) = block
            && !block.is_truthy()?
        {
            return self.try_now(py, inner);
        }
        let seconds =
            match timeout {
                None => None,
                Some(timeout) => Some(timeout.extract::<f64>().map_err(|_| {
                    PyTypeError::new_err("a time-out is a number of seconds or None")
                })?),
            };
        match Timeout::from_seconds(seconds)? {
            Timeout::Now => self.try_now(py, inner),
            timeout => self.wait(py, inner, timeout),
        }
    }

    /// Release it.
    pub(crate) fn leave(&self, py: Python<'_>) -> PyResult<()> {
        let inner = self.inner()?;
        if self.give(inner) {
            self.note_freed();
            return Ok(());
        }
        match inner {
            Inner::RLock(_) => Err(PyAssertionError::new_err(
                "attempt to release recursive lock not owned by thread",
            )),
            Inner::Stock(stock) => stock.call_method0(py, "release").map(drop),
            Inner::Lock(_) | Inner::Semaphore(..) => Err(PyValueError::new_err(
                "semaphore or lock released too many times",
            )),
        }
    }

    /// Acquires it, for a `with`.
    pub(crate) fn enter(&self, py: Python<'_>) -> PyResult<bool> {
        let inner = self.inner()?;
        if self.take(inner) {
            self.note_taken(py, true);
            return Ok(true);
        }
        if let Inner::Stock(_) = inner {
            return self.acquire_with(py, None, None);
        }
        self.wait(py, inner, Timeout::Never)
    }

    fn bind(&self, inner: Inner, maxvalue: i32, name: Option<&str>) -> PyResult<()> {
        let _ = self.maxvalue.set(maxvalue);
        if let Some(name) = name {
            let _ = self.name.set(name.to_owned());
        }
        self.inner
            .set(inner)
            .map_err(|_| PyRuntimeError::new_err("this lock was made already"))
    }

    /// Counts what this process has; in a forked child from 0.
    #[inline]
    pub(crate) fn counted(&self, by: i32) {
        let slot = u64::from(current_slot());
        let count = self.count().wrapping_add(by).cast_unsigned();
        self.count
            .store(slot << 32 | u64::from(count), Ordering::Relaxed);
    }

    #[inline]
    fn count(&self) -> i32 {
        let now = self.count.load(Ordering::Relaxed);
        if now >> 32 == u64::from(current_slot()) {
            (now as u32).cast_signed()
        } else {
            0
        }
    }

    /// Takes it if it is free and nothing happened to it. Unlike [`try_now`](Self::try_now) it does not ask after the owner:
    /// whoever goes on to wait will hear of its death there.
    #[inline]
    pub(crate) fn take(&self, inner: &Inner) -> bool {
        match inner {
            Inner::Lock(lock) => lock.try_clean(),
            Inner::RLock(lock) => lock.try_clean(),
            Inner::Semaphore(semaphore, hint) => {
                let taken = semaphore.try_acquire_alone(hint);
                if taken {
                    self.counted(1);
                }
                taken
            }
            Inner::Stock(_) => false,
        }
    }

    /// Frees it; `false` if there is nothing to free, or it is the standard library's.
    #[inline]
    pub(crate) fn give(&self, inner: &Inner) -> bool {
        match inner {
            Inner::Lock(lock) => lock.release(),
            Inner::RLock(lock) => lock.release(),
            Inner::Semaphore(semaphore, hint) => {
                let freed = semaphore.release_alone(hint).is_ok();
                if freed {
                    self.counted(-1);
                }
                freed
            }
            Inner::Stock(_) => false,
        }
    }

    /// Takes it if it is free or its owner died, without a look at the clock. Not the standard library's.
    fn try_now(&self, py: Python<'_>, inner: &Inner) -> PyResult<bool> {
        let acquired = match inner {
            Inner::Lock(lock) => lock.try_acquire(),
            Inner::RLock(lock) => lock.try_acquire(),
            Inner::Semaphore(..) | Inner::Stock(_) => None,
        };
        match acquired {
            Some(Acquired::Clean) => {}
            Some(Acquired::OwnerDied) => self.owner_died(py, inner)?,
            None => return Ok(false),
        }
        self.note_taken(py, false);
        Ok(true)
    }

    /// Notes that it was taken; `waits` says that its taker would have waited for it as long as it takes.
    #[inline]
    pub(crate) fn note_taken(&self, py: Python<'_>, waits: bool) {
        if places::wanted() {
            self.taken(py, waits);
        }
    }

    #[inline]
    pub(crate) fn note_freed(&self) {
        if places::wanted() {
            self.freed();
        }
    }

    /// Notes where it was taken, for reports.
    #[cold]
    fn taken(&self, py: Python<'_>, waits: bool) {
        let first = match self.made() {
            Some(Inner::Lock(_)) => true,
            Some(Inner::RLock(lock)) => lock.depth() == 1,
            _ => false,
        };
        if first {
            self.described(|lock| places::taken(py, lock, waits));
        }
    }

    /// Notes that the calling thread is about to wait for it as long as it takes.
    #[cold]
    fn waited_for(&self, py: Python<'_>) {
        let again = matches!(self.made(), Some(Inner::RLock(lock)) if lock.is_mine());
        if !again {
            self.described(|lock| places::waits_for(py, lock));
        }
    }

    fn described(&self, f: impl FnOnce(places::Lock<'_>)) {
        let (kind, name, node) = match self.made() {
            Some(Inner::Lock(lock)) => ("Lock", lock.name(), lock.node()),
            Some(Inner::RLock(lock)) => ("RLock", lock.name(), lock.node()),
            _ => return,
        };
        let Some(at) = self.offset() else { return };
        let name = if name.is_empty() {
            format!("#{at:x}")
        } else {
            format!("{name:?}")
        };
        f(places::Lock {
            at,
            kind,
            name: &name,
            node,
        });
    }

    /// Notes that it is free.
    #[cold]
    fn freed(&self) {
        let free = match self.made() {
            Some(Inner::Lock(lock)) => !lock.is_mine(),
            Some(Inner::RLock(lock)) => !lock.is_mine(),
            _ => false,
        };
        if free && let Some(at) = self.offset() {
            places::freed(at);
        }
    }

    pub(crate) fn offset(&self) -> Option<u64> {
        let held = self.made()?.held().ok()?;
        Some(held.block().offset() as u64)
    }

    #[cold]
    fn wait(&self, py: Python<'_>, inner: &Inner, timeout: Timeout) -> PyResult<bool> {
        let endless = matches!(timeout, Timeout::Never);
        if places::wanted() && endless {
            self.waited_for(py);
        }
        let acquired = blocking(py, timeout, |patience| inner.acquire(patience))?;
        match acquired {
            Some(Acquired::Clean) => {
                if let Inner::Semaphore(..) = inner {
                    self.counted(1);
                }
                self.note_taken(py, false);
                Ok(true)
            }
            Some(Acquired::OwnerDied) => {
                self.owner_died(py, inner)?;
                self.note_taken(py, false);
                Ok(true)
            }
            None => Ok(false),
        }
    }

    /// Warns. A filter may make an error of it: then the lock is not had.
    #[cold]
    pub(crate) fn owner_died(&self, py: Python<'_>, inner: &Inner) -> PyResult<()> {
        let (what, victim) = match inner {
            Inner::Lock(lock) => ("Lock", lock.victim()),
            Inner::RLock(lock) => ("RLock", lock.victim()),
            Inner::Semaphore(..) | Inner::Stock(_) => return Ok(()),
        };
        let name = self
            .name
            .get()
            .map_or_else(String::new, |name| format!(" {name:?}"));
        let who = if victim == 0 {
            "another process".to_owned()
        } else {
            format!("process {victim}")
        };
        let text = format!(
            "{who} died holding the {what}{name}; it is held by this process now, and what it protects may be half-changed"
        );
        let text = std::ffi::CString::new(text.replace('\0', "")).unwrap_or_default();
        let category = py.get_type::<OwnerDiedWarning>();
        PyErr::warn(py, &category, &text, 1).inspect_err(|_| {
            let _ = inner.release();
        })
    }
}

impl Inner {
    pub(crate) fn acquire(&self, patience: Patience) -> Result<Acquired, WaitError> {
        match self {
            Self::Lock(lock) => lock.acquire(patience),
            Self::RLock(lock) => lock.acquire(patience),
            Self::Semaphore(semaphore, _) => semaphore.acquire(patience).map(|()| Acquired::Clean),
            Self::Stock(_) => Err(WaitError::TimedOut),
        }
    }

    /// Frees a lock; `false` if it was not held.
    fn release(&self) -> bool {
        match self {
            Self::Lock(lock) => lock.release(),
            Self::RLock(lock) => lock.release(),
            Self::Semaphore(..) | Self::Stock(_) => false,
        }
    }

    fn held(&self) -> PyResult<&phalanx_shm::Held> {
        match self {
            Self::Lock(lock) => Ok(lock.held()),
            Self::RLock(lock) => Ok(lock.held()),
            Self::Semaphore(semaphore, _) => Ok(semaphore.held()),
            Self::Stock(_) => Err(PyRuntimeError::new_err(
                "a semaphore with a name of its own cannot be pickled; open it by its name",
            )),
        }
    }

    fn kind(&self) -> i32 {
        match self {
            Self::RLock(_) => RECURSIVE_MUTEX,
            _ => SEMAPHORE,
        }
    }
}

#[cold]
fn unbound() -> PyErr {
    PyRuntimeError::new_err("this lock was not made yet: its class must call the base's __init__()")
}

fn counting_inner(permits: Permits) -> Inner {
    Inner::Semaphore(permits, Hint::default())
}

fn make(kind: i32, value: i32, maxvalue: i32, name: &str, counting: bool) -> PyResult<Inner> {
    let made = match kind {
        RECURSIVE_MUTEX => RLock::named(name).map(Inner::RLock),
        SEMAPHORE if value == 1 && maxvalue == 1 && !counting => Lock::named(name).map(Inner::Lock),
        SEMAPHORE => {
            let value =
                u32::try_from(value).map_err(|_| PyOSError::new_err((22, "Invalid argument")))?;
            let most = u32::try_from(maxvalue).unwrap_or(0).min(SEMAPHORE_MOST);
            Permits::new(value, most).map(counting_inner)
        }
        _ => return Err(PyValueError::new_err("unrecognized kind")),
    };
    made.map_err(|error: CreateError| create_error(error))
}

#[pymethods]
impl SemLock {
    #[classattr]
    const SEM_VALUE_MAX: i32 = SEMAPHORE_MOST as i32;

    #[new]
    #[pyo3(signature = (*_args, **_kwargs))]
    fn new(_args: &Bound<'_, PyTuple>, _kwargs: Option<&Bound<'_, PyDict>>) -> Self {
        Self {
            inner: OnceLock::new(),
            maxvalue: OnceLock::new(),
            name: OnceLock::new(),
            count: AtomicU64::new(0),
        }
    }

    #[pyo3(signature = (kind, value, maxvalue, name, unlink))]
    fn __init__(
        &self,
        py: Python<'_>,
        kind: i32,
        value: i32,
        maxvalue: i32,
        name: &str,
        unlink: bool,
    ) -> PyResult<()> {
        if kind != RECURSIVE_MUTEX && kind != SEMAPHORE {
            return Err(PyValueError::new_err("unrecognized kind"));
        }
        if unlink {
            return self.bind(make(kind, value, maxvalue, "", false)?, maxvalue, None);
        }
        let stock = STOCK.get(py).ok_or_else(|| {
            PyFileNotFoundError::new_err("this system has no semaphores with names")
        })?;
        let stock = stock.call1(py, (kind, value, maxvalue, name, false))?;
        self.bind(Inner::Stock(stock), maxvalue, Some(name))
    }

    /// Makes the lock of an object that is being constructed.
    #[pyo3(signature = (kind, value, maxvalue, name=None, counting=false))]
    fn _bind(
        &self,
        py: Python<'_>,
        kind: i32,
        value: i32,
        maxvalue: i32,
        name: Option<&str>,
        counting: bool,
    ) -> PyResult<()> {
        let place = match name {
            None if places::wanted() => Some(places::place_of_birth(py)),
            _ => None,
        };
        let name = name.or(place.as_deref());
        let inner = make(kind, value, maxvalue, name.unwrap_or_default(), counting)?;
        self.bind(inner, maxvalue, name)
    }

    /// How often this process has acquired it and not released it.
    fn _count(&self, py: Python<'_>) -> PyResult<i32> {
        Ok(match self.inner()? {
            Inner::Lock(lock) => i32::from(lock.is_ours()),
            Inner::RLock(lock) if lock.is_mine() => lock.depth() as i32,
            Inner::RLock(lock) => i32::from(lock.is_ours()),
            Inner::Semaphore(..) => self.count(),
            Inner::Stock(stock) => stock.call_method0(py, "_count")?.extract(py)?,
        })
    }

    /// Whether the calling thread holds it; of a semaphore, whether this process does.
    pub(crate) fn _is_mine(&self, py: Python<'_>) -> PyResult<bool> {
        Ok(match self.inner()? {
            Inner::Lock(lock) => lock.is_mine(),
            Inner::RLock(lock) => lock.is_mine(),
            Inner::Semaphore(..) => self.count() > 0,
            Inner::Stock(stock) => stock.call_method0(py, "_is_mine")?.extract(py)?,
        })
    }

    /// How many permits there are at this moment.
    fn _get_value(&self, py: Python<'_>) -> PyResult<u32> {
        Ok(match self.inner()? {
            Inner::Lock(lock) => u32::from(!lock.is_locked()),
            Inner::RLock(lock) => u32::from(!lock.is_locked()),
            Inner::Semaphore(semaphore, _) => semaphore.value(),
            Inner::Stock(stock) => stock.call_method0(py, "_get_value")?.extract(py)?,
        })
    }

    /// Whether there is no permit at this moment.
    fn _is_zero(&self, py: Python<'_>) -> PyResult<bool> {
        Ok(self._get_value(py)? == 0)
    }

    /// Forgets what was counted in the parent.
    fn _after_fork(&self) {
        self.count.store(0, Ordering::Relaxed);
    }

    /// The process id of whoever holds a lock at this moment, None if nobody does or it is not known.
    #[getter]
    fn owner(&self) -> PyResult<Option<u32>> {
        let owner = match self.inner()? {
            Inner::Lock(lock) => lock.owner(),
            Inner::RLock(lock) => lock.owner(),
            Inner::Semaphore(..) | Inner::Stock(_) => None,
        };
        Ok(owner.map(|owner| owner.pid))
    }

    #[getter]
    fn handle(&self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        match self.inner()? {
            Inner::Stock(stock) => stock.getattr(py, "handle"),
            inner => {
                let bits = inner.held()?.block().to_bits();
                Ok(bits.into_pyobject(py)?.into_any().unbind())
            }
        }
    }

    #[getter]
    fn kind(&self, py: Python<'_>) -> PyResult<i32> {
        match self.inner()? {
            Inner::Stock(stock) => stock.getattr(py, "kind")?.extract(py),
            inner => Ok(inner.kind()),
        }
    }

    #[getter]
    fn maxvalue(&self) -> i32 {
        self.maxvalue.get().copied().unwrap_or_default()
    }

    #[getter]
    fn name(&self) -> Option<&str> {
        self.name.get().map(String::as_str)
    }

    /// Itself: the standard library's classes have the lock in an attribute.
    #[getter(_semlock)]
    fn itself(slf: Py<Self>) -> Py<Self> {
        slf
    }

    /// Makes another object for what another process told the parts of.
    #[classmethod]
    fn _rebuild(
        class: &Bound<'_, PyType>,
        py: Python<'_>,
        handle: u64,
        kind: i32,
        maxvalue: i32,
        name: Option<&str>,
    ) -> PyResult<Py<PyAny>> {
        let made = class.call_method1("__new__", (class,))?;
        let this = made.cast::<Self>()?;
        match name {
            Some(name) => {
                let stock = STOCK.get(py).ok_or_else(|| {
                    PyFileNotFoundError::new_err("this system has no semaphores with names")
                })?;
                let args = (handle, kind, maxvalue, name);
                let stock = stock.call_method1(py, "_rebuild", args)?;
                this.get().bind(Inner::Stock(stock), maxvalue, Some(name))?;
            }
            None => this.get().bind(open(handle)?, maxvalue, None)?,
        }
        Ok(made.unbind())
    }

    fn __reduce__<'py>(slf: &Bound<'py, Self>) -> PyResult<Bound<'py, PyTuple>> {
        let py = slf.py();
        let this = slf.get();
        let bits = give(slf.as_any(), this.inner()?.held()?)?;
        let function = slf
            .py()
            .import("phalanx._engine")?
            .getattr("_rebuild_semlock")?;
        let args = (slf.get_type(), bits, this.maxvalue(), this.name());
        match extras(slf.as_any())? {
            Some(extras) => (function, args, extras).into_pyobject(py),
            None => (function, args).into_pyobject(py),
        }
    }
}

fn open(bits: u64) -> PyResult<Inner> {
    let kind = BlockRef::from_bits(bits)
        .and_then(|block| session().ok().and_then(|arena| arena.kind_of(block)));
    match kind {
        Some(Kind::RLock) => take(bits).map(Inner::RLock),
        Some(Kind::Permits) => take(bits).map(counting_inner),
        // Or it is gone, and says so.
        _ => take(bits).map(Inner::Lock),
    }
}

/// Makes an object of `class`, a subclass of SemLock, of the parts in a pickle.
#[pyfunction]
fn _rebuild_semlock(
    class: &Bound<'_, PyType>,
    bits: u64,
    maxvalue: i32,
    name: Option<&str>,
) -> PyResult<Py<PyAny>> {
    let new = class.py().get_type::<SemLock>().getattr("__new__")?;
    let made = new.call1((class,))?;
    made.cast::<SemLock>()?
        .get()
        .bind(open(bits)?, maxvalue, name)?;
    Ok(made.unbind())
}
