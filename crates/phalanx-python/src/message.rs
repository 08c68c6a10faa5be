//! Objects as messages: what is put into a queue, and what is made of it again.
//!
//! | first byte | then |
//! |---|---|
//! | any tag of [`codec`] | a plain value |
//! | `P` | a pickle |
//! | `O` | a pickle with buffers beside it, see below |
//! | `B` `A` | a large bytes, a large bytearray |
//! | `R` | bytes that were sent as bytes |
//!
//! `O`: 7 bytes of nothing; length of the pickle, number of buffers, their lengths (u64 each); the pickle; each buffer from a
//! multiple of 64. The buffers are copied once, into the block that the receiver maps.

use std::sync::Arc;

use phalanx_channel::exposed::{Exposed, Private};
use phalanx_channel::{Kept, Loan, Message};
use phalanx_shm::{Arena, Held, Kind, session};
use phalanx_sync::handle::{collect, receive};
use pyo3::buffer::PyUntypedBuffer;
use pyo3::exceptions::{PyRuntimeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyByteArray, PyBytes, PyList};

use crate::buffers::{Buffer, Unfilled, Whole};
use crate::codec::{self, Unfit};
use crate::door::raise;
use crate::handle;
use crate::payload::Looked;
use crate::pickle::{self, Pickled};

const ALIGN: usize = 64;
/// From here on a copy is worth letting other threads run.
const LONG: usize = 256 * 1024;

/// So much of large bytes is enough to describe them.
const LOOKED_AT: usize = 128;

/// An object ready to be sent.
pub(crate) enum Encoded {
    /// In the caller's buffer.
    Small,
    /// One tag and bytes.
    Bytes(u8, Py<PyAny>),
    /// Written in place already.
    Placed(Loan),
}

/// Writes `object` into `small` if it is small, into a block of `arena` otherwise.
///
/// # Errors
///
/// What pickling raises; `MemoryError`.
pub(crate) fn encode(
    arena: &'static Arena,
    object: &Bound<'_, PyAny>,
    small: &mut Vec<u8>,
) -> PyResult<Encoded> {
    small.clear();
    if let Ok(bytes) = object.cast_exact::<PyBytes>()
        && bytes.as_bytes().len() >= 1024
    {
        return Ok(Encoded::Bytes(b'B', object.clone().unbind()));
    }
    if let Ok(bytes) = object.cast_exact::<PyByteArray>()
        && bytes.len() >= 1024
    {
        return Ok(Encoded::Bytes(b'A', object.clone().unbind()));
    }
    match codec::encode(object, small) {
        Ok(()) => Ok(Encoded::Small),
        Err(Unfit) => {
            small.clear();
            encode_pickle(arena, object, small)
        }
    }
}

/// Encodes a list of these values into `small`, however long, if that takes no buffers and handles beside it; answers
/// whether it did.
///
/// # Errors
///
/// What pickling raises.
pub(crate) fn encode_items(
    py: Python<'_>,
    values: &[Bound<'_, PyAny>],
    small: &mut Vec<u8>,
) -> PyResult<bool> {
    small.clear();
    if codec::encode_items(values, small).is_ok() {
        return Ok(true);
    }
    small.clear();
    let list = PyList::new(py, values)?;
    let (pickled, objects) = collect(|| pickle::dump(list.as_any()));
    let pickled = pickled?;
    if !pickled.buffers.is_empty() || !objects.is_empty() {
        return Ok(false);
    }
    small.push(b'P');
    for piece in &pickled.pickle {
        small.extend_from_slice(piece.bind(py).as_bytes());
    }
    Ok(true)
}

fn encode_pickle(
    arena: &'static Arena,
    object: &Bound<'_, PyAny>,
    small: &mut Vec<u8>,
) -> PyResult<Encoded> {
    let py = object.py();
    let (pickled, objects) = collect(|| pickle::dump(object));
    let pickled = pickled?;
    let len = pickled.pickle_len(py);
    if pickled.buffers.is_empty() && objects.is_empty() && len < phalanx_channel::INLINE_MOST {
        small.push(b'P');
        for piece in &pickled.pickle {
            small.extend_from_slice(piece.bind(py).as_bytes());
        }
        return Ok(Encoded::Small);
    }
    place(py, arena, &pickled, len, &objects).map(Encoded::Placed)
}

/// Writes a pickle and its buffers into one block.
fn place(
    py: Python<'_>,
    arena: &'static Arena,
    pickled: &Pickled,
    len: usize,
    objects: &[Held],
) -> PyResult<Loan> {
    let mut views = Vec::with_capacity(pickled.buffers.len());
    for buffer in &pickled.buffers {
        views.push(PyUntypedBuffer::get(buffer.bind(py))?);
    }
    let head = if views.is_empty() {
        1
    } else {
        24 + views.len() * 8
    };
    let mut total = head + len;
    for view in &views {
        total = total.next_multiple_of(ALIGN) + view.len_bytes();
    }
    let mut loan = Loan::new(arena, total, objects).map_err(raise)?;
    if views.is_empty() {
        loan[0] = b'P';
    } else {
        loan[..8].copy_from_slice(&[b'O', 0, 0, 0, 0, 0, 0, 0]);
        loan[8..16].copy_from_slice(&(len as u64).to_le_bytes());
        loan[16..24].copy_from_slice(&(views.len() as u64).to_le_bytes());
        for (index, view) in views.iter().enumerate() {
            let at = 24 + index * 8;
            loan[at..at + 8].copy_from_slice(&(view.len_bytes() as u64).to_le_bytes());
        }
    }
    let mut at = head;
    for piece in &pickled.pickle {
        copy(py, piece.bind(py).as_bytes(), &mut loan[at..]);
        at += piece.bind(py).as_bytes().len();
    }
    for view in &views {
        at = at.next_multiple_of(ALIGN);
        copy_view(py, view, &mut loan[at..])?;
        at += view.len_bytes();
    }
    Ok(loan)
}

/// Copies bytes that nobody changes; a long copy lets other threads run.
pub(crate) fn copy(py: Python<'_>, from: &[u8], to: &mut [u8]) {
    let to = &mut to[..from.len()];
    if from.len() < LONG {
        to.copy_from_slice(from);
    } else {
        py.detach(|| to.copy_from_slice(from));
    }
}

/// Copies the bytes of a view; another thread that changes them meanwhile is the caller's business, as with any pickle made in the
/// background.
pub(crate) fn copy_view(py: Python<'_>, from: &PyUntypedBuffer, to: &mut [u8]) -> PyResult<()> {
    crate::buffers::with_bytes(py, from, |bytes| copy(py, bytes, to))
}

fn torn() -> PyErr {
    PyValueError::new_err("these bytes are not a message of this version of phalanx")
}

/// Makes an object of bytes of the heap.
///
/// # Errors
///
/// What unpickling raises.
pub(crate) fn decode_small<'py>(py: Python<'py>, bytes: &[u8]) -> PyResult<Bound<'py, PyAny>> {
    match bytes.first() {
        Some(b'P') => pickle::load(PyBytes::new(py, &bytes[1..]).as_any(), None),
        // What was sent as bytes is a pickle somebody made.
        Some(b'R') => pickle::load(PyBytes::new(py, &bytes[1..]).as_any(), None),
        Some(b'B') => Ok(PyBytes::new(py, &bytes[1..]).into_any()),
        Some(b'A') => Ok(PyByteArray::new(py, &bytes[1..]).into_any()),
        _ => codec::decode(py, bytes),
    }
}

/// Looks at a message without making the object: of a pickle only its bytes are shown, of large bytes the first few.
///
/// # Errors
///
/// When it is torn.
pub(crate) fn look<'py>(py: Python<'py>, message: &[u8]) -> PyResult<Looked<'py>> {
    let word = |at: usize| {
        let bytes = message.get(at..at + 8).ok_or_else(torn)?;
        Ok::<_, PyErr>(u64::from_le_bytes(bytes.try_into().map_err(|_| torn())?) as usize)
    };
    let few = &message[1.min(message.len())..message.len().min(LOOKED_AT)];
    Ok(match message.first() {
        Some(b'P' | b'R') => Looked::Pickle(PyBytes::new(py, &message[1..])),
        Some(b'O') => {
            let (len, count) = (word(8)?, word(16)?);
            let from = count.checked_mul(8).and_then(|all| all.checked_add(24));
            let pickle = from.and_then(|from| message.get(from..from.checked_add(len)?));
            Looked::Pickle(PyBytes::new(py, pickle.ok_or_else(torn)?))
        }
        Some(b'B') => Looked::Value(PyBytes::new(py, few).into_any()),
        Some(b'A') => Looked::Value(PyByteArray::new(py, few).into_any()),
        _ => Looked::Value(codec::decode(py, message)?),
    })
}

/// Makes an object of a message in the arena.
///
/// # Errors
///
/// What unpickling raises; `MemoryError`.
pub(crate) fn decode<'py>(py: Python<'py>, message: Message) -> PyResult<Bound<'py, PyAny>> {
    match message.first() {
        Some(b'P' | b'O' | b'R') => {}
        Some(b'B') => return Ok(to_bytes(py, &message)?.into_any()),
        Some(b'A') => {
            return Ok(PyByteArray::new_with(py, message.len() - 1, |to| {
                copy(py, &message[1..], to);
                Ok(())
            })?
            .into_any());
        }
        _ => return codec::decode(py, &message),
    }
    let aside = message[0] == b'O';
    crate::buffers::watch_forks(py)?;
    let kept = match message.keep().map_err(raise)? {
        Ok(kept) => Arc::new(Whole::Ours(Exposed::new(kept))),
        Err(message) => return decode_small(py, &message),
    };
    decode_whole(py, aside, &kept)
}

fn decode_whole<'py>(
    py: Python<'py>,
    aside: bool,
    kept: &Arc<Whole>,
) -> PyResult<Bound<'py, PyAny>> {
    if aside {
        return decode_aside(py, kept);
    }
    let (_, len) = kept.bytes();
    let pickle = Buffer::new(kept, 1, len - 1).ok_or_else(torn)?;
    pickle::load(Bound::new(py, pickle)?.as_any(), None)
}

fn to_bytes<'py>(py: Python<'py>, message: &[u8]) -> PyResult<Bound<'py, PyBytes>> {
    let from = &message[1..];
    if from.len() < LONG {
        return Ok(PyBytes::new(py, from));
    }
    Unfilled::new(py, from.len())?.fill(|to| {
        py.detach(|| to.write_copy_of_slice(from));
        Ok(())
    })
}

/// Returns the bytes that were sent as such, or a pickle of whatever else this is.
///
/// # Errors
///
/// What pickling raises.
pub(crate) fn pickled_small<'py>(py: Python<'py>, bytes: &[u8]) -> PyResult<Bound<'py, PyAny>> {
    match bytes.first() {
        Some(b'P' | b'R') => Ok(PyBytes::new(py, &bytes[1..]).into_any()),
        _ => pickle::dump_whole(&decode_small(py, bytes)?),
    }
}

/// As [`pickled_small`] for a message in the arena.
///
/// # Errors
///
/// What pickling raises; `MemoryError`.
pub(crate) fn pickled<'py>(py: Python<'py>, message: Message) -> PyResult<Bound<'py, PyAny>> {
    match message.first() {
        Some(b'P' | b'R') => Ok(to_bytes(py, &message)?.into_any()),
        _ => pickle::dump_whole(&decode(py, message)?),
    }
}

/// Shows the bytes of an object with the buffer protocol to `read`.
///
/// # Errors
///
/// `TypeError` without one, `BufferError` if its bytes do not lie together.
pub(crate) fn with_bytes_of<T>(
    object: &Bound<'_, PyAny>,
    read: impl FnOnce(&[u8]) -> T,
) -> PyResult<T> {
    if let Ok(bytes) = object.cast_exact::<PyBytes>() {
        return Ok(read(bytes.as_bytes()));
    }
    crate::buffers::with_bytes(object.py(), &PyUntypedBuffer::get(object)?, read)
}

/// Makes an object of a pickle with buffers beside it, which stay where they are.
fn decode_aside<'py>(py: Python<'py>, kept: &Arc<Whole>) -> PyResult<Bound<'py, PyAny>> {
    let word = |at: usize| -> PyResult<usize> {
        let part = Buffer::new(kept, at, 8).ok_or_else(torn)?;
        Ok(part.word() as usize)
    };
    let (len, count) = (word(8)?, word(16)?);
    let (_, all) = kept.bytes();
    if count > all / 8 || len > all {
        return Err(torn());
    }
    let head = 24 + count * 8;
    let pickle = Buffer::new(kept, head, len).ok_or_else(torn)?;
    let buffers = PyList::empty(py);
    let mut at = head + len;
    for index in 0..count {
        at = at.next_multiple_of(ALIGN);
        let len = word(24 + index * 8)?;
        buffers.append(Bound::new(
            py,
            Buffer::new(kept, at, len).ok_or_else(torn)?,
        )?)?;
        at += len;
    }
    pickle::load(Bound::new(py, pickle)?.as_any(), Some(&buffers))
}

/// An object that was written into the arena once, for many receivers.
///
/// Pickled into a queue or a task it travels as a mere reference, and what is unpickled is the object: each receiver has a copy of
/// its own, whose large buffers are mapped where they were written and copied page by page only where the receiver writes.
#[pyclass(frozen, module = "phalanx._engine")]
pub(crate) struct Shared {
    kept: Kept,
}

#[pymethods]
impl Shared {
    /// Writes an object into the arena.
    #[new]
    pub(crate) fn new(object: &Bound<'_, PyAny>) -> PyResult<Self> {
        let py = object.py();
        let arena = session().map_err(raise)?;
        let (pickled, objects) = collect(|| pickle::dump(object));
        let pickled = pickled?;
        let loan = place(py, arena, &pickled, pickled.pickle_len(py), &objects)?;
        match loan.into_message().keep().map_err(raise)? {
            Ok(kept) => Ok(Self { kept }),
            Err(_) => Err(torn()),
        }
    }

    /// Returns the object, as a receiver gets it.
    fn get<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        open_kept(py, &self.kept)
    }

    fn __len__(&self) -> usize {
        self.kept.bytes().1
    }

    fn __reduce__<'py>(slf: &Bound<'py, Self>) -> PyResult<(Bound<'py, PyAny>, (u64, bool))> {
        let held = slf.get().kept.held();
        let bits = handle::give(slf.as_any(), held)?;
        let open = slf.py().import("phalanx._engine")?.getattr("open_shared")?;
        let with_handles = held.arena().kind_of(held.block()) == Some(Kind::Message);
        Ok((open, (bits, with_handles)))
    }
}

/// Makes an object of what [`Shared`] wrote.
#[pyfunction]
fn open_shared(py: Python<'_>, bits: u64, with_handles: bool) -> PyResult<Bound<'_, PyAny>> {
    let kind = if with_handles {
        Kind::Message
    } else {
        Kind::Bytes
    };
    let held = receive(kind, bits).map_err(PyRuntimeError::new_err)?;
    open_kept(py, &Kept::from_held(held))
}

/// Makes an object of a payload that nobody else reads or changes.
pub(crate) fn open_ours(py: Python<'_>, kept: Kept) -> PyResult<Bound<'_, PyAny>> {
    crate::buffers::watch_forks(py)?;
    let whole = Arc::new(Whole::Ours(Exposed::new(kept)));
    let head = Buffer::new(&whole, 0, 8).ok_or_else(torn)?;
    let aside = head.word() as u8 == b'O';
    decode_whole(py, aside, &whole)
}

pub(crate) fn open_kept<'py>(py: Python<'py>, kept: &Kept) -> PyResult<Bound<'py, PyAny>> {
    match Private::new(kept) {
        Ok(private) => {
            let whole = Arc::new(Whole::Copied(private));
            let head = Buffer::new(&whole, 0, 8).ok_or_else(torn)?;
            decode_whole(py, head.word() as u8 == b'O', &whole)
        }
        // Too small to have pages of its own, or no mapping to be had: a copy.
        Err(_) => {
            let (_, len) = kept.bytes();
            let mut loan = Loan::new(kept.held().arena(), len, &[]).map_err(raise)?;
            crate::buffers::read_kept(kept, |bytes| copy(py, bytes, &mut loan));
            decode(py, loan.into_message())
        }
    }
}

pub(crate) fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<Shared>()?;
    module.add_function(wrap_pyfunction!(open_shared, module)?)?;
    Ok(())
}
