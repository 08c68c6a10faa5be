//! The interpreter's own pickler, set up once: protocol 5, buffers aside, and the reducers that `multiprocessing` knows.

use std::sync::{Mutex, PoisonError};

use pyo3::exceptions::PyKeyError;
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyBytes, PyDict, PyList};

/// Buffers of fewer bytes stay in the pickle: a page of their own costs more than a copy.
pub(crate) const ASIDE_FROM: usize = 16 * 1024;

/// Looks a type up where `ForkingPickler` does: among its own reducers first, then copyreg's. Both are read when asked, so a
/// late `register` counts.
#[pyclass(frozen, mapping, module = "phalanx._engine")]
struct Reducers {
    own: Py<PyDict>,
    common: Py<PyDict>,
}

#[pymethods]
impl Reducers {
    fn __getitem__(&self, py: Python<'_>, class: &Bound<'_, PyAny>) -> PyResult<Py<PyAny>> {
        if let Some(reducer) = self.own.bind(py).get_item(class)? {
            return Ok(reducer.unbind());
        }
        match self.common.bind(py).get_item(class)? {
            Some(reducer) => Ok(reducer.unbind()),
            None => Err(PyKeyError::new_err(())),
        }
    }
}

/// What a pickler writes to: pieces of the pickle, and buffers that travel beside it.
#[pyclass(frozen, module = "phalanx._engine")]
struct Sink(Mutex<Pieces>);

#[derive(Default)]
struct Pieces {
    pickle: Vec<Py<PyBytes>>,
    buffers: Vec<Py<PyAny>>,
}

#[pymethods]
impl Sink {
    fn write(&self, data: &Bound<'_, PyAny>) -> PyResult<()> {
        let piece = match data.cast_exact::<PyBytes>() {
            Ok(bytes) => bytes.clone(),
            // A bytearray can change before it is copied for good.
            Err(_) => PyBytes::new(
                data.py(),
                &data
                    .extract::<pyo3::buffer::PyBuffer<u8>>()?
                    .to_vec(data.py())?,
            ),
        };
        self.open().pickle.push(piece.unbind());
        Ok(())
    }

    /// Answers whether the buffer shall stay in the pickle.
    fn __call__(&self, buffer: &Bound<'_, PyAny>) -> PyResult<bool> {
        let py = buffer.py();
        // Not contiguous: the pickler says what it thinks of that.
        let Ok(raw) = buffer.call_method0(intern!(py, "raw")) else {
            return Ok(true);
        };
        if raw.len()? < ASIDE_FROM {
            return Ok(true);
        }
        self.open().buffers.push(raw.unbind());
        Ok(false)
    }
}

impl Sink {
    fn open(&self) -> std::sync::MutexGuard<'_, Pieces> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A pickle.
pub(crate) struct Pickled {
    pub(crate) pickle: Vec<Py<PyBytes>>,
    /// Memoryviews of bytes.
    pub(crate) buffers: Vec<Py<PyAny>>,
}

impl Pickled {
    pub(crate) fn pickle_len(&self, py: Python<'_>) -> usize {
        self.pickle
            .iter()
            .map(|piece| piece.bind(py).as_bytes().len())
            .sum()
    }
}

/// A pickler and what it writes to.
type Pair = (Py<PyAny>, Py<Sink>);

struct Tools {
    pickler: Py<PyAny>,
    loads: Py<PyAny>,
    reducers: Py<Reducers>,
    forking: Py<PyAny>,
    /// Picklers with their sinks, to be used again: those of messages, and those of the wire.
    idle: [Mutex<Vec<Pair>>; 2],
}

fn tools(py: Python<'_>) -> PyResult<&'static Tools> {
    static TOOLS: PyOnceLock<Tools> = PyOnceLock::new();
    TOOLS.get_or_try_init(py, || {
        let native = py.import("_pickle")?;
        let forking = py
            .import("multiprocessing.reduction")?
            .getattr("ForkingPickler")?;
        let own = forking.getattr("_extra_reducers")?.cast_into::<PyDict>()?;
        let common = forking
            .getattr("_copyreg_dispatch_table")?
            .cast_into::<PyDict>()?;
        Ok(Tools {
            pickler: native.getattr("Pickler")?.unbind(),
            loads: native.getattr("loads")?.unbind(),
            reducers: Py::new(
                py,
                Reducers {
                    own: own.unbind(),
                    common: common.unbind(),
                },
            )?,
            forking: forking.unbind(),
            idle: [const { Mutex::new(Vec::new()) }; 2],
        })
    })
}

/// Pickles `object` as `ForkingPickler` would, with protocol 5 and large buffers aside.
///
/// # Errors
///
/// What pickling raises.
pub(crate) fn dump(object: &Bound<'_, PyAny>) -> PyResult<Pickled> {
    let pieces = dump_with(object, true)?;
    Ok(Pickled {
        pickle: pieces.pickle,
        buffers: pieces.buffers,
    })
}

/// Pickles `object` as `ForkingPickler` would, into pieces that belong together.
///
/// # Errors
///
/// What pickling raises.
pub(crate) fn dump_plain(object: &Bound<'_, PyAny>) -> PyResult<Vec<Py<PyBytes>>> {
    Ok(dump_with(object, false)?.pickle)
}

fn dump_with(object: &Bound<'_, PyAny>, aside: bool) -> PyResult<Pieces> {
    let py = object.py();
    let tools = tools(py)?;
    if tools
        .forking
        .bind(py)
        .hasattr(intern!(py, "reducer_override"))?
    {
        // Somebody taught the stock pickler more than a table can say.
        let bytes = dump_whole(object)?.cast_into::<PyBytes>()?;
        return Ok(Pieces {
            pickle: vec![bytes.unbind()],
            buffers: Vec::new(),
        });
    }
    let idle = &tools.idle[usize::from(aside)];
    let idle = || idle.lock().unwrap_or_else(PoisonError::into_inner);
    let pair = idle().pop();
    let (pickler, sink) = match pair {
        Some(pair) => pair,
        None => new_pickler(py, tools, aside)?,
    };
    // After an error the pickler may be in any state, and is let go.
    pickler
        .bind(py)
        .call_method1(intern!(py, "dump"), (object,))?;
    pickler.bind(py).call_method0(intern!(py, "clear_memo"))?;
    let pieces = std::mem::take(&mut *sink.get().open());
    let mut idle = idle();
    if idle.len() < 8 {
        idle.push((pickler, sink));
    }
    Ok(pieces)
}

fn new_pickler(py: Python<'_>, tools: &Tools, aside: bool) -> PyResult<Pair> {
    let sink = Py::new(py, Sink(Mutex::default()))?;
    let kwargs = PyDict::new(py);
    if aside {
        kwargs.set_item(intern!(py, "protocol"), 5)?;
        // The same object takes the bytes and is asked about buffers.
        kwargs.set_item(intern!(py, "buffer_callback"), sink.bind(py))?;
    }
    let pickler = tools
        .pickler
        .bind(py)
        .call((sink.bind(py),), Some(&kwargs))?;
    pickler.setattr(intern!(py, "dispatch_table"), tools.reducers.bind(py))?;
    Ok((pickler.unbind(), sink))
}

/// Unpickles.
///
/// # Errors
///
/// What unpickling raises.
pub(crate) fn load<'py>(
    pickle: &Bound<'py, PyAny>,
    buffers: Option<&Bound<'py, PyList>>,
) -> PyResult<Bound<'py, PyAny>> {
    let py = pickle.py();
    let loads = tools(py)?.loads.bind(py);
    match buffers {
        None => loads.call1((pickle,)),
        Some(buffers) => {
            let kwargs = PyDict::new(py);
            kwargs.set_item(intern!(py, "buffers"), buffers)?;
            loads.call((pickle,), Some(&kwargs))
        }
    }
}

/// Pickles into bytes, with the stock class.
///
/// # Errors
///
/// What pickling raises.
pub(crate) fn dump_whole<'py>(object: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyAny>> {
    let py = object.py();
    let view = tools(py)?
        .forking
        .bind(py)
        .call_method1(intern!(py, "dumps"), (object,))?;
    Ok(PyBytes::new(py, &pyo3::buffer::PyBuffer::<u8>::get(&view)?.to_vec(py)?).into_any())
}
