//! The detective's Python face: `phalanx.deadlocks` is made of these.

use std::cell::Cell;
use std::time::Duration;

use phalanx_prim::Deadline;
use phalanx_shm::{Flagged, Patience, Subject, flag, name_thread, session_if_any};
use phalanx_watch::{Action, Deadlock, Options, Witness};
use pyo3::exceptions::{PyOSError, PyRuntimeError, PyValueError};
use pyo3::intern;
use pyo3::prelude::*;

use crate::places;

pub(crate) fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    phalanx_watch::install();
    phalanx_watch::set_witness(Witness {
        stack,
        holds: places::mine,
    });
    phalanx_sys::process::at_fork(nothing, nothing, forked);
    module.add_class::<Noted>()?;
    module.add_function(wrap_pyfunction!(_watch, module)?)?;
    module.add_function(wrap_pyfunction!(_watching, module)?)?;
    module.add_function(wrap_pyfunction!(_watch_order, module)?)?;
    module.add_function(wrap_pyfunction!(_watching_order, module)?)?;
    module.add_function(wrap_pyfunction!(_inversions, module)?)?;
    module.add_function(wrap_pyfunction!(_dump, module)?)?;
    module.add_function(wrap_pyfunction!(_draw, module)?)?;
    module.add_function(wrap_pyfunction!(_place, module)?)?;
    module.add_function(wrap_pyfunction!(_mark_helper, module)?)?;
    module.add_function(wrap_pyfunction!(_name_thread, module)?)
}

extern "C" fn nothing() {}

extern "C" fn forked() {
    NAMED.set(false);
    places::forget();
}

thread_local! {
    static NAMED: Cell<bool> = const { Cell::new(false) };
    /// The thread runs Python code, and may be asked for its stack.
    static PYTHON: Cell<bool> = const { Cell::new(false) };
}

/// Tells the detective the thread's name before its first wait.
#[inline]
pub(crate) fn name_once(py: Python<'_>) {
    if !NAMED.get() {
        name_now(py);
    }
}

#[cold]
fn name_now(py: Python<'_>) {
    NAMED.set(true);
    PYTHON.set(true);
    // Without a name the detective says the number.
    if let Ok(name) = own_name(py) {
        name_thread(&name);
    }
}

fn own_name(py: Python<'_>) -> PyResult<String> {
    let threading = py.import(intern!(py, "threading"))?;
    let ident = threading.call_method0(intern!(py, "get_ident"))?;
    let name: String = threading
        .getattr(intern!(py, "_active"))?
        .call_method1(intern!(py, "get"), (ident,))?
        .getattr(intern!(py, "name"))?
        .extract()?;
    let modules = py
        .import(intern!(py, "sys"))?
        .getattr(intern!(py, "modules"))?;
    let process = modules.call_method1(intern!(py, "get"), ("multiprocessing.process",))?;
    if process.is_none() {
        return Ok(name);
    }
    let process: String = process
        .call_method0(intern!(py, "current_process"))?
        .getattr(intern!(py, "name"))?
        .extract()?;
    Ok(match (process.as_str(), name.as_str()) {
        ("MainProcess", _) => name,
        (_, "MainThread") => process,
        _ => format!("{process}, {name}"),
    })
}

/// The calling thread's Python stack. It waits without the interpreter's lock, and takes it for this.
fn stack() -> Option<String> {
    if !PYTHON.get() {
        return None;
    }
    Python::try_attach(|py| {
        let lines: PyResult<Vec<String>> = (|| {
            let deadlocks = py.import(intern!(py, "phalanx.deadlocks"))?;
            deadlocks.call_method0(intern!(py, "_stack"))?.extract()
        })();
        // Not the business of whoever waits.
        lines.ok().map(|lines| lines.concat())
    })?
}

/// Raises the deadlock for which the calling thread's wait was interrupted, if that was the reason.
pub(crate) fn raise_found(py: Python<'_>) -> PyResult<()> {
    match phalanx_watch::take_deadlock() {
        Some(deadlock) => Err(error_of(py, &deadlock)),
        None => Ok(()),
    }
}

#[cold]
fn error_of(py: Python<'_>, deadlock: &Deadlock) -> PyErr {
    let made = py
        .import(intern!(py, "phalanx.errors"))
        .and_then(|errors| errors.getattr(intern!(py, "DeadlockError")))
        .and_then(|class| class.call1((deadlock.to_string(), deadlock.to_json())));
    match made {
        Ok(error) => PyErr::from_value(error),
        Err(error) => error,
    }
}

/// Lets every process of the tree look for deadlocks; an empty action lets nobody.
#[pyfunction]
#[pyo3(signature = (action, every, places))]
fn _watch(action: &str, every: f64, places: bool) -> PyResult<()> {
    places::want(places);
    let action = match action {
        "" => {
            phalanx_watch::disable();
            return Ok(());
        }
        "hint" => Action::Hint,
        "report" => Action::Report,
        "raise" => Action::Raise,
        "abort" => Action::Abort,
        other => {
            return Err(PyValueError::new_err(format!(
                "what to do with a deadlock is \"hint\", \"report\", \"raise\" or \"abort\", not {other:?}"
            )));
        }
    };
    if !(0.001..=1e6).contains(&every) {
        return Err(PyValueError::new_err(
            "the time between two looks is between a millisecond and a million seconds",
        ));
    }
    let options = Options::new(action).every(Duration::from_secs_f64(every));
    phalanx_watch::enable_with(options).map_err(|error| PyOSError::new_err(error.to_string()))
}

/// Lets every process of the tree note in which order its threads take locks, or not any more.
#[pyfunction]
fn _watch_order(on: bool) -> PyResult<()> {
    places::want_order(on);
    if on {
        phalanx_watch::enable_lock_order()
            .map_err(|error| PyOSError::new_err(error.to_string()))?;
    } else {
        phalanx_watch::disable_lock_order();
    }
    Ok(())
}

/// Tells whether they do.
#[pyfunction]
fn _watching_order() -> bool {
    session_if_any().is_some_and(|arena| arena.watch().order)
}

/// Returns what was found of it in the whole tree: each as JSON and as text.
#[pyfunction]
fn _inversions() -> Vec<(String, String)> {
    let found = phalanx_watch::inversions();
    found
        .iter()
        .map(|one| (one.to_json(), one.to_string()))
        .collect()
}

/// Tells what is done with a deadlock, and how often waiters look; `None` if they do not.
#[pyfunction]
fn _watching() -> Option<(&'static str, f64)> {
    let watch = session_if_any()?.watch();
    let action = ["", "hint", "report", "raise", "abort"].get(usize::from(watch.action))?;
    (watch.every_ms != 0).then_some((*action, f64::from(watch.every_ms) / 1000.0))
}

/// Tells what every thread of a process's tree waits for and holds: text and JSON.
#[pyfunction]
fn _dump(py: Python<'_>, pid: u32) -> PyResult<(String, String)> {
    let dump = py.detach(|| phalanx_watch::dump(pid));
    let dump = dump.map_err(|error| PyOSError::new_err(error.to_string()))?;
    Ok((dump.to_string(), dump.to_json()))
}

/// Describes a deadlock, given as JSON, as "text", "svg" or "dot".
#[pyfunction]
fn _draw(json: &str, format: &str) -> PyResult<String> {
    let deadlock =
        Deadlock::from_json(json).map_err(|error| PyValueError::new_err(error.to_string()))?;
    match format {
        "text" => Ok(deadlock.to_string()),
        "svg" => Ok(deadlock.to_svg()),
        "dot" => Ok(deadlock.to_dot()),
        _ => Err(PyValueError::new_err("it is \"text\", \"svg\" or \"dot\"")),
    }
}

/// The place in the program from which this was called: where a lock is made.
#[pyfunction]
fn _place(py: Python<'_>) -> PyResult<Option<String>> {
    Ok(places::wanted().then(|| places::place(py)))
}

/// Says that this process's main thread acts for others only, and never by itself.
#[pyfunction]
fn _mark_helper() {
    phalanx_shm::mark_helper();
}

/// Names the calling thread in reports.
#[pyfunction]
fn _name_thread(name: &str) {
    NAMED.set(true);
    PYTHON.set(true);
    name_thread(name);
}

/// A wait of the standard library's that is made of short ones, noted for the detective: the end of a thread ("thread", its
/// native id) or of a process ("process", its id).
#[pyclass(module = "phalanx._engine", unsendable, name = "Noted")]
struct Noted {
    waiting: Option<phalanx_shm::Waiting>,
    subject: Subject,
    object: u64,
    begun: bool,
}

#[pymethods]
impl Noted {
    #[new]
    fn new(py: Python<'_>, kind: &str, object: u64) -> PyResult<Self> {
        name_once(py);
        let subject = match kind {
            "thread" => Subject::Thread,
            "process" => Subject::Process,
            _ => return Err(PyValueError::new_err("it is a thread or a process")),
        };
        Ok(Self {
            waiting: Some(phalanx_shm::Waiting::new()),
            subject,
            object,
            begun: false,
        })
    }

    /// Says that this thread is about to look whether the end is there.
    fn looks(&mut self) {
        if let Some(waiting) = self.waiting.as_mut().filter(|_| self.begun) {
            waiting.cut();
            waiting.looks();
        }
    }

    /// Says that the end was not there, and that this thread is about to sleep for a while. Raises a DeadlockError if it has to
    /// give up.
    fn sleeps(&mut self, py: Python<'_>) -> PyResult<()> {
        let waiting = self
            .waiting
            .as_mut()
            .ok_or_else(|| PyRuntimeError::new_err("this wait is over"))?;
        self.begun = true;
        let (subject, object) = (self.subject, self.object);
        let patience = Patience {
            deadline: None::<Deadline>,
            interruptible: true,
            ..Patience::FOREVER
        };
        let slept = {
            let _raisable = Flagged::new(flag::RAISABLE);
            waiting.sleeps(subject, |_| object, 0, patience)
        };
        if slept.is_err() {
            self.waiting = None;
            raise_found(py)?;
        }
        Ok(())
    }

    /// The wait is over.
    fn ends(&mut self) {
        self.waiting = None;
    }
}
