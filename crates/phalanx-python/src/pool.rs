//! The crew of a pool, as its maker has it, and the lots that it submits.

use std::os::fd::{AsFd, AsRawFd};
use std::sync::Arc;

use phalanx_pool::{End, LotSpec, News, SubmitError};
use phalanx_prim::Deadline;
use phalanx_shm::WaitError;
use pyo3::exceptions::{PyIndexError, PyMemoryError, PyRuntimeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict, PyList, PyTuple};

use crate::door::{Timeout, blocking};
use crate::payload::{self, Packer, Parcel};

pub(crate) fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<Crew>()?;
    module.add_class::<Lot>()?;
    Ok(())
}

/// How a worker calls the function with what it decodes.
pub(crate) const CALL_ONE: u8 = b'1';
pub(crate) const CALL_STAR: u8 = b'*';
pub(crate) const CALL_ALL: u8 = b'(';

fn refuse(error: SubmitError) -> PyErr {
    match error {
        SubmitError::Alloc(error) => PyMemoryError::new_err(error.to_string()),
        SubmitError::Closed => PyValueError::new_err("Pool not running"),
        error => PyRuntimeError::new_err(error.to_string()),
    }
}

/// A crew of worker processes that somebody starts. See `phalanx.pool`, which does.
#[pyclass(frozen, weakref, module = "phalanx._engine")]
pub(crate) struct Crew {
    crew: Arc<phalanx_pool::Crew>,
}

/// How tasks are to be run: seconds (0 for as long as it takes), tries, together, streamed.
#[derive(FromPyObject)]
struct Options(f64, u32, u32, bool);

impl Options {
    fn spec(&self) -> LotSpec {
        LotSpec {
            timeout_ns: if self.0 > 0.0 {
                (self.0 * 1e9) as u64
            } else {
                0
            },
            retries: self.1,
            together: self.2,
            streamed: self.3,
            ..LotSpec::default()
        }
    }
}

impl Crew {
    pub(crate) fn shared(&self) -> Arc<phalanx_pool::Crew> {
        Arc::clone(&self.crew)
    }

    fn send(
        &self,
        function: &Bound<'_, PyAny>,
        mut spec: LotSpec,
        packer: Packer,
    ) -> PyResult<Lot> {
        let Packer {
            bytes, mut holds, ..
        } = packer;
        spec.bytes = bytes;
        if let Ok(parcel) = function.cast::<Parcel>() {
            let parcel = parcel.get();
            spec.function_span = (spec.bytes.len(), parcel.bytes.len());
            spec.bytes.extend_from_slice(&parcel.bytes);
            holds.extend(parcel.holds.iter().cloned());
        } else {
            spec.function = function.extract()?;
        }
        let lot = self.crew.submit(&spec, &holds).map_err(refuse)?;
        Ok(Lot { lot: Arc::new(lot) })
    }
}

#[pymethods]
impl Crew {
    #[new]
    fn new(workers: u32, threads: u32) -> PyResult<Self> {
        let crew = phalanx_pool::Crew::new(workers, threads).map_err(refuse)?;
        Ok(Self { crew })
    }

    /// Names the crew for its workers: a reference and the descriptor of the bell.
    fn token(&self) -> (u64, i32) {
        let bell = self.crew.bell().as_fd().as_raw_fd();
        (self.crew.held().block().to_bits(), bell)
    }

    #[getter]
    fn is_mine(&self) -> bool {
        self.crew.is_mine()
    }

    /// Keeps a pickled function for the crew's life; returns its name.
    fn know(&self, parcel: &Parcel) -> PyResult<u64> {
        self.crew.know(&parcel.bytes, &parcel.holds).map_err(refuse)
    }

    /// Submits one call.
    fn apply(
        &self,
        function: &Bound<'_, PyAny>,
        args: &Bound<'_, PyAny>,
        kwds: &Bound<'_, PyAny>,
        options: Options,
    ) -> PyResult<Lot> {
        let mut spec = options.spec();
        let mut packer = Packer::new(function.py())?;
        let args = packer.broadcast_all(args)?;
        let both = PyTuple::new(args.py(), [&args, kwds])?;
        packer.bytes.push(CALL_ALL);
        packer.pack(both.as_any())?;
        spec.spans.push((0, packer.bytes.len()));
        self.send(function, spec, packer)
    }

    /// Submits a call per item of a list.
    fn map(
        &self,
        function: &Bound<'_, PyAny>,
        items: &Bound<'_, PyList>,
        star: bool,
        options: Options,
    ) -> PyResult<Lot> {
        let mut spec = options.spec();
        spec.spans.reserve(items.len());
        let mut packer = Packer::new(function.py())?;
        let how = if star { CALL_STAR } else { CALL_ONE };
        for item in items.iter() {
            let at = packer.bytes.len();
            packer.bytes.push(how);
            let item = if star {
                packer.broadcast_all(&item)?
            } else {
                packer.broadcast(&item)?
            };
            packer.pack(&item)?;
            spec.spans.push((at, packer.bytes.len() - at));
        }
        self.send(function, spec, packer)
    }

    /// Watches a worker that was started under a number.
    fn hired(&self, number: u32, pid: u32) {
        self.crew.hired(number, pid);
    }

    /// Sleeps until there is news: numbers of workers that ended, names of lots that are done.
    fn look(&self, py: Python<'_>, timeout: Option<f64>) -> PyResult<(Vec<u32>, Vec<u64>)> {
        let deadline = Timeout::from_seconds(timeout)?.deadline();
        let news = py.detach(|| self.crew.look(deadline));
        let (mut ended, mut done) = (Vec::new(), Vec::new());
        for one in news {
            match one {
                News::Ended(number) => ended.push(number),
                News::Done(lot) => done.push(lot),
            }
        }
        Ok((ended, done))
    }

    /// Settles what a dead worker left: had it a task, was it killed by us, had it become a worker.
    fn settle(&self, py: Python<'_>, number: u32, report: &[u8]) -> (bool, bool, bool) {
        let settled = py.detach(|| self.crew.settle(number, report));
        (settled.had_task, settled.killed, settled.ready)
    }

    fn ring(&self) {
        self.crew.ring();
    }

    fn close(&self) {
        self.crew.close();
    }

    fn is_idle(&self) -> bool {
        self.crew.is_idle()
    }

    fn dismiss(&self) {
        self.crew.dismiss();
    }

    /// Sends every worker a signal.
    fn signal(&self, signal: i32) {
        self.crew.signal(signal, End::Terminated);
    }

    /// Waits until every worker has ended; returns whether they have.
    fn wait_workers(&self, py: Python<'_>, timeout: f64) -> PyResult<bool> {
        let deadline = Timeout::from_seconds(Some(timeout))?.deadline();
        let deadline = deadline.unwrap_or(Deadline::PAST);
        Ok(py.detach(|| self.crew.wait_workers(deadline)))
    }

    /// Ends every task that is not done. No worker is alive.
    fn end_all(&self, py: Python<'_>, broken: bool) {
        let end = if broken { End::Broken } else { End::Terminated };
        py.detach(|| self.crew.end_all(end));
    }

    /// Why the crew is broken.
    fn broken<'py>(&self, py: Python<'py>) -> Option<Bound<'py, PyBytes>> {
        self.crew.broken().map(|bytes| PyBytes::new(py, &bytes))
    }

    fn break_with(&self, reason: &[u8]) {
        self.crew.break_with(reason);
    }

    fn __repr__(&self) -> String {
        format!("<phalanx crew: {}>", self.crew.describe())
    }

    /// Runs of tasks by seat, and seconds spent in them.
    fn runs(&self) -> Vec<(u64, f64)> {
        let runs = self.crew.runs().into_iter();
        runs.map(|(count, ns)| (count, ns as f64 / 1e9)).collect()
    }
}

/// Makes the object of a task that ended with a value. What was large is the caller's from then on: once only.
pub(crate) fn value_of<'py>(
    py: Python<'py>,
    lot: &phalanx_pool::Lot,
    index: usize,
) -> PyResult<Bound<'py, PyAny>> {
    match lot.take_block(index) {
        Some(message) => payload::decode_block(py, message),
        None => lot.with_result(index, |bytes| payload::decode(py, bytes)),
    }
}

/// Tasks that were submitted together.
#[pyclass(frozen, weakref, module = "phalanx._engine")]
pub(crate) struct Lot {
    lot: Arc<phalanx_pool::Lot>,
}

impl Lot {
    pub(crate) fn shared(&self) -> Arc<phalanx_pool::Lot> {
        Arc::clone(&self.lot)
    }

    fn check(&self, index: usize) -> PyResult<()> {
        if index < self.lot.len() {
            return Ok(());
        }
        Err(PyIndexError::new_err("no such task"))
    }
}

#[pymethods]
impl Lot {
    #[getter]
    fn id(&self) -> u64 {
        self.lot.id()
    }

    fn __len__(&self) -> usize {
        self.lot.len()
    }

    fn done(&self) -> bool {
        self.lot.is_done()
    }

    fn pending(&self) -> usize {
        self.lot.pending()
    }

    /// Blocks until all tasks are done; returns whether they are.
    fn wait(&self, py: Python<'_>, timeout: Option<f64>) -> PyResult<bool> {
        if self.lot.is_done() {
            return Ok(true);
        }
        let timeout = Timeout::from_seconds(timeout)?;
        let waited = blocking(py, timeout, |patience| -> Result<(), WaitError> {
            self.lot.wait(patience)
        })?;
        Ok(waited.is_some())
    }

    /// Asks the overseer to tell when all are done; `False` if they are.
    fn notify(&self) -> bool {
        self.lot.notify()
    }

    /// How a task ended, as a number; 0 while it has not.
    fn end(&self, index: usize) -> PyResult<u32> {
        self.check(index)?;
        Ok(self.lot.end_of(index).map_or(0, |end| end as u32))
    }

    fn running(&self, index: usize) -> PyResult<bool> {
        self.check(index)?;
        Ok(self.lot.is_running(index))
    }

    fn tries(&self, index: usize) -> PyResult<u32> {
        self.check(index)?;
        Ok(self.lot.tries(index))
    }

    /// The value of a task that ended with one.
    fn value<'py>(&self, py: Python<'py>, index: usize) -> PyResult<Bound<'py, PyAny>> {
        self.check(index)?;
        value_of(py, &self.lot, index)
    }

    /// The bytes of a task's end: an error, a report.
    fn raw<'py>(&self, py: Python<'py>, index: usize) -> PyResult<Bound<'py, PyBytes>> {
        self.check(index)?;
        Ok(self.lot.with_result(index, |bytes| PyBytes::new(py, bytes)))
    }

    /// All values, or the number of the first task without one.
    fn values<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        let values = PyList::empty(py);
        for index in 0..self.lot.len() {
            if self.lot.end_of(index) != Some(End::Value) {
                return Ok(index.into_pyobject(py)?.into_any());
            }
            values.append(self.value(py, index)?)?;
        }
        Ok(values.into_any())
    }

    /// The call a task is: its arguments and keywords.
    fn call<'py>(&self, py: Python<'py>, index: usize) -> PyResult<Bound<'py, PyAny>> {
        self.check(index)?;
        let bytes = self.lot.args(index);
        let Some((how, bytes)) = bytes.split_first() else {
            return Ok(PyTuple::empty(py).into_any());
        };
        let value = payload::decode(py, bytes)?;
        Ok(match *how {
            CALL_ALL => value,
            CALL_STAR => (value, PyDict::new(py)).into_pyobject(py)?.into_any(),
            _ => ((value,), PyDict::new(py)).into_pyobject(py)?.into_any(),
        })
    }

    /// Cancels a task; with `running` also one that runs.
    fn cancel(&self, index: usize, running: bool) -> PyResult<bool> {
        self.check(index)?;
        Ok(self.lot.cancel(index, running))
    }
}
