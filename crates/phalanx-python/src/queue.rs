//! The queues: what `phalanx.queues` builds its classes on.

use std::cell::Cell;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::sync::{Mutex, OnceLock, PoisonError};

use phalanx_channel::{Bell, Bounds, Doorbell, RawGetError, RawPutError, RawQueue, Received};
use phalanx_prim::Deadline;
use phalanx_prim::global::{AtomicBool, Ordering};
use phalanx_shm::{Kind, Patience, session};
use phalanx_sync::handle::receive;
use pyo3::exceptions::{PyOSError, PyRuntimeError, PyValueError};
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::PyType;

use crate::door::{Timeout, blocking, raise};
use crate::handle;
use crate::message::{self, Encoded};

pub(crate) fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<Queue>()?;
    module.add_class::<SimpleQueue>()?;
    Ok(())
}

thread_local! {
    // Taken while it is used: what is pickled may put into another queue.
    static SCRATCH: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

fn with_scratch<T>(work: impl FnOnce(&mut Vec<u8>) -> T) -> T {
    let mut scratch = SCRATCH.take();
    let result = work(&mut scratch);
    SCRATCH.set(scratch);
    result
}

/// "Look once", without asking what time it is.
fn at_once() -> Patience {
    Patience {
        deadline: Some(Deadline::PAST),
        interruptible: true,
        ..Patience::FOREVER
    }
}

fn exception(py: Python<'_>, name: &'static str) -> PyErr {
    static EMPTY: PyOnceLock<Py<PyType>> = PyOnceLock::new();
    static FULL: PyOnceLock<Py<PyType>> = PyOnceLock::new();
    let cell = if name == "Full" { &FULL } else { &EMPTY };
    match cell.import(py, "queue", name) {
        Ok(class) => PyErr::from_type(class.clone(), ()),
        Err(error) => error,
    }
}

fn timeout_of(block: bool, timeout: Option<f64>) -> PyResult<Timeout> {
    if block {
        Timeout::from_seconds(timeout)
    } else {
        Ok(Timeout::Now)
    }
}

/// Puts what was encoded; `false` when the queue stayed full.
fn put_encoded(
    py: Python<'_>,
    queue: &RawQueue,
    encoded: Encoded,
    small: &[u8],
    timeout: Timeout,
) -> PyResult<bool> {
    match encoded {
        Encoded::Small => put_parts(py, queue, &[small], timeout),
        Encoded::Bytes(tag, object) => message::with_bytes_of(object.bind(py), |bytes| {
            if bytes.len() < phalanx_channel::INLINE_MOST {
                return put_parts(py, queue, &[&[tag], bytes], timeout);
            }
            let mut loan = queue.loan(bytes.len() + 1).map_err(raise)?;
            loan[0] = tag;
            message::copy(py, bytes, &mut loan[1..]);
            put_loan(py, queue, loan, timeout)
        })?,
        Encoded::Placed(loan) => put_loan(py, queue, loan, timeout),
    }
}

fn put_parts(
    py: Python<'_>,
    queue: &RawQueue,
    parts: &[&[u8]],
    timeout: Timeout,
) -> PyResult<bool> {
    match queue.put(parts, at_once()) {
        Ok(()) => return Ok(true),
        Err(RawPutError::Wait(_)) => {}
        Err(error) => return Err(refused(error)),
    }
    if timeout == Timeout::Now {
        return Ok(false);
    }
    let put = blocking(py, timeout, |patience| match queue.put(parts, patience) {
        Ok(()) => Ok(Ok(())),
        Err(RawPutError::Wait(wait)) => Err(wait),
        Err(error) => Ok(Err(error)),
    })?;
    match put {
        None => Ok(false),
        Some(Ok(())) => Ok(true),
        Some(Err(error)) => Err(refused(error)),
    }
}

fn put_loan(
    py: Python<'_>,
    queue: &RawQueue,
    loan: phalanx_channel::Loan,
    timeout: Timeout,
) -> PyResult<bool> {
    let mut loan = Some(loan);
    let put = blocking(py, timeout, |patience| {
        let Some(payload) = loan.take() else {
            return Ok(Ok(()));
        };
        match queue.put_loan(payload, patience) {
            Ok(()) => Ok(Ok(())),
            Err((RawPutError::Wait(wait), payload)) => {
                loan = Some(payload);
                Err(wait)
            }
            Err((error, _)) => Ok(Err(error)),
        }
    })?;
    match put {
        None => Ok(false),
        Some(Ok(())) => Ok(true),
        Some(Err(error)) => Err(refused(error)),
    }
}

fn refused(error: RawPutError) -> PyErr {
    match error {
        RawPutError::Alloc(error) => raise(error),
        error => PyOSError::new_err(error.to_string()),
    }
}

/// Takes the next item and lets `read` look at it: in the scratch buffer, or in the message. `None` when it stayed empty.
fn take<T>(
    py: Python<'_>,
    queue: &RawQueue,
    timeout: Timeout,
    read: impl FnOnce(Received, &[u8]) -> PyResult<T>,
) -> PyResult<Option<T>> {
    with_scratch(|buffer| {
        let got = match queue.get_into(buffer, at_once()) {
            Err(RawGetError::Wait(_)) if timeout != Timeout::Now => {
                blocking(py, timeout, |patience| {
                    match queue.get_into(buffer, patience) {
                        Ok(received) => Ok(Ok(received)),
                        Err(RawGetError::Wait(wait)) => Err(wait),
                        Err(error) => Ok(Err(error)),
                    }
                })?
            }
            Err(RawGetError::Wait(_)) => None,
            other => Some(other),
        };
        match got {
            None => Ok(None),
            Some(Ok(received)) => read(received, buffer).map(Some),
            Some(Err(error)) => Err(PyOSError::new_err(error.to_string())),
        }
    })
}

fn take_object<'py>(
    py: Python<'py>,
    queue: &RawQueue,
    timeout: Timeout,
) -> PyResult<Option<Bound<'py, PyAny>>> {
    take(py, queue, timeout, |received, small| match received {
        Received::Inline => message::decode_small(py, small),
        Received::Block(message) => message::decode(py, message),
    })
}

fn take_bytes<'py>(
    py: Python<'py>,
    queue: &RawQueue,
    timeout: Timeout,
) -> PyResult<Option<Bound<'py, PyAny>>> {
    take(py, queue, timeout, |received, small| match received {
        Received::Inline => message::pickled_small(py, small),
        Received::Block(message) => message::pickled(py, message),
    })
}

fn put_bytes(
    py: Python<'_>,
    queue: &RawQueue,
    bytes: &Bound<'_, PyAny>,
    timeout: Timeout,
) -> PyResult<bool> {
    put_encoded(
        py,
        queue,
        Encoded::Bytes(b'R', bytes.clone().unbind()),
        &[],
        timeout,
    )
}

fn opened(bits: u64) -> PyResult<RawQueue> {
    let held = receive(Kind::Queue, bits).map_err(PyRuntimeError::new_err)?;
    Ok(RawQueue::from_held(held))
}

/// The bells of a queue, hung when somebody asks for a descriptor.
#[derive(Default)]
struct Bells {
    /// So that the others need not look.
    hung: AtomicBool,
    bells: Mutex<[Option<Doorbell>; 2]>,
}

impl Bells {
    /// Returns the descriptor of one, of this process.
    fn fd(&self, py: Python<'_>, queue: &RawQueue, bell: Bell) -> PyResult<RawFd> {
        crate::buffers::watch_forks(py)?;
        let mut bells = self.bells.lock().unwrap_or_else(PoisonError::into_inner);
        let slot = &mut bells[bell as usize];
        if !slot.as_ref().is_some_and(Doorbell::is_ours) {
            *slot = Some(Doorbell::new(queue, bell)?);
            self.hung.store(true, Ordering::Relaxed);
        }
        Ok(slot.as_ref().map_or(-1, |bell| bell.as_fd().as_raw_fd()))
    }

    /// After something was taken or put, or a wait was futile.
    #[inline]
    fn settle(&self) {
        if self.hung.load(Ordering::Relaxed) {
            self.settle_hung();
        }
    }

    #[cold]
    fn settle_hung(&self) {
        let bells = self.bells.lock().unwrap_or_else(PoisonError::into_inner);
        bells
            .iter()
            .flatten()
            .filter(|bell| bell.is_ours())
            .for_each(Doorbell::settle);
    }
}

fn bell_of(writable: bool) -> Bell {
    if writable {
        Bell::Writable
    } else {
        Bell::Readable
    }
}

/// Waits until there is an item, which stays there.
fn wait_readable(
    py: Python<'_>,
    queue: &RawQueue,
    bells: &Bells,
    timeout: Option<f64>,
) -> PyResult<bool> {
    if queue.is_ready() {
        return Ok(true);
    }
    bells.settle();
    let timeout = Timeout::from_seconds(timeout)?;
    if timeout == Timeout::Now {
        return Ok(queue.is_ready());
    }
    Ok(blocking(py, timeout, |patience| queue.wait_ready(patience))?.is_some())
}

/// A queue of the tree. Empty until it is opened: then everything is left to the standard library's code.
#[pyclass(subclass, frozen, module = "phalanx._engine", name = "Queue")]
struct Queue {
    queue: OnceLock<RawQueue>,
    closed: AtomicBool,
    bells: Bells,
    /// Whether this process has put something: only then does closing close the end that is asked whether it is empty.
    used: AtomicBool,
}

#[pymethods]
impl Queue {
    #[new]
    #[pyo3(signature = (*_args, **_kwargs))]
    fn new(_args: &Bound<'_, PyAny>, _kwargs: Option<&Bound<'_, PyAny>>) -> Self {
        Self {
            queue: OnceLock::new(),
            closed: AtomicBool::new(false),
            bells: Bells::default(),
            used: AtomicBool::new(false),
        }
    }

    /// Makes a queue of at most `maxsize` items, of any number for 0.
    fn _open(&self, maxsize: u64, joinable: bool) -> PyResult<()> {
        let bounds = Bounds {
            items: (maxsize > 0).then_some(maxsize),
            bytes: None,
            joinable,
        };
        let queue = RawQueue::new(session().map_err(raise)?, bounds).map_err(raise)?;
        self.queue
            .set(queue)
            .map_err(|_| PyRuntimeError::new_err("this queue is open already"))
    }

    /// Opens the queue that a handle names.
    fn _attach(&self, bits: u64) -> PyResult<()> {
        self.queue
            .set(opened(bits)?)
            .map_err(|_| PyRuntimeError::new_err("this queue is open already"))
    }

    /// Returns the handle, whose hold travels with the message being made, if one is.
    fn _handle(slf: &Bound<'_, Self>) -> PyResult<u64> {
        handle::give(slf.as_any(), slf.get().opened()?.held())
    }

    /// Tells whether this is a queue of the tree.
    #[getter]
    fn _native(&self) -> bool {
        self.queue.get().is_some()
    }

    #[getter]
    fn _closed(&self) -> bool {
        self.closed.load(Ordering::Relaxed)
    }

    #[setter(_closed)]
    fn set_closed(&self, closed: bool) {
        self.closed.store(closed, Ordering::Relaxed);
    }

    /// Put an object into the queue, waiting for room if need be; raise ``queue.Full`` when there is none in time.
    #[pyo3(signature = (obj, block = true, timeout = None))]
    fn put(
        slf: &Bound<'_, Self>,
        obj: &Bound<'_, PyAny>,
        block: bool,
        timeout: Option<f64>,
    ) -> PyResult<()> {
        let py = slf.py();
        let this = slf.get();
        let Some(queue) = this.queue.get() else {
            slf.call_method1(intern!(py, "_stock_put"), (obj, block, timeout))?;
            return Ok(());
        };
        this.check_open(slf)?;
        let timeout = timeout_of(block, timeout)?;
        this.used.store(true, Ordering::Relaxed);
        with_scratch(|small| {
            if timeout == Timeout::Now && is_full(queue) {
                return Err(exception(py, "Full"));
            }
            match message::encode(queue.held().arena(), obj, small) {
                Ok(encoded) => {
                    if put_encoded(py, queue, encoded, small, timeout)? {
                        this.bells.settle();
                        Ok(())
                    } else {
                        Err(exception(py, "Full"))
                    }
                }
                Err(error) => {
                    slf.call_method1(intern!(py, "_not_pickled"), (error, obj))?;
                    Ok(())
                }
            }
        })
    }

    /// Take an object out of the queue, waiting for one if need be; raise ``queue.Empty`` when none comes in time.
    #[pyo3(signature = (block = true, timeout = None))]
    fn get<'py>(
        slf: &Bound<'py, Self>,
        block: bool,
        timeout: Option<f64>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let py = slf.py();
        let this = slf.get();
        let Some(queue) = this.queue.get() else {
            return slf.call_method1(intern!(py, "_stock_get"), (block, timeout));
        };
        this.check_open(slf)?;
        let taken = take_object(py, queue, timeout_of(block, timeout)?);
        this.bells.settle();
        taken?.ok_or_else(|| exception(py, "Empty"))
    }

    /// Takes the next item, whether or not this process has closed its end.
    fn _take<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        let taken = take_object(py, self.opened()?, Timeout::Never);
        self.bells.settle();
        taken?.ok_or_else(|| exception(py, "Empty"))
    }

    /// Tells whether there is an item, waiting up to `timeout` seconds for one.
    fn _wait_readable(&self, py: Python<'_>, timeout: Option<f64>) -> PyResult<bool> {
        wait_readable(py, self.opened()?, &self.bells, timeout)
    }

    /// Returns a descriptor of this process that polls readable while there is an item, or room.
    fn _bell(&self, py: Python<'_>, writable: bool) -> PyResult<RawFd> {
        self.bells.fd(py, self.opened()?, bell_of(writable))
    }

    /// Makes the descriptors say what is so; tells whether there is an item.
    fn _settle(&self) -> PyResult<bool> {
        self.bells.settle();
        Ok(self.opened()?.is_ready())
    }

    /// Returns the number of items.
    fn _len(&self) -> PyResult<u64> {
        Ok(self.opened()?.len())
    }

    /// Tells whether there is no item.
    fn _is_empty(&self) -> PyResult<bool> {
        if self.closed.load(Ordering::Relaxed) && self.used.load(Ordering::Relaxed) {
            return Err(PyOSError::new_err("handle is closed"));
        }
        Ok(!self.opened()?.is_ready())
    }

    /// Tells whether a put would wait.
    fn _is_full(&self) -> PyResult<bool> {
        Ok(is_full(self.opened()?))
    }

    /// Takes the next item as the bytes of a pickle, or as the bytes that were put as such; `None` when the time is up.
    fn _get_bytes<'py>(
        &self,
        py: Python<'py>,
        block: bool,
        timeout: Option<f64>,
    ) -> PyResult<Option<Bound<'py, PyAny>>> {
        let taken = take_bytes(py, self.opened()?, timeout_of(block, timeout)?);
        self.bells.settle();
        taken
    }

    /// Puts bytes as they are; `get` unpickles them.
    fn _put_bytes(&self, py: Python<'_>, bytes: &Bound<'_, PyAny>) -> PyResult<()> {
        put_bytes(py, self.opened()?, bytes, Timeout::Never).map(|_| ())
    }

    /// Says that one item that was taken is done; `False` if all are.
    fn _task_done(&self) -> PyResult<bool> {
        Ok(self.opened()?.task_done_by_anyone())
    }

    /// Waits until all items are done; returns how many were lost with a process that had taken them.
    fn _join(&self, py: Python<'_>) -> PyResult<u64> {
        let queue = self.opened()?;
        Ok(blocking(py, Timeout::Never, |patience| queue.join(patience))?.unwrap_or(0))
    }
}

fn is_full(queue: &RawQueue) -> bool {
    queue.bounds().items.is_some_and(|most| queue.len() >= most)
}

impl Queue {
    fn opened(&self) -> PyResult<&RawQueue> {
        self.queue
            .get()
            .ok_or_else(|| PyRuntimeError::new_err("this queue is not open"))
    }

    fn check_open(&self, slf: &Bound<'_, Self>) -> PyResult<()> {
        if self.closed.load(Ordering::Relaxed) {
            return Err(PyValueError::new_err(format!(
                "Queue {} is closed",
                slf.repr()?
            )));
        }
        Ok(())
    }
}

/// As [`Queue`], with what `SimpleQueue` has.
#[pyclass(subclass, frozen, module = "phalanx._engine", name = "SimpleQueue")]
struct SimpleQueue {
    queue: OnceLock<RawQueue>,
    closed: AtomicBool,
    bells: Bells,
}

#[pymethods]
impl SimpleQueue {
    #[new]
    #[pyo3(signature = (*_args, **_kwargs))]
    fn new(_args: &Bound<'_, PyAny>, _kwargs: Option<&Bound<'_, PyAny>>) -> Self {
        Self {
            queue: OnceLock::new(),
            closed: AtomicBool::new(false),
            bells: Bells::default(),
        }
    }

    /// Makes a queue.
    fn _open(&self) -> PyResult<()> {
        let queue = RawQueue::new(session().map_err(raise)?, Bounds::default()).map_err(raise)?;
        self.queue
            .set(queue)
            .map_err(|_| PyRuntimeError::new_err("this queue is open already"))
    }

    /// Opens the queue that a handle names.
    fn _attach(&self, bits: u64) -> PyResult<()> {
        self.queue
            .set(opened(bits)?)
            .map_err(|_| PyRuntimeError::new_err("this queue is open already"))
    }

    /// Returns the handle, whose hold travels with the message being made, if one is.
    fn _handle(slf: &Bound<'_, Self>) -> PyResult<u64> {
        handle::give(slf.as_any(), slf.get().opened()?.held())
    }

    /// Tells whether this is a queue of the tree.
    #[getter]
    fn _native(&self) -> bool {
        self.queue.get().is_some()
    }

    /// Closes this process's end.
    fn _shut(&self) {
        self.closed.store(true, Ordering::Relaxed);
    }

    /// Put an object into the queue.
    fn put(slf: &Bound<'_, Self>, obj: &Bound<'_, PyAny>) -> PyResult<()> {
        let py = slf.py();
        let this = slf.get();
        let Some(queue) = this.queue.get() else {
            slf.call_method1(intern!(py, "_stock_put"), (obj,))?;
            return Ok(());
        };
        this.opened()?;
        with_scratch(|small| {
            let encoded = message::encode(queue.held().arena(), obj, small)?;
            put_encoded(py, queue, encoded, small, Timeout::Never)?;
            Ok(())
        })
    }

    /// Take an object out of the queue, waiting for one.
    fn get<'py>(slf: &Bound<'py, Self>) -> PyResult<Bound<'py, PyAny>> {
        let py = slf.py();
        let this = slf.get();
        let Some(queue) = this.queue.get() else {
            return slf.call_method0(intern!(py, "_stock_get"));
        };
        this.opened()?;
        let taken = take_object(py, queue, Timeout::Never);
        this.bells.settle();
        taken?.ok_or_else(|| exception(py, "Empty"))
    }

    /// Takes the next item, whether or not this process has closed its end.
    fn _take<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        let taken = take_object(py, self.opened()?, Timeout::Never);
        self.bells.settle();
        taken?.ok_or_else(|| exception(py, "Empty"))
    }

    /// Tells whether there is an item, waiting up to `timeout` seconds for one.
    fn _wait_readable(&self, py: Python<'_>, timeout: Option<f64>) -> PyResult<bool> {
        wait_readable(py, self.opened()?, &self.bells, timeout)
    }

    /// Returns a descriptor of this process that polls readable while there is an item, or room.
    fn _bell(&self, py: Python<'_>, writable: bool) -> PyResult<RawFd> {
        self.bells.fd(py, self.opened()?, bell_of(writable))
    }

    /// Makes the descriptors say what is so; tells whether there is an item.
    fn _settle(&self) -> PyResult<bool> {
        self.bells.settle();
        Ok(self.opened()?.is_ready())
    }

    /// Returns the number of items.
    fn _len(&self) -> PyResult<u64> {
        Ok(self.opened()?.len())
    }

    /// See `Queue`.
    fn _get_bytes<'py>(
        &self,
        py: Python<'py>,
        block: bool,
        timeout: Option<f64>,
    ) -> PyResult<Option<Bound<'py, PyAny>>> {
        let taken = take_bytes(py, self.opened()?, timeout_of(block, timeout)?);
        self.bells.settle();
        taken
    }

    /// See `Queue`.
    fn _put_bytes(&self, py: Python<'_>, bytes: &Bound<'_, PyAny>) -> PyResult<()> {
        put_bytes(py, self.opened()?, bytes, Timeout::Never).map(|_| ())
    }
}

impl SimpleQueue {
    fn opened(&self) -> PyResult<&RawQueue> {
        if self.closed.load(Ordering::Relaxed) {
            return Err(PyOSError::new_err("handle is closed"));
        }
        self.queue
            .get()
            .ok_or_else(|| PyRuntimeError::new_err("this queue is not open"))
    }
}
