//! The Python face: the extension module `phalanx._engine`.
//!
//! One file per class and no algorithms: mechanism is in the crates below. [`door`] is the only place that lets the
//! interpreter's lock go, hears signals, and turns the engine's errors into Python's.
#![warn(missing_docs)]

mod door;
mod payload;
mod pool;
mod session;
mod stream;
mod worker;

use pyo3::prelude::*;

/// What `phalanx` is made of; use the package, not this.
#[pymodule(gil_used = true)]
fn _engine(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add("__version__", env!("CARGO_PKG_VERSION"))?;
    pool::register(module)?;
    session::register(module)?;
    stream::register(module)?;
    worker::register(module)?;
    Ok(())
}
