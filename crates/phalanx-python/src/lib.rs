//! The Python face: the extension module `phalanx._engine`.
//!
//! One file per class and no algorithms: mechanism is in the crates below. `door` is the only place that lets the
//! interpreter's lock go, hears signals, and turns the engine's errors into Python's.
#![warn(missing_docs)]

mod barrier;
mod buffers;
mod codec;
mod condition;
mod connection;
mod door;
mod event;
mod handle;
mod message;
mod pickle;
mod queue;
mod semlock;
mod session;
mod values;
mod ward;

use pyo3::prelude::*;

/// What `phalanx` is made of; use the package, not this.
#[pymodule(gil_used = true)]
fn _engine(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add("__version__", env!("CARGO_PKG_VERSION"))?;
    barrier::register(module)?;
    condition::register(module)?;
    connection::register(module)?;
    event::register(module)?;
    message::register(module)?;
    queue::register(module)?;
    semlock::register(module)?;
    session::register(module)?;
    values::register(module)?;
    ward::register(module)?;
    Ok(())
}
