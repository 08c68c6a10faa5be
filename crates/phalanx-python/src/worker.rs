//! A thread of a pool's worker process.
#![expect(unsafe_code, reason = "a descriptor that comes as a number")]

use std::collections::HashMap;
use std::os::fd::{FromRawFd, OwnedFd};
use std::sync::Arc;

use phalanx_channel::Loan;
use phalanx_pool::{CrewWorker, End, Leaving, Work};
use phalanx_shm::{BlockRef, session};
use phalanx_sys::event::EventFd;
use pyo3::exceptions::PyRuntimeError;
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict, PyList, PyTuple};

use crate::door::{Timeout, blocking, raise};
use crate::message::{self, Encoded};
use crate::payload::{self, Packer};
use crate::pool::{CALL_ALL, CALL_BATCH, CALL_STAR};

pub(crate) fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<Hand>()?;
    Ok(())
}

/// One thread's seat in a crew.
#[pyclass(module = "phalanx._engine")]
struct Hand {
    worker: CrewWorker,
    leaving: Arc<Leaving>,
    bell: Arc<EventFd>,
    crew: u64,
    functions: HashMap<u64, Py<PyAny>>,
    /// The function of the lot that was last worked on, where it is not known to the crew.
    last: Option<(u64, Py<PyAny>)>,
    out: Vec<u8>,
}

fn take_seat(
    crew: u64,
    bell: Arc<EventFd>,
    number: u32,
    leaving: &Arc<Leaving>,
) -> PyResult<CrewWorker> {
    let gone = || PyRuntimeError::new_err("the pool is gone");
    let arena = session().map_err(raise)?;
    let block = BlockRef::from_bits(crew).ok_or_else(gone)?;
    let held = arena.hold(block).map_err(|_| gone())?;
    CrewWorker::join(held, bell, number, Arc::clone(leaving)).ok_or_else(gone)
}

#[pymethods]
impl Hand {
    /// Takes a seat: the crew's name, the descriptor of its bell (which becomes ours), the seat's number.
    #[new]
    fn new(crew: u64, bell: i32, number: u32) -> PyResult<Self> {
        let bell = Arc::new(EventFd::from_fd(owned(bell)));
        let leaving = Arc::new(Leaving::default());
        Ok(Self {
            worker: take_seat(crew, Arc::clone(&bell), number, &leaving)?,
            leaving,
            bell,
            crew,
            functions: HashMap::new(),
            last: None,
            out: Vec::new(),
        })
    }

    /// Takes another seat, for another thread of this process.
    fn beside(&self, number: u32) -> PyResult<Self> {
        Ok(Self {
            worker: take_seat(self.crew, Arc::clone(&self.bell), number, &self.leaving)?,
            leaving: Arc::clone(&self.leaving),
            bell: Arc::clone(&self.bell),
            crew: self.crew,
            functions: HashMap::new(),
            last: None,
            out: Vec::new(),
        })
    }

    fn ready(&self) {
        self.worker.ready();
    }

    fn break_with(&self, reason: &[u8]) {
        self.worker.break_with(reason);
    }

    /// Works until the crew has nothing more, or `most` times (0: for ever). `fail(exception, unsendable)` makes the bytes
    /// of an exception: with `unsendable`, of the result that could not be encoded.
    fn run(&mut self, py: Python<'_>, most: u64, fail: &Bound<'_, PyAny>) -> PyResult<()> {
        let mut done = 0;
        loop {
            let worker = &mut self.worker;
            let work = blocking(py, Timeout::Never, |patience| worker.next(patience))?;
            match work {
                Some(Work::Range) => {}
                Some(Work::Over) | None => return Ok(()),
            }
            let function = self.function(py);
            while let Some(index) = self.worker.begin() {
                match &function {
                    Ok(function) => self.run_one(py, index, function.bind(py), fail)?,
                    Err(error) => {
                        let bytes = failure(py, fail, error, None)?;
                        self.tell(py, index, End::Error, bytes.as_bytes(), fail)?;
                    }
                }
            }
            done += 1;
            if most != 0 && done >= most {
                self.worker.leave();
                return Ok(());
            }
        }
    }
}

fn owned(fd: i32) -> OwnedFd {
    // SAFETY: `phalanx.pool` duplicates the descriptor for this call and forgets it.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

fn failure<'py>(
    py: Python<'py>,
    fail: &Bound<'py, PyAny>,
    error: &PyErr,
    unsendable: Option<&Bound<'py, PyAny>>,
) -> PyResult<Bound<'py, PyBytes>> {
    let value = error.value(py);
    if let Some(traceback) = error.traceback(py) {
        value.setattr(intern!(py, "__traceback__"), traceback)?;
    }
    let bytes = fail.call1((value, unsendable))?;
    Ok(bytes.cast_into::<PyBytes>()?)
}

impl Hand {
    fn function(&mut self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        let lot = self.worker.lot();
        if let Some((of, function)) = &self.last
            && *of == lot
        {
            return Ok(function.clone_ref(py));
        }
        let functions = &self.functions;
        let found = self.worker.with_function(|name, bytes| {
            if let Some(function) = functions.get(&name) {
                return Ok((0, function.clone_ref(py)));
            }
            let function = payload::decode(py, bytes)?;
            Ok::<_, PyErr>((name, function.unbind()))
        });
        let (name, function) =
            found.ok_or_else(|| PyRuntimeError::new_err("the pool's function is gone"))??;
        if name != 0 {
            self.functions.insert(name, function.clone_ref(py));
        } else if !self.functions.values().any(|known| known.is(&function)) {
            self.last = Some((lot, function.clone_ref(py)));
        }
        Ok(function)
    }

    fn run_one(
        &mut self,
        py: Python<'_>,
        index: u32,
        function: &Bound<'_, PyAny>,
        fail: &Bound<'_, PyAny>,
    ) -> PyResult<()> {
        if self.worker.args(index).first() == Some(&CALL_BATCH) {
            return self.run_batch(py, index, function, fail);
        }
        let (how, args) = match self.read(py, index) {
            Ok(read) => read,
            // An executor is broken by what cannot be read: its worker ends, and says why on its stderr.
            Err(error) if fail.getattr("ends_worker")?.is_truthy()? => return Err(error),
            Err(error) => {
                let bytes = failure(py, fail, &error, None)?;
                drop(error);
                return self.tell(py, index, End::Error, bytes.as_bytes(), fail);
            }
        };
        let value = match call(function, how, args) {
            Ok(value) => value,
            Err(error) => {
                let bytes = failure(py, fail, &error, None)?;
                drop(error);
                return self.tell(py, index, End::Error, bytes.as_bytes(), fail);
            }
        };
        match self.send(py, index, &value) {
            Ok(()) => Ok(()),
            Err(error) => {
                let bytes = failure(py, fail, &error, Some(&value))?;
                self.tell(py, index, End::Error, bytes.as_bytes(), fail)
            }
        }
    }

    /// Runs a task that is many calls. The first that raises ends it.
    fn run_batch(
        &mut self,
        py: Python<'_>,
        index: u32,
        function: &Bound<'_, PyAny>,
        fail: &Bound<'_, PyAny>,
    ) -> PyResult<()> {
        let mut values = Vec::with_capacity(64);
        let mut raised = None;
        let (how, items) = match self.worker.args(index) {
            [CALL_BATCH, how, items @ ..] => (*how, items),
            _ => return Err(PyRuntimeError::new_err("a task without arguments")),
        };
        let read = payload::for_each(py, items, |item| {
            self.worker.inside(values.len() as u64);
            match call(function, how, item) {
                Ok(value) => values.push(value),
                Err(error) => raised = Some(error),
            }
            raised.is_none()
        });
        self.worker.inside(0);
        self.worker
            .count_calls((values.len() as u64).saturating_sub(1));
        if let Err(error) = read.and(raised.map_or(Ok(()), Err)) {
            let bytes = failure(py, fail, &error, None)?;
            drop(error);
            return self.tell(py, index, End::Error, bytes.as_bytes(), fail);
        }
        let mut packer = Packer::new(py)?;
        let sent = packer.pack_each(py, &values).and_then(|()| {
            self.worker
                .finish(index, End::Value, &packer.bytes, &packer.holds)
                .map_err(raise)
        });
        match sent {
            Ok(()) => Ok(()),
            Err(error) => {
                let values = PyList::new(py, values)?;
                let bytes = failure(py, fail, &error, Some(values.as_any()))?;
                self.tell(py, index, End::Error, bytes.as_bytes(), fail)
            }
        }
    }

    fn send(&mut self, py: Python<'_>, index: u32, value: &Bound<'_, PyAny>) -> PyResult<()> {
        let arena = session().map_err(raise)?;
        let loan = match message::encode(arena, value, &mut self.out)? {
            Encoded::Small => {
                return self
                    .worker
                    .finish(index, End::Value, &self.out, &[])
                    .map_err(raise);
            }
            Encoded::Bytes(tag, object) => {
                message::with_bytes_of(object.bind(py), |bytes| -> PyResult<Loan> {
                    let mut loan = Loan::new(arena, bytes.len() + 1, &[]).map_err(raise)?;
                    loan[0] = tag;
                    message::copy(py, bytes, &mut loan[1..]);
                    Ok(loan)
                })??
            }
            Encoded::Placed(loan) => loan,
        };
        self.worker.finish_with(index, End::Value, loan);
        Ok(())
    }

    /// Reads a task's arguments, and how the function takes them.
    fn read<'py>(&self, py: Python<'py>, index: u32) -> PyResult<(u8, Bound<'py, PyAny>)> {
        let bytes = self.worker.args(index);
        let Some((how, bytes)) = bytes.split_first() else {
            return Err(PyRuntimeError::new_err("a task without arguments"));
        };
        // This seat's and the worker's: no other thread of this process has one.
        let alone = Arc::strong_count(&self.leaving) == 2;
        let value = if alone && self.worker.runs_once() {
            payload::decode_once(py, bytes)?
        } else {
            payload::decode(py, bytes)?
        };
        Ok((*how, value))
    }

    fn tell(
        &mut self,
        py: Python<'_>,
        index: u32,
        end: End,
        bytes: &[u8],
        fail: &Bound<'_, PyAny>,
    ) -> PyResult<()> {
        if let Err(error) = self.worker.finish(index, end, bytes, &[]) {
            let error = raise(error);
            let bytes = failure(py, fail, &error, None)?;
            // A sentence fits, or its worker's end must do.
            self.worker
                .finish(index, End::Error, bytes.as_bytes(), &[])
                .map_err(raise)?;
        }
        Ok(())
    }
}

fn call<'py>(
    function: &Bound<'py, PyAny>,
    how: u8,
    value: Bound<'py, PyAny>,
) -> PyResult<Bound<'py, PyAny>> {
    match how {
        CALL_ALL => {
            let (args, kwds) = value.extract::<(Bound<'_, PyAny>, Bound<'_, PyAny>)>()?;
            drop(value);
            call_with(function, args, Some(kwds))
        }
        CALL_STAR => call_with(function, value, None),
        _ => function.call1((value,)),
    }
}

/// Calls `function(*args, **kwds)`.
fn call_with<'py>(
    function: &Bound<'py, PyAny>,
    args: Bound<'py, PyAny>,
    kwds: Option<Bound<'py, PyAny>>,
) -> PyResult<Bound<'py, PyAny>> {
    let py = function.py();
    let args = match args.cast_into::<PyTuple>() {
        Ok(args) => args,
        Err(error) => py
            .get_type::<PyTuple>()
            .call1((error.into_inner(),))?
            .cast_into::<PyTuple>()?,
    };
    let kwds = match kwds {
        Some(kwds) if kwds.is_instance_of::<PyDict>() && kwds.len()? == 0 => None,
        Some(kwds) => {
            let dict = PyDict::new(py);
            dict.update(kwds.cast()?)?;
            Some(dict)
        }
        None => None,
    };
    function.call(args, kwds.as_ref())
}
