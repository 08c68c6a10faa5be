//! The event of `multiprocessing`.

use std::sync::OnceLock;

use phalanx_sync::Event as EngineEvent;
use phalanx_sync::handle::Handle;
use pyo3::exceptions::PyRuntimeError;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyTuple, PyType};

use crate::door::{Timeout, create_error, listening};
use crate::handle::{extras, give, take};

pub(crate) fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<Event>()?;
    module.add_function(wrap_pyfunction!(_rebuild_event, module)?)
}

/// A flag that processes wait for. Whoever sets it never waits for those who wait.
#[pyclass(
    name = "SharedEvent",
    module = "phalanx._engine",
    subclass,
    frozen,
    dict,
    weakref
)]
pub(crate) struct Event(OnceLock<EngineEvent>);

impl Event {
    fn event(&self) -> PyResult<&EngineEvent> {
        self.0.get().ok_or_else(|| {
            PyRuntimeError::new_err(
                "this event was not made yet: its class must call the base's __init__()",
            )
        })
    }

    fn fill(&self, event: EngineEvent) -> PyResult<()> {
        self.0
            .set(event)
            .map_err(|_| PyRuntimeError::new_err("this event was made already"))
    }
}

#[pymethods]
impl Event {
    #[new]
    #[pyo3(signature = (*_args, **_kwargs))]
    fn new(_args: &Bound<'_, PyTuple>, _kwargs: Option<&Bound<'_, PyDict>>) -> Self {
        Self(OnceLock::new())
    }

    /// Makes the event of an object that is being constructed.
    fn _bind(&self) -> PyResult<()> {
        self.fill(EngineEvent::new().map_err(create_error)?)
    }

    /// Return True if the flag is on.
    fn is_set(&self) -> PyResult<bool> {
        Ok(self.event()?.is_set())
    }

    /// Turn the flag on and wake everybody who waits.
    fn set(&self) -> PyResult<()> {
        self.event()?.set();
        Ok(())
    }

    /// Turn the flag off.
    fn clear(&self) -> PyResult<()> {
        self.event()?.clear();
        Ok(())
    }

    /// Block until the flag is on; returns False if time was up before.
    #[pyo3(signature = (timeout=None))]
    fn wait(&self, py: Python<'_>, timeout: Option<f64>) -> PyResult<bool> {
        let event = self.event()?;
        let timeout = Timeout::from_seconds(timeout)?;
        if event.is_set() {
            return Ok(true);
        }
        listening(py, timeout, |patience, ear| {
            event.wait_heard(patience, || ear.heard()).is_ok()
        })
    }

    fn __reduce__<'py>(slf: &Bound<'py, Self>) -> PyResult<Bound<'py, PyTuple>> {
        let py = slf.py();
        let bits = give(slf.as_any(), slf.get().event()?.held())?;
        let function = py.import("phalanx._engine")?.getattr("_rebuild_event")?;
        let args = (slf.get_type(), bits);
        match extras(slf.as_any())? {
            Some(extras) => (function, args, extras).into_pyobject(py),
            None => (function, args).into_pyobject(py),
        }
    }
}

/// Makes an object of `class`, a subclass of Event, of the parts in a pickle.
#[pyfunction]
fn _rebuild_event(class: &Bound<'_, PyType>, bits: u64) -> PyResult<Py<PyAny>> {
    let new = class.py().get_type::<Event>().getattr("__new__")?;
    let made = new.call1((class,))?;
    made.cast::<Event>()?.get().fill(take(bits)?)?;
    Ok(made.unbind())
}
