//! `queue.Queue`, `LifoQueue` and `PriorityQueue`.
//!
//! A queue is *plain* while nothing about it is its user's own: no hook overridden, no attribute replaced. Then an operation is
//! a few lines here. Everything that people reach for is real all the same: `queue` is the deque or list in use; `mutex` and
//! the conditions come into being when they are first looked at, and whoever holds that mutex keeps the operations out.
//! A queue that is not plain runs the standard library's code over the same attributes.

use std::sync::OnceLock;

use phalanx_prim::Deadline;
use phalanx_prim::global::{AtomicBool, Ordering};
use pyo3::PyTraverseError;
use pyo3::exceptions::{PyAttributeError, PyValueError};
use pyo3::gc::PyVisit;
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyDict, PyString, PyTuple, PyType};

use crate::door::Timeout;
use crate::thread_condition::{Hidden, HiddenLock};
use crate::thread_lock::Lock;
use crate::thread_semaphore::Number;
use crate::thread_wait::Truth;

pub(crate) fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<LocalQueue>()
}

/// Where the items of a plain queue are.
struct Items {
    /// The deque or list.
    all: Py<PyAny>,
    push: Py<PyAny>,
    pop: Py<PyAny>,
    /// Both take the list as their first argument and compare items, which runs anybody's code.
    heap: bool,
}

/// What the queues of the standard library share, for the threads of this process.
#[pyclass(frozen, subclass, module = "phalanx._engine")]
#[derive(Default)]
pub(crate) struct LocalQueue {
    items: OnceLock<Items>,
    /// `items` is in use and nothing is the user's own.
    plain: AtomicBool,
    /// `put` and `get` may be called without looking for an override.
    direct: AtomicBool,
    maxsize: Number,
    unfinished: Number,
    shut: AtomicBool,
    mutex: HiddenLock,
    not_empty: Hidden,
    not_full: Hidden,
    all_done: Hidden,
    /// Attributes that were replaced, and the standard library's class for this kind.
    own: OnceLock<Py<PyDict>>,
    stock: OnceLock<Py<PyAny>>,
}

/// Holds the mutex where one must.
struct Guard<'a>(Option<&'a Lock>);

impl Drop for Guard<'_> {
    fn drop(&mut self) {
        if let Some(lock) = self.0 {
            lock.unlock();
        }
    }
}

fn queue_error(py: Python<'_>, name: &str) -> PyErr {
    match py
        .import(intern!(py, "queue"))
        .and_then(|queue| queue.getattr(name))
    {
        Ok(class) => match class.cast_into::<PyType>() {
            Ok(class) => PyErr::from_type(class, ()),
            Err(error) => error.into(),
        },
        Err(error) => error,
    }
}

fn empty(py: Python<'_>) -> PyErr {
    static ERROR: PyOnceLock<Py<PyType>> = PyOnceLock::new();
    match ERROR.import(py, "queue", "Empty") {
        Ok(class) => PyErr::from_type(class.clone(), ()),
        Err(error) => error,
    }
}

fn full(py: Python<'_>) -> PyErr {
    static ERROR: PyOnceLock<Py<PyType>> = PyOnceLock::new();
    match ERROR.import(py, "queue", "Full") {
        Ok(class) => PyErr::from_type(class.clone(), ()),
        Err(error) => error,
    }
}

/// The end of a call that may wait, known once it must.
fn deadline_of(timeout: Option<f64>) -> PyResult<Option<Deadline>> {
    Ok(Timeout::from_seconds(timeout)?.deadline())
}

fn check(timeout: Option<f64>) -> PyResult<()> {
    match timeout {
        Some(timeout) if timeout < 0.0 => Err(PyValueError::new_err(
            "'timeout' must be a non-negative number",
        )),
        _ => Ok(()),
    }
}

impl LocalQueue {
    #[inline]
    fn plain(&self) -> Option<&Items> {
        if self.plain.load(Ordering::Relaxed) {
            self.items.get()
        } else {
            None
        }
    }

    /// Keeps others out for one operation. Between here and the end of the guard only a heap lets the interpreter's lock go.
    #[inline]
    fn guard(&self, py: Python<'_>, items: &Items) -> PyResult<Guard<'_>> {
        if !items.heap
            && self
                .mutex
                .get()
                .is_none_or(|mutex| !mutex.get().is_locked())
        {
            return Ok(Guard(None));
        }
        let mutex = self.mutex.show(py)?.get();
        mutex.lock(py, None)?;
        Ok(Guard(Some(mutex)))
    }

    #[inline]
    fn len(&self, py: Python<'_>, items: &Items) -> PyResult<usize> {
        items.all.bind(py).len()
    }

    #[inline]
    fn is_shut(&self) -> bool {
        self.shut.load(Ordering::Relaxed)
    }

    /// Runs the standard library's method on this object.
    fn stock<'py>(
        slf: &Bound<'py, Self>,
        name: &Bound<'py, PyString>,
        args: &Bound<'py, PyTuple>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let Some(stock) = slf.get().stock.get() else {
            return Err(PyAttributeError::new_err(
                "this queue's __init__ has not run: call it from the subclass's",
            ));
        };
        let mut all = vec![slf.as_any().clone()];
        all.extend(args.iter());
        stock
            .bind(slf.py())
            .getattr(name)?
            .call1(PyTuple::new(slf.py(), all)?)
    }

    fn put_item(
        slf: &Bound<'_, Self>,
        item: Py<PyAny>,
        block: bool,
        timeout: Option<f64>,
    ) -> PyResult<()> {
        let (py, this) = (slf.py(), slf.get());
        let mut deadline = None;
        loop {
            let Some(items) = this.plain() else {
                return Self::stock(
                    slf,
                    intern!(py, "put"),
                    &(item, block, timeout).into_pyobject(py)?,
                )
                .map(drop);
            };
            let guard = this.guard(py, items)?;
            if this.is_shut() {
                return Err(queue_error(py, "ShutDown"));
            }
            let maxsize = this.maxsize.get();
            if maxsize > 0 && block {
                check(timeout)?;
            }
            if maxsize <= 0 || (this.len(py, items)? as i64) < maxsize {
                let item = item.into_bound(py);
                if items.heap {
                    items.push.bind(py).call1((&items.all, item))?;
                } else {
                    items.push.bind(py).call1((item,))?;
                }
                this.unfinished.set(this.unfinished.get() + 1);
                this.not_empty.waiting.notify(1);
                drop(guard);
                return Ok(());
            }
            if !block {
                return Err(full(py));
            }
            if deadline.is_none() {
                deadline = deadline_of(timeout)?;
            }
            let sleeper = this.not_full.waiting.enter();
            drop(guard);
            if !this.not_full.waiting.wait(py, &sleeper, deadline)?
                && this.plain().is_some_and(|items| {
                    this.len(py, items)
                        .is_ok_and(|len| len as i64 >= this.maxsize.get())
                })
            {
                return Err(full(py));
            }
        }
    }

    fn get_item<'py>(
        slf: &Bound<'py, Self>,
        block: bool,
        timeout: Option<f64>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let (py, this) = (slf.py(), slf.get());
        let mut deadline = None;
        loop {
            let Some(items) = this.plain() else {
                return Self::stock(
                    slf,
                    intern!(py, "get"),
                    &(block, timeout).into_pyobject(py)?,
                );
            };
            let guard = this.guard(py, items)?;
            let len = this.len(py, items)?;
            if len == 0 && this.is_shut() {
                return Err(queue_error(py, "ShutDown"));
            }
            if block {
                check(timeout)?;
            }
            if len > 0 {
                let item = if items.heap {
                    items.pop.bind(py).call1((&items.all,))?
                } else {
                    items.pop.bind(py).call0()?
                };
                this.not_full.waiting.notify(1);
                drop(guard);
                return Ok(item);
            }
            if !block {
                return Err(empty(py));
            }
            if deadline.is_none() {
                deadline = deadline_of(timeout)?;
            }
            let sleeper = this.not_empty.waiting.enter();
            drop(guard);
            if !this.not_empty.waiting.wait(py, &sleeper, deadline)?
                && this
                    .plain()
                    .is_some_and(|items| this.len(py, items).is_ok_and(|len| len == 0))
            {
                return Err(empty(py));
            }
        }
    }

    /// Keeps a replaced attribute; from here on the standard library's code runs over them.
    fn replace(
        slf: &Bound<'_, Self>,
        name: &Bound<'_, PyString>,
        value: &Bound<'_, PyAny>,
    ) -> PyResult<()> {
        let (py, this) = (slf.py(), slf.get());
        let own = match this.own.get() {
            Some(own) => own,
            None => {
                let made = PyDict::new(py).unbind();
                this.own.get_or_init(|| made)
            }
        };
        own.bind(py).set_item(name, value)?;
        this.plain.store(false, Ordering::Relaxed);
        // Those who sleep here go on there.
        for cond in [&this.not_empty, &this.not_full, &this.all_done] {
            cond.waiting.notify(usize::MAX);
        }
        Ok(())
    }

    fn replaced<'py>(
        &self,
        py: Python<'py>,
        name: &Bound<'py, PyString>,
    ) -> PyResult<Option<Bound<'py, PyAny>>> {
        match self.own.get() {
            Some(own) => own
                .bind(py)
                .as_any()
                .get_item(name)
                .map(Some)
                .or_else(|error| {
                    if error.is_instance_of::<pyo3::exceptions::PyKeyError>(py) {
                        Ok(None)
                    } else {
                        Err(error)
                    }
                }),
            None => Ok(None),
        }
    }

    fn cond<'py>(
        &self,
        py: Python<'py>,
        name: &Bound<'py, PyString>,
        cond: &Hidden,
    ) -> PyResult<Bound<'py, PyAny>> {
        match self.replaced(py, name)? {
            Some(own) => Ok(own),
            None => Ok(cond.show(py, self.mutex.show(py)?)?.into_bound(py)),
        }
    }
}

#[pymethods]
impl LocalQueue {
    #[new]
    #[pyo3(signature = (*_args, **_kwargs))]
    fn new(_args: &Bound<'_, PyTuple>, _kwargs: Option<&Bound<'_, PyDict>>) -> Self {
        Self::default()
    }

    /// Sets up a plain queue over `items`, whose hooks nobody overrode.
    #[expect(
        clippy::too_many_arguments,
        reason = "one call from Python per queue, with all it is made of"
    )]
    fn _begin(
        &self,
        maxsize: i64,
        stock: Py<PyAny>,
        direct: bool,
        items: Py<PyAny>,
        push: Py<PyAny>,
        pop: Py<PyAny>,
        heap: bool,
    ) -> bool {
        let _ = self.stock.set(stock);
        let fresh = self
            .items
            .set(Items {
                all: items,
                push,
                pop,
                heap,
            })
            .is_ok();
        if fresh {
            self.maxsize.set(maxsize);
            self.direct.store(direct, Ordering::Relaxed);
            self.plain.store(true, Ordering::Relaxed);
        }
        fresh
    }

    /// Sets up a queue that runs the standard library's code; its `__init__` comes next.
    fn _begin_own(&self, stock: Py<PyAny>) {
        let _ = self.stock.set(stock);
        self.plain.store(false, Ordering::Relaxed);
    }

    /// Adds an item, waiting for room if asked to.
    #[pyo3(signature = (item, block=Truth(true), timeout=None), text_signature = "($self, item, block=True, timeout=None)")]
    fn put(
        slf: &Bound<'_, Self>,
        item: Py<PyAny>,
        block: Truth,
        timeout: Option<f64>,
    ) -> PyResult<()> {
        Self::put_item(slf, item, block.0, timeout)
    }

    /// Removes an item and returns it, waiting for one if asked to.
    #[pyo3(signature = (block=Truth(true), timeout=None), text_signature = "($self, block=True, timeout=None)")]
    fn get<'py>(
        slf: &Bound<'py, Self>,
        block: Truth,
        timeout: Option<f64>,
    ) -> PyResult<Bound<'py, PyAny>> {
        Self::get_item(slf, block.0, timeout)
    }

    /// Adds an item if there is room now.
    fn put_nowait<'py>(slf: &Bound<'py, Self>, item: Py<PyAny>) -> PyResult<Bound<'py, PyAny>> {
        let py = slf.py();
        if slf.get().direct.load(Ordering::Relaxed) {
            Self::put_item(slf, item, false, None)?;
            return Ok(py.None().into_bound(py));
        }
        let kwargs = PyDict::new(py);
        kwargs.set_item(intern!(py, "block"), false)?;
        slf.call_method(intern!(py, "put"), (item,), Some(&kwargs))
    }

    /// Removes an item and returns it if there is one now.
    fn get_nowait<'py>(slf: &Bound<'py, Self>) -> PyResult<Bound<'py, PyAny>> {
        let py = slf.py();
        if slf.get().direct.load(Ordering::Relaxed) {
            return Self::get_item(slf, false, None);
        }
        let kwargs = PyDict::new(py);
        kwargs.set_item(intern!(py, "block"), false)?;
        slf.call_method(intern!(py, "get"), (), Some(&kwargs))
    }

    /// Tells how many items there are.
    fn qsize<'py>(slf: &Bound<'py, Self>) -> PyResult<Bound<'py, PyAny>> {
        let (py, this) = (slf.py(), slf.get());
        let Some(items) = this.plain() else {
            return Self::stock(slf, intern!(py, "qsize"), &PyTuple::empty(py));
        };
        let _guard = this.guard(py, items)?;
        Ok(this.len(py, items)?.into_pyobject(py)?.into_any())
    }

    /// Tells whether there is no item.
    fn empty(slf: &Bound<'_, Self>) -> PyResult<bool> {
        let (py, this) = (slf.py(), slf.get());
        let Some(items) = this.plain() else {
            return Self::stock(slf, intern!(py, "empty"), &PyTuple::empty(py))?.is_truthy();
        };
        let _guard = this.guard(py, items)?;
        Ok(this.len(py, items)? == 0)
    }

    /// Tells whether there is no room.
    fn full(slf: &Bound<'_, Self>) -> PyResult<bool> {
        let (py, this) = (slf.py(), slf.get());
        let Some(items) = this.plain() else {
            return Self::stock(slf, intern!(py, "full"), &PyTuple::empty(py))?.is_truthy();
        };
        let _guard = this.guard(py, items)?;
        let maxsize = this.maxsize.get();
        Ok(0 < maxsize && maxsize <= this.len(py, items)? as i64)
    }

    /// Says that an item that was gotten has been dealt with.
    fn task_done(slf: &Bound<'_, Self>) -> PyResult<()> {
        let (py, this) = (slf.py(), slf.get());
        let Some(items) = this.plain() else {
            return Self::stock(slf, intern!(py, "task_done"), &PyTuple::empty(py)).map(drop);
        };
        let _guard = this.guard(py, items)?;
        let unfinished = this.unfinished.get() - 1;
        if unfinished < 0 {
            return Err(PyValueError::new_err("task_done() called too many times"));
        }
        if unfinished == 0 {
            this.all_done.waiting.notify(usize::MAX);
        }
        this.unfinished.set(unfinished);
        Ok(())
    }

    /// Waits until every item has been dealt with.
    fn join(slf: &Bound<'_, Self>) -> PyResult<()> {
        let (py, this) = (slf.py(), slf.get());
        loop {
            let Some(items) = this.plain() else {
                return Self::stock(slf, intern!(py, "join"), &PyTuple::empty(py)).map(drop);
            };
            let guard = this.guard(py, items)?;
            if this.unfinished.get() == 0 {
                return Ok(());
            }
            let sleeper = this.all_done.waiting.enter();
            drop(guard);
            this.all_done.waiting.wait(py, &sleeper, None)?;
        }
    }

    #[getter(queue)]
    fn get_queue<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        if let Some(own) = self.replaced(py, intern!(py, "queue"))? {
            return Ok(own);
        }
        match self.items.get() {
            Some(items) => Ok(items.all.bind(py).clone()),
            None => Err(PyAttributeError::new_err(
                "'Queue' object has no attribute 'queue'",
            )),
        }
    }

    #[setter(queue)]
    fn set_queue(slf: &Bound<'_, Self>, value: &Bound<'_, PyAny>) -> PyResult<()> {
        Self::replace(slf, intern!(slf.py(), "queue"), value)
    }

    #[getter(mutex)]
    fn get_mutex<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        match self.replaced(py, intern!(py, "mutex"))? {
            Some(own) => Ok(own),
            None => Ok(self.mutex.show(py)?.bind(py).as_any().clone()),
        }
    }

    #[setter(mutex)]
    fn set_mutex(slf: &Bound<'_, Self>, value: &Bound<'_, PyAny>) -> PyResult<()> {
        Self::replace(slf, intern!(slf.py(), "mutex"), value)
    }

    #[getter(not_empty)]
    fn get_not_empty<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        self.cond(py, intern!(py, "not_empty"), &self.not_empty)
    }

    #[setter(not_empty)]
    fn set_not_empty(slf: &Bound<'_, Self>, value: &Bound<'_, PyAny>) -> PyResult<()> {
        Self::replace(slf, intern!(slf.py(), "not_empty"), value)
    }

    #[getter(not_full)]
    fn get_not_full<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        self.cond(py, intern!(py, "not_full"), &self.not_full)
    }

    #[setter(not_full)]
    fn set_not_full(slf: &Bound<'_, Self>, value: &Bound<'_, PyAny>) -> PyResult<()> {
        Self::replace(slf, intern!(slf.py(), "not_full"), value)
    }

    #[getter(all_tasks_done)]
    fn get_all_tasks_done<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        self.cond(py, intern!(py, "all_tasks_done"), &self.all_done)
    }

    #[setter(all_tasks_done)]
    fn set_all_tasks_done(slf: &Bound<'_, Self>, value: &Bound<'_, PyAny>) -> PyResult<()> {
        Self::replace(slf, intern!(slf.py(), "all_tasks_done"), value)
    }

    #[getter(maxsize)]
    fn get_maxsize<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        match self.replaced(py, intern!(py, "maxsize"))? {
            Some(own) => Ok(own),
            None => Ok(self.maxsize.get().into_pyobject(py)?.into_any()),
        }
    }

    #[setter(maxsize)]
    fn set_maxsize(slf: &Bound<'_, Self>, value: &Bound<'_, PyAny>) -> PyResult<()> {
        let this = slf.get();
        match value.extract::<i64>() {
            Ok(maxsize) if this.plain().is_some() => {
                this.maxsize.set(maxsize);
                Ok(())
            }
            _ => Self::replace(slf, intern!(slf.py(), "maxsize"), value),
        }
    }

    #[getter(unfinished_tasks)]
    fn get_unfinished_tasks(&self) -> i64 {
        self.unfinished.get()
    }

    #[setter(unfinished_tasks)]
    fn set_unfinished_tasks(&self, value: i64) {
        self.unfinished.set(value);
    }

    #[getter(is_shutdown)]
    fn get_is_shutdown(&self) -> bool {
        self.is_shut()
    }

    #[setter(is_shutdown)]
    fn set_is_shutdown(&self, value: bool) {
        self.shut.store(value, Ordering::Relaxed);
    }

    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        if let Some(items) = self.items.get() {
            visit.call(&items.all)?;
            visit.call(&items.push)?;
            visit.call(&items.pop)?;
        }
        for cond in [&self.not_empty, &self.not_full, &self.all_done] {
            cond.traverse(&visit)?;
        }
        visit.call(self.own.get())?;
        visit.call(self.stock.get())
    }
}
