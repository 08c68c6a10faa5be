//! The last words of a pool's workers: a file in memory that outlives them, with a part for each.
//!
//! | of a part | what |
//! |---|---|
//! | first 8 bytes | how many bytes were said on stderr |
//! | 64 to 4160 | the last of them, the place of a byte being its number modulo 4096 |
//! | from 8192 | what the fault handler wrote, by the worker's own descriptor |

use std::os::fd::{AsFd, AsRawFd};

use phalanx_sys::limits;
use phalanx_sys::map::SharedFile;
use pyo3::prelude::*;
use pyo3::types::PyBytes;

/// Bytes of a part. Nothing is used of it before it is written.
const PART: usize = 1 << 20;
const RING: usize = 4096;
const RING_AT: usize = 64;
const FAULT_AT: usize = 8192;
/// More of a fault's report than this is not read: many threads, deep stacks.
const FAULT_MOST: usize = 64 * 1024;

pub(crate) fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<Words>()?;
    module.add_function(wrap_pyfunction!(oom_kills, module)?)?;
    Ok(())
}

/// What workers leave for the report of their death.
#[pyclass(frozen, module = "phalanx._engine")]
struct Words {
    file: SharedFile,
}

#[pymethods]
impl Words {
    /// Where in a part the ring of stderr begins, its length, and where the fault handler writes.
    #[classattr]
    const PLACES: (usize, usize, usize) = (RING_AT, RING, FAULT_AT);

    #[new]
    fn new(workers: usize) -> PyResult<Self> {
        let file = SharedFile::create("phalanx-words", workers * PART)?;
        Ok(Self { file })
    }

    fn fileno(&self) -> i32 {
        self.file.as_fd().as_raw_fd()
    }

    /// Where a worker's part begins.
    #[staticmethod]
    fn part(number: usize) -> usize {
        number * PART
    }

    /// Returns what a worker said last on stderr and what the fault handler wrote, and clears its part for the next one.
    fn take<'py>(
        &self,
        py: Python<'py>,
        number: usize,
    ) -> (Bound<'py, PyBytes>, Bound<'py, PyBytes>) {
        let at = number * PART;
        let mut head = [0; RING_AT + RING];
        let mut fault = Vec::new();
        // Nothing that can be read is nothing that was said.
        let read = self.file.read_at(&mut head, at as u64).unwrap_or(0);
        if read == head.len() {
            fault = vec![0; FAULT_MOST];
            let length = self
                .file
                .read_at(&mut fault, (at + FAULT_AT) as u64)
                .unwrap_or(0);
            let end = fault[..length].iter().position(|byte| *byte == 0);
            fault.truncate(end.unwrap_or(length));
        }
        let _ = self.file.release(at, PART);
        (
            PyBytes::new(py, &last_said(&head)),
            PyBytes::new(py, &fault),
        )
    }
}

/// Puts the ring of a part in order.
fn last_said(head: &[u8; RING_AT + RING]) -> Vec<u8> {
    let mut said = [0; 8];
    said.copy_from_slice(&head[..8]);
    let said = u64::from_le_bytes(said);
    let ring = &head[RING_AT..];
    if said <= RING as u64 {
        return ring[..said as usize].to_vec();
    }
    let (newer, older) = ring.split_at((said % RING as u64) as usize);
    [older, newer].concat()
}

/// Returns how often the kernel's out-of-memory killer was at work here, `None` if nobody counts.
#[pyfunction]
fn oom_kills() -> Option<u64> {
    limits::oom_kills()
}
