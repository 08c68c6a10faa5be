//! Shared values: memory of the arena for ctypes objects, and the wrappers that access them under a lock.
//!
//! Numbers of the plain C types are read and written here; everything else goes through the ctypes object itself.

use std::sync::OnceLock;

use phalanx_sync::handle::Handle;
use phalanx_sync::{SharedMemory, SharedSlice};
use pyo3::exceptions::{PyIndexError, PyRuntimeError};
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyFloat, PyInt, PyTuple};

use crate::door::create_error;
use crate::handle::{give, take};
use crate::semlock::{Inner, SemLock};

pub(crate) fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<Block>()?;
    module.add_class::<SynchronizedBase>()?;
    module.add_class::<Synchronized>()?;
    module.add_class::<SynchronizedArray>()?;
    module.add_function(wrap_pyfunction!(_rebuild_block, module)?)
}

/// Bytes in the arena, zero at first. Freed with the last object that has them, in any process.
#[pyclass(module = "phalanx._engine", frozen, weakref)]
struct Block(SharedMemory);

#[pymethods]
impl Block {
    #[new]
    fn new(size: usize) -> PyResult<Self> {
        SharedMemory::new(size).map(Self).map_err(create_error)
    }

    /// Where the bytes are in this process; good for as long as this object lives.
    #[getter]
    fn address(&self) -> usize {
        self.0.as_ptr() as usize
    }

    #[getter]
    fn size(&self) -> usize {
        self.0.len()
    }

    fn __reduce__<'py>(slf: &Bound<'py, Self>) -> PyResult<Bound<'py, PyTuple>> {
        let py = slf.py();
        let Some(bytes) = slf.get().0.in_arena() else {
            return Err(PyRuntimeError::new_err("this memory has a name; send that"));
        };
        let bits = give(slf.as_any(), bytes.held())?;
        let function = py.import("phalanx._engine")?.getattr("_rebuild_block")?;
        (function, (bits,)).into_pyobject(py)
    }
}

/// Makes a block of the number in a pickle.
#[pyfunction]
fn _rebuild_block(bits: u64) -> PyResult<Block> {
    take::<SharedSlice<u8>>(bits).map(|bytes| Block(bytes.into()))
}

/// A C type of number.
#[derive(Clone, Copy)]
enum Number {
    Signed(usize),
    Unsigned(usize),
    Float,
    Double,
}

impl Number {
    /// Reads the codes of the `struct` module with sizes as on the machine.
    fn of(code: char) -> Option<Self> {
        Some(match code {
            'b' => Self::Signed(1),
            'B' => Self::Unsigned(1),
            'h' => Self::Signed(2),
            'H' => Self::Unsigned(2),
            'i' => Self::Signed(4),
            'I' => Self::Unsigned(4),
            'l' => Self::Signed(size_of::<std::ffi::c_long>()),
            'L' => Self::Unsigned(size_of::<std::ffi::c_ulong>()),
            'q' => Self::Signed(8),
            'Q' => Self::Unsigned(8),
            'f' => Self::Float,
            'd' => Self::Double,
            _ => return None,
        })
    }

    fn size(self) -> usize {
        match self {
            Self::Signed(size) | Self::Unsigned(size) => size,
            Self::Float => 4,
            Self::Double => 8,
        }
    }

    fn to_python(self, py: Python<'_>, bytes: [u8; 8]) -> PyResult<Bound<'_, PyAny>> {
        Ok(match self {
            Self::Signed(size) => {
                let unused = 64 - 8 * size as u32;
                (i64::from_le_bytes(bytes) << unused >> unused)
                    .into_pyobject(py)?
                    .into_any()
            }
            Self::Unsigned(_) => u64::from_le_bytes(bytes).into_pyobject(py)?.into_any(),
            Self::Float => {
                let [a, b, c, d, ..] = bytes;
                f64::from(f32::from_le_bytes([a, b, c, d]))
                    .into_pyobject(py)?
                    .into_any()
            }
            Self::Double => f64::from_le_bytes(bytes).into_pyobject(py)?.into_any(),
        })
    }

    /// Returns the bytes of a number, `None` where ctypes has to decide (or refuse).
    fn encode(self, value: &Bound<'_, PyAny>) -> Option<[u8; 8]> {
        match self {
            Self::Signed(_) | Self::Unsigned(_) => {
                let number = value.cast_exact::<PyInt>().ok()?.extract::<i64>().ok()?;
                Some(number.to_le_bytes())
            }
            Self::Float => {
                let number = value.cast_exact::<PyFloat>().ok()?.extract::<f64>().ok()?;
                // What does not fit becomes infinity, as in C; ctypes does the same.
                let [a, b, c, d] = (number as f32).to_le_bytes();
                Some([a, b, c, d, 0, 0, 0, 0])
            }
            Self::Double => {
                let number = value.cast_exact::<PyFloat>().ok()?.extract::<f64>().ok()?;
                Some(number.to_le_bytes())
            }
        }
    }
}

struct Parts {
    object: Py<PyAny>,
    lock: Py<PyAny>,
    native: Option<Py<SemLock>>,
    /// Numbers that can be accessed here: their type, how many, where.
    plain: Option<(Number, usize, Py<Block>)>,
}

impl Parts {
    fn acquire(&self, py: Python<'_>) -> PyResult<()> {
        match &self.native {
            Some(lock) => lock.get().enter(py).map(drop),
            None => self.lock.call_method0(py, "acquire").map(drop),
        }
    }

    fn release(&self, py: Python<'_>) -> PyResult<()> {
        match &self.native {
            Some(lock) => lock.get().leave(py),
            None => self.lock.call_method0(py, "release").map(drop),
        }
    }

    fn locked<T>(&self, py: Python<'_>, access: impl FnOnce() -> PyResult<T>) -> PyResult<T> {
        self.acquire(py)?;
        let result = access();
        self.release(py)?;
        result
    }

    /// Runs a few instructions under the lock; nothing of Python's.
    #[inline]
    fn briefly<T>(&self, py: Python<'_>, access: impl FnOnce() -> T) -> PyResult<T> {
        let had = match self.native.as_ref().and_then(|lock| lock.get().made()) {
            Some(Inner::RLock(lock)) => lock.brief(),
            Some(Inner::Lock(lock)) => lock.brief(),
            _ => None,
        };
        match had {
            Some(_held) => Ok(access()),
            None => self.locked(py, || Ok(access())),
        }
    }

    fn read<'py>(&self, py: Python<'py>, index: usize) -> PyResult<Option<Bound<'py, PyAny>>> {
        let Some((number, len, block)) = &self.plain else {
            return Ok(None);
        };
        if index >= *len {
            return Ok(None);
        }
        let mut bytes = [0; 8];
        let size = number.size();
        let read = self.briefly(py, || {
            block.get().0.read_at(index * size, &mut bytes[..size])
        })?;
        read.map_err(|error| PyIndexError::new_err(error.to_string()))?;
        number.to_python(py, bytes).map(Some)
    }

    fn write(&self, py: Python<'_>, index: usize, value: &Bound<'_, PyAny>) -> PyResult<bool> {
        let Some((number, len, block)) = &self.plain else {
            return Ok(false);
        };
        let Some(bytes) = number.encode(value).filter(|_| index < *len) else {
            return Ok(false);
        };
        let size = number.size();
        let written = self.briefly(py, || block.get().0.write_at(index * size, &bytes[..size]))?;
        written.map_err(|error| PyIndexError::new_err(error.to_string()))?;
        Ok(true)
    }

    fn index(&self, index: &Bound<'_, PyAny>) -> Option<usize> {
        let (_, len, _) = self.plain.as_ref()?;
        let index = index.cast_exact::<PyInt>().ok()?.extract::<isize>().ok()?;
        usize::try_from(if index < 0 {
            index + *len as isize
        } else {
            index
        })
        .ok()
    }
}

/// A ctypes object and the lock under which it is accessed.
#[pyclass(module = "phalanx._engine", subclass, frozen, dict, weakref)]
struct SynchronizedBase(OnceLock<Parts>);

impl SynchronizedBase {
    fn parts(&self) -> PyResult<&Parts> {
        self.0.get().ok_or_else(|| {
            PyRuntimeError::new_err(
                "this value was not made yet: its class must call the base's __init__()",
            )
        })
    }
}

#[pymethods]
impl SynchronizedBase {
    #[new]
    #[pyo3(signature = (*_args, **_kwargs))]
    fn new(_args: &Bound<'_, PyTuple>, _kwargs: Option<&Bound<'_, PyDict>>) -> Self {
        Self(OnceLock::new())
    }

    /// Makes the wrapper of an object that is being constructed. With `block`, `len` numbers of type `code` are all of it.
    #[pyo3(signature = (object, lock, code=None, len=0, block=None))]
    fn _bind(
        &self,
        object: Py<PyAny>,
        lock: &Bound<'_, PyAny>,
        code: Option<char>,
        len: usize,
        block: Option<Py<Block>>,
    ) -> PyResult<()> {
        let native = lock.cast::<SemLock>().ok().filter(|lock| {
            matches!(
                lock.get().inner(),
                Ok(Inner::Lock(_) | Inner::RLock(_) | Inner::Semaphore(..))
            )
        });
        let number = code.and_then(Number::of);
        let parts = Parts {
            object,
            lock: lock.clone().unbind(),
            native: native.map(|lock| lock.clone().unbind()),
            plain: number
                .zip(block)
                .filter(|_| cfg!(target_endian = "little"))
                .map(|(number, block)| (number, len, block)),
        };
        self.0
            .set(parts)
            .map_err(|_| PyRuntimeError::new_err("this value was made already"))
    }

    /// Acquire the lock.
    #[pyo3(signature = (*args, **kwargs))]
    fn acquire(
        &self,
        py: Python<'_>,
        args: &Bound<'_, PyTuple>,
        kwargs: Option<&Bound<'_, PyDict>>,
    ) -> PyResult<Py<PyAny>> {
        self.parts()?.lock.call_method(py, "acquire", args, kwargs)
    }

    /// Release the lock.
    fn release(&self, py: Python<'_>) -> PyResult<()> {
        self.parts()?.release(py)
    }

    fn __enter__(&self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        self.parts()?.lock.call_method0(py, "__enter__")
    }

    #[pyo3(signature = (*args))]
    fn __exit__(&self, py: Python<'_>, args: &Bound<'_, PyTuple>) -> PyResult<Py<PyAny>> {
        self.parts()?.lock.call_method1(py, "__exit__", args)
    }

    /// Return the ctypes object itself.
    fn get_obj(&self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        Ok(self.parts()?.object.clone_ref(py))
    }

    /// Return the lock.
    fn get_lock(&self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        Ok(self.parts()?.lock.clone_ref(py))
    }

    #[getter]
    fn _obj(&self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        self.get_obj(py)
    }

    #[getter]
    fn _lock(&self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        self.get_lock(py)
    }

    fn __repr__(slf: &Bound<'_, Self>) -> PyResult<String> {
        let object = slf.get().parts()?.object.bind(slf.py());
        Ok(format!("<{} wrapper for {object}>", slf.get_type().name()?))
    }
}

/// One number, character or the like, accessed under its lock.
#[pyclass(module = "phalanx._engine", extends = SynchronizedBase, subclass, frozen)]
struct Synchronized;

#[pymethods]
impl Synchronized {
    #[new]
    #[pyo3(signature = (*_args, **_kwargs))]
    fn new(
        _args: &Bound<'_, PyTuple>,
        _kwargs: Option<&Bound<'_, PyDict>>,
    ) -> PyClassInitializer<Self> {
        PyClassInitializer::from(SynchronizedBase(OnceLock::new())).add_subclass(Self)
    }

    #[getter]
    fn get_value<'py>(slf: &Bound<'py, Self>) -> PyResult<Bound<'py, PyAny>> {
        let py = slf.py();
        let parts = slf.as_super().get().parts()?;
        if let Some(value) = parts.read(py, 0)? {
            return Ok(value);
        }
        parts.locked(py, || parts.object.bind(py).getattr("value"))
    }

    #[setter]
    fn set_value(slf: &Bound<'_, Self>, value: &Bound<'_, PyAny>) -> PyResult<()> {
        let py = slf.py();
        let parts = slf.as_super().get().parts()?;
        if parts.write(py, 0, value)? {
            return Ok(());
        }
        parts.locked(py, || parts.object.bind(py).setattr("value", value))
    }
}

/// An array, accessed under its lock.
#[pyclass(module = "phalanx._engine", extends = SynchronizedBase, subclass, frozen)]
struct SynchronizedArray;

#[pymethods]
impl SynchronizedArray {
    #[new]
    #[pyo3(signature = (*_args, **_kwargs))]
    fn new(
        _args: &Bound<'_, PyTuple>,
        _kwargs: Option<&Bound<'_, PyDict>>,
    ) -> PyClassInitializer<Self> {
        PyClassInitializer::from(SynchronizedBase(OnceLock::new())).add_subclass(Self)
    }

    fn __len__(slf: &Bound<'_, Self>) -> PyResult<usize> {
        slf.as_super().get().parts()?.object.bind(slf.py()).len()
    }

    fn __getitem__<'py>(
        slf: &Bound<'py, Self>,
        index: &Bound<'py, PyAny>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let py = slf.py();
        let parts = slf.as_super().get().parts()?;
        if let Some(at) = parts.index(index)
            && let Some(value) = parts.read(py, at)?
        {
            return Ok(value);
        }
        parts.locked(py, || parts.object.bind(py).get_item(index))
    }

    fn __setitem__(
        slf: &Bound<'_, Self>,
        index: &Bound<'_, PyAny>,
        value: &Bound<'_, PyAny>,
    ) -> PyResult<()> {
        let py = slf.py();
        let parts = slf.as_super().get().parts()?;
        if let Some(at) = parts.index(index)
            && parts.write(py, at, value)?
        {
            return Ok(());
        }
        parts.locked(py, || parts.object.bind(py).set_item(index, value))
    }
}
