//! The four methods of a lock that programs call millions of times, without the binding layer's trampoline.
//!
//! A free lock is taken by one compare-exchange; parsing arguments and guarding the call would cost several times that. What
//! does not succeed at once goes through the ordinary functions of [`SemLock`].
#![expect(
    unsafe_code,
    reason = "functions of C's calling convention, called by the interpreter"
)]

use std::ffi::CStr;

use pyo3::exceptions::PyTypeError;
use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::types::PyType;

use crate::places;
use crate::semlock::SemLock;

type Object = *mut ffi::PyObject;

/// A table of methods; read by the interpreter for as long as it runs.
struct Table([ffi::PyMethodDef; 4]);

// SAFETY: constant data; the names and functions in it are static.
unsafe impl Sync for Table {}

static TABLE: Table = Table([
    ffi::PyMethodDef {
        ml_name: c"acquire".as_ptr(),
        ml_meth: ffi::PyMethodDefPointer {
            PyCFunctionFastWithKeywords: acquire,
        },
        ml_flags: ffi::METH_FASTCALL | ffi::METH_KEYWORDS,
        ml_doc: c"acquire($self, /, block=True, timeout=None)\n--\n\nAcquire it; returns False if that was not possible at once (block=False) or in time.".as_ptr(),
    },
    ffi::PyMethodDef {
        ml_name: c"release".as_ptr(),
        ml_meth: ffi::PyMethodDefPointer {
            PyCFunction: release,
        },
        ml_flags: ffi::METH_NOARGS,
        ml_doc: c"release($self, /)\n--\n\nRelease it.".as_ptr(),
    },
    ffi::PyMethodDef {
        ml_name: c"__enter__".as_ptr(),
        ml_meth: ffi::PyMethodDefPointer { PyCFunction: enter },
        ml_flags: ffi::METH_NOARGS,
        ml_doc: c"__enter__($self, /)\n--\n\nAcquire it.".as_ptr(),
    },
    ffi::PyMethodDef {
        ml_name: c"__exit__".as_ptr(),
        ml_meth: ffi::PyMethodDefPointer {
            PyCFunctionFast: exit,
        },
        ml_flags: ffi::METH_FASTCALL,
        ml_doc: c"__exit__($self, exc_type=None, exc_value=None, exc_tb=None, /)\n--\n\nRelease it.".as_ptr(),
    },
]);

pub(crate) fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    give_methods(&module.py().get_type::<SemLock>())?;
    module.add_function(wrap_pyfunction!(_quicken, module)?)
}

/// Gives a subclass of SemLock methods of its own: the interpreter then finds the type it expects at first sight.
#[pyfunction]
fn _quicken<'py>(class: &Bound<'py, PyType>) -> PyResult<Bound<'py, PyType>> {
    if !class.is_subclass_of::<SemLock>()? {
        return Err(PyTypeError::new_err(
            "only a subclass of SemLock has these methods",
        ));
    }
    give_methods(class)?;
    Ok(class.clone())
}

/// Gives a class, which is [`SemLock`] or derives from it, the methods.
fn give_methods(class: &Bound<'_, PyType>) -> PyResult<()> {
    let py = class.py();
    for method in &TABLE.0 {
        let def = std::ptr::from_ref(method).cast_mut();
        // SAFETY: the method keeps the type; the table is static, and the interpreter does not write to it.
        let made = unsafe { ffi::PyDescr_NewMethod(class.as_type_ptr(), def) };
        // SAFETY: a new reference, or null with an exception set.
        let method_object = unsafe { Bound::from_owned_ptr_or_err(py, made) }?;
        // SAFETY: the names in the table are C strings.
        let name = unsafe { CStr::from_ptr(method.ml_name) };
        class.setattr(name.to_string_lossy().as_ref(), method_object)?;
    }
    Ok(())
}

/// The object behind a pointer that the interpreter passed as `self`.
///
/// # Safety
///
/// `this` points to an instance of [`SemLock`] that lives while the result is used, and this thread has the interpreter.
unsafe fn lock<'a>(this: Object) -> &'a SemLock {
    // SAFETY: the caller's promise.
    let py = unsafe { Python::assume_attached() };
    // SAFETY: the caller's promise; `frozen`, so that shared references are always good.
    let borrowed = unsafe { Borrowed::<PyAny>::from_ptr(py, this) };
    // SAFETY: the descriptor has checked the type.
    let lock = unsafe { borrowed.cast_unchecked::<SemLock>() };
    let lock: *const SemLock = lock.get();
    // SAFETY: the caller's promise.
    unsafe { &*lock }
}

/// Takes a lock that is free and has no history to tell.
#[inline]
fn take(lock: &SemLock) -> bool {
    lock.made().is_some_and(|inner| lock.take(inner))
}

#[inline]
fn free(lock: &SemLock) -> bool {
    lock.made().is_some_and(|inner| lock.give(inner))
}

#[inline]
fn yes() -> Object {
    // SAFETY: the singleton is always there.
    let object = unsafe { ffi::Py_True() };
    // SAFETY: as above; called with the interpreter.
    unsafe { ffi::Py_INCREF(object) };
    object
}

/// Says that the lock is had; `waits` tells whether its taker would have waited for it.
#[inline]
fn had(lock: &SemLock, waits: impl FnOnce(Python<'_>) -> bool) -> Object {
    if places::wanted() {
        Python::attach(|py| lock.note_taken(py, waits(py)));
    }
    yes()
}

#[inline]
fn nothing() -> Object {
    // SAFETY: the singleton is always there.
    let object = unsafe { ffi::Py_None() };
    // SAFETY: as above; called with the interpreter.
    unsafe { ffi::Py_INCREF(object) };
    object
}

#[cold]
fn slowly(call: impl FnOnce(Python<'_>) -> PyResult<Py<PyAny>>) -> Object {
    Python::attach(|py| match call(py) {
        Ok(object) => object.into_ptr(),
        Err(error) => {
            error.restore(py);
            std::ptr::null_mut()
        }
    })
}

fn told(py: Python<'_>, had: bool) -> PyResult<Py<PyAny>> {
    Ok(had.into_pyobject(py)?.to_owned().into_any().unbind())
}

unsafe extern "C" fn enter(this: Object, _: Object) -> Object {
    // SAFETY: called by the method's descriptor, which has checked the type, with a reference that it holds.
    let lock = unsafe { lock(this) };
    if take(lock) {
        return had(lock, |_| true);
    }
    slowly(|py| told(py, lock.enter(py)?))
}

fn leave(lock: &SemLock) -> Object {
    if free(lock) {
        lock.note_freed();
        return nothing();
    }
    slowly(|py| lock.leave(py).map(|()| py.None()))
}

unsafe extern "C" fn release(this: Object, _: Object) -> Object {
    // SAFETY: as for `enter`.
    leave(unsafe { lock(this) })
}

unsafe extern "C" fn exit(this: Object, _: *mut Object, _: ffi::Py_ssize_t) -> Object {
    // SAFETY: as for `enter`.
    leave(unsafe { lock(this) })
}

unsafe extern "C" fn acquire(
    this: Object,
    args: *const Object,
    count: ffi::Py_ssize_t,
    names: Object,
) -> Object {
    // SAFETY: as for `enter`.
    let lock = unsafe { lock(this) };
    // Without arguments, or with `block` alone, whatever it is: a free lock is had.
    if names.is_null() && count <= 1 && take(lock) {
        return had(lock, |py| {
            // SAFETY: the interpreter passes `count` positional arguments, which live during the call.
            let block = (count == 1).then(|| unsafe { argument(py, args, 0) });
            block.is_none_or(|block| block.is_truthy().unwrap_or(false))
        });
    }
    slowly(|py| {
        let count = usize::try_from(count).unwrap_or(0);
        let mut values = [None, None];
        if count > values.len() {
            return Err(too_many(count));
        }
        for (index, value) in values.iter_mut().enumerate().take(count) {
            // SAFETY: the interpreter passes `count` positional arguments, which live during the call.
            *value = Some(unsafe { argument(py, args, index) });
        }
        if !names.is_null() {
            // SAFETY: a tuple of strings that lives during the call.
            let names = unsafe { Borrowed::<PyAny>::from_ptr(py, names) };
            for (offset, name) in names.try_iter()?.enumerate() {
                let name = name?;
                let place = match name.extract::<&str>()? {
                    "block" => 0,
                    "timeout" => 1,
                    other => return Err(unknown(other)),
                };
                if values[place].is_some() {
                    return Err(unknown("the same argument twice"));
                }
                // SAFETY: the values of the names follow the positional arguments.
                values[place] = Some(unsafe { argument(py, args, count + offset) });
            }
        }
        let [block, timeout] = values;
        let timeout = timeout.filter(|timeout| !timeout.is_none());
        told(py, lock.acquire_with(py, block.as_ref(), timeout.as_ref())?)
    })
}

/// # Safety
///
/// `args` has more than `index` objects that live at this moment.
unsafe fn argument<'py>(py: Python<'py>, args: *const Object, index: usize) -> Bound<'py, PyAny> {
    // SAFETY: the caller's promise.
    let at = unsafe { args.add(index) };
    // SAFETY: the caller's promise.
    let object = unsafe { *at };
    // SAFETY: the caller's promise.
    unsafe { Bound::from_borrowed_ptr(py, object) }
}

#[cold]
fn too_many(count: usize) -> PyErr {
    PyTypeError::new_err(format!(
        "acquire() takes at most 2 arguments ({count} given)"
    ))
}

#[cold]
fn unknown(name: &str) -> PyErr {
    PyTypeError::new_err(format!(
        "acquire() got an unexpected keyword argument: {name}"
    ))
}
