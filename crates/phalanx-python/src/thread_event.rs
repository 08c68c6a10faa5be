//! `threading.Event`.

use phalanx_prim::global::{AtomicBool, Ordering};
use pyo3::PyTraverseError;
use pyo3::gc::PyVisit;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyTuple};

use crate::door::Timeout;
use crate::thread_condition::{Hidden, HiddenLock};
use crate::thread_wait::Truth;

pub(crate) fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<Event>()
}

/// A flag that the threads of this process wait for.
#[pyclass(frozen, subclass, module = "phalanx._engine", name = "ThreadEvent")]
#[derive(Default)]
pub(crate) struct Event {
    flag: AtomicBool,
    cond: Hidden,
    lock: HiddenLock,
}

#[pymethods]
impl Event {
    #[new]
    #[pyo3(signature = (*_args, **_kwargs))]
    fn new(_args: &Bound<'_, PyTuple>, _kwargs: Option<&Bound<'_, PyDict>>) -> Self {
        Self::default()
    }

    fn __init__(&self) {
        self.flag.store(false, Ordering::Relaxed);
    }

    /// Tells whether the flag is set.
    fn is_set(&self) -> bool {
        self.flag.load(Ordering::Relaxed)
    }

    /// Sets the flag and wakes everybody who waits for it.
    fn set(&self, py: Python<'_>) -> PyResult<()> {
        self.lock.pass(py)?;
        self.flag.store(true, Ordering::Relaxed);
        self.cond.waiting.notify(usize::MAX);
        Ok(())
    }

    /// Takes the flag back.
    fn clear(&self, py: Python<'_>) -> PyResult<()> {
        self.lock.pass(py)?;
        self.flag.store(false, Ordering::Relaxed);
        Ok(())
    }

    /// Waits until the flag is set; tells whether it was before the time-out.
    #[pyo3(signature = (timeout=None))]
    fn wait(&self, py: Python<'_>, timeout: Option<f64>) -> PyResult<bool> {
        self.lock.pass(py)?;
        if self.is_set() {
            return Ok(true);
        }
        let deadline = Timeout::from_seconds(timeout)?.deadline();
        let sleeper = self.cond.waiting.enter();
        self.cond.waiting.wait(py, &sleeper, deadline)
    }

    #[getter(_flag)]
    fn get_flag(&self) -> bool {
        self.is_set()
    }

    #[setter(_flag)]
    fn set_flag(&self, flag: Truth) {
        self.flag.store(flag.0, Ordering::Relaxed);
    }

    /// The condition inside, for subclasses that reach for it.
    #[getter]
    fn _cond(&self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        self.cond.show(py, self.lock.show(py)?)
    }

    fn _at_fork_reinit(&self) {
        self.lock.reinit();
        self.cond.waiting.clear();
    }

    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        self.cond.traverse(&visit)
    }
}
