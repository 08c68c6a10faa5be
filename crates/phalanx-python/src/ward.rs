//! Processes that the standard library starts and collects: their place in the tree, and what surrounds a fork.
#![expect(
    unsafe_code,
    reason = "descriptors that the parent passed on by number"
)]

use std::os::fd::{AsRawFd, IntoRawFd};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use phalanx_channel::reactor;
use phalanx_prim::global::{AtomicBool, Ordering};
use phalanx_process::{self as process, ExitStatus};
use phalanx_shm::{Ticket, session_if_any};
use pyo3::exceptions::{PyOSError, PyRuntimeError};
use pyo3::prelude::*;

use crate::door::raise;

pub(crate) fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<Ward>()?;
    module.add_function(wrap_pyfunction!(enter, module)?)?;
    module.add_function(wrap_pyfunction!(serve_forks, module)?)?;
    module.add_function(wrap_pyfunction!(ward_ended, module)?)?;
    module.add_function(wrap_pyfunction!(await_ward, module)?)?;
    module.add_function(wrap_pyfunction!(ward_descriptor, module)?)?;
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
struct Ward(Mutex<Option<process::Ward>>);

impl Ward {
    fn with<T>(&self, use_it: impl FnOnce(&process::Ward) -> T) -> PyResult<T> {
        let ward = self.0.lock().unwrap_or_else(PoisonError::into_inner);
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
        Ok(Self(Mutex::new(Some(ward))))
    }

    /// Returns what the child must be told for `enter()`: arena's descriptor, line's descriptor, its place, the arena's name.
    fn orders(&self) -> PyResult<(i32, i32, u32, u64)> {
        let arena = phalanx_shm::session().map_err(raise)?;
        let fd = arena.region().file().map_or(-1, |file| file.as_raw_fd());
        self.with(|ward| {
            (
                fd,
                ward.line().as_raw_fd(),
                ward.ticket().to_bits(),
                arena.identity(),
            )
        })
    }

    /// Makes the child of this thread's next `os.fork()` the process of this place.
    fn fork_next(&self) -> PyResult<()> {
        self.with(process::Ward::fork_next)
    }

    /// Watches the process that was started.
    fn started(&self, pid: u32) -> PyResult<()> {
        let ward = self.0.lock().unwrap_or_else(PoisonError::into_inner).take();
        resume();
        ward.ok_or_else(started_already)?.started(pid)?;
        Ok(())
    }
}

/// Becomes the process that `Ward.orders()` describes. The descriptors are its own from now on.
#[pyfunction]
fn enter(arena: i32, line: i32, place: u32, identity: u64) -> PyResult<()> {
    // SAFETY: the parent passed them on for this call alone, and nothing else in this process knows their numbers.
    unsafe { process::enter_as_ward_by_number(arena, line, Ticket::from_bits(place), identity) }
        .map_err(raise)
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

/// Blocks until the process has ended, and sweeps after it; it is still the caller's to collect. Signal handlers run meanwhile.
#[pyfunction]
fn await_ward(py: Python<'_>, pid: u32) -> PyResult<()> {
    resume();
    while !py.detach(|| process::await_ward(pid)) {
        py.check_signals()?;
    }
    Ok(())
}

/// Returns a descriptor that is readable once the process has ended, the caller's to close; `None` if it has ended.
#[pyfunction]
fn ward_descriptor(pid: u32) -> PyResult<Option<i32>> {
    Ok(process::ward_descriptor(pid)?.map(IntoRawFd::into_raw_fd))
}

#[pyfunction]
fn before_fork(py: Python<'_>) {
    if session_if_any().is_some() {
        let alone = counts_threads(py);
        py.detach(|| process::before_fork(alone));
    }
}

/// From 3.12 on the interpreter counts this process's threads at a fork, after the handlers have run, and warns of a second one.
fn counts_threads(py: Python<'_>) -> bool {
    py.version_info() >= (3, 12)
}

#[pyfunction]
fn after_fork(py: Python<'_>) -> PyResult<()> {
    // Where there are other threads anyhow it may be the main one that sleeps, and nobody would start ours again.
    let later = counts_threads(py)
        && session_if_any().is_some()
        && phalanx_sys::process::thread_count() == 1;
    process::after_fork(later);
    if later {
        resume_after(py)?;
    }
    Ok(())
}

/// A fork whose call may not have returned yet: the frame that made it, and where in its code.
struct Forking {
    frame: Py<PyAny>,
    at: i64,
    until: Instant,
}

static FORKING: Mutex<Option<Forking>> = Mutex::new(None);

/// Handlers of others may run between now and the interpreter's look at the threads.
const HANDLERS: Duration = Duration::from_millis(100);

fn current_frame(py: Python<'_>) -> PyResult<Bound<'_, PyAny>> {
    py.import("sys")?.call_method0("_getframe")
}

/// The thread that waits for bells starts again together with the engine's other one.
static BELLS_LATER: AtomicBool = AtomicBool::new(false);

/// Starts what was ended for a fork, if that is still to be done.
pub(crate) fn resume() {
    process::resume_after_fork();
    if BELLS_LATER.swap(false, Ordering::AcqRel) {
        reactor::resume();
    }
}

/// After a fork: starts the thread that waits for bells, now or when [`resume`] is called.
pub(crate) fn resume_bells() {
    let later = FORKING
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .is_some();
    if later {
        BELLS_LATER.store(true, Ordering::Release);
    } else {
        reactor::resume();
    }
}

/// Starts the engine's thread once the call that forked has returned.
fn resume_after(py: Python<'_>) -> PyResult<()> {
    let frame = current_frame(py)?;
    let forking = Forking {
        at: frame.getattr("f_lasti")?.extract()?,
        frame: frame.unbind(),
        until: Instant::now() + HANDLERS,
    };
    *FORKING.lock().unwrap_or_else(PoisonError::into_inner) = Some(forking);
    if !call_soon() {
        *FORKING.lock().unwrap_or_else(PoisonError::into_inner) = None;
        resume();
    }
    Ok(())
}

/// Has the interpreter's main thread call [`has_forked`] between two instructions; `false` if too many such calls wait.
fn call_soon() -> bool {
    // SAFETY: a function without state; the interpreter calls it at most once, with its lock held.
    unsafe { pyo3::ffi::Py_AddPendingCall(Some(has_forked), std::ptr::null_mut()) == 0 }
}

extern "C" fn has_forked(_: *mut std::ffi::c_void) -> std::ffi::c_int {
    // SAFETY: the interpreter makes these calls with its lock held and the thread attached.
    let py = unsafe { Python::assume_attached() };
    let forking = FORKING
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .take();
    if let Some(forking) = forking
        && is_still_forking(py, &forking).unwrap_or(false)
    {
        *FORKING.lock().unwrap_or_else(PoisonError::into_inner) = Some(forking);
        if call_soon() {
            return 0;
        }
    }
    resume();
    0
}

/// Tells whether a handler of somebody's is running inside the call that forked.
fn is_still_forking(py: Python<'_>, forking: &Forking) -> PyResult<bool> {
    let frame = forking.frame.bind(py);
    let at: i64 = frame.getattr("f_lasti")?.extract()?;
    Ok(at == forking.at && !current_frame(py)?.is(frame) && Instant::now() < forking.until)
}
