//! Processes that the standard library starts and collects: their place in the tree, and what surrounds a fork.
#![expect(
    unsafe_code,
    reason = "descriptors that the parent passed on by number"
)]

use std::os::fd::AsRawFd;

use phalanx_process::{self as process, ExitStatus};
use phalanx_shm::session_if_any;
use pyo3::exceptions::{PyOSError, PyRuntimeError};
use pyo3::prelude::*;

use crate::door::raise;

pub(crate) fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<Ward>()?;
    module.add_function(wrap_pyfunction!(enter, module)?)?;
    module.add_function(wrap_pyfunction!(serve_forks, module)?)?;
    module.add_function(wrap_pyfunction!(ward_ended, module)?)?;
    // Every fork of the interpreter passes here, by whichever library; without a session both return at once.
    let hooks = pyo3::types::PyDict::new(module.py());
    hooks.set_item("before", wrap_pyfunction!(before_fork, module)?)?;
    hooks.set_item("after_in_parent", wrap_pyfunction!(after_fork, module)?)?;
    let os = module.py().import("os")?;
    os.call_method("register_at_fork", (), Some(&hooks))?;
    Ok(())
}

/// The place in the tree of a process that is about to be started; given back if it is not.
#[pyclass(module = "phalanx._engine", frozen)]
struct Ward(std::sync::Mutex<Option<process::Ward>>);

impl Ward {
    fn with<T>(&self, use_it: impl FnOnce(&process::Ward) -> T) -> PyResult<T> {
        let ward = self
            .0
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        let ward = ward.as_ref().ok_or_else(started_already)?;
        Ok(use_it(ward))
    }
}

fn started_already() -> PyErr {
    PyRuntimeError::new_err("this process was started already")
}

#[pymethods]
impl Ward {
    #[new]
    fn new() -> PyResult<Self> {
        let ward =
            process::Ward::reserve().map_err(|error| PyOSError::new_err(error.to_string()))?;
        Ok(Self(std::sync::Mutex::new(Some(ward))))
    }

    /// Returns what the child must be told for `enter()`: arena's descriptor, line's descriptor, slot, the arena's name.
    fn orders(&self) -> PyResult<(i32, i32, u16, u64)> {
        let arena = phalanx_shm::session().map_err(raise)?;
        let fd = arena.region().file().map_or(-1, |file| file.as_raw_fd());
        self.with(|ward| (fd, ward.line().as_raw_fd(), ward.slot(), arena.identity()))
    }

    /// Makes the child of this thread's next `os.fork()` the process of this place.
    fn fork_next(&self) -> PyResult<()> {
        self.with(process::Ward::fork_next)
    }

    /// Watches the process that was started.
    fn started(&self, pid: u32) -> PyResult<()> {
        let ward = self
            .0
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
            .take();
        ward.ok_or_else(started_already)?.started(pid)?;
        Ok(())
    }
}

/// Becomes the process that `Ward.orders()` describes. The descriptors are its own from now on.
#[pyfunction]
fn enter(arena: i32, line: i32, slot: u16, identity: u64) -> PyResult<()> {
    // SAFETY: the parent passed them on for this call alone, and nothing else in this process knows their numbers.
    unsafe { process::enter_as_ward_by_number(arena, line, slot, identity) }.map_err(raise)
}

/// Makes this process one that only forks for others.
#[pyfunction]
fn serve_forks() {
    process::serve_forks();
}

/// Sweeps after a process whose end the caller has seen; `code` as `Process.exitcode` has it.
#[pyfunction]
fn ward_ended(py: Python<'_>, pid: u32, code: i32) {
    if session_if_any().is_none() {
        return;
    }
    let status = if code < 0 {
        ExitStatus::Signaled {
            signal: -code,
            core: false,
        }
    } else {
        ExitStatus::Exited(code)
    };
    py.detach(|| process::ward_ended(pid, status));
}

#[pyfunction]
fn before_fork(py: Python<'_>) {
    if session_if_any().is_some() {
        py.detach(process::before_fork);
    }
}

#[pyfunction]
fn after_fork() {
    process::after_fork();
}
