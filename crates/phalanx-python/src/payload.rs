//! Objects as bytes of a lot: arguments, functions and results.

use pyo3::intern;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyBool, PyBytes, PyFloat, PyInt, PyString};

struct Tools {
    dumps: Py<PyAny>,
    loads: Py<PyAny>,
    forking: Py<PyAny>,
}

fn tools(py: Python<'_>) -> PyResult<&'static Tools> {
    static TOOLS: PyOnceLock<Tools> = PyOnceLock::new();
    TOOLS.get_or_try_init(py, || {
        let native = py.import("_pickle")?;
        let forking = py
            .import("multiprocessing.reduction")?
            .getattr("ForkingPickler")?;
        Ok(Tools {
            dumps: native.getattr("dumps")?.unbind(),
            loads: native.getattr("loads")?.unbind(),
            forking: forking.unbind(),
        })
    })
}

fn is_plain(value: &Bound<'_, PyAny>) -> bool {
    value.is_none()
        || value.is_exact_instance_of::<PyInt>()
        || value.is_exact_instance_of::<PyString>()
        || value.is_exact_instance_of::<PyFloat>()
        || value.is_exact_instance_of::<PyBytes>()
        || value.is_exact_instance_of::<PyBool>()
}

/// Appends `value` to `out`.
///
/// # Errors
///
/// What pickling raises.
pub(crate) fn encode(value: &Bound<'_, PyAny>, out: &mut Vec<u8>) -> PyResult<()> {
    let py = value.py();
    let tools = tools(py)?;
    if is_plain(value) {
        let bytes = tools.dumps.bind(py).call1((value, 5))?;
        out.extend_from_slice(bytes.cast::<PyBytes>()?.as_bytes());
        return Ok(());
    }
    let view = tools
        .forking
        .bind(py)
        .call_method1(intern!(py, "dumps"), (value, 5))?;
    let view = pyo3::buffer::PyBuffer::<u8>::get(&view)?;
    out.extend_from_slice(&view.to_vec(py)?);
    Ok(())
}

/// Makes an object of bytes.
///
/// # Errors
///
/// What unpickling raises.
pub(crate) fn decode<'py>(py: Python<'py>, bytes: &[u8]) -> PyResult<Bound<'py, PyAny>> {
    tools(py)?.loads.bind(py).call1((PyBytes::new(py, bytes),))
}
