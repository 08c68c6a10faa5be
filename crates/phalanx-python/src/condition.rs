//! The condition of `multiprocessing`.

use std::cell::RefCell;
use std::sync::OnceLock;

use phalanx_shm::{Acquired, Patience};
use phalanx_sync::handle::Handle;
use phalanx_sync::{Condition as EngineCondition, Releasable};
use pyo3::exceptions::{PyAssertionError, PyRuntimeError};
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyTuple, PyType};

use crate::door::{Ear, Timeout, create_error, listening};
use crate::handle::{extras, give, take};
use crate::places::{self, Taken};
use crate::semlock::{Inner, SemLock};

pub(crate) fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<Condition>()?;
    module.add_function(wrap_pyfunction!(_rebuild_condition, module)?)
}

struct Parts {
    condition: EngineCondition,
    lock: Py<PyAny>,
    /// The same, if it is a lock of ours.
    native: Option<Py<SemLock>>,
}

/// A condition that any process of the tree can use. Whoever notifies never waits for those who are notified.
#[pyclass(
    name = "SharedCondition",
    module = "phalanx._engine",
    subclass,
    frozen,
    dict,
    weakref
)]
pub(crate) struct Condition(OnceLock<Parts>);

/// The lock, let go and had again around a wait.
struct Around<'a> {
    parts: &'a Parts,
    outcome: RefCell<PyResult<()>>,
    /// Where the lock was taken, if that was noted.
    noted: RefCell<Option<Taken>>,
}

impl Around<'_> {
    fn native(&self) -> Option<&Inner> {
        self.parts.native.as_ref()?.get().inner().ok()
    }

    /// What tells the lock from others, if it is to be noted when it is taken.
    fn lock(&self) -> Option<u64> {
        let lock = self.parts.native.as_ref().filter(|_| places::wanted());
        lock.and_then(|lock| lock.get().offset())
    }

    fn note(&self, outcome: PyResult<()>) {
        if outcome.is_err() {
            *self.outcome.borrow_mut() = outcome;
        }
    }
}

impl Releasable for Around<'_> {
    fn let_go(&self) -> u32 {
        self.noted.replace(self.lock().and_then(places::suspended));
        match self.native() {
            Some(Inner::Lock(lock)) => u32::from(lock.release()),
            Some(Inner::RLock(lock)) => lock.release_all(),
            _ => Python::attach(|py| {
                let count = count_of(py, &self.parts.lock);
                let freed = count.and_then(|count| {
                    for _ in 0..count {
                        self.parts.lock.call_method0(py, "release")?;
                    }
                    Ok(count)
                });
                freed.unwrap_or_else(|error| {
                    self.note(Err(error));
                    0
                })
            }),
        }
    }

    fn have_again(&self, how: u32) -> bool {
        let noted = self.noted.take();
        places::waits_again(noted.as_ref());
        let died = self.take_again(how);
        if let Some(lock) = self.lock() {
            places::resumed(lock, noted);
        }
        died
    }

    fn is_free(&self) -> bool {
        match self.native() {
            Some(Inner::Lock(lock)) => !lock.is_locked(),
            Some(Inner::RLock(lock)) => !lock.is_locked(),
            _ => true,
        }
    }
}

impl Around<'_> {
    fn take_again(&self, how: u32) -> bool {
        let patience = Patience {
            deadline: None,
            interruptible: true,
            ..Patience::FOREVER
        };
        let mut ear = Ear::default();
        let acquired = loop {
            let acquired = match self.native() {
                Some(Inner::RLock(lock)) => lock.acquire_all(how, patience),
                Some(inner @ Inner::Lock(_)) => inner.acquire(patience),
                _ => {
                    self.note(Python::attach(|py| {
                        (0..how)
                            .try_for_each(|_| self.parts.lock.call_method0(py, "acquire").map(drop))
                    }));
                    return false;
                }
            };
            if acquired.is_ok() || ear.heard() {
                break acquired;
            }
        };
        self.note(ear.raised());
        acquired == Ok(Acquired::OwnerDied)
    }
}

fn count_of(py: Python<'_>, lock: &Py<PyAny>) -> PyResult<u32> {
    lock.getattr(py, "_semlock")?
        .call_method0(py, "_count")?
        .extract(py)
}

impl Condition {
    fn parts(&self) -> PyResult<&Parts> {
        self.0.get().ok_or_else(|| {
            PyRuntimeError::new_err(
                "this condition was not made yet: its class must call the base's __init__()",
            )
        })
    }

    fn fill(&self, condition: EngineCondition, lock: &Bound<'_, PyAny>) -> PyResult<()> {
        let native = lock
            .cast::<SemLock>()
            .ok()
            .map(|lock| lock.clone().unbind());
        let parts = Parts {
            condition,
            lock: lock.clone().unbind(),
            native,
        };
        self.0
            .set(parts)
            .map_err(|_| PyRuntimeError::new_err("this condition was made already"))
    }

    fn is_mine(&self, py: Python<'_>) -> PyResult<bool> {
        let parts = self.parts()?;
        match &parts.native {
            Some(lock) => lock.get()._is_mine(py),
            None => parts
                .lock
                .getattr(py, "_semlock")?
                .call_method0(py, "_is_mine")?
                .extract(py),
        }
    }

    fn awake(&self, py: Python<'_>, count: usize) -> PyResult<()> {
        if !self.is_mine(py)? {
            return Err(PyAssertionError::new_err("lock is not owned"));
        }
        self.parts()?.condition.notify(count);
        Ok(())
    }
}

#[pymethods]
impl Condition {
    #[new]
    #[pyo3(signature = (*_args, **_kwargs))]
    fn new(_args: &Bound<'_, PyTuple>, _kwargs: Option<&Bound<'_, PyDict>>) -> Self {
        Self(OnceLock::new())
    }

    /// Makes the condition of an object that is being constructed, over this lock.
    fn _bind(&self, lock: &Bound<'_, PyAny>) -> PyResult<()> {
        self.fill(EngineCondition::new().map_err(create_error)?, lock)
    }

    /// Acquire the lock.
    #[pyo3(signature = (block=None, timeout=None))]
    fn acquire(
        &self,
        py: Python<'_>,
        block: Option<&Bound<'_, PyAny>>,
        timeout: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<Py<PyAny>> {
        let parts = self.parts()?;
        if let Some(lock) = &parts.native {
            let had = lock.get().acquire_with(py, block, timeout)?;
            return Ok(had.into_pyobject(py)?.to_owned().into_any().unbind());
        }
        match (block, timeout) {
            (None, None) => parts.lock.call_method0(py, "acquire"),
            (Some(block), None) => parts.lock.call_method1(py, "acquire", (block,)),
            (None, timeout) => parts.lock.call_method1(py, "acquire", (true, timeout)),
            (Some(block), timeout) => parts.lock.call_method1(py, "acquire", (block, timeout)),
        }
    }

    /// Release the lock.
    fn release(&self, py: Python<'_>) -> PyResult<()> {
        let parts = self.parts()?;
        match &parts.native {
            Some(lock) => lock.get().leave(py),
            None => parts.lock.call_method0(py, "release").map(drop),
        }
    }

    fn __enter__(&self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        let parts = self.parts()?;
        match &parts.native {
            Some(lock) => {
                let had = lock.get().enter(py)?;
                Ok(had.into_pyobject(py)?.to_owned().into_any().unbind())
            }
            None => parts.lock.call_method0(py, "__enter__"),
        }
    }

    #[pyo3(signature = (*_args))]
    fn __exit__(&self, py: Python<'_>, _args: &Bound<'_, PyTuple>) -> PyResult<()> {
        self.release(py)
    }

    /// Let the lock go, wait for a notification, and have the lock again. Returns False if time was up before.
    #[pyo3(signature = (timeout=None))]
    fn wait(&self, py: Python<'_>, timeout: Option<f64>) -> PyResult<bool> {
        if !self.is_mine(py)? {
            return Err(PyAssertionError::new_err(
                "must acquire() condition before using wait()",
            ));
        }
        let parts = self.parts()?;
        let timeout = Timeout::from_seconds(timeout)?;
        let (notified, died, outcome) = listening(py, timeout, |patience, ear| {
            let around = Around {
                parts,
                outcome: RefCell::new(Ok(())),
                noted: RefCell::new(None),
            };
            let (waited, died) = parts
                .condition
                .wait_heard(&around, patience, || ear.heard());
            (waited.is_ok(), died, around.outcome.into_inner())
        })?;
        outcome?;
        if died && let Some(lock) = &parts.native {
            let lock = lock.get();
            lock.owner_died(py, lock.inner()?)?;
        }
        Ok(notified)
    }

    /// Wake the n that wait longest.
    #[pyo3(signature = (n=1))]
    fn notify(&self, py: Python<'_>, n: isize) -> PyResult<()> {
        self.awake(py, usize::try_from(n).unwrap_or(0))
    }

    /// Wake everybody who waits.
    fn notify_all(&self, py: Python<'_>) -> PyResult<()> {
        self.awake(py, usize::MAX)
    }

    /// How many wait at this moment.
    fn _waiters(&self) -> PyResult<usize> {
        Ok(self.parts()?.condition.waiters())
    }

    #[getter]
    fn _lock(&self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        Ok(self.parts()?.lock.clone_ref(py))
    }

    fn __reduce__<'py>(slf: &Bound<'py, Self>) -> PyResult<Bound<'py, PyTuple>> {
        let py = slf.py();
        let parts = slf.get().parts()?;
        let bits = give(slf.as_any(), parts.condition.held())?;
        let function = py
            .import("phalanx._engine")?
            .getattr("_rebuild_condition")?;
        let args = (slf.get_type(), bits, &parts.lock);
        match extras(slf.as_any())? {
            Some(extras) => (function, args, extras).into_pyobject(py),
            None => (function, args).into_pyobject(py),
        }
    }
}

/// Makes an object of `class`, a subclass of Condition, of the parts in a pickle.
#[pyfunction]
fn _rebuild_condition(
    class: &Bound<'_, PyType>,
    bits: u64,
    lock: &Bound<'_, PyAny>,
) -> PyResult<Py<PyAny>> {
    let new = class.py().get_type::<Condition>().getattr("__new__")?;
    let made = new.call1((class,))?;
    made.cast::<Condition>()?.get().fill(take(bits)?, lock)?;
    Ok(made.unbind())
}
