//! The door between the interpreter and the engine: letting the interpreter's lock go, time-outs, signals, errors.

use std::time::Duration;

use phalanx_prim::Deadline;
use phalanx_shm::{AllocError, OpenError, Patience, StaleHandle, WaitError};
use phalanx_sync::CreateError;
use pyo3::exceptions::{PyMemoryError, PyOSError, PyRuntimeError, PyValueError};
use pyo3::prelude::*;

use crate::watch;

/// A year: longer waits are waits for ever, and clocks do not overflow.
const LONGEST: f64 = 365.25 * 24.0 * 3600.0;

/// How long a call may take, as Python says it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Timeout {
    /// `None`: for as long as it takes.
    Never,
    /// Zero and less: look once.
    Now,
    /// This much from now.
    After(Duration),
}

impl Timeout {
    /// Reads seconds. Negative is "now", as in the standard library; infinity is "never".
    ///
    /// # Errors
    ///
    /// `ValueError` for NaN.
    pub(crate) fn from_seconds(seconds: Option<f64>) -> PyResult<Self> {
        match seconds {
            None => Ok(Self::Never),
            Some(seconds) if seconds.is_nan() => Err(PyValueError::new_err(
                "a time-out is a number of seconds, not NaN",
            )),
            Some(seconds) if seconds <= 0.0 => Ok(Self::Now),
            Some(seconds) if seconds > LONGEST => Ok(Self::Never),
            Some(seconds) => Ok(Self::After(Duration::from_secs_f64(seconds))),
        }
    }

    /// Returns the moment at which the whole call must be over.
    pub(crate) fn deadline(self) -> Option<Deadline> {
        match self {
            Self::Never => None,
            Self::Now => Some(Deadline::after(Duration::ZERO)),
            Self::After(duration) => Some(Deadline::after(duration)),
        }
    }
}

/// Runs a blocking operation of the engine without the interpreter's lock, until it succeeds or the time is up.
///
/// Returns `None` when the time is up. Signal handlers run in between; what they raise ends the wait. The operation is called
/// again after each, with the same deadline.
///
/// # Errors
///
/// What a signal handler raises.
pub(crate) fn blocking<T: Send>(
    py: Python<'_>,
    timeout: Timeout,
    operation: impl FnMut(Patience) -> Result<T, WaitError> + Send,
) -> PyResult<Option<T>> {
    blocking_until(py, timeout.deadline(), operation)
}

/// As [`blocking`], for a call that sleeps several times until one moment.
///
/// # Errors
///
/// What a signal handler raises.
pub(crate) fn blocking_until<T: Send>(
    py: Python<'_>,
    deadline: Option<Deadline>,
    mut operation: impl FnMut(Patience) -> Result<T, WaitError> + Send,
) -> PyResult<Option<T>> {
    watch::name_once(py);
    // Whoever waits may wait for what a dead process holds.
    crate::ward::resume();
    let patience = Patience {
        deadline,
        interruptible: true,
        ..Patience::FOREVER
    };
    loop {
        match py.detach(|| operation(patience)) {
            Ok(value) => return Ok(Some(value)),
            Err(WaitError::TimedOut) => {
                // A handler may be due all the same: whoever waits in a loop of short waits must be interruptible too.
                py.check_signals()?;
                return Ok(None);
            }
            Err(WaitError::Interrupted | WaitError::Deadlock) => {
                py.check_signals()?;
                watch::raise_found(py)?;
            }
        }
    }
}

/// What a wait has heard: runs the signal handlers that are due, and keeps what one raised.
#[derive(Debug, Default)]
pub(crate) struct Ear(Option<PyErr>);

impl Ear {
    /// Runs the handlers that are due; `true` if one raised, so that the wait has to end.
    pub(crate) fn heard(&mut self) -> bool {
        let told = Python::attach(|py| py.check_signals().and_then(|()| watch::raise_found(py)));
        if let Err(error) = told {
            self.0 = Some(error);
        }
        self.0.is_some()
    }

    /// Returns what a handler raised.
    ///
    /// # Errors
    ///
    /// That.
    pub(crate) fn raised(self) -> PyResult<()> {
        self.0.map_or(Ok(()), Err)
    }
}

/// Runs a wait of the engine without the interpreter's lock that stays where it is while signal handlers run.
///
/// # Errors
///
/// What a signal handler raised.
pub(crate) fn listening<T: Send>(
    py: Python<'_>,
    timeout: Timeout,
    operation: impl FnOnce(Patience, &mut Ear) -> T + Send,
) -> PyResult<T> {
    let patience = Patience {
        deadline: timeout.deadline(),
        interruptible: true,
        ..Patience::FOREVER
    };
    watch::name_once(py);
    let (result, ear) = py.detach(|| {
        let mut ear = Ear::default();
        (operation(patience, &mut ear), ear)
    });
    ear.raised()?;
    // A handler may be due all the same: whoever waits in a loop of short waits must be interruptible too.
    py.check_signals()?;
    Ok(result)
}

/// An error of the engine as an exception.
pub(crate) fn raise(error: impl Into<EngineError>) -> PyErr {
    match error.into() {
        EngineError::Alloc(
            error @ (AllocError::OutOfMemory { .. } | AllocError::Exhausted { .. }),
        ) => PyMemoryError::new_err(error.to_string()),
        EngineError::Alloc(error) => PyOSError::new_err(error.to_string()),
        EngineError::Open(error) => PyOSError::new_err(error.to_string()),
        EngineError::Stale(error) => PyRuntimeError::new_err(error.to_string()),
    }
}

/// An object that could not be made, as an exception.
pub(crate) fn create_error(error: CreateError) -> PyErr {
    match error {
        CreateError::Alloc(error) => raise(error),
        CreateError::Session(error) => raise(error),
        error => PyValueError::new_err(error.to_string()),
    }
}

/// The engine's errors that any call may meet.
pub(crate) enum EngineError {
    /// No memory.
    Alloc(AllocError),
    /// No arena.
    Open(OpenError),
    /// The object is gone.
    Stale(StaleHandle),
}

impl From<AllocError> for EngineError {
    fn from(error: AllocError) -> Self {
        Self::Alloc(error)
    }
}

impl From<OpenError> for EngineError {
    fn from(error: OpenError) -> Self {
        Self::Open(error)
    }
}

impl From<StaleHandle> for EngineError {
    fn from(error: StaleHandle) -> Self {
        Self::Stale(error)
    }
}
