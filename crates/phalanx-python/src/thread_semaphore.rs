//! `threading.Semaphore` and `BoundedSemaphore`.

use phalanx_prim::global::{AtomicBool, AtomicU64, Ordering};
use pyo3::PyTraverseError;
use pyo3::exceptions::PyValueError;
use pyo3::gc::PyVisit;
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyTuple};

use crate::door::Timeout;
use crate::thread_condition::{Hidden, HiddenLock};
use crate::thread_wait::Truth;

pub(crate) fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<Semaphore>()
}

/// A signed number that changes under the interpreter's lock.
#[derive(Default)]
pub(crate) struct Number(AtomicU64);

impl Number {
    pub(crate) fn get(&self) -> i64 {
        self.0.load(Ordering::Relaxed).cast_signed()
    }

    pub(crate) fn set(&self, value: i64) {
        self.0.store(value.cast_unsigned(), Ordering::Relaxed);
    }
}

/// A counter that threads of this process take from and wait for.
#[pyclass(frozen, subclass, module = "phalanx._engine", name = "ThreadSemaphore")]
pub(crate) struct Semaphore {
    value: Number,
    initial: Number,
    bounded: AtomicBool,
    /// `release` is not overridden, so that leaving a `with` need not look for it.
    plain: AtomicBool,
    cond: Hidden,
    lock: HiddenLock,
}

impl Semaphore {
    #[inline]
    fn take(&self) -> bool {
        let value = self.value.get();
        let any = value > 0;
        if any {
            self.value.set(value - 1);
        }
        any
    }

    #[cold]
    fn wait(&self, py: Python<'_>, timeout: Option<f64>) -> PyResult<bool> {
        let deadline = Timeout::from_seconds(timeout)?.deadline();
        loop {
            let sleeper = self.cond.waiting.enter();
            let woken = self.cond.waiting.wait(py, &sleeper, deadline)?;
            self.lock.pass(py)?;
            if self.take() {
                return Ok(true);
            }
            if !woken {
                return Ok(false);
            }
        }
    }
}

#[pymethods]
impl Semaphore {
    #[new]
    #[pyo3(signature = (*_args, **_kwargs))]
    fn new(_args: &Bound<'_, PyTuple>, _kwargs: Option<&Bound<'_, PyDict>>) -> Self {
        let semaphore = Self {
            value: Number::default(),
            initial: Number::default(),
            bounded: AtomicBool::new(false),
            plain: AtomicBool::new(false),
            cond: Hidden::default(),
            lock: HiddenLock::default(),
        };
        semaphore.value.set(1);
        semaphore.initial.set(1);
        semaphore
    }

    #[pyo3(signature = (value=1))]
    fn __init__(slf: &Bound<'_, Self>, value: i64) -> PyResult<()> {
        let (py, this) = (slf.py(), slf.get());
        if value < 0 {
            return Err(PyValueError::new_err(
                "semaphore initial value must be >= 0",
            ));
        }
        this.value.set(value);
        this.initial.set(value);
        let release = intern!(py, "release");
        let ours = py.get_type::<Self>().getattr(release)?;
        let plain = slf.get_type().getattr(release)?.is(&ours);
        this.plain.store(plain, Ordering::Relaxed);
        Ok(())
    }

    #[pyo3(signature = (*_error))]
    fn __exit__(slf: &Bound<'_, Self>, _error: &Bound<'_, PyTuple>) -> PyResult<()> {
        if slf.get().plain.load(Ordering::Relaxed) {
            return slf.get().release(slf.py(), 1);
        }
        slf.call_method0(intern!(slf.py(), "release")).map(drop)
    }

    /// From now on more releases than acquisitions are an error.
    fn _bind(&self) {
        self.bounded.store(true, Ordering::Relaxed);
    }

    /// Takes one, waiting for it if asked to; tells whether one was taken.
    #[pyo3(signature = (blocking=Truth(true), timeout=None), text_signature = "($self, blocking=True, timeout=None)")]
    fn acquire(&self, py: Python<'_>, blocking: Truth, timeout: Option<f64>) -> PyResult<bool> {
        if !blocking.0 && timeout.is_some() {
            return Err(PyValueError::new_err(
                "can't specify timeout for non-blocking acquire",
            ));
        }
        self.lock.pass(py)?;
        if self.take() {
            return Ok(true);
        }
        if !blocking.0 {
            return Ok(false);
        }
        self.wait(py, timeout)
    }

    #[pyo3(signature = (blocking=Truth(true), timeout=None), text_signature = "($self, blocking=True, timeout=None)")]
    fn __enter__(&self, py: Python<'_>, blocking: Truth, timeout: Option<f64>) -> PyResult<bool> {
        self.acquire(py, blocking, timeout)
    }

    /// Gives `n` back and wakes as many who wait.
    #[pyo3(signature = (n=1))]
    fn release(&self, py: Python<'_>, n: i64) -> PyResult<()> {
        if n < 1 {
            return Err(PyValueError::new_err("n must be one or more"));
        }
        self.lock.pass(py)?;
        let value = self.value.get().saturating_add(n);
        if self.bounded.load(Ordering::Relaxed) && value > self.initial.get() {
            return Err(PyValueError::new_err("Semaphore released too many times"));
        }
        self.value.set(value);
        self.cond
            .waiting
            .notify(usize::try_from(n).unwrap_or(usize::MAX));
        Ok(())
    }

    #[getter(_value)]
    fn get_value(&self) -> i64 {
        self.value.get()
    }

    #[setter(_value)]
    fn set_value(&self, value: i64) {
        self.value.set(value);
    }

    #[getter(_initial_value)]
    fn get_initial_value(&self) -> i64 {
        self.initial.get()
    }

    #[setter(_initial_value)]
    fn set_initial_value(&self, value: i64) {
        self.initial.set(value);
    }

    /// The condition inside, for subclasses that reach for it.
    #[getter]
    fn _cond(&self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        self.cond.show(py, self.lock.show(py)?)
    }

    fn _at_fork_reinit(&self, value: i64) {
        self.value.set(value);
        self.lock.reinit();
        self.cond.waiting.clear();
    }

    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        self.cond.traverse(&visit)
    }
}
