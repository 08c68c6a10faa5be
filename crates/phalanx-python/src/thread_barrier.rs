//! `threading.Barrier`.
//!
//! Each round is an object of its own, which those who wait in it share: it is filling, then passed or broken, for good. So
//! the next round fills while threads are still leaving the last.
//!
//! | round | becomes | when |
//! |---|---|---|
//! | filling | passed | the last thread has come and its action is done |
//! | filling | broken | a time-out, a failed action, `abort`, `reset` with threads inside |
//!
//! After a break, but for that by `reset`, the barrier itself is broken until it is reset. The lock is held while the action
//! runs: those who come meanwhile wait for it.

use std::sync::{Mutex, OnceLock, PoisonError};

use phalanx_prim::Arc;
use phalanx_prim::global::{AtomicBool, AtomicU32, Ordering};
use pyo3::PyTraverseError;
use pyo3::exceptions::PyValueError;
use pyo3::gc::PyVisit;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyDict, PyTuple, PyType};

use crate::door::Timeout;
use crate::thread_lock::Lock;
use crate::thread_semaphore::Number;
use crate::thread_wait::WaitList;

pub(crate) fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<Barrier>()
}

const FILLING: u32 = 0;
const PASSED: u32 = 1;
const BROKEN: u32 = 2;

/// One filling of the barrier.
#[derive(Default)]
struct Round {
    state: AtomicU32,
    waiting: WaitList,
}

impl Round {
    fn state(&self) -> u32 {
        self.state.load(Ordering::Relaxed)
    }

    fn end(&self, state: u32) {
        self.state.store(state, Ordering::Relaxed);
        self.waiting.notify(usize::MAX);
    }
}

/// Threads of this process that wait for each other.
#[pyclass(frozen, subclass, module = "phalanx._engine", name = "ThreadBarrier")]
#[derive(Default)]
pub(crate) struct Barrier {
    parties: Number,
    count: Number,
    broken: AtomicBool,
    round: Mutex<Arc<Round>>,
    action: OnceLock<Py<PyAny>>,
    timeout: OnceLock<f64>,
    lock: Lock,
}

fn broken(py: Python<'_>) -> PyErr {
    static ERROR: PyOnceLock<Py<PyType>> = PyOnceLock::new();
    match ERROR.import(py, "threading", "BrokenBarrierError") {
        Ok(class) => PyErr::from_type(class.clone(), ()),
        Err(error) => error,
    }
}

impl Barrier {
    fn is_broken(&self) -> bool {
        self.broken.load(Ordering::Relaxed)
    }

    fn round(&self) -> Arc<Round> {
        Arc::clone(&self.round.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Ends the round and begins the next.
    fn end_round(&self, state: u32) {
        let mut round = self.round.lock().unwrap_or_else(PoisonError::into_inner);
        self.count.set(0);
        round.end(state);
        *round = Arc::default();
    }

    fn break_(&self) {
        self.broken.store(true, Ordering::Relaxed);
        self.end_round(BROKEN);
    }

    /// Has everybody go, with the lock held.
    fn open(&self, py: Python<'_>) -> PyResult<()> {
        if let Some(action) = self.action.get()
            && let Err(error) = action.call0(py)
        {
            self.break_();
            return Err(error);
        }
        self.end_round(PASSED);
        Ok(())
    }

    fn wait_for_others(&self, py: Python<'_>, round: &Round, timeout: Option<f64>) -> PyResult<()> {
        let deadline = Timeout::from_seconds(timeout)?.deadline();
        let sleeper = round.waiting.enter();
        let woken = round.waiting.wait(py, &sleeper, deadline);
        if round.state() == FILLING {
            // Not woken by the round's end, so this round is still the barrier's.
            if woken.is_ok() {
                self.break_();
            } else {
                self.count.set(self.count.get() - 1);
            }
        }
        woken?;
        match round.state() {
            PASSED => Ok(()),
            _ => Err(broken(py)),
        }
    }
}

#[pymethods]
impl Barrier {
    #[new]
    #[pyo3(signature = (*_args, **_kwargs))]
    fn new(_args: &Bound<'_, PyTuple>, _kwargs: Option<&Bound<'_, PyDict>>) -> Self {
        Self::default()
    }

    #[pyo3(signature = (parties, action=None, timeout=None))]
    fn __init__(
        &self,
        parties: i64,
        action: Option<Py<PyAny>>,
        timeout: Option<f64>,
    ) -> PyResult<()> {
        if parties < 1 {
            return Err(PyValueError::new_err("parties must be > 0"));
        }
        self.parties.set(parties);
        // The first call decides: somebody may be waiting.
        if let Some(action) = action {
            let _ = self.action.set(action);
        }
        if let Some(timeout) = timeout {
            let _ = self.timeout.set(timeout);
        }
        Ok(())
    }

    /// Waits until as many threads as there are parties wait, and returns this one's number among them.
    #[pyo3(signature = (timeout=None))]
    fn wait(&self, py: Python<'_>, timeout: Option<f64>) -> PyResult<i64> {
        self.lock.lock(py, None)?;
        if self.is_broken() {
            self.lock.unlock();
            return Err(broken(py));
        }
        let index = self.count.get();
        self.count.set(index + 1);
        if index + 1 == self.parties.get() {
            let opened = self.open(py);
            self.lock.unlock();
            opened?;
        } else {
            let round = self.round();
            self.lock.unlock();
            self.wait_for_others(py, &round, timeout.or_else(|| self.timeout.get().copied()))?;
        }
        Ok(index)
    }

    /// Makes it as new; those who wait get a `BrokenBarrierError`.
    fn reset(&self, py: Python<'_>) -> PyResult<()> {
        self.lock.lock(py, None)?;
        self.broken.store(false, Ordering::Relaxed);
        self.end_round(BROKEN);
        self.lock.unlock();
        Ok(())
    }

    /// Breaks it: whoever waits and whoever comes gets a `BrokenBarrierError`, until it is reset.
    fn abort(&self, py: Python<'_>) -> PyResult<()> {
        self.lock.lock(py, None)?;
        self.break_();
        self.lock.unlock();
        Ok(())
    }

    /// How many threads must come.
    #[getter]
    fn parties(&self) -> i64 {
        self.parties.get()
    }

    /// How many have come.
    #[getter]
    fn n_waiting(&self) -> i64 {
        self.count.get()
    }

    /// Whether it is broken.
    #[getter]
    fn broken(&self) -> bool {
        self.is_broken()
    }

    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        visit.call(self.action.get())
    }
}
