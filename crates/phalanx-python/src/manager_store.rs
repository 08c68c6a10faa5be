//! What a manager's dict, list, value and namespace are made of: a store in the arena, with Python's keys and values.
//!
//! A value is written as [`codec`] writes it, or as a pickle. A key is written twice where it must be: in a form in which
//! equal keys are equal bytes (`1`, `1.0` and `True` are one key), and, if that form does not give the key back, as it was put.
//! Keys of types that this form does not know share one hash and are compared as Python compares them, without the lock.
//!
//! Record of a dict: length of the key as it was put (varint, 0 for none), that key, the value. Of a list: the value.

use std::hash::{DefaultHasher, Hasher};

use phalanx_shm::{Held, HoldOrAlloc};
use phalanx_store::{Item, Open, Store, StoreError, Value};
use phalanx_sync::handle::{Handle, collect};
use pyo3::exceptions::{PyIndexError, PyKeyError, PyMemoryError, PyRuntimeError, PyValueError};
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyBool, PyBytes, PyFloat, PyInt, PyList, PyString, PyTuple};

use crate::codec;
use crate::door::{self, Timeout, raise};
use crate::{handle, message};

pub(crate) fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<SharedStore>()
}

/// The hash of every key that is compared by Python.
const ODD: u64 = 0x0dd;

fn failed(error: StoreError) -> PyErr {
    match error {
        StoreError::Alloc(error) => raise(error),
        StoreError::Session(error) => raise(error),
        StoreError::Hold(error) => no_hold(error),
        error => PyRuntimeError::new_err(error.to_string()),
    }
}

fn no_hold(error: HoldOrAlloc) -> PyErr {
    match error {
        HoldOrAlloc::Stale(error) => raise(error),
        HoldOrAlloc::Alloc(error) => PyMemoryError::new_err(error.to_string()),
    }
}

fn torn() -> PyErr {
    PyValueError::new_err("these bytes were not written by this version of phalanx")
}

/// Appends a value and returns holds on the objects it names.
fn write(value: &Bound<'_, PyAny>, out: &mut Vec<u8>) -> PyResult<Vec<Held>> {
    static DUMPS: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
    let start = out.len();
    if codec::encode(value, out).is_ok() {
        return Ok(Vec::new());
    }
    out.truncate(start);
    let dumps = DUMPS.import(value.py(), "phalanx.managers", "_dumps")?;
    let (pickle, holds) = collect(|| dumps.call1((value,)));
    out.push(b'P');
    out.extend_from_slice(pickle?.cast::<PyBytes>()?.as_bytes());
    Ok(holds)
}

fn write_len(out: &mut Vec<u8>, mut len: usize) {
    while len >= 0x80 {
        out.push(len as u8 | 0x80);
        len >>= 7;
    }
    out.push(len as u8);
}

fn read_len<'a>(bytes: &mut &'a [u8]) -> PyResult<&'a [u8]> {
    let mut len = 0_usize;
    for shift in (0..63).step_by(7) {
        let (byte, rest) = bytes.split_first().ok_or_else(torn)?;
        *bytes = rest;
        len |= usize::from(byte & 0x7f) << shift;
        if *byte < 0x80 {
            let (taken, rest) = bytes.split_at_checked(len).ok_or_else(torn)?;
            *bytes = rest;
            return Ok(taken);
        }
    }
    Err(torn())
}

/// A key, ready to be looked up.
struct Key {
    /// Equal for equal keys, if it is not odd.
    bytes: Vec<u8>,
    hash: u64,
    /// `bytes` give the key back.
    exact: bool,
    odd: bool,
}

impl Key {
    fn of(key: &Bound<'_, PyAny>) -> PyResult<Self> {
        let mut bytes = Vec::with_capacity(24);
        if let Some(exact) = canonical(key, &mut bytes)? {
            let mut hasher = DefaultHasher::new();
            hasher.write(&bytes);
            return Ok(Self {
                bytes,
                hash: hasher.finish(),
                exact,
                odd: false,
            });
        }
        // Says so if it has none.
        key.hash()?;
        bytes.clear();
        bytes.push(b'o');
        write(key, &mut bytes)?;
        Ok(Self {
            bytes,
            hash: ODD,
            exact: false,
            odd: true,
        })
    }

    /// Begins a record of this key; returns holds on what the key names.
    fn begin(&self, key: &Bound<'_, PyAny>, out: &mut Vec<u8>) -> PyResult<Vec<Held>> {
        if self.exact {
            out.push(0);
            return Ok(Vec::new());
        }
        let mut as_put = Vec::new();
        let holds = write(key, &mut as_put)?;
        write_len(out, as_put.len());
        out.extend_from_slice(&as_put);
        Ok(holds)
    }
}

/// Appends the form in which equal keys are equal bytes. `None` if this type has none; else whether it gives the key back.
fn canonical(key: &Bound<'_, PyAny>, out: &mut Vec<u8>) -> PyResult<Option<bool>> {
    let py = key.py();
    if let Ok(text) = key.cast_exact::<PyString>() {
        return Ok(text.to_str().ok().map(|text| {
            out.push(b's');
            write_len(out, text.len());
            out.extend_from_slice(text.as_bytes());
            true
        }));
    }
    if let Ok(int) = key.cast_exact::<PyInt>() {
        write_int(int, out)?;
        return Ok(Some(true));
    }
    if key.is_none() {
        out.push(b'N');
        return Ok(Some(true));
    }
    if let Ok(truth) = key.cast_exact::<PyBool>() {
        write_small(i64::from(truth.is_true()), out);
        return Ok(Some(false));
    }
    if let Ok(bytes) = key.cast_exact::<PyBytes>() {
        out.push(b'b');
        write_len(out, bytes.as_bytes().len());
        out.extend_from_slice(bytes.as_bytes());
        return Ok(Some(true));
    }
    if let Ok(float) = key.cast_exact::<PyFloat>() {
        let value = float.value();
        if value.fract() == 0.0 {
            write_int(
                key.call_method0(intern!(py, "__int__"))?.cast::<PyInt>()?,
                out,
            )?;
            return Ok(Some(false));
        }
        out.push(b'f');
        out.extend_from_slice(&value.to_le_bytes());
        return Ok(Some(true));
    }
    if let Ok(tuple) = key.cast_exact::<PyTuple>() {
        out.push(b't');
        write_len(out, tuple.len());
        let mut exact = true;
        for item in tuple.iter_borrowed() {
            match canonical(&item, out)? {
                Some(as_put) => exact &= as_put,
                None => return Ok(None),
            }
        }
        return Ok(Some(exact));
    }
    canonical_of_kin(key, out)
}

/// As [`canonical`] for what equals a str or int without being one: members of an `IntEnum`, numpy's integers.
#[cold]
fn canonical_of_kin(key: &Bound<'_, PyAny>, out: &mut Vec<u8>) -> PyResult<Option<bool>> {
    let py = key.py();
    let plain = if key.is_instance_of::<PyString>() {
        py.get_type::<PyString>()
            .call_method1(intern!(py, "__str__"), (key,))?
    } else if key.hasattr(intern!(py, "__index__"))? {
        let index = key.call_method0(intern!(py, "__index__"))?;
        py.get_type::<PyInt>()
            .call_method1(intern!(py, "__int__"), (index,))?
    } else {
        return Ok(None);
    };
    if plain.hash()? != key.hash()? || !plain.eq(key)? {
        return Ok(None);
    }
    Ok(canonical(&plain, out)?.map(|_| false))
}

fn write_small(value: i64, out: &mut Vec<u8>) {
    out.push(b'i');
    out.extend_from_slice(&value.to_le_bytes());
}

fn write_int(int: &Bound<'_, PyInt>, out: &mut Vec<u8>) -> PyResult<()> {
    match int.extract::<i64>() {
        Ok(small) => write_small(small, out),
        Err(_) => {
            let digits = int.call_method1(intern!(int.py(), "__format__"), ("x",))?;
            let digits = digits.cast::<PyString>()?.to_str()?.to_owned();
            out.push(b'I');
            write_len(out, digits.len());
            out.extend_from_slice(digits.as_bytes());
        }
    }
    Ok(())
}

/// Makes the key of its equal-bytes form.
fn read_canonical<'py>(py: Python<'py>, bytes: &mut &[u8]) -> PyResult<Bound<'py, PyAny>> {
    let (tag, rest) = bytes.split_first().ok_or_else(torn)?;
    *bytes = rest;
    let mut eight = || -> PyResult<[u8; 8]> {
        let (taken, rest) = bytes.split_at_checked(8).ok_or_else(torn)?;
        *bytes = rest;
        taken.try_into().map_err(|_| torn())
    };
    Ok(match tag {
        b'i' => i64::from_le_bytes(eight()?).into_pyobject(py)?.into_any(),
        b'f' => PyFloat::new(py, f64::from_le_bytes(eight()?)).into_any(),
        b'N' => py.None().into_bound(py),
        b's' => {
            let text = std::str::from_utf8(read_len(bytes)?).map_err(|_| torn())?;
            PyString::new(py, text).into_any()
        }
        b'b' => PyBytes::new(py, read_len(bytes)?).into_any(),
        b'I' => {
            let digits = std::str::from_utf8(read_len(bytes)?).map_err(|_| torn())?;
            py.get_type::<PyInt>().call1((digits, 16))?
        }
        b't' => {
            let mut count = 0_usize;
            for shift in (0..63).step_by(7) {
                let (byte, rest) = bytes.split_first().ok_or_else(torn)?;
                *bytes = rest;
                count |= usize::from(byte & 0x7f) << shift;
                if *byte < 0x80 {
                    break;
                }
            }
            let items: Vec<_> = (0..count.min(bytes.len()))
                .map(|_| read_canonical(py, bytes))
                .collect::<PyResult<_>>()?;
            PyTuple::new(py, items)?.into_any()
        }
        _ => return Err(torn()),
    })
}

/// A record of a dict, copied out.
struct Record {
    key: Vec<u8>,
    value: Value,
}

impl Record {
    fn of(open: &Open<'_>, entry: usize) -> PyResult<Self> {
        Ok(Self {
            key: open.key(entry).to_vec(),
            value: open.value(entry).map_err(no_hold)?,
        })
    }

    fn key<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        let mut bytes = self.value.bytes.as_slice();
        match read_len(&mut bytes)? {
            [] => read_canonical(py, &mut self.key.as_slice()),
            as_put => message::decode_small(py, as_put),
        }
    }

    fn value<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        let mut bytes = self.value.bytes.as_slice();
        read_len(&mut bytes)?;
        message::decode_small(py, bytes)
    }
}

/// The way a store is carried in a pickle.
struct Carried(Store);

impl Handle for Carried {
    const KIND: phalanx_shm::Kind = Store::KIND;

    fn held(&self) -> &Held {
        self.0.held()
    }

    fn from_held(held: Held) -> Self {
        Self(Store::from_held(held))
    }
}

/// A dict or list that the processes of the tree share.
#[pyclass(frozen, module = "phalanx._engine")]
pub(crate) struct SharedStore {
    store: Store,
}

impl SharedStore {
    fn open(&self, py: Python<'_>) -> PyResult<Open<'_>> {
        loop {
            if let Some(open) = self.store.try_lock() {
                return Ok(open);
            }
            // Waits for it, but does not keep it: nobody waits for this thread's turn with the interpreter while others wait
            // for the lock.
            door::blocking(py, Timeout::Never, |patience| {
                self.store.lock(patience).map(drop)
            })?;
        }
    }

    /// Opens the store and finds the entry of a key.
    fn find(
        &self,
        py: Python<'_>,
        key: &Bound<'_, PyAny>,
        wanted: &Key,
    ) -> PyResult<(Open<'_>, Option<usize>)> {
        let mut open = self.open(py)?;
        let found = open.find(wanted.hash, &wanted.bytes);
        if found.is_some() || !wanted.odd {
            return Ok((open, found));
        }
        loop {
            let version = open.version();
            let mut others = Vec::new();
            for entry in open.entries() {
                if open.hash(entry) == ODD {
                    others.push((entry, Record::of(&open, entry)?));
                }
            }
            if others.is_empty() {
                return Ok((open, None));
            }
            drop(open);
            let hash = key.hash()?;
            let mut found = None;
            for (entry, record) in others {
                let other = record.key(py)?;
                if other.hash()? == hash && other.eq(key)? {
                    found = Some(entry);
                    break;
                }
            }
            open = self.open(py)?;
            if open.version() == version {
                return Ok((open, found));
            }
        }
    }

    fn put(
        &self,
        py: Python<'_>,
        key: &Bound<'_, PyAny>,
        value: &Bound<'_, PyAny>,
        only_if_new: bool,
    ) -> PyResult<Option<Record>> {
        let wanted = Key::of(key)?;
        let mut bytes = Vec::with_capacity(48);
        let mut holds = wanted.begin(key, &mut bytes)?;
        let begun = bytes.len();
        holds.extend(write(value, &mut bytes)?);
        let (mut open, found) = self.find(py, key, &wanted)?;
        let Some(entry) = found else {
            open.push(wanted.hash, &wanted.bytes, &bytes, &holds)
                .map_err(failed)?;
            return Ok(None);
        };
        if only_if_new {
            return Record::of(&open, entry).map(Some);
        }
        // As in a dict the key stays the one that was put first.
        let old = open.value(entry).map_err(no_hold)?;
        let mut rest = old.bytes.as_slice();
        let as_put = read_len(&mut rest)?;
        if !as_put.is_empty() || begun > 1 {
            let mut again = Vec::with_capacity(bytes.len());
            write_len(&mut again, as_put.len());
            again.extend_from_slice(as_put);
            again.extend_from_slice(&bytes[begun..]);
            bytes = again;
            holds.extend(old.holds);
        }
        let own = if wanted.odd {
            open.key(entry).to_vec()
        } else {
            wanted.bytes
        };
        open.set(entry, &own, &bytes, &holds).map_err(failed)?;
        Ok(None)
    }

    fn records(&self, py: Python<'_>) -> PyResult<Vec<Record>> {
        let open = self.open(py)?;
        open.entries()
            .into_iter()
            .map(|entry| Record::of(&open, entry))
            .collect()
    }

    fn nth(open: &Open<'_>, place: isize, what: &str) -> PyResult<usize> {
        let len = open.len() as isize;
        let place = if place < 0 { place + len } else { place };
        usize::try_from(place)
            .ok()
            .and_then(|place| open.nth(place))
            .ok_or_else(|| PyIndexError::new_err(what.to_owned()))
    }

    fn without(open: &mut Open<'_>, entry: usize) -> PyResult<()> {
        if open.next(0) == Some(entry) || open.last() == Some(entry) {
            open.remove(entry);
            return Ok(());
        }
        let items: Vec<Item<'_>> = open
            .entries()
            .into_iter()
            .filter(|other| *other != entry)
            .map(Item::Keep)
            .collect();
        open.rewrite(&items).map_err(failed)
    }
}

#[pymethods]
impl SharedStore {
    #[new]
    fn new(keyed: bool) -> PyResult<Self> {
        Ok(Self {
            store: Store::new(keyed).map_err(failed)?,
        })
    }

    /// Returns the number by which the store goes into a pickle of `owner`.
    fn give(&self, owner: &Bound<'_, PyAny>) -> PyResult<u64> {
        handle::give(owner, self.store.held())
    }

    /// Returns the number that names the store.
    fn name(&self) -> u64 {
        self.store.held().block().to_bits()
    }

    /// Makes a hold of a number out of a pickle.
    #[staticmethod]
    fn take(number: u64) -> PyResult<Self> {
        handle::take::<Carried>(number).map(|carried| Self { store: carried.0 })
    }

    fn __len__(&self, py: Python<'_>) -> PyResult<usize> {
        Ok(self.open(py)?.len())
    }

    /// Returns a number that changes with every change.
    fn version(&self) -> u64 {
        self.store.version()
    }

    /// Removes everything.
    fn clear(&self, py: Python<'_>) -> PyResult<()> {
        self.open(py)?.rewrite(&[]).map_err(failed)
    }

    /// A dict's `d[key]`.
    fn getitem<'py>(&self, key: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyAny>> {
        match self.get(key, None)? {
            Some(value) => Ok(value),
            None => Err(PyKeyError::new_err((key.clone().unbind(),))),
        }
    }

    /// A dict's `get`.
    #[pyo3(signature = (key, default=None))]
    fn get<'py>(
        &self,
        key: &Bound<'py, PyAny>,
        default: Option<Bound<'py, PyAny>>,
    ) -> PyResult<Option<Bound<'py, PyAny>>> {
        let py = key.py();
        let wanted = Key::of(key)?;
        let (open, found) = self.find(py, key, &wanted)?;
        let Some(entry) = found else {
            return Ok(default);
        };
        let record = Record {
            key: Vec::new(),
            value: open.value(entry).map_err(no_hold)?,
        };
        drop(open);
        record.value(py).map(Some)
    }

    /// A dict's `d[key] = value`.
    fn setitem(
        &self,
        py: Python<'_>,
        key: &Bound<'_, PyAny>,
        value: &Bound<'_, PyAny>,
    ) -> PyResult<()> {
        self.put(py, key, value, false).map(drop)
    }

    /// A dict's `setdefault`.
    fn setdefault<'py>(
        &self,
        py: Python<'py>,
        key: &Bound<'py, PyAny>,
        value: Bound<'py, PyAny>,
    ) -> PyResult<Bound<'py, PyAny>> {
        match self.put(py, key, &value, true)? {
            Some(record) => record.value(py),
            None => Ok(value),
        }
    }

    /// A dict's `key in d`.
    fn contains(&self, py: Python<'_>, key: &Bound<'_, PyAny>) -> PyResult<bool> {
        let wanted = Key::of(key)?;
        Ok(self.find(py, key, &wanted)?.1.is_some())
    }

    /// A dict's `pop`: the value, or `None` (of Rust's) without such a key.
    fn take_key<'py>(
        &self,
        py: Python<'py>,
        key: &Bound<'py, PyAny>,
    ) -> PyResult<Option<(Bound<'py, PyAny>,)>> {
        let wanted = Key::of(key)?;
        let (mut open, found) = self.find(py, key, &wanted)?;
        let Some(entry) = found else {
            return Ok(None);
        };
        let record = Record::of(&open, entry)?;
        open.remove(entry);
        drop(open);
        Ok(Some((record.value(py)?,)))
    }

    /// A dict's `popitem`.
    fn popitem<'py>(&self, py: Python<'py>) -> PyResult<(Bound<'py, PyAny>, Bound<'py, PyAny>)> {
        let mut open = self.open(py)?;
        let Some(entry) = open.last() else {
            return Err(PyKeyError::new_err("popitem(): dictionary is empty"));
        };
        let record = Record::of(&open, entry)?;
        open.remove(entry);
        drop(open);
        Ok((record.key(py)?, record.value(py)?))
    }

    /// A dict's keys, in the order of their insertion.
    fn keys<'py>(&self, py: Python<'py>) -> PyResult<Vec<Bound<'py, PyAny>>> {
        let records = self.records(py)?;
        records.iter().map(|record| record.key(py)).collect()
    }

    /// A dict's values.
    fn values<'py>(&self, py: Python<'py>) -> PyResult<Vec<Bound<'py, PyAny>>> {
        let records = self.records(py)?;
        records.iter().map(|record| record.value(py)).collect()
    }

    /// A dict's items.
    fn items<'py>(&self, py: Python<'py>) -> PyResult<Vec<(Bound<'py, PyAny>, Bound<'py, PyAny>)>> {
        let records = self.records(py)?;
        records
            .iter()
            .map(|record| Ok((record.key(py)?, record.value(py)?)))
            .collect()
    }

    /// A list's `l[place]`.
    fn at<'py>(&self, py: Python<'py>, place: isize) -> PyResult<Bound<'py, PyAny>> {
        let open = self.open(py)?;
        let entry = Self::nth(&open, place, "list index out of range")?;
        let value = open.value(entry).map_err(no_hold)?;
        drop(open);
        message::decode_small(py, &value.bytes)
    }

    /// A list's `l[place] = value`.
    fn set_at(&self, py: Python<'_>, place: isize, value: &Bound<'_, PyAny>) -> PyResult<()> {
        let mut bytes = Vec::with_capacity(32);
        let holds = write(value, &mut bytes)?;
        let mut open = self.open(py)?;
        let entry = Self::nth(&open, place, "list assignment index out of range")?;
        open.set(entry, &[], &bytes, &holds).map_err(failed)
    }

    /// A list's `append`.
    fn append(&self, py: Python<'_>, value: &Bound<'_, PyAny>) -> PyResult<()> {
        let mut bytes = Vec::with_capacity(32);
        let holds = write(value, &mut bytes)?;
        let mut open = self.open(py)?;
        open.push(0, &[], &bytes, &holds).map_err(failed)
    }

    /// A list's `extend`, of a list: nobody sees a part of it.
    fn extend(&self, py: Python<'_>, values: &Bound<'_, PyList>) -> PyResult<()> {
        let mut written = Vec::with_capacity(values.len());
        for value in values.iter() {
            let mut bytes = Vec::new();
            let holds = write(&value, &mut bytes)?;
            written.push((bytes, holds));
        }
        let mut open = self.open(py)?;
        for (bytes, holds) in &written {
            open.push(0, &[], bytes, holds).map_err(failed)?;
        }
        Ok(())
    }

    /// A list's `insert`.
    fn insert(&self, py: Python<'_>, place: isize, value: &Bound<'_, PyAny>) -> PyResult<()> {
        let mut bytes = Vec::with_capacity(32);
        let holds = write(value, &mut bytes)?;
        let mut open = self.open(py)?;
        let len = open.len();
        let place = if place < 0 {
            len.saturating_sub(place.unsigned_abs())
        } else {
            (place as usize).min(len)
        };
        if place == len {
            return open.push(0, &[], &bytes, &holds).map_err(failed);
        }
        if place == 0 {
            return open.push_front(&bytes, &holds).map_err(failed);
        }
        let mut items: Vec<Item<'_>> = open.entries().into_iter().map(Item::Keep).collect();
        items.insert(
            place,
            Item::New {
                hash: 0,
                key: &[],
                bytes: &bytes,
                holds: &holds,
            },
        );
        open.rewrite(&items).map_err(failed)
    }

    /// A list's `pop`.
    fn pop_at<'py>(&self, py: Python<'py>, place: isize) -> PyResult<Bound<'py, PyAny>> {
        let mut open = self.open(py)?;
        if open.is_empty() {
            return Err(PyIndexError::new_err("pop from empty list"));
        }
        let entry = Self::nth(&open, place, "pop index out of range")?;
        let value = open.value(entry).map_err(no_hold)?;
        Self::without(&mut open, entry)?;
        drop(open);
        message::decode_small(py, &value.bytes)
    }

    /// A list's `del l[place]`.
    fn delete_at(&self, py: Python<'_>, place: isize) -> PyResult<()> {
        let mut open = self.open(py)?;
        let entry = Self::nth(&open, place, "list assignment index out of range")?;
        Self::without(&mut open, entry)
    }

    /// A list's values, and the version they are of.
    fn all<'py>(&self, py: Python<'py>) -> PyResult<(u64, Vec<Bound<'py, PyAny>>)> {
        let open = self.open(py)?;
        let version = open.version();
        let values: Vec<Value> = open
            .entries()
            .into_iter()
            .map(|entry| open.value(entry).map_err(no_hold))
            .collect::<PyResult<_>>()?;
        drop(open);
        let values = values
            .iter()
            .map(|value| message::decode_small(py, &value.bytes))
            .collect::<PyResult<_>>()?;
        Ok((version, values))
    }

    /// Puts a list in another order, with some of `values` among: a number from 0 on keeps the value that is there, -1 is
    /// the first of `values`, -2 the second. Returns `False`, and does nothing, if the version is another by now.
    fn rearrange(
        &self,
        py: Python<'_>,
        version: u64,
        order: Vec<isize>,
        values: &Bound<'_, PyList>,
    ) -> PyResult<bool> {
        let mut written = Vec::with_capacity(values.len());
        for value in values.iter() {
            let mut bytes = Vec::new();
            let holds = write(&value, &mut bytes)?;
            written.push((bytes, holds));
        }
        let mut open = self.open(py)?;
        if open.version() != version {
            return Ok(false);
        }
        let entries = open.entries();
        let mut items = Vec::with_capacity(order.len());
        for place in order {
            let item = match usize::try_from(place) {
                Ok(place) => entries.get(place).copied().map(Item::Keep),
                Err(_) => written
                    .get(place.unsigned_abs() - 1)
                    .map(|(bytes, holds)| Item::New {
                        hash: 0,
                        key: &[],
                        bytes,
                        holds,
                    }),
            };
            items.push(item.ok_or_else(|| PyIndexError::new_err("no such place"))?);
        }
        open.rewrite(&items).map_err(failed)?;
        Ok(true)
    }
}
