//! The exchange with a running command: input in, both outputs out, until all is said and it has ended.
//!
//! One loop over one poll, no threads. A pipe is only read when there is something to read, and only written as much as
//! it takes without blocking, so the loop never blocks anywhere but in the poll, and the deadline holds. Neither side
//! can wait for the other: as long as the command writes, we read, whatever is left to feed.

use std::io::{self, Read, Write};
use std::io::{PipeReader, PipeWriter};
use std::os::fd::AsFd;

use phalanx_sys::clock::Deadline;

use crate::os::{Interest, ProcessFd, poll};

/// What a pipe takes without blocking whenever it is said to take anything: `PIPE_BUF`.
const WRITE_AT_ONCE: usize = 4096;

/// How much is read at once: what a pipe holds.
const READ_AT_ONCE: usize = 64 << 10;

/// How much more is read of each output once time is up: a process outside the group could write for ever.
const LAST_READ: usize = 1 << 20;

/// How an exchange ended.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Exchanged {
    /// The outputs are closed and the command has ended; nobody has waited for it yet.
    Ended,
    /// Time was up.
    TimedOut {
        /// The command has ended all the same: somebody else holds its output open.
        ended: bool,
    },
}

/// An output and what came out of it.
#[derive(Debug, Default)]
pub(crate) struct Output {
    pipe: Option<PipeReader>,
    bytes: Vec<u8>,
}

impl Output {
    pub(crate) fn new(pipe: Option<PipeReader>) -> Self {
        Self {
            pipe,
            bytes: Vec::new(),
        }
    }

    pub(crate) fn into_bytes(self) -> Vec<u8> {
        self.bytes
    }

    /// Reads what is there, which poll said is something; at the end, closes the pipe.
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<()> {
        let Some(pipe) = &mut self.pipe else {
            return Ok(());
        };
        match pipe.read(buffer) {
            Ok(0) => self.pipe = None,
            Ok(count) => self.bytes.extend_from_slice(&buffer[..count]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
        Ok(())
    }
}

/// The input and what is left of it to feed.
#[derive(Debug)]
pub(crate) struct Input {
    pipe: Option<PipeWriter>,
    bytes: Vec<u8>,
    fed: usize,
}

impl Input {
    /// Takes the pipe and what to feed; with nothing to feed, the pipe is closed at once.
    pub(crate) fn new(pipe: Option<PipeWriter>, bytes: Vec<u8>) -> Self {
        let pipe = pipe.filter(|_| !bytes.is_empty());
        Self {
            pipe,
            bytes,
            fed: 0,
        }
    }

    /// Writes as much as surely does not block; at the end, closes the pipe.
    fn write(&mut self) -> io::Result<()> {
        let Some(pipe) = &mut self.pipe else {
            return Ok(());
        };
        let left = &self.bytes[self.fed..];
        match pipe.write(&left[..left.len().min(WRITE_AT_ONCE)]) {
            Ok(count) => self.fed += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            // The command does not want the rest, which is its right: its exit code says whether that was a mistake.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => self.fed = self.bytes.len(),
            Err(error) => return Err(error),
        }
        if self.fed == self.bytes.len() {
            self.pipe = None;
        }
        Ok(())
    }
}

/// Feeds and reads until both outputs are closed and the process has ended, or the deadline passes.
pub(crate) fn exchange(
    process: &ProcessFd,
    input: &mut Input,
    outputs: &mut [Output; 2],
    deadline: Option<Deadline>,
) -> io::Result<Exchanged> {
    let mut buffer = vec![0; READ_AT_ONCE];
    let mut ended = false;
    loop {
        let is_open = outputs.iter().any(|output| output.pipe.is_some());
        if ended && !is_open {
            return Ok(Exchanged::Ended);
        }
        // Asked here and not only of poll: a command that never stops writing is always ready.
        if deadline.is_some_and(Deadline::has_passed) {
            return Ok(Exchanged::TimedOut { ended });
        }
        let [out, err] = &*outputs;
        let ready = poll(
            [
                out.pipe
                    .as_ref()
                    .map(|pipe| Interest::Readable(pipe.as_fd())),
                err.pipe
                    .as_ref()
                    .map(|pipe| Interest::Readable(pipe.as_fd())),
                // Once it has ended, nobody reads the rest.
                input
                    .pipe
                    .as_ref()
                    .filter(|_| !ended)
                    .map(|pipe| Interest::Writable(pipe.as_fd())),
                (!ended).then(|| process.interest()),
            ],
            deadline,
        )?;
        for (output, is_ready) in outputs.iter_mut().zip(&ready[..2]) {
            if *is_ready {
                output.read(&mut buffer)?;
            }
        }
        if ready[2] {
            input.write()?;
        }
        ended |= ready[3];
    }
}

/// Reads what is left in the outputs without waiting for more, and closes them.
pub(crate) fn last_words(outputs: &mut [Output; 2]) -> io::Result<()> {
    let mut buffer = vec![0; READ_AT_ONCE];
    for output in outputs {
        let enough = output.bytes.len() + LAST_READ;
        while let Some(pipe) = &output.pipe
            && output.bytes.len() < enough
            && poll(
                [Some(Interest::Readable(pipe.as_fd()))],
                Some(Deadline::at_ns(0)),
            )?[0]
        {
            output.read(&mut buffer)?;
        }
        output.pipe = None;
    }
    Ok(())
}
