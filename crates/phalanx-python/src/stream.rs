//! Results of many lots, taken one by one: what a lazy map of a pool reads.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use phalanx_pool::{End, Lot};
use phalanx_shm::Patience;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyList};

use crate::door::{Timeout, blocking};
use crate::pool;

pub(crate) fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<Stream>()?;
    Ok(())
}

/// So many results are decoded at once: they are memory of the taker from then on.
const MOST_AT_ONCE: usize = 256;

struct Part {
    lot: Arc<Lot>,
    /// Every task before this one was taken.
    from: usize,
    /// Tasks behind it that were taken out of turn.
    taken: Vec<bool>,
}

impl Part {
    fn next_ready(&mut self, ordered: bool) -> Option<usize> {
        while self.from < self.lot.len() && self.taken[self.from] {
            self.from += 1;
        }
        if ordered {
            return (self.from < self.lot.len() && self.lot.end_of(self.from).is_some())
                .then_some(self.from);
        }
        (self.from..self.lot.len())
            .find(|index| !self.taken[*index] && self.lot.end_of(*index).is_some())
    }

    fn is_over(&self) -> bool {
        self.taken[self.from..].iter().all(|taken| *taken)
    }
}

#[derive(Default)]
struct State {
    parts: VecDeque<Part>,
    closed: bool,
}

/// A lazy map's results. Lots are pushed by whoever reads the items, results taken by whoever wants them.
#[pyclass(frozen, module = "phalanx._engine")]
struct Stream {
    crew: Arc<phalanx_pool::Crew>,
    ordered: bool,
    state: Mutex<State>,
}

impl Stream {
    fn open(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Finds the next results: up to some number of (lot, task); `None` when none will come.
    fn find(&self) -> Option<Vec<(Arc<Lot>, usize)>> {
        let mut state = self.open();
        let mut found = Vec::new();
        for part in &mut state.parts {
            while let Some(index) = part.next_ready(self.ordered) {
                part.taken[index] = true;
                found.push((Arc::clone(&part.lot), index));
                if found.len() == MOST_AT_ONCE {
                    break;
                }
            }
            if found.len() == MOST_AT_ONCE || (self.ordered && !part.is_over()) {
                break;
            }
        }
        while state.parts.front().is_some_and(Part::is_over) {
            state.parts.pop_front();
        }
        if !self.ordered {
            state.parts.retain(|part| !part.is_over());
        }
        if found.is_empty() && state.parts.is_empty() && state.closed {
            return None;
        }
        Some(found)
    }
}

#[pymethods]
impl Stream {
    #[new]
    fn new(crew: &pool::Crew, ordered: bool) -> Self {
        Self {
            crew: crew.shared(),
            ordered,
            state: Mutex::default(),
        }
    }

    fn push(&self, lot: &pool::Lot) -> PyResult<()> {
        let lot = lot.shared()?;
        let taken = vec![false; lot.len()];
        self.open().parts.push_back(Part {
            lot,
            from: 0,
            taken,
        });
        self.crew.announce();
        Ok(())
    }

    /// No more lots come.
    fn close(&self) {
        self.open().closed = true;
        self.crew.announce();
    }

    /// Returns results as pairs (end, value or bytes); none when the time is up, `None` when no more will come. Of a task whose
    /// worker died: bytes, call and number of tries.
    fn take<'py>(
        &self,
        py: Python<'py>,
        timeout: Option<f64>,
    ) -> PyResult<Option<Bound<'py, PyList>>> {
        let timeout = Timeout::from_seconds(timeout)?;
        let first = self.find();
        let found = match first {
            Some(found) if found.is_empty() => {
                let waited = blocking(py, timeout, |patience: Patience| {
                    self.crew.wait_results(patience, || match self.find() {
                        None => Some(None),
                        Some(found) => (!found.is_empty()).then_some(Some(found)),
                    })
                })?;
                match waited {
                    None => return Ok(Some(PyList::empty(py))),
                    Some(found) => found,
                }
            }
            found => found,
        };
        let Some(found) = found else { return Ok(None) };
        let list = PyList::empty(py);
        for (lot, index) in found {
            let end = lot.end_of(index).unwrap_or(End::Terminated);
            let bytes = || lot.with_result(index, |bytes| PyBytes::new(py, bytes));
            let value = match end {
                End::Value => pool::value_of(py, &lot, index),
                End::Died | End::TimedOut => pool::described(py, lot.args(index), 0)
                    .and_then(|call| (bytes(), call, lot.tries(index)).into_pyobject(py))
                    .map(Bound::into_any),
                _ => Ok(bytes().into_any()),
            };
            match value {
                Ok(value) => list.append((end as u32, value))?,
                // One result that cannot be decoded is that result's matter.
                Err(error) => list.append((0, error.into_value(py)))?,
            }
        }
        Ok(Some(list))
    }

    /// Cancels what has not begun, and with `running` what runs.
    fn cancel(&self, running: bool) {
        for part in &self.open().parts {
            for index in (part.from..part.lot.len()).rev() {
                part.lot.cancel(index, running);
            }
        }
    }
}
