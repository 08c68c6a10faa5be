//! How a Python object that stands for an object in the arena is pickled, and read back.
//!
//! A pickle carries a number, the object's name in the arena; [`give`] makes one, [`take`] reads one. The object must live
//! until the receiver has a hold of its own:
//!
//! | the pickle goes | what keeps the object |
//! |---|---|
//! | into a queue or a task of ours | a hold that travels with the message ([`phalanx_sync::handle::collect`] around the pickling) |
//! | to a process that is being started | the sender's Python object, kept by the `Popen` object |
//! | anywhere else | nobody but whoever else holds it; a number that came too late raises `RuntimeError` |

use phalanx_shm::{Held, HoldOrAlloc};
use phalanx_sync::handle::{Handle, receive, travel};
use pyo3::exceptions::{PyMemoryError, PyRuntimeError};
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyDict, PyList};

/// The attribute of a `Popen` object under which it keeps what its child is being sent.
const KEPT: &str = "_phalanx_kept";

/// Returns the number to write into a pickle of `this`, and sees to it that the object lives until it has arrived.
///
/// # Errors
///
/// `RuntimeError` if the object is gone, `MemoryError` if no hold on it can be noted.
pub(crate) fn give(this: &Bound<'_, PyAny>, held: &Held) -> PyResult<u64> {
    match travel(held) {
        Ok(true) => {}
        Ok(false) => keep_while_spawning(this)?,
        Err(HoldOrAlloc::Stale(error)) => return Err(PyRuntimeError::new_err(error.to_string())),
        Err(HoldOrAlloc::Alloc(error)) => return Err(PyMemoryError::new_err(error.to_string())),
    }
    Ok(held.block().to_bits())
}

/// Makes a handle of a number out of a pickle: a hold of this process.
///
/// # Errors
///
/// `RuntimeError` if the object is gone or of another kind.
pub(crate) fn take<H: Handle>(bits: u64) -> PyResult<H> {
    receive(H::KIND, bits)
        .map(H::from_held)
        .map_err(PyRuntimeError::new_err)
}

fn keep_while_spawning(this: &Bound<'_, PyAny>) -> PyResult<()> {
    static SPAWNING: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
    let py = this.py();
    let popen = SPAWNING
        .import(py, "multiprocessing.context", "get_spawning_popen")?
        .call0()?;
    if popen.is_none() {
        return Ok(());
    }
    match popen.getattr_opt(KEPT)? {
        Some(kept) => kept.cast::<PyList>()?.append(this),
        None => popen.setattr(KEPT, PyList::new(py, [this])?),
    }
}

/// Returns what a subclass or user put on the object, for the third part of a reduction; `None` if there is nothing.
pub(crate) fn extras<'py>(this: &Bound<'py, PyAny>) -> PyResult<Option<Bound<'py, PyDict>>> {
    let Some(dict) = this.getattr_opt("__dict__")? else {
        return Ok(None);
    };
    let dict = dict.cast_into::<PyDict>()?;
    Ok((!dict.is_empty()).then_some(dict))
}
