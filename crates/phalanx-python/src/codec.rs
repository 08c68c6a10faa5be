//! Plain Python values as bytes, without the pickler.
//!
//! | tag | then |
//! |---|---|
//! | `N` `T` `F` | nothing: None, True, False |
//! | `i` | zigzag varint: an int of 64 bits |
//! | `f` | 8 bytes: a float |
//! | `s` `b` | length varint, bytes: a str, a bytes |
//! | `t` `l` `d` | count varint, items (of a dict: key, value, …) |
//! | `r` | varint: the object with this number, again |
//!
//! Only exact types, and only what a pickle would bring over no better. An object that is referenced from elsewhere too may
//! come again in the same message, so it gets a number (the tag's high bit says so) and is written once: shared references
//! and lists that contain themselves arrive as they were. What is too large, too deep or of any other type is left to the
//! pickler ([`Unfit`]).

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::{PyBool, PyBytes, PyDict, PyFloat, PyInt, PyList, PyString, PyTuple};

const NUMBERED: u8 = 0x80;
/// Deeper nesting is the pickler's, which says so when it is too deep.
const DEEPEST: usize = 24;
/// With more objects that may come again than this, a table would be needed: the pickler has one.
const MOST_NUMBERED: usize = 48;
/// More bytes than this gain nothing here.
const LARGEST: usize = 64 * 1024;

/// The value is not plain: the pickler must do it.
#[derive(Debug)]
pub(crate) struct Unfit;

struct Encoder<'a> {
    out: &'a mut Vec<u8>,
    numbered: [usize; MOST_NUMBERED],
    count: usize,
    /// Tuples that are not complete yet cannot be referred to.
    open_tuples: [usize; DEEPEST],
    depth: usize,
}

/// Appends `value` to `out`. On error `out` has some rubbish behind what was there.
pub(crate) fn encode(value: &Bound<'_, PyAny>, out: &mut Vec<u8>) -> Result<(), Unfit> {
    let mut encoder = Encoder {
        out,
        numbered: [0; MOST_NUMBERED],
        count: 0,
        open_tuples: [0; DEEPEST],
        depth: 0,
    };
    // The caller's references are not known: it may come again inside of itself.
    encoder.value(value, 0)
}

/// As [`encode`] for a list of these values, which nobody else has.
pub(crate) fn encode_items(values: &[Bound<'_, PyAny>], out: &mut Vec<u8>) -> Result<(), Unfit> {
    let mut encoder = Encoder {
        out,
        numbered: [0; MOST_NUMBERED],
        count: 0,
        open_tuples: [0; DEEPEST],
        depth: 1,
    };
    encoder.out.push(b'l');
    write_varint(encoder.out, values.len() as u64);
    for value in values {
        encoder.value(value, 1)?;
    }
    Ok(())
}

/// As [`encode`] for the values that need no encoder: answers `None` if it is not one of them.
pub(crate) fn encode_scalar(
    value: &Bound<'_, PyAny>,
    out: &mut Vec<u8>,
) -> Option<Result<(), Unfit>> {
    if let Ok(int) = value.cast_exact::<PyInt>() {
        return Some(write_int(int, out));
    }
    if value.is_none() {
        out.push(b'N');
        return Some(Ok(()));
    }
    if let Ok(truth) = value.cast_exact::<PyBool>() {
        out.push(if truth.is_true() { b'T' } else { b'F' });
        return Some(Ok(()));
    }
    if let Ok(float) = value.cast_exact::<PyFloat>() {
        out.push(b'f');
        out.extend_from_slice(&float.value().to_le_bytes());
        return Some(Ok(()));
    }
    None
}

fn write_int(int: &Bound<'_, PyInt>, out: &mut Vec<u8>) -> Result<(), Unfit> {
    let Ok(small) = int.extract::<i64>() else {
        return Err(Unfit);
    };
    out.push(b'i');
    write_varint(out, (small << 1 ^ small >> 63) as u64);
    Ok(())
}

fn write_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

impl Encoder<'_> {
    /// `held` of the references to `value` are its container's and ours.
    fn value(&mut self, value: &Bound<'_, PyAny>, held: isize) -> Result<(), Unfit> {
        if let Some(done) = encode_scalar(value, self.out) {
            return done;
        }
        if let Ok(text) = value.cast_exact::<PyString>() {
            let text = text.to_str().map_err(|_| Unfit)?;
            return self.bytes(b's', value, held, text.as_bytes());
        }
        if let Ok(bytes) = value.cast_exact::<PyBytes>() {
            return self.bytes(b'b', value, held, bytes.as_bytes());
        }
        if let Ok(tuple) = value.cast_exact::<PyTuple>() {
            return self.tuple(value, held, tuple);
        }
        if let Ok(list) = value.cast_exact::<PyList>() {
            if self.begin(b'l', value, held)? {
                return Ok(());
            }
            write_varint(self.out, list.len() as u64);
            for item in list.iter() {
                self.value(&item, 2)?;
            }
            self.depth -= 1;
            return Ok(());
        }
        if let Ok(dict) = value.cast_exact::<PyDict>() {
            if self.begin(b'd', value, held)? {
                return Ok(());
            }
            write_varint(self.out, dict.len() as u64);
            for (key, item) in dict.iter() {
                self.value(&key, 2)?;
                self.value(&item, 2)?;
            }
            self.depth -= 1;
            return Ok(());
        }
        Err(Unfit)
    }

    fn tuple(
        &mut self,
        value: &Bound<'_, PyAny>,
        held: isize,
        tuple: &Bound<'_, PyTuple>,
    ) -> Result<(), Unfit> {
        let at = value.as_ptr() as usize;
        if self.open_tuples[..self.depth].contains(&at) {
            return Err(Unfit);
        }
        if self.begin(b't', value, held)? {
            return Ok(());
        }
        self.open_tuples[self.depth - 1] = at;
        write_varint(self.out, tuple.len() as u64);
        for item in tuple.iter_borrowed() {
            self.value(&item, 1)?;
        }
        self.depth -= 1;
        Ok(())
    }

    fn bytes(
        &mut self,
        tag: u8,
        value: &Bound<'_, PyAny>,
        held: isize,
        bytes: &[u8],
    ) -> Result<(), Unfit> {
        if self.out.len() + bytes.len() > LARGEST {
            return Err(Unfit);
        }
        if self.tag(tag, value, held)? {
            return Ok(());
        }
        write_varint(self.out, bytes.len() as u64);
        self.out.extend_from_slice(bytes);
        Ok(())
    }

    /// Writes the tag of a container and goes one deeper, unless it was there already: `true` then.
    fn begin(&mut self, tag: u8, value: &Bound<'_, PyAny>, held: isize) -> Result<bool, Unfit> {
        if self.depth == DEEPEST || self.out.len() > LARGEST {
            return Err(Unfit);
        }
        let again = self.tag(tag, value, held)?;
        if !again {
            self.open_tuples[self.depth] = 0;
            self.depth += 1;
        }
        Ok(again)
    }

    /// Writes the tag of an object that has an identity, or a reference to it: `true` then.
    fn tag(&mut self, tag: u8, value: &Bound<'_, PyAny>, held: isize) -> Result<bool, Unfit> {
        // Nobody else refers to it, so it does not come again in this message.
        if crate::buffers::references(value) <= held {
            self.out.push(tag);
            return Ok(false);
        }
        let at = value.as_ptr() as usize;
        if let Some(number) = self.numbered[..self.count]
            .iter()
            .position(|known| *known == at)
        {
            self.out.push(b'r');
            write_varint(self.out, number as u64);
            return Ok(true);
        }
        let Some(free) = self.numbered.get_mut(self.count) else {
            return Err(Unfit);
        };
        *free = at;
        self.count += 1;
        self.out.push(tag | NUMBERED);
        Ok(false)
    }
}

struct Decoder<'a, 'py> {
    py: Python<'py>,
    rest: &'a [u8],
    numbered: Vec<Bound<'py, PyAny>>,
}

/// Reads one value that [`encode`] wrote.
///
/// # Errors
///
/// `ValueError` if these bytes are none.
pub(crate) fn decode<'py>(py: Python<'py>, bytes: &[u8]) -> PyResult<Bound<'py, PyAny>> {
    let mut decoder = Decoder {
        py,
        rest: bytes,
        numbered: Vec::new(),
    };
    decoder.value(0)
}

/// The values that [`encode_items`] wrote, one after the other.
pub(crate) struct Items<'a, 'py> {
    decoder: Decoder<'a, 'py>,
    left: usize,
}

/// Begins to read a list. `None` if these bytes are none of a list that nobody refers to.
///
/// # Errors
///
/// `ValueError` if its length is none.
pub(crate) fn decode_items<'a, 'py>(
    py: Python<'py>,
    bytes: &'a [u8],
) -> PyResult<Option<Items<'a, 'py>>> {
    let Some((b'l', rest)) = bytes.split_first() else {
        return Ok(None);
    };
    let mut decoder = Decoder {
        py,
        rest,
        numbered: Vec::new(),
    };
    let left = decoder.len()?;
    Ok(Some(Items { decoder, left }))
}

impl<'py> Iterator for Items<'_, 'py> {
    type Item = PyResult<Bound<'py, PyAny>>;

    #[inline]
    fn next(&mut self) -> Option<Self::Item> {
        self.left = self.left.checked_sub(1)?;
        Some(self.decoder.value(1))
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.left, Some(self.left))
    }
}

fn torn() -> PyErr {
    PyValueError::new_err("these bytes are not a message of this version of phalanx")
}

impl<'py> Decoder<'_, 'py> {
    fn byte(&mut self) -> PyResult<u8> {
        let (first, rest) = self.rest.split_first().ok_or_else(torn)?;
        self.rest = rest;
        Ok(*first)
    }

    fn take(&mut self, len: usize) -> PyResult<&[u8]> {
        let (taken, rest) = self.rest.split_at_checked(len).ok_or_else(torn)?;
        self.rest = rest;
        Ok(taken)
    }

    fn varint(&mut self) -> PyResult<u64> {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            value |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return Ok(value);
            }
        }
        Err(torn())
    }

    fn len(&mut self) -> PyResult<usize> {
        // Each item takes a byte at least: a count beyond that is no count, and nothing is reserved for it.
        usize::try_from(self.varint()?)
            .ok()
            .filter(|len| *len <= self.rest.len())
            .ok_or_else(torn)
    }

    fn value(&mut self, depth: usize) -> PyResult<Bound<'py, PyAny>> {
        if depth > DEEPEST {
            return Err(torn());
        }
        let py = self.py;
        let tag = self.byte()?;
        let numbered = tag & NUMBERED != 0;
        let value = match tag & !NUMBERED {
            b'i' => {
                let value = self.varint()?;
                let int = (value >> 1) as i64 ^ -((value & 1) as i64);
                return Ok(int.into_pyobject(py)?.into_any());
            }
            b'N' => return Ok(py.None().into_bound(py)),
            b'T' => return Ok(PyBool::new(py, true).to_owned().into_any()),
            b'F' => return Ok(PyBool::new(py, false).to_owned().into_any()),
            b'f' => {
                let bytes = self.take(8)?.try_into().map_err(|_| torn())?;
                return Ok(PyFloat::new(py, f64::from_le_bytes(bytes)).into_any());
            }
            b'r' => {
                let number = self.varint()? as usize;
                return self.numbered.get(number).cloned().ok_or_else(torn);
            }
            b's' => {
                let len = self.len()?;
                let text = std::str::from_utf8(self.take(len)?).map_err(|_| torn())?;
                PyString::new(py, text).into_any()
            }
            b'b' => {
                let len = self.len()?;
                PyBytes::new(py, self.take(len)?).into_any()
            }
            b't' => return self.tuple(depth, numbered),
            b'l' => {
                let len = self.len()?;
                if !numbered {
                    let mut items = Vec::with_capacity(len.min(1024));
                    for _ in 0..len {
                        items.push(self.value(depth + 1)?);
                    }
                    return Ok(PyList::new(py, items)?.into_any());
                }
                let list = PyList::empty(py);
                // Before its items: they may refer to it.
                self.number(numbered, list.as_any());
                for _ in 0..len {
                    list.append(self.value(depth + 1)?)?;
                }
                return Ok(list.into_any());
            }
            b'd' => {
                let len = self.len()?;
                let dict = PyDict::new(py);
                self.number(numbered, dict.as_any());
                for _ in 0..len {
                    let key = self.value(depth + 1)?;
                    let value = self.value(depth + 1)?;
                    dict.set_item(key, value)?;
                }
                return Ok(dict.into_any());
            }
            _ => return Err(torn()),
        };
        self.number(numbered, &value);
        Ok(value)
    }

    fn tuple(&mut self, depth: usize, numbered: bool) -> PyResult<Bound<'py, PyAny>> {
        let len = self.len()?;
        let number = self.numbered.len();
        // Its number was given before those of its items. Nobody refers to it before it is complete.
        self.number(numbered, &self.py.None().into_bound(self.py));
        let mut items = Vec::with_capacity(len.min(1024));
        for _ in 0..len {
            items.push(self.value(depth + 1)?);
        }
        let tuple = PyTuple::new(self.py, items)?.into_any();
        if numbered {
            self.numbered[number] = tuple.clone();
        }
        Ok(tuple)
    }

    fn number(&mut self, numbered: bool, value: &Bound<'py, PyAny>) {
        if numbered {
            self.numbered.push(value.clone());
        }
    }
}
