//! Where in a Python program the calling thread is: file and line of a frame.
#![expect(
    unsafe_code,
    reason = "the interpreter's own functions about frames: asking `sys._getframe` costs ten times as much"
)]

use pyo3::ffi;
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::PyString;

/// Returns file and line, as `"app.py:12"`, of the innermost frame whose file `fits`, or of the outermost one; `None` outside
/// of Python code.
pub(crate) fn innermost(py: Python<'_>, fits: impl Fn(&str) -> bool) -> Option<String> {
    // SAFETY: this thread has the interpreter. Borrowed, or null outside of Python code.
    let now = unsafe { ffi::PyEval_GetFrame() };
    // SAFETY: as above; a frame is an object.
    let mut frame = unsafe { Bound::<PyAny>::from_borrowed_ptr_or_opt(py, now.cast()) }?;
    loop {
        let at: *mut ffi::PyFrameObject = frame.as_ptr().cast();
        // SAFETY: a frame that lives; a new reference, never null.
        let code = unsafe { ffi::PyFrame_GetCode(at) };
        // SAFETY: as above.
        let code = unsafe { Bound::<PyAny>::from_owned_ptr(py, code.cast()) };
        let file = code.getattr(intern!(py, "co_filename")).ok()?;
        let file = file.cast::<PyString>().ok()?.to_cow().ok()?;
        // SAFETY: a frame that lives; a new reference, or null for the outermost.
        let back = unsafe { ffi::PyFrame_GetBack(at) };
        // SAFETY: as above.
        let back = unsafe { Bound::<PyAny>::from_owned_ptr_or_opt(py, back.cast()) };
        match back {
            Some(back) if !fits(&file) => frame = back,
            _ => {
                // SAFETY: a frame that lives.
                let line = unsafe { ffi::PyFrame_GetLineNumber(at) };
                let name = file.rsplit('/').next().unwrap_or(&file);
                return Some(format!("{name}:{line}"));
            }
        }
    }
}
