//! What the barrier of `multiprocessing` is made of: its class is a subclass of `threading.Barrier` and has one of these.

use phalanx_sync::handle::Handle;
use phalanx_sync::{Barrier as EngineBarrier, BarrierError};
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyTuple, PyType};

use crate::door::{Timeout, create_error, listening};
use crate::handle::{give, take};

pub(crate) fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<Barrier>()?;
    module.add_function(wrap_pyfunction!(_rebuild_barrier, module)?)
}

/// A meeting point of a number of processes. One that dies while it waits breaks it for the others.
#[pyclass(name = "SharedBarrier", module = "phalanx._engine", frozen)]
pub(crate) struct Barrier(EngineBarrier);

fn broken(py: Python<'_>) -> PyErr {
    static BROKEN: PyOnceLock<Py<PyType>> = PyOnceLock::new();
    match BROKEN.import(py, "threading", "BrokenBarrierError") {
        Ok(class) => match class.call0() {
            Ok(error) => PyErr::from_value(error),
            Err(error) => error,
        },
        Err(error) => error,
    }
}

#[pymethods]
impl Barrier {
    #[new]
    fn new(parties: u32) -> PyResult<Self> {
        EngineBarrier::new(parties).map(Self).map_err(create_error)
    }

    /// Waits for all parties and returns this one's number; the last one calls `action` before anybody is let go.
    #[pyo3(signature = (timeout, action))]
    fn wait(
        &self,
        py: Python<'_>,
        timeout: Option<f64>,
        action: Option<Py<PyAny>>,
    ) -> PyResult<u32> {
        let timeout = Timeout::from_seconds(timeout)?;
        let (result, acted) = listening(py, timeout, |patience, ear| {
            let mut acted = Ok(());
            let act = || {
                if let Some(action) = action {
                    acted = Python::attach(|py| action.call0(py).map(drop));
                }
                acted.is_ok()
            };
            let result = self.0.wait_heard(patience, act, || ear.heard());
            (result, acted)
        })?;
        acted?;
        result.map_err(|error| match error {
            BarrierError::Broken
            | BarrierError::TimedOut { .. }
            | BarrierError::Interrupted
            | BarrierError::Deadlock(_) => broken(py),
        })
    }

    /// Makes it as new; those who wait find it broken.
    fn reset(&self) {
        self.0.reset();
    }

    /// Breaks it.
    fn abort(&self) {
        self.0.abort();
    }

    #[getter]
    fn parties(&self) -> u32 {
        self.0.parties()
    }

    #[getter]
    fn n_waiting(&self) -> u32 {
        self.0.waiting()
    }

    #[getter]
    fn broken(&self) -> bool {
        self.0.is_broken()
    }

    fn __reduce__<'py>(slf: &Bound<'py, Self>) -> PyResult<Bound<'py, PyTuple>> {
        let py = slf.py();
        let bits = give(slf.as_any(), slf.get().0.held())?;
        let function = py.import("phalanx._engine")?.getattr("_rebuild_barrier")?;
        (function, (bits,)).into_pyobject(py)
    }
}

/// Makes a barrier of the number in a pickle.
#[pyfunction]
fn _rebuild_barrier(bits: u64) -> PyResult<Barrier> {
    take(bits).map(Barrier)
}
