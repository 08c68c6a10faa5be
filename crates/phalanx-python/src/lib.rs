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
mod frames;
mod handle;
mod hot;
mod manager_store;
mod message;
mod payload;
mod pickle;
mod places;
mod pool;
mod queue;
mod queue_local;
mod semlock;
mod session;
mod stream;
mod thread_barrier;
mod thread_condition;
mod thread_event;
mod thread_lock;
mod thread_semaphore;
mod thread_wait;
mod values;
mod ward;
mod watch;
mod words;
mod worker;

use pyo3::prelude::*;

/// What `phalanx` is made of; use the package, not this.
#[pymodule(gil_used = true)]
fn _engine(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add("__version__", env!("CARGO_PKG_VERSION"))?;
    barrier::register(module)?;
    condition::register(module)?;
    connection::register(module)?;
    event::register(module)?;
    hot::register(module)?;
    manager_store::register(module)?;
    message::register(module)?;
    payload::register(module)?;
    pool::register(module)?;
    queue::register(module)?;
    queue_local::register(module)?;
    semlock::register(module)?;
    session::register(module)?;
    stream::register(module)?;
    thread_barrier::register(module)?;
    thread_condition::register(module)?;
    thread_event::register(module)?;
    thread_lock::register(module)?;
    thread_semaphore::register(module)?;
    values::register(module)?;
    ward::register(module)?;
    watch::register(module)?;
    words::register(module)?;
    worker::register(module)?;
    Ok(())
}
