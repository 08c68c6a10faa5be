//! Objects as bytes of a lot: arguments, functions and results.
//!
//! What [`message`] makes of an object; large ones are blocks of their own, named by `S`, their number and whether they carry
//! handles. A hold on such a block travels with the lot.

use std::collections::{HashMap, HashSet};

use phalanx_channel::{Kept, Loan, Message};
use phalanx_shm::{Arena, Held, Kind, session};
use phalanx_sync::handle::receive;
use pyo3::exceptions::PyRuntimeError;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyList, PyTuple};

use crate::codec;
use crate::door::raise;
use crate::message::{self, Encoded, Shared};
use crate::pool::{VALUES_EACH, VALUES_LIST};

const APART: u8 = b'S';
/// Arrays from here on are written once for all tasks of a call.
const SHARED_FROM: usize = 256 * 1024;

/// Writes objects one after the other.
pub(crate) struct Packer {
    arena: &'static Arena,
    pub(crate) bytes: Vec<u8>,
    pub(crate) holds: Vec<Held>,
    small: Vec<u8>,
    /// Arrays that several tasks of the call get, by address: written when they come first. The caller keeps them alive.
    shared: HashMap<usize, Option<Py<Shared>>>,
    /// The class of arrays, if the program has any.
    arrays: Option<Py<PyAny>>,
}

impl Packer {
    pub(crate) fn new(py: Python<'_>) -> PyResult<Self> {
        Ok(Self {
            arena: session().map_err(raise)?,
            bytes: Vec::new(),
            holds: Vec::new(),
            small: Vec::new(),
            shared: HashMap::new(),
            arrays: arrays(py)?,
        })
    }

    fn is_large_array(&self, object: &Bound<'_, PyAny>) -> bool {
        self.arrays
            .as_ref()
            .is_some_and(|arrays| object.get_type().is(arrays))
            && object
                .getattr("nbytes")
                .and_then(|bytes| bytes.extract::<usize>())
                .is_ok_and(|bytes| bytes >= SHARED_FROM)
    }

    /// Appends an object.
    ///
    /// # Errors
    ///
    /// What pickling raises; `MemoryError`.
    pub(crate) fn pack(&mut self, object: &Bound<'_, PyAny>) -> PyResult<()> {
        let py = object.py();
        match message::encode(self.arena, object, &mut self.small)? {
            Encoded::Small => self.bytes.extend_from_slice(&self.small),
            Encoded::Bytes(tag, object) => {
                self.bytes.push(tag);
                message::with_bytes_of(object.bind(py), |bytes| {
                    self.bytes.extend_from_slice(bytes);
                })?;
            }
            Encoded::Placed(loan) => self.name(loan)?,
        }
        Ok(())
    }

    fn name(&mut self, loan: Loan) -> PyResult<()> {
        let Ok(kept) = loan.into_message().keep().map_err(raise)? else {
            return Err(PyRuntimeError::new_err("a block that is none"));
        };
        let held = kept.into_held();
        let kind = self.arena.kind_of(held.block());
        self.bytes.push(APART);
        self.bytes.push(u8::from(kind == Some(Kind::Message)));
        self.bytes
            .extend_from_slice(&held.block().to_bits().to_le_bytes());
        self.holds.push(held);
        Ok(())
    }

    /// Tells whether an item, or an element of one that is a list of arguments, is a large array.
    pub(crate) fn has_large_arrays(&self, items: &Bound<'_, PyList>, star: bool) -> bool {
        self.arrays.is_some()
            && items.iter().any(|item| match item.cast_exact::<PyTuple>() {
                Ok(args) if star => args.iter_borrowed().any(|arg| self.is_large_array(&arg)),
                _ => self.is_large_array(&item),
            })
    }

    /// Appends a list that nobody else has: what many calls are made with.
    pub(crate) fn pack_items(&mut self, items: &Bound<'_, PyList>) -> PyResult<()> {
        self.small.clear();
        let values = Vec::from_iter(items.iter());
        if codec::encode_items(&values, &mut self.small).is_ok() {
            self.bytes.extend_from_slice(&self.small);
            return Ok(());
        }
        self.pack(items.as_any())
    }

    /// Appends the values of many calls: as one list where all are plain or pickled without buffers, so that none keeps the
    /// memory of another alive; otherwise one by one.
    pub(crate) fn pack_each(
        &mut self,
        py: Python<'_>,
        values: &[Bound<'_, PyAny>],
    ) -> PyResult<()> {
        if message::encode_items(py, values, &mut self.small)? {
            self.bytes.push(VALUES_LIST);
            self.bytes.extend_from_slice(&self.small);
            return Ok(());
        }
        self.bytes.push(VALUES_EACH);
        for value in values {
            let at = self.bytes.len();
            self.bytes.extend_from_slice(&[0; 8]);
            self.pack(value)?;
            let len = (self.bytes.len() - at - 8) as u64;
            self.bytes[at..at + 8].copy_from_slice(&len.to_le_bytes());
        }
        Ok(())
    }

    /// Looks which large arrays come more than once.
    pub(crate) fn look_for_repeats(&mut self, items: &Bound<'_, PyList>, star: bool) {
        if self.arrays.is_none() {
            return;
        }
        let mut seen = HashSet::new();
        let mut look = |this: &mut Self, object: &Bound<'_, PyAny>| {
            let at = object.as_ptr() as usize;
            if this.is_large_array(object) && !seen.insert(at) {
                this.shared.insert(at, None);
            }
        };
        for item in items {
            match item.cast_exact::<PyTuple>() {
                Ok(args) if star => args.iter().for_each(|arg| look(self, &arg)),
                _ => look(self, &item),
            }
        }
    }

    /// Puts in place of a large array that comes more than once what stands for it, written once.
    pub(crate) fn broadcast<'py>(
        &mut self,
        object: &Bound<'py, PyAny>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let py = object.py();
        match self.shared.get_mut(&(object.as_ptr() as usize)) {
            None => Ok(object.clone()),
            Some(Some(shared)) => Ok(shared.bind(py).clone().into_any()),
            Some(absent) => {
                let shared = Bound::new(py, Shared::new(object)?)?;
                *absent = Some(shared.clone().unbind());
                Ok(shared.into_any())
            }
        }
    }

    /// As [`broadcast`](Self::broadcast), for the elements of a list of arguments.
    pub(crate) fn broadcast_all<'py>(
        &mut self,
        args: &Bound<'py, PyAny>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let Ok(tuple) = args.cast_exact::<PyTuple>() else {
            return Ok(args.clone());
        };
        if self.shared.is_empty() {
            return Ok(args.clone());
        }
        let list = PyList::empty(args.py());
        for arg in tuple {
            list.append(self.broadcast(&arg)?)?;
        }
        Ok(list.to_tuple().into_any())
    }
}

fn arrays(py: Python<'_>) -> PyResult<Option<Py<PyAny>>> {
    let modules = py.import("sys")?.getattr("modules")?;
    let Ok(numpy) = modules.get_item("numpy") else {
        return Ok(None);
    };
    Ok(numpy.getattr_opt("ndarray")?.map(Bound::unbind))
}

/// An object ready to be sent with many lots.
#[pyclass(frozen, module = "phalanx._engine")]
pub(crate) struct Parcel {
    pub(crate) bytes: Vec<u8>,
    pub(crate) holds: Vec<Held>,
}

#[pymethods]
impl Parcel {
    #[new]
    fn new(object: &Bound<'_, PyAny>) -> PyResult<Self> {
        let mut packer = Packer::new(object.py())?;
        packer.pack(object)?;
        Ok(Self {
            bytes: packer.bytes,
            holds: packer.holds,
        })
    }

    /// The object again, as a worker gets it.
    fn open<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        decode(py, &self.bytes)
    }
}

pub(crate) fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<Parcel>()
}

/// Makes an object of bytes.
///
/// # Errors
///
/// What unpickling raises; `MemoryError`.
pub(crate) fn decode<'py>(py: Python<'py>, bytes: &[u8]) -> PyResult<Bound<'py, PyAny>> {
    match named(bytes)? {
        Some(kept) => message::open_kept(py, &kept),
        None => message::decode_small(py, bytes),
    }
}

/// As [`decode`], for bytes that nobody reads again: what is large is changed where it was written.
///
/// # Errors
///
/// As for `decode`.
pub(crate) fn decode_once<'py>(py: Python<'py>, bytes: &[u8]) -> PyResult<Bound<'py, PyAny>> {
    match named(bytes)? {
        Some(kept) => message::open_ours(py, kept),
        None => message::decode_small(py, bytes),
    }
}

/// Holds the block that bytes name; `None` when they are the object's own.
fn named(bytes: &[u8]) -> PyResult<Option<Kept>> {
    let Some((&APART, rest)) = bytes.split_first() else {
        return Ok(None);
    };
    let torn = || PyRuntimeError::new_err("these bytes are no arguments of a task");
    let (with_handles, bits) = rest.split_first().ok_or_else(torn)?;
    let bits = u64::from_le_bytes(bits.try_into().map_err(|_| torn())?);
    let kind = if *with_handles == 1 {
        Kind::Message
    } else {
        Kind::Bytes
    };
    let held = receive(kind, bits).map_err(PyRuntimeError::new_err)?;
    Ok(Some(Kept::from_held(held)))
}

/// What bytes say of an object, without making it: a pickle can run anything.
pub(crate) enum Looked<'py> {
    /// A plain value.
    Value(Bound<'py, PyAny>),
    /// The pickle, without the buffers beside it.
    Pickle(Bound<'py, PyBytes>),
}

/// Looks at bytes of which [`decode`] would make an object.
///
/// # Errors
///
/// `RuntimeError` when they are none.
pub(crate) fn look<'py>(py: Python<'py>, bytes: &[u8]) -> PyResult<Looked<'py>> {
    match named(bytes)? {
        Some(kept) => crate::buffers::read_kept(&kept, |bytes| message::look(py, bytes)),
        None => message::look(py, bytes),
    }
}

/// Calls `f` with each of the objects that [`Packer::pack_items`] wrote, as long as it says so.
///
/// # Errors
///
/// What unpickling raises; `MemoryError`.
pub(crate) fn for_each<'py>(
    py: Python<'py>,
    bytes: &[u8],
    mut f: impl FnMut(Bound<'py, PyAny>) -> bool,
) -> PyResult<()> {
    if let Some(items) = codec::decode_items(py, bytes)? {
        for item in items {
            if !f(item?) {
                break;
            }
        }
        return Ok(());
    }
    for item in decode(py, bytes)?.cast::<PyList>()?.iter() {
        if !f(item) {
            break;
        }
    }
    Ok(())
}

/// Appends to `values` what [`Packer::pack_each`] wrote.
///
/// # Errors
///
/// What unpickling raises; `MemoryError`.
pub(crate) fn decode_each(values: &Bound<'_, PyList>, bytes: &[u8]) -> PyResult<()> {
    let py = values.py();
    let torn = || PyRuntimeError::new_err("these bytes are no values of a task");
    match bytes.split_first().ok_or_else(torn)? {
        (&VALUES_LIST, list) => {
            if let Some(items) = codec::decode_items(py, list)? {
                for item in items {
                    values.append(item?)?;
                }
                return Ok(());
            }
            let list = message::decode_small(py, list)?.cast_into::<PyList>()?;
            let end = values.len();
            values.set_slice(end, end, list.as_any())
        }
        (_, mut rest) => {
            while let Some((len, more)) = rest.split_first_chunk() {
                let len = usize::try_from(u64::from_le_bytes(*len)).map_err(|_| torn())?;
                let (value, more) = more.split_at_checked(len).ok_or_else(torn)?;
                values.append(decode(py, value)?)?;
                rest = more;
            }
            Ok(())
        }
    }
}

/// Makes an object of the block of a result, which is the caller's.
///
/// # Errors
///
/// What unpickling raises; `MemoryError`.
pub(crate) fn decode_block(py: Python<'_>, message: Message) -> PyResult<Bound<'_, PyAny>> {
    message::decode(py, message)
}
