//! The crew of a pool, as its maker has it, and the lots that it submits.

use std::os::fd::{AsFd, AsRawFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use phalanx_pool::{End, LotSpec, News, SubmitError};
use phalanx_prim::Deadline;
use phalanx_shm::WaitError;
use pyo3::exceptions::{PyException, PyIndexError, PyMemoryError, PyRuntimeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyList, PyTuple};

use crate::door::{Timeout, blocking_until};
use crate::payload::{self, Looked, Packer, Parcel};

pub(crate) fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<Crew>()?;
    module.add_class::<Lot>()?;
    Ok(())
}

/// How a worker calls the function with what it decodes.
pub(crate) const CALL_ONE: u8 = b'1';
pub(crate) const CALL_STAR: u8 = b'*';
pub(crate) const CALL_ALL: u8 = b'(';
/// A task that is many calls: how, and a list of what it is called with.
pub(crate) const CALL_BATCH: u8 = b'#';
/// The values of such a task: one list, or each with its length before it.
pub(crate) const VALUES_LIST: u8 = b'L';
pub(crate) const VALUES_EACH: u8 = b'I';

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

/// A call, as [`Lot::call`] tells of it.
type Described<'py> = (char, Option<usize>, bool, Bound<'py, PyAny>);

/// Describes a call by the bytes of its arguments, or the one of several that lie together.
pub(crate) fn described<'py>(
    py: Python<'py>,
    args: &[u8],
    inside: usize,
) -> PyResult<Option<Described<'py>>> {
    let (how, inside, bytes) = match args {
        [CALL_BATCH, how, bytes @ ..] => (how, Some(inside), bytes),
        [how, bytes @ ..] => (how, None, bytes),
        [] => return Ok(None),
    };
    let how = char::from(*how);
    Ok(Some(match payload::look(py, bytes)? {
        Looked::Value(value) => (how, inside, false, value),
        Looked::Pickle(pickle) => (how, inside, true, pickle.into_any()),
    }))
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
    ) -> PyResult<Arc<phalanx_pool::Lot>> {
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
        Ok(Arc::new(self.crew.submit(&spec, &holds).map_err(refuse)?))
    }

    /// Submits batches of calls in a few lots: the first are run while the last are still being pickled.
    fn send_batches(
        &self,
        function: &Bound<'_, PyAny>,
        items: &Bound<'_, PyList>,
        how: u8,
        options: &Options,
        batch: usize,
        by_value: &Bound<'_, PyAny>,
    ) -> PyResult<Vec<Arc<phalanx_pool::Lot>>> {
        let batches = items.len().div_ceil(batch);
        let stride = batches.div_ceil(MOST_PARTS).max(LEAST_BATCHES) * batch;
        let mut parts = Vec::new();
        let mut packer = Packer::new(function.py())?;
        let mut spec = options.spec();
        let mut from = 0;
        while from < items.len() {
            let at = packer.bytes.len();
            let to = (from + batch).min(items.len());
            packer.bytes.extend_from_slice(&[CALL_BATCH, how]);
            let some = items.get_slice(from, to);
            let packed = packer.pack_items(&some);
            let packed = packed.or_else(|error| {
                if !error.is_instance_of::<PyException>(items.py()) {
                    return Err(error);
                }
                packer.bytes.truncate(at + 2);
                let some = some.iter().map(|item| by_value.call1((item,)));
                let again = some.collect::<PyResult<Vec<_>>>();
                let again = again.and_then(|some| PyList::new(items.py(), some));
                again
                    .and_then(|some| packer.pack_items(&some))
                    .map_err(|_| error)
            });
            if let Err(error) = packed {
                cancel_all(&parts);
                return Err(error);
            }
            spec.spans.push((at, packer.bytes.len() - at));
            from = to;
            if from % stride == 0 || from == items.len() {
                let packer = std::mem::replace(&mut packer, Packer::new(function.py())?);
                let spec = std::mem::replace(&mut spec, options.spec());
                match self.send(function, spec, packer) {
                    Ok(lot) => parts.push(lot),
                    Err(error) => {
                        cancel_all(&parts);
                        return Err(error);
                    }
                }
            }
        }
        Ok(parts)
    }
}

/// A map that cannot be submitted as a whole runs nothing more of what was.
fn cancel_all(parts: &[Arc<phalanx_pool::Lot>]) {
    for part in parts {
        for index in 0..part.len() {
            part.cancel(index, true);
        }
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
        let both = PyTuple::new(args.py(), [args, kwds])?;
        packer.bytes.push(CALL_ALL);
        packer.pack(both.as_any())?;
        spec.spans.push((0, packer.bytes.len()));
        Ok(Lot::new(vec![self.send(function, spec, packer)?], false))
    }

    /// Submits a call per item of a list, `batch` of them as one task. Where there are large arrays each is a task.
    /// What cannot be pickled is given to `by_value` first.
    fn map(
        &self,
        function: &Bound<'_, PyAny>,
        items: &Bound<'_, PyList>,
        star: bool,
        options: Options,
        batch: usize,
        by_value: &Bound<'_, PyAny>,
    ) -> PyResult<Lot> {
        let mut packer = Packer::new(function.py())?;
        let how = if star { CALL_STAR } else { CALL_ONE };
        if batch > 1 && items.len() > batch && !packer.has_large_arrays(items, star) {
            let parts = self.send_batches(function, items, how, &options, batch, by_value)?;
            return Ok(Lot::new(parts, true));
        }
        let mut spec = options.spec();
        spec.spans.reserve(items.len());
        packer.look_for_repeats(items, star);
        for item in items.iter() {
            let at = packer.bytes.len();
            packer.bytes.push(how);
            let ready = if star {
                packer.broadcast_all(&item)?
            } else {
                packer.broadcast(&item)?
            };
            if let Err(error) = packer.pack(&ready) {
                if !error.is_instance_of::<PyException>(items.py()) {
                    return Err(error);
                }
                packer.bytes.truncate(at + 1);
                let again = by_value.call1((&item,));
                if again.and_then(|item| packer.pack(&item)).is_err() {
                    return Err(error);
                }
            }
            spec.spans.push((at, packer.bytes.len() - at));
        }
        Ok(Lot::new(vec![self.send(function, spec, packer)?], false))
    }

    /// Limits the seconds that a worker may take to get ready.
    fn limit_starts(&self, seconds: f64) {
        self.crew
            .limit_starts(std::time::Duration::from_secs_f64(seconds));
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

    /// Settles what a dead worker left: had it a task, was it killed by us, had it become a worker, was it too late to.
    fn settle(&self, py: Python<'_>, number: u32, report: &[u8]) -> (bool, bool, bool, bool) {
        let settled = py.detach(|| self.crew.settle(number, report));
        (
            settled.had_task,
            settled.killed,
            settled.ready,
            settled.late,
        )
    }

    /// Tells whether some worker is ready.
    fn any_ready(&self) -> bool {
        self.crew.any_ready()
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

/// Most lots that one map is submitted as.
const MOST_PARTS: usize = 8;
/// Fewer batches than this are no lot of their own.
const LEAST_BATCHES: usize = 16;

/// Values that were decoded so far, the number of the next task, and what went wrong with it.
struct Decoded {
    values: Py<PyList>,
    next: usize,
    failed: Option<PyErr>,
}

/// Tasks of one call: numbered from 0, whatever lots they were submitted in.
#[pyclass(frozen, weakref, module = "phalanx._engine")]
pub(crate) struct Lot {
    parts: Vec<Arc<phalanx_pool::Lot>>,
    /// Each task is many calls.
    batched: bool,
    decoded: Mutex<Option<Decoded>>,
}

impl Lot {
    fn new(parts: Vec<Arc<phalanx_pool::Lot>>, batched: bool) -> Self {
        Self {
            parts,
            batched,
            decoded: Mutex::default(),
        }
    }

    /// The lot of a call that was submitted as one.
    ///
    /// # Errors
    ///
    /// `RuntimeError` for any other.
    pub(crate) fn shared(&self) -> PyResult<Arc<phalanx_pool::Lot>> {
        match self.parts.as_slice() {
            [part] => Ok(Arc::clone(part)),
            _ => Err(PyRuntimeError::new_err("a map in parts is no stream")),
        }
    }

    /// Finds a task by its number.
    fn at(&self, index: usize) -> PyResult<(&Arc<phalanx_pool::Lot>, usize)> {
        let mut inside = index;
        for part in &self.parts {
            if inside < part.len() {
                return Ok((part, inside));
            }
            inside -= part.len();
        }
        Err(PyIndexError::new_err("no such task"))
    }

    /// The first part that is not done.
    fn open(&self) -> Option<&Arc<phalanx_pool::Lot>> {
        self.parts.iter().find(|part| !part.is_done())
    }

    /// Appends the values of a task that is many calls.
    fn extend(values: &Bound<'_, PyList>, part: &phalanx_pool::Lot, index: usize) -> PyResult<()> {
        match part.take_block(index) {
            Some(message) => payload::decode_each(values, &message),
            None => part.with_result(index, |bytes| payload::decode_each(values, bytes)),
        }
    }

    /// Decodes the values of the first `parts` parts, which are done, as far as that was not done before. Answers the number
    /// of a task without a value.
    fn decode(
        &self,
        py: Python<'_>,
        decoded: &mut Decoded,
        parts: usize,
    ) -> PyResult<Option<usize>> {
        let values = decoded.values.bind(py).clone();
        let mut first = 0;
        for part in &self.parts[..parts] {
            for index in 0..part.len() {
                if first + index < decoded.next {
                    continue;
                }
                if part.end_of(index) != Some(End::Value) {
                    return Ok(Some(first + index));
                }
                if self.batched {
                    Self::extend(&values, part, index)?;
                } else {
                    values.append(value_of(py, part, index)?)?;
                }
                decoded.next = first + index + 1;
            }
            first += part.len();
        }
        Ok(None)
    }

    fn decode_to<'py>(&self, py: Python<'py>, parts: usize) -> PyResult<Bound<'py, PyAny>> {
        // Not held while values are made: that runs code of the user's.
        let taken = self.decoded().take();
        let mut decoded = taken.unwrap_or_else(|| Decoded {
            values: PyList::empty(py).unbind(),
            next: 0,
            failed: None,
        });
        let missing = match &decoded.failed {
            Some(error) => Err(error.clone_ref(py)),
            None => self.decode(py, &mut decoded, parts),
        };
        if let Err(error) = &missing
            && error.is_instance_of::<PyException>(py)
        {
            // What is large is read once: it would not be there a second time.
            decoded.failed = Some(error.clone_ref(py));
        }
        let values = decoded.values.clone_ref(py);
        *self.decoded() = Some(decoded);
        match missing? {
            Some(index) => Ok(index.into_pyobject(py)?.into_any()),
            None => Ok(values.into_bound(py).into_any()),
        }
    }

    fn decoded(&self) -> MutexGuard<'_, Option<Decoded>> {
        self.decoded.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[pymethods]
impl Lot {
    /// The name by which the overseer tells of it: that of a part, where it has several.
    #[getter]
    fn id(&self) -> u64 {
        let part = self.open().or_else(|| self.parts.last());
        part.map_or(0, |part| part.id())
    }

    fn __len__(&self) -> usize {
        self.parts.iter().map(|part| part.len()).sum()
    }

    fn done(&self) -> bool {
        self.open().is_none()
    }

    fn pending(&self) -> usize {
        self.parts.iter().map(|part| part.pending()).sum()
    }

    /// Blocks until all tasks are done; returns whether they are.
    fn wait(&self, py: Python<'_>, timeout: Option<f64>) -> PyResult<bool> {
        if self.done() {
            return Ok(true);
        }
        let deadline = Timeout::from_seconds(timeout)?.deadline();
        for part in &self.parts {
            if wait_until(py, part, deadline)?.is_none() {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// As `wait`, and makes values of what is done meanwhile. For one thread. What goes wrong with a value is told by
    /// `values`.
    fn collect(&self, py: Python<'_>, timeout: Option<f64>) -> PyResult<bool> {
        let deadline = Timeout::from_seconds(timeout)?.deadline();
        for (number, part) in self.parts.iter().enumerate() {
            if wait_until(py, part, deadline)?.is_none() {
                return Ok(false);
            }
            if number + 1 < self.parts.len()
                && let Err(error) = self.decode_to(py, number + 1)
                && !error.is_instance_of::<PyException>(py)
            {
                return Err(error);
            }
        }
        Ok(true)
    }

    /// Asks the overseer to tell when the part named by `id` is done; `False` if it is.
    fn notify(&self) -> bool {
        self.open().is_some_and(|part| part.notify())
    }

    /// How a task ended, as a number; 0 while it has not.
    fn end(&self, index: usize) -> PyResult<u32> {
        let (part, index) = self.at(index)?;
        Ok(part.end_of(index).map_or(0, |end| end as u32))
    }

    fn running(&self, index: usize) -> PyResult<bool> {
        let (part, index) = self.at(index)?;
        Ok(part.is_running(index))
    }

    fn tries(&self, index: usize) -> PyResult<u32> {
        let (part, index) = self.at(index)?;
        Ok(part.tries(index))
    }

    /// The value of a task that ended with one.
    fn value<'py>(&self, py: Python<'py>, index: usize) -> PyResult<Bound<'py, PyAny>> {
        let (part, index) = self.at(index)?;
        value_of(py, part, index)
    }

    /// The bytes of a task's end: an error, a report.
    fn raw<'py>(&self, py: Python<'py>, index: usize) -> PyResult<Bound<'py, PyBytes>> {
        let (part, index) = self.at(index)?;
        Ok(part.with_result(index, |bytes| PyBytes::new(py, bytes)))
    }

    /// All values, or the number of the first task without one.
    fn values<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        self.decode_to(py, self.parts.len())
    }

    /// The call a task is, or the one of its calls with this number, for a description: how the function takes its arguments (`(`
    /// for arguments and keywords, `*` for arguments, `1` for one argument), its number among the calls that lie together,
    /// whether a pickle follows, and the value or that pickle. Nothing of it is unpickled.
    #[pyo3(signature = (index, inside=0))]
    fn call<'py>(
        &self,
        py: Python<'py>,
        index: usize,
        inside: usize,
    ) -> PyResult<Option<Described<'py>>> {
        let (part, index) = self.at(index)?;
        described(py, part.args(index), inside)
    }

    /// Cancels a task; with `running` also one that runs.
    fn cancel(&self, index: usize, running: bool) -> PyResult<bool> {
        let (part, index) = self.at(index)?;
        Ok(part.cancel(index, running))
    }
}

fn wait_until(
    py: Python<'_>,
    lot: &phalanx_pool::Lot,
    deadline: Option<Deadline>,
) -> PyResult<Option<()>> {
    if lot.is_done() {
        return Ok(Some(()));
    }
    blocking_until(py, deadline, |patience| -> Result<(), WaitError> {
        lot.wait(patience)
    })
}
