//! This process's place in the tree: the arena, as far as Python must know of it.

use std::os::fd::{AsFd, AsRawFd};

use phalanx_shm::{current_slot, session, session_if_any};
use pyo3::prelude::*;

use crate::door::raise;

pub(crate) fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_function(wrap_pyfunction!(has_session, module)?)?;
    module.add_function(wrap_pyfunction!(arena_fd, module)?)?;
    module.add_function(wrap_pyfunction!(slot, module)?)?;
    module.add_function(wrap_pyfunction!(processes, module)?)?;
    module.add_function(wrap_pyfunction!(usage, module)?)?;
    module.add_function(wrap_pyfunction!(census, module)?)?;
    Ok(())
}

/// Tells whether this process uses the engine already.
#[pyfunction]
fn has_session() -> bool {
    session_if_any().is_some()
}

/// Returns the descriptor of the arena, making one on first use. It stays the engine's: duplicate it to keep it.
#[pyfunction]
fn arena_fd() -> PyResult<i32> {
    let arena = session().map_err(raise)?;
    Ok(arena
        .region()
        .file()
        .map_or(-1, |file| file.as_fd().as_raw_fd()))
}

/// Returns this process's number in the tree, joining it on first use.
#[pyfunction]
fn slot() -> u16 {
    current_slot()
}

/// Returns blocks in use, bytes asked for by them, and bytes of memory the arena has from the system.
#[pyfunction]
fn usage() -> PyResult<(usize, usize, u64)> {
    let usage = session().map_err(raise)?.usage();
    Ok((usage.blocks, usage.bytes, usage.committed))
}

/// Returns kind and holder of every block in use, in no order.
#[pyfunction]
fn census() -> PyResult<Vec<(String, u16)>> {
    let census = session().map_err(raise)?.census();
    Ok(census
        .iter()
        .map(|(kind, holder)| (format!("{kind:?}"), *holder))
        .collect())
}

/// Returns slot, process id and parent's slot of every process of the tree that runs or is being started.
#[pyfunction]
fn processes() -> PyResult<Vec<(u16, u32, u16)>> {
    let processes = session().map_err(raise)?.processes();
    Ok(processes
        .iter()
        .map(|one| (one.slot, one.pid, one.parent))
        .collect())
}
