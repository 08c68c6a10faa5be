//! Received bytes in place: memory of the arena with Python's buffer protocol.
#![expect(unsafe_code, reason = "the buffer protocol hands out addresses")]

use std::ffi::c_int;
use std::sync::Arc;

use phalanx_channel::Kept;
use pyo3::buffer::PyBuffer;
use pyo3::exceptions::PyBufferError;
use pyo3::ffi;
use pyo3::prelude::*;

/// A part of a received message, writable, where the sender wrote it.
///
/// The message's memory is given back when the last view of any of its parts is gone.
#[pyclass(frozen, module = "phalanx._engine")]
pub(crate) struct Buffer {
    kept: Arc<Kept>,
    from: usize,
    len: usize,
}

impl Buffer {
    /// Makes one of `len` bytes that begin `from` bytes into the payload; `None` if the payload ends before.
    pub(crate) fn new(kept: &Arc<Kept>, from: usize, len: usize) -> Option<Self> {
        let (_, all) = kept.bytes();
        (from <= all && len <= all - from).then(|| Self {
            kept: Arc::clone(kept),
            from,
            len,
        })
    }
}

impl Buffer {
    /// Reads the first 8 bytes, which are there.
    pub(crate) fn word(&self) -> u64 {
        let (start, all) = self.kept.bytes();
        assert!(self.len >= 8 && self.from + 8 <= all, "8 bytes of a part");
        // SAFETY: within the payload (checked).
        let at = unsafe { start.add(self.from) };
        // SAFETY: 8 initialised bytes (checked above), of any alignment.
        unsafe { at.cast::<u64>().read_unaligned() }
    }
}

/// Returns the number of references to an object; very many for one that lives for ever.
pub(crate) fn references(object: &Bound<'_, PyAny>) -> isize {
    // SAFETY: the object is alive, and the interpreter's lock is held.
    unsafe { ffi::Py_REFCNT(object.as_ptr()) }
}

/// Shows the bytes of a contiguous view to `read`.
///
/// # Errors
///
/// `BufferError` if it is not contiguous.
pub(crate) fn with_bytes<T>(
    _: Python<'_>,
    view: &PyBuffer<u8>,
    read: impl FnOnce(&[u8]) -> T,
) -> PyResult<T> {
    if !view.is_c_contiguous() {
        return Err(PyBufferError::new_err(
            "the bytes of this buffer do not lie together",
        ));
    }
    if view.len_bytes() == 0 {
        return Ok(read(&[]));
    }
    // SAFETY: the view keeps `len_bytes` bytes at `buf_ptr` in place. Another thread may write them meanwhile if it has them as
    // writable memory: they are only copied, and any bytes are as good as others.
    let bytes =
        unsafe { std::slice::from_raw_parts(view.buf_ptr().cast::<u8>(), view.len_bytes()) };
    Ok(read(bytes))
}

#[pymethods]
impl Buffer {
    fn __len__(&self) -> usize {
        self.len
    }

    fn __repr__(&self) -> String {
        format!("<phalanx buffer of {} bytes>", self.len)
    }

    /// Fills in a view.
    ///
    /// # Safety
    ///
    /// `view` is null or points to a `Py_buffer` to be filled in, as the interpreter has it.
    unsafe fn __getbuffer__(
        slf: Bound<'_, Self>,
        view: *mut ffi::Py_buffer,
        flags: c_int,
    ) -> PyResult<()> {
        let this = slf.get();
        let (start, _) = this.kept.bytes();
        // SAFETY: `from` lies within the payload (checked in `new`).
        let at = unsafe { start.add(this.from) };
        // SAFETY: `view` is the interpreter's; `len` bytes at `at` are this object's as long as it lives, and the view holds
        // a reference to it.
        let filled = unsafe {
            ffi::PyBuffer_FillInfo(
                view,
                slf.as_ptr(),
                at.as_ptr().cast(),
                this.len as ffi::Py_ssize_t,
                0,
                flags,
            )
        };
        if filled == 0 {
            Ok(())
        } else {
            Err(PyErr::take(slf.py())
                .unwrap_or_else(|| PyBufferError::new_err("no view of this kind")))
        }
    }
}
