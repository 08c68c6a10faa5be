//! `threading.Condition`.

use std::sync::OnceLock;

use phalanx_prim::Arc;
use pyo3::PyTraverseError;
use pyo3::exceptions::PyRuntimeError;
use pyo3::gc::PyVisit;
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::{PyBool, PyDict, PyTuple};

use crate::door::Timeout;
use crate::places;
use crate::thread_lock::{Lock, RLock};
use crate::thread_wait::{WaitList, What};

pub(crate) fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<Condition>()
}

/// The lock inside.
enum Inner {
    Plain(Py<Lock>),
    Recursive(Py<RLock>),
    Foreign(Foreign),
}

/// A lock of somebody else's, and those of its methods that matter here. As in the standard library they are looked up once.
struct Foreign {
    lock: Py<PyAny>,
    acquire: Py<PyAny>,
    release: Py<PyAny>,
    release_save: Option<Py<PyAny>>,
    acquire_restore: Option<Py<PyAny>>,
    is_owned: Option<Py<PyAny>>,
}

/// What a lock wants back when it is taken again.
enum Saved {
    Nothing,
    Count(u32),
    State(Py<PyAny>),
}

impl Inner {
    fn of(lock: &Bound<'_, PyAny>) -> PyResult<Self> {
        if let Ok(plain) = lock.cast_exact::<Lock>() {
            return Ok(Self::Plain(plain.clone().unbind()));
        }
        if let Ok(recursive) = lock.cast_exact::<RLock>() {
            return Ok(Self::Recursive(recursive.clone().unbind()));
        }
        let optional = |name: &str| -> PyResult<Option<Py<PyAny>>> {
            Ok(lock.getattr_opt(name)?.map(Bound::unbind))
        };
        Ok(Self::Foreign(Foreign {
            lock: lock.clone().unbind(),
            acquire: lock.getattr("acquire")?.unbind(),
            release: lock.getattr("release")?.unbind(),
            release_save: optional("_release_save")?,
            acquire_restore: optional("_acquire_restore")?,
            is_owned: optional("_is_owned")?,
        }))
    }

    fn object<'py>(&self, py: Python<'py>) -> Bound<'py, PyAny> {
        match self {
            Self::Plain(lock) => lock.bind(py).as_any().clone(),
            Self::Recursive(lock) => lock.bind(py).as_any().clone(),
            Self::Foreign(foreign) => foreign.lock.bind(py).clone(),
        }
    }

    /// What tells a lock of ours from others.
    fn at(&self) -> Option<u64> {
        match self {
            Self::Plain(lock) => Some(lock.get().at()),
            Self::Recursive(lock) => Some(lock.get().at()),
            Self::Foreign(_) => None,
        }
    }

    fn is_owned(&self, py: Python<'_>) -> PyResult<bool> {
        match self {
            Self::Plain(lock) => Ok(lock.get().is_locked()),
            Self::Recursive(lock) => Ok(lock.get().is_mine()),
            Self::Foreign(Foreign {
                is_owned: Some(is_owned),
                ..
            }) => is_owned.bind(py).call0()?.is_truthy(),
            Self::Foreign(foreign) => {
                if foreign.acquire.bind(py).call1((false,))?.is_truthy()? {
                    foreign.release.call0(py)?;
                    return Ok(false);
                }
                Ok(true)
            }
        }
    }

    fn release_save(&self, py: Python<'_>) -> PyResult<Saved> {
        match self {
            Self::Plain(lock) => {
                if lock.get().unlock() {
                    Ok(Saved::Nothing)
                } else {
                    Err(PyRuntimeError::new_err("release unlocked lock"))
                }
            }
            Self::Recursive(lock) => lock.get().unlock_all().map(Saved::Count),
            Self::Foreign(foreign) => match &foreign.release_save {
                Some(release_save) => release_save.call0(py).map(Saved::State),
                None => foreign.release.call0(py).map(|_| Saved::Nothing),
            },
        }
    }

    fn acquire_restore(&self, py: Python<'_>, saved: Saved) -> PyResult<()> {
        match self {
            Self::Plain(lock) => lock.get().lock_deaf(py),
            Self::Recursive(lock) => {
                let count = if let Saved::Count(count) = saved {
                    count
                } else {
                    1
                };
                lock.get().lock_all(py, count);
            }
            Self::Foreign(foreign) => {
                match &foreign.acquire_restore {
                    Some(restore) => {
                        let state = if let Saved::State(state) = saved {
                            state
                        } else {
                            py.None()
                        };
                        restore.call1(py, (state,))?;
                    }
                    None => {
                        foreign.acquire.call0(py)?;
                    }
                };
            }
        }
        Ok(())
    }
}

/// A condition variable of the threads of this process, over any lock.
#[pyclass(frozen, subclass, module = "phalanx._engine", name = "ThreadCondition")]
pub(crate) struct Condition {
    inner: OnceLock<Inner>,
    waiting: Arc<WaitList>,
}

impl Condition {
    fn inner(&self, py: Python<'_>) -> PyResult<&Inner> {
        match self.inner.get() {
            Some(inner) => Ok(inner),
            // A subclass that does not call our `__init__`, or not yet.
            None => {
                let lock = Bound::new(py, RLock::default())?;
                Ok(self.inner.get_or_init(|| Inner::Recursive(lock.unbind())))
            }
        }
    }

    /// Makes an instance of the Python class over parts of another primitive: whoever notifies it wakes that one's waiters.
    pub(crate) fn over(
        py: Python<'_>,
        lock: &Py<Lock>,
        waiting: &Arc<WaitList>,
    ) -> PyResult<Py<PyAny>> {
        let class = py
            .import(intern!(py, "phalanx.threading"))?
            .getattr(intern!(py, "Condition"))?;
        let made = class.call_method1(
            intern!(py, "__new__"),
            (&class, Sharing(Arc::clone(waiting))),
        )?;
        made.call_method1(intern!(py, "__init__"), (lock,))?;
        Ok(made.unbind())
    }
}

/// Carries a wait list through a constructor call.
#[pyclass(frozen)]
struct Sharing(Arc<WaitList>);

#[pymethods]
impl Condition {
    #[new]
    #[pyo3(signature = (*args, **_kwargs))]
    fn new(args: &Bound<'_, PyTuple>, _kwargs: Option<&Bound<'_, PyDict>>) -> Self {
        let shared = args.get_item(0).ok().and_then(|first| {
            first
                .cast_exact::<Sharing>()
                .ok()
                .map(|sharing| Arc::clone(&sharing.get().0))
        });
        Self {
            inner: OnceLock::new(),
            waiting: shared.unwrap_or_default(),
        }
    }

    #[pyo3(signature = (lock=None))]
    fn __init__(&self, py: Python<'_>, lock: Option<&Bound<'_, PyAny>>) -> PyResult<()> {
        let inner = match lock {
            Some(lock) => Inner::of(lock)?,
            None => Inner::Recursive(Py::new(py, RLock::default())?),
        };
        // A second call changes nothing: somebody may be waiting.
        let _ = self.inner.set(inner);
        Ok(())
    }

    #[getter]
    fn _lock<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        Ok(self.inner(py)?.object(py))
    }

    #[getter]
    fn acquire<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        match self.inner(py)? {
            Inner::Foreign(foreign) => Ok(foreign.acquire.bind(py).clone()),
            inner => inner.object(py).getattr(intern!(py, "acquire")),
        }
    }

    #[getter]
    fn release<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        match self.inner(py)? {
            Inner::Foreign(foreign) => Ok(foreign.release.bind(py).clone()),
            inner => inner.object(py).getattr(intern!(py, "release")),
        }
    }

    fn __enter__(&self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        match self.inner(py)? {
            Inner::Plain(lock) => lock.get().enter(py)?,
            Inner::Recursive(lock) => lock.get().enter(py)?,
            Inner::Foreign(foreign) => {
                return foreign.lock.call_method0(py, intern!(py, "__enter__"));
            }
        };
        Ok(PyBool::new(py, true).to_owned().into_any().unbind())
    }

    #[pyo3(signature = (*error))]
    fn __exit__(&self, py: Python<'_>, error: &Bound<'_, PyTuple>) -> PyResult<Py<PyAny>> {
        match self.inner(py)? {
            Inner::Plain(lock) => lock.get().release()?,
            Inner::Recursive(lock) => lock.get().release()?,
            Inner::Foreign(foreign) => {
                return foreign
                    .lock
                    .call_method1(py, intern!(py, "__exit__"), error);
            }
        }
        Ok(py.None())
    }

    fn _is_owned(&self, py: Python<'_>) -> PyResult<bool> {
        self.inner(py)?.is_owned(py)
    }

    fn _release_save(&self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        Ok(match self.inner(py)?.release_save(py)? {
            Saved::Nothing => py.None(),
            Saved::Count(count) => count.into_pyobject(py)?.into_any().unbind(),
            Saved::State(state) => state,
        })
    }

    fn _acquire_restore(&self, py: Python<'_>, state: Py<PyAny>) -> PyResult<()> {
        let saved = match self.inner(py)? {
            Inner::Plain(_) => Saved::Nothing,
            Inner::Recursive(_) => Saved::Count(state.extract(py)?),
            Inner::Foreign(_) => Saved::State(state),
        };
        self.inner(py)?.acquire_restore(py, saved)
    }

    /// Waits until notified, with the lock given back meanwhile; tells whether a notification came before the time-out.
    #[pyo3(signature = (timeout=None))]
    fn wait(&self, py: Python<'_>, timeout: Option<f64>) -> PyResult<bool> {
        let inner = self.inner(py)?;
        if !inner.is_owned(py)? {
            return Err(PyRuntimeError::new_err("cannot wait on un-acquired lock"));
        }
        let deadline = Timeout::from_seconds(timeout)?.deadline();
        let sleeper = self.waiting.enter();
        let saved = match inner.release_save(py) {
            Ok(saved) => saved,
            Err(error) => {
                self.waiting.leave(&sleeper);
                return Err(error);
            }
        };
        let lock = inner.at().filter(|_| places::wanted());
        let noted = lock.and_then(places::suspended);
        let slept = sleeper.block(py, deadline, What::Other(self.waiting.address()));
        places::waits_again(noted.as_ref());
        let restored = inner.acquire_restore(py, saved);
        if let Some(lock) = lock {
            places::resumed(lock, noted);
        }
        if !matches!(slept, Ok(true)) {
            self.waiting.leave(&sleeper);
            if slept.is_err() && sleeper.is_notified() {
                self.waiting.notify(1);
            }
        }
        restored?;
        // Notified between the time-out and the lock: it counts.
        slept.map(|_| sleeper.is_notified())
    }

    /// Wakes up to `n` threads that wait.
    #[pyo3(signature = (n=1))]
    fn notify(&self, py: Python<'_>, n: i64) -> PyResult<()> {
        if !self.inner(py)?.is_owned(py)? {
            return Err(PyRuntimeError::new_err("cannot notify on un-acquired lock"));
        }
        self.waiting.notify(usize::try_from(n).unwrap_or(0));
        Ok(())
    }

    /// Wakes every thread that waits.
    fn notify_all(&self, py: Python<'_>) -> PyResult<()> {
        self.notify(py, i64::MAX)
    }

    /// As many as wait now, for those who count them.
    #[getter]
    fn _waiters<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyTuple>> {
        PyTuple::new(py, (0..self.waiting.len()).map(|place| place as u64))
    }

    fn _at_fork_reinit(&self, py: Python<'_>) -> PyResult<()> {
        self.inner(py)?
            .object(py)
            .call_method0(intern!(py, "_at_fork_reinit"))?;
        self.waiting.clear();
        Ok(())
    }

    fn __repr__(&self, py: Python<'_>) -> PyResult<String> {
        let lock = self.inner(py)?.object(py);
        Ok(format!(
            "<Condition({}, {})>",
            lock.str()?,
            self.waiting.len()
        ))
    }

    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        if let Some(Inner::Foreign(foreign)) = self.inner.get() {
            visit.call(&foreign.lock)?;
            visit.call(&foreign.acquire)?;
            visit.call(&foreign.release)?;
            for method in [
                &foreign.release_save,
                &foreign.acquire_restore,
                &foreign.is_owned,
            ] {
                visit.call(method)?;
            }
        }
        Ok(())
    }
}

/// A condition inside another primitive, made visible to Python only when somebody asks for it.
#[derive(Default)]
pub(crate) struct Hidden {
    /// Who waits.
    pub(crate) waiting: Arc<WaitList>,
    seen: OnceLock<Py<PyAny>>,
}

impl Hidden {
    /// Returns it as an object, over this lock.
    pub(crate) fn show(&self, py: Python<'_>, lock: &Py<Lock>) -> PyResult<Py<PyAny>> {
        if let Some(seen) = self.seen.get() {
            return Ok(seen.clone_ref(py));
        }
        let made = Condition::over(py, lock, &self.waiting)?;
        Ok(self.seen.get_or_init(|| made).clone_ref(py))
    }

    /// Visits the object.
    pub(crate) fn traverse(&self, visit: &PyVisit<'_>) -> Result<(), PyTraverseError> {
        visit.call(self.seen.get())
    }
}

/// A lock inside another primitive, likewise.
#[derive(Default)]
pub(crate) struct HiddenLock(OnceLock<Py<Lock>>);

impl HiddenLock {
    /// Returns the lock if anybody ever saw it; who has not seen it does not hold it.
    #[inline]
    pub(crate) fn get(&self) -> Option<&Py<Lock>> {
        self.0.get()
    }

    /// Returns it as an object.
    pub(crate) fn show(&self, py: Python<'_>) -> PyResult<&Py<Lock>> {
        if let Some(lock) = self.0.get() {
            return Ok(lock);
        }
        let lock = Py::new(py, Lock::default())?;
        Ok(self.0.get_or_init(|| lock))
    }

    /// Waits until nobody holds it. What follows without letting the interpreter's lock go is then done under it.
    pub(crate) fn pass(&self, py: Python<'_>) -> PyResult<()> {
        while let Some(lock) = self.get()
            && lock.get().is_locked()
        {
            lock.get().lock(py, None)?;
            lock.get().unlock();
        }
        Ok(())
    }

    /// In a forked child: nobody holds it.
    pub(crate) fn reinit(&self) {
        if let Some(lock) = self.0.get() {
            lock.get().unlock();
        }
    }
}
