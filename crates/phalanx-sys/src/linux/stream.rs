//! Bytes through descriptors that somebody else made: sockets and pipes; and waiting for many of them.

use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::BorrowedFd;

use rustix::event::{PollFd, PollFlags};
use rustix::io::Errno;
use rustix::time::Timespec;

use super::clock::Deadline;

/// Reads what there is, at most as much as `into` holds; 0 at the end of the stream. Blocks if the descriptor does.
///
/// # Errors
///
/// What the descriptor reports; [`io::ErrorKind::Interrupted`] when a signal came first.
pub fn read(fd: BorrowedFd<'_>, into: &mut [MaybeUninit<u8>]) -> io::Result<usize> {
    // The kernel takes no more at once.
    let most = into.len().min(i32::MAX as usize & !0xfff);
    let (filled, _) = rustix::io::read(fd, &mut into[..most])?;
    Ok(filled.len())
}

/// Writes as much of `parts` as goes in one call; returns how many bytes. Blocks if the descriptor does.
///
/// # Errors
///
/// What the descriptor reports; [`io::ErrorKind::Interrupted`] when a signal came first.
pub fn write(fd: BorrowedFd<'_>, parts: &[IoSlice<'_>]) -> io::Result<usize> {
    Ok(rustix::io::writev(fd, parts)?)
}

/// Waits until at least one descriptor has input, hung up or failed; returns which. None when the deadline came first.
///
/// # Errors
///
/// [`io::ErrorKind::Interrupted`] when a signal came first.
pub fn poll(fds: &[BorrowedFd<'_>], deadline: Option<Deadline>) -> io::Result<Vec<usize>> {
    let timeout = deadline.map(|deadline| {
        let left = deadline.remaining();
        Timespec {
            tv_sec: left.as_secs() as i64,
            tv_nsec: left.subsec_nanos().into(),
        }
    });
    let mut polled: Vec<_> = fds
        .iter()
        .map(|fd| PollFd::from_borrowed_fd(*fd, PollFlags::IN))
        .collect();
    match rustix::event::poll(&mut polled, timeout.as_ref()) {
        Ok(_) => Ok(polled
            .iter()
            .enumerate()
            .filter(|(_, fd)| !fd.revents().is_empty())
            .map(|(index, _)| index)
            .collect()),
        Err(Errno::INTR) => Err(Errno::INTR.into()),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;
    use std::time::Duration;

    use super::*;

    #[test]
    fn what_is_written_is_polled_and_read() {
        let (reader, writer) = io::pipe().unwrap();
        let fds = [reader.as_fd()];
        assert!(poll(&fds, Some(Deadline::PAST)).unwrap().is_empty());
        let parts = [IoSlice::new(b"he"), IoSlice::new(b"llo")];
        assert_eq!(write(writer.as_fd(), &parts).unwrap(), 5);
        let soon = Deadline::after(Duration::from_secs(10));
        assert_eq!(poll(&fds, Some(soon)).unwrap(), [0]);
        let mut bytes = [MaybeUninit::uninit(); 8];
        assert_eq!(read(reader.as_fd(), &mut bytes).unwrap(), 5);
        drop(writer);
        assert_eq!(poll(&fds, None).unwrap(), [0]);
        assert_eq!(read(reader.as_fd(), &mut bytes).unwrap(), 0);
    }
}
