//! Connections: the wire format of the standard library over a socket or pipe, with one system call to send a message and two
//! to receive one.
//!
//! A message is its length (4 bytes, big-endian) and its bytes; from 2 GiB on the length is -1 and another 8 bytes.
#![expect(unsafe_code, reason = "a descriptor that Python owns is borrowed")]

use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, RawFd};

use phalanx_prim::Deadline;
use phalanx_prim::global::{AtomicBool, AtomicU64, Ordering};
use phalanx_sys::stream;
use pyo3::exceptions::{PyEOFError, PyMemoryError, PyOSError, PyValueError};
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyList};

use crate::buffers::Unfilled;
use crate::door::Timeout;
use crate::{message, pickle};

const NONE: u64 = u64::MAX;

pub(crate) fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<Connection>()?;
    module.add_function(wrap_pyfunction!(poll, module)?)?;
    Ok(())
}

/// Borrows a descriptor for one system call.
fn borrow<'a>(fd: RawFd) -> PyResult<BorrowedFd<'a>> {
    if fd < 0 {
        return Err(PyValueError::new_err("a descriptor is not negative"));
    }
    // SAFETY: not -1 (checked). Whoever gave us the number owns the descriptor; if it is closed meanwhile by another thread of
    // the program, the system call fails or meets another descriptor, as it would if Python made the call.
    Ok(unsafe { BorrowedFd::borrow_raw(fd) })
}

/// Repeats a system call that a signal interrupted, after the handlers ran. The interpreter's lock is let go meanwhile.
fn call<T: Send>(py: Python<'_>, mut once: impl FnMut() -> io::Result<T> + Send) -> PyResult<T> {
    loop {
        match py.detach(&mut once) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => py.check_signals()?,
            Err(error) => return Err(error.into()),
            Ok(value) => return Ok(value),
        }
    }
}

/// Waits until one of the descriptors has input, for at most `timeout` seconds; returns the places of those that have.
#[pyfunction]
#[pyo3(signature = (fds, timeout = None))]
fn poll<'py>(
    py: Python<'py>,
    fds: Vec<RawFd>,
    timeout: Option<f64>,
) -> PyResult<Bound<'py, PyList>> {
    let deadline = Timeout::from_seconds(timeout)?.deadline();
    PyList::new(py, poll_until(py, &fds, deadline)?)
}

fn poll_until(py: Python<'_>, fds: &[RawFd], deadline: Option<Deadline>) -> PyResult<Vec<usize>> {
    let fds = fds
        .iter()
        .map(|fd| borrow(*fd))
        .collect::<PyResult<Vec<_>>>()?;
    call(py, || stream::poll(&fds, deadline))
}

fn write_all(py: Python<'_>, fd: RawFd, parts: &[&[u8]]) -> PyResult<()> {
    let fd = borrow(fd)?;
    let mut written = 0;
    loop {
        let mut skip = written;
        let mut rest = Vec::with_capacity(parts.len());
        for part in parts {
            let skipped = skip.min(part.len());
            skip -= skipped;
            if skipped < part.len() {
                rest.push(IoSlice::new(&part[skipped..]));
            }
        }
        if rest.is_empty() {
            return Ok(());
        }
        if written > 0 {
            // A signal may have cut the last write short instead of failing it.
            py.check_signals()?;
        }
        // The kernel takes 1024 parts at once.
        rest.truncate(1024);
        written += call(py, || stream::write(fd, &rest))?;
    }
}

/// Reads until `into` is full. A stream that ends before the first byte has ended; after it, it was cut off.
fn read_all(py: Python<'_>, fd: RawFd, into: &mut [MaybeUninit<u8>]) -> PyResult<()> {
    let fd = borrow(fd)?;
    let mut filled = 0;
    while filled < into.len() {
        let rest = &mut into[filled..];
        match call(py, || stream::read(fd, rest))? {
            0 if filled == 0 => return Err(PyEOFError::new_err(())),
            0 => return Err(PyOSError::new_err("got end of file during message")),
            read => filled += read,
        }
        if filled < into.len() {
            // As when writing.
            py.check_signals()?;
        }
    }
    Ok(())
}

fn read_number<const N: usize>(py: Python<'_>, fd: RawFd) -> PyResult<[u8; N]> {
    let mut bytes = [MaybeUninit::uninit(); N];
    read_all(py, fd, &mut bytes)?;
    Ok(bytes.map(|byte| {
        // SAFETY: all were filled just now.
        unsafe { byte.assume_init() }
    }))
}

/// One end of a connection: the fast half of `phalanx.connection.Connection`.
#[pyclass(subclass, frozen, module = "phalanx._engine", name = "Connection")]
struct Connection {
    handle: AtomicU64,
    readable: AtomicBool,
    writable: AtomicBool,
}

#[pymethods]
impl Connection {
    #[new]
    #[pyo3(signature = (*_args, **_kwargs))]
    fn new(_args: &Bound<'_, PyAny>, _kwargs: Option<&Bound<'_, PyAny>>) -> Self {
        Self {
            handle: AtomicU64::new(NONE),
            readable: AtomicBool::new(true),
            writable: AtomicBool::new(true),
        }
    }

    #[getter(_handle)]
    fn handle(&self) -> Option<u64> {
        let handle = self.handle.load(Ordering::Relaxed);
        (handle != NONE).then_some(handle)
    }

    #[setter(_handle)]
    fn set_handle(&self, handle: Option<u32>) {
        self.handle
            .store(handle.map_or(NONE, u64::from), Ordering::Relaxed);
    }

    #[getter(_readable)]
    fn is_readable(&self) -> bool {
        self.readable.load(Ordering::Relaxed)
    }

    #[setter(_readable)]
    fn set_readable(&self, readable: &Bound<'_, PyAny>) -> PyResult<()> {
        self.readable
            .store(readable.is_truthy()?, Ordering::Relaxed);
        Ok(())
    }

    #[getter(_writable)]
    fn is_writable(&self) -> bool {
        self.writable.load(Ordering::Relaxed)
    }

    #[setter(_writable)]
    fn set_writable(&self, writable: &Bound<'_, PyAny>) -> PyResult<()> {
        self.writable
            .store(writable.is_truthy()?, Ordering::Relaxed);
        Ok(())
    }

    /// File descriptor of the connection.
    fn fileno(&self) -> PyResult<RawFd> {
        match self.handle.load(Ordering::Relaxed) {
            NONE => Err(PyOSError::new_err("handle is closed")),
            handle => Ok(handle as RawFd),
        }
    }

    /// Send a (picklable) object.
    fn send(&self, py: Python<'_>, obj: &Bound<'_, PyAny>) -> PyResult<()> {
        let fd = self.to_write()?;
        let pieces = pickle::dump_plain(obj)?;
        let parts: Vec<&[u8]> = pieces
            .iter()
            .map(|piece| piece.bind(py).as_bytes())
            .collect();
        send_parts(py, fd, &parts)
    }

    /// Send the bytes data from a bytes-like object.
    #[pyo3(signature = (buf, offset = 0, size = None))]
    fn send_bytes(
        &self,
        py: Python<'_>,
        buf: &Bound<'_, PyAny>,
        offset: isize,
        size: Option<isize>,
    ) -> PyResult<()> {
        let fd = self.to_write()?;
        message::with_bytes_of(buf, |bytes| {
            let offset =
                usize::try_from(offset).map_err(|_| PyValueError::new_err("offset is negative"))?;
            let rest = bytes
                .get(offset..)
                .ok_or_else(|| PyValueError::new_err("buffer length < offset"))?;
            let part = match size {
                None => rest,
                Some(size) => {
                    let size = usize::try_from(size)
                        .map_err(|_| PyValueError::new_err("size is negative"))?;
                    rest.get(..size)
                        .ok_or_else(|| PyValueError::new_err("buffer length < offset + size"))?
                }
            };
            send_parts(py, fd, &[part])
        })?
    }

    /// Receive a (picklable) object.
    fn recv<'py>(slf: &Bound<'py, Self>) -> PyResult<Bound<'py, PyAny>> {
        pickle::load(recv_bytes(slf, None)?.as_any(), None)
    }

    /// Receive bytes data as a bytes object.
    #[pyo3(signature = (maxlength = None))]
    fn recv_bytes<'py>(
        slf: &Bound<'py, Self>,
        maxlength: Option<i64>,
    ) -> PyResult<Bound<'py, PyBytes>> {
        recv_bytes(slf, maxlength)
    }

    /// Whether there is any input available to be read.
    #[pyo3(signature = (timeout = Some(0.0)))]
    fn poll(&self, py: Python<'_>, timeout: Option<f64>) -> PyResult<bool> {
        let fd = self.to_read()?;
        let deadline = match Timeout::from_seconds(timeout)? {
            Timeout::Now => Some(Deadline::PAST),
            timeout => timeout.deadline(),
        };
        Ok(!poll_until(py, &[fd], deadline)?.is_empty())
    }
}

impl Connection {
    fn to_write(&self) -> PyResult<RawFd> {
        let fd = self.fileno()?;
        if !self.is_writable() {
            return Err(PyOSError::new_err("connection is read-only"));
        }
        Ok(fd)
    }

    fn to_read(&self) -> PyResult<RawFd> {
        let fd = self.fileno()?;
        if !self.is_readable() {
            return Err(PyOSError::new_err("connection is write-only"));
        }
        Ok(fd)
    }
}

fn send_parts(py: Python<'_>, fd: RawFd, parts: &[&[u8]]) -> PyResult<()> {
    let len: usize = parts.iter().map(|part| part.len()).sum();
    let mut head = [0xff_u8; 12];
    let head = if let Ok(len) = i32::try_from(len) {
        head[..4].copy_from_slice(&len.to_be_bytes());
        &head[..4]
    } else {
        head[4..].copy_from_slice(&(len as u64).to_be_bytes());
        &head[..]
    };
    let mut all = Vec::with_capacity(parts.len() + 1);
    all.push(head);
    all.extend_from_slice(parts);
    write_all(py, fd, &all)
}

fn recv_bytes<'py>(
    slf: &Bound<'py, Connection>,
    maxlength: Option<i64>,
) -> PyResult<Bound<'py, PyBytes>> {
    let py = slf.py();
    let fd = slf.get().to_read()?;
    let most = match maxlength {
        None => u64::MAX,
        Some(most) => {
            u64::try_from(most).map_err(|_| PyValueError::new_err("negative maxlength"))?
        }
    };
    let len = match i32::from_be_bytes(read_number(py, fd)?) {
        -1 => u64::from_be_bytes(read_number(py, fd)?),
        len => u64::try_from(len).unwrap_or(u64::MAX),
    };
    if len > most || len > isize::MAX as u64 {
        // Closes the end, or makes it unreadable, and raises: the rest of the stream means nothing any more.
        slf.call_method0(intern!(py, "_bad_message_length"))?;
        return Err(PyOSError::new_err("bad message length"));
    }
    // Memory that is not touched before bytes come: a wrong length costs addresses at most.
    let bytes = Unfilled::new(py, len as usize)
        .map_err(|_| PyMemoryError::new_err(format!("no memory for a message of {len} bytes")))?;
    bytes.fill(|into| read_all(py, fd, into))
}
