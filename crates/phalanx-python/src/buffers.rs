//! Received bytes in place: memory of the arena with Python's buffer protocol.
#![expect(unsafe_code, reason = "the buffer protocol hands out addresses")]

use std::ffi::c_int;
use std::mem::MaybeUninit;
use std::ptr::NonNull;
use std::sync::Arc;

use phalanx_channel::exposed::{self, Exposed, Private};
use phalanx_channel::{Kept, reactor};
use pyo3::buffer::PyUntypedBuffer;
use pyo3::exceptions::{PyBufferError, PyMemoryError};
use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyBytes, PyCFunction, PyDict};

/// Has forks keep received payloads of parent and child apart (see [`exposed`]), and find no thread that waits for bells (see
/// [`reactor`]). Called before there is a payload or a bell.
pub(crate) fn watch_forks(py: Python<'_>) -> PyResult<()> {
    static DONE: PyOnceLock<()> = PyOnceLock::new();
    DONE.get_or_try_init(py, || {
        let hooks = PyDict::new(py);
        let before = PyCFunction::new_closure(py, None, None, |args, _| {
            // It waits for a thread to end: not with the interpreter's lock.
            args.py().detach(|| {
                reactor::pause();
                exposed::before_fork();
            });
        })?;
        let after =
            PyCFunction::new_closure(py, None, None, |_, _| exposed::after_fork_in_child())?;
        let parent = PyCFunction::new_closure(py, None, None, |_, _| crate::ward::resume_bells())?;
        hooks.set_item("before", before)?;
        hooks.set_item("after_in_parent", parent)?;
        hooks.set_item("after_in_child", after)?;
        py.import("os")?
            .call_method("register_at_fork", (), Some(&hooks))?;
        Ok(())
    })
    .copied()
}

/// Where the bytes of a message are.
pub(crate) enum Whole {
    /// Where the sender wrote them; nobody else has them.
    Ours(Exposed),
    /// Where the sender wrote them for many; what is written here stays here.
    Copied(Private),
}

impl Whole {
    pub(crate) fn bytes(&self) -> (NonNull<u8>, usize) {
        match self {
            Self::Ours(exposed) => exposed.kept().bytes(),
            Self::Copied(private) => private.bytes(),
        }
    }
}

// SAFETY: the bytes are memory of this process, reached through Python's buffer protocol only.
unsafe impl Send for Whole {}
// SAFETY: as above.
unsafe impl Sync for Whole {}

/// A part of a received message, writable.
///
/// The message's memory is given back when the last view of any of its parts is gone.
#[pyclass(frozen, module = "phalanx._engine")]
pub(crate) struct Buffer {
    kept: Arc<Whole>,
    from: usize,
    len: usize,
}

impl Buffer {
    /// Makes one of `len` bytes that begin `from` bytes into the payload; `None` if the payload ends before.
    pub(crate) fn new(kept: &Arc<Whole>, from: usize, len: usize) -> Option<Self> {
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

/// Shows the bytes of a payload that nobody writes to `read`.
pub(crate) fn read_kept<T>(kept: &Kept, read: impl FnOnce(&[u8]) -> T) -> T {
    let (at, len) = kept.bytes();
    // SAFETY: the payload's bytes, which live as long as it is held; written once, before it was first held.
    read(unsafe { std::slice::from_raw_parts(at.as_ptr(), len) })
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
    view: &PyUntypedBuffer,
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

/// A `bytes` object that nobody has seen yet, to be filled.
pub(crate) struct Unfilled<'py>(Bound<'py, PyBytes>);

impl<'py> Unfilled<'py> {
    /// Makes one of `len` bytes; memory beyond some pages is not touched.
    ///
    /// # Errors
    ///
    /// `MemoryError`.
    pub(crate) fn new(py: Python<'py>, len: usize) -> PyResult<Self> {
        let len = ffi::Py_ssize_t::try_from(len).map_err(|_| PyMemoryError::new_err(()))?;
        // SAFETY: a null source leaves the bytes to be filled in; the length is not negative.
        let made = unsafe { ffi::PyBytes_FromStringAndSize(std::ptr::null(), len) };
        // SAFETY: a new reference, or null with an exception set.
        let made = unsafe { Bound::from_owned_ptr_or_err(py, made) }?;
        Ok(Self(made.cast_into::<PyBytes>()?))
    }

    /// Lets `fill` write every byte, and hands the object out if it succeeds.
    ///
    /// # Errors
    ///
    /// What `fill` returns.
    pub(crate) fn fill(
        self,
        fill: impl FnOnce(&mut [MaybeUninit<u8>]) -> PyResult<()>,
    ) -> PyResult<Bound<'py, PyBytes>> {
        let len = self.0.len()?;
        // SAFETY: a bytes object.
        let at = unsafe { ffi::PyBytes_AsString(self.0.as_ptr()) };
        // SAFETY: `len` bytes of an object that only this value refers to (the shared empty one has none).
        let into = unsafe { std::slice::from_raw_parts_mut(at.cast::<MaybeUninit<u8>>(), len) };
        fill(into)?;
        Ok(self.0)
    }
}
