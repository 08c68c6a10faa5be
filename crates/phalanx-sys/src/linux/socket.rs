//! Pairs of sockets that carry messages and descriptors.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType,
};

/// The most descriptors of one message.
pub const MAX_FDS: usize = 8;

/// Makes two connected ends that keep message borders. Both close on exec.
///
/// # Errors
///
/// When no descriptors are left.
pub fn seqpacket_pair() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(rustix::net::socketpair(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::CLOEXEC,
        None,
    )?)
}

/// Makes two connected stream ends. Both close on exec.
///
/// # Errors
///
/// When no descriptors are left.
pub fn stream_pair() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(rustix::net::socketpair(
        AddressFamily::UNIX,
        SocketType::STREAM,
        SocketFlags::CLOEXEC,
        None,
    )?)
}

/// Makes a pipe: (read end, write end). Both close on exec.
///
/// # Errors
///
/// When no descriptors are left.
pub fn pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?)
}

/// Sends one message with up to [`MAX_FDS`] descriptors. Never raises SIGPIPE.
///
/// # Errors
///
/// `EPIPE` when the other end is gone.
///
/// # Panics
///
/// If there are more than [`MAX_FDS`] descriptors.
pub fn send_with_fds(socket: impl AsFd, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() {
        assert!(
            control.push(SendAncillaryMessage::ScmRights(fds)),
            "at most {MAX_FDS} descriptors a message"
        );
    }
    loop {
        match rustix::net::sendmsg(
            &socket,
            &[IoSlice::new(bytes)],
            &mut control,
            SendFlags::NOSIGNAL,
        ) {
            Ok(_) => return Ok(()),
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// Returns `false` if the other end of a socket is known to be gone.
#[must_use]
pub fn is_whole(socket: impl AsFd) -> bool {
    let socket = socket.as_fd();
    // The end of the other side is news by itself.
    super::pidfd::poll_input(socket, Some(super::clock::Deadline::at_ns(0)))
        != super::pidfd::Polled::Ready
}

/// Receives one message and its descriptors, which close on exec. No bytes and no error: the other end is gone.
///
/// # Errors
///
/// `ECONNRESET` and what else a socket may meet; an interrupted wait goes on.
pub fn recv_with_fds(socket: impl AsFd, bytes: &mut [u8]) -> io::Result<(usize, Vec<OwnedFd>)> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    loop {
        let received = rustix::net::recvmsg(
            &socket,
            &mut [IoSliceMut::new(bytes)],
            &mut control,
            RecvFlags::CMSG_CLOEXEC,
        );
        let count = match received {
            Ok(received) => received.bytes,
            Err(Errno::INTR) => continue,
            Err(error) => return Err(error.into()),
        };
        let mut fds = Vec::new();
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(rights) = message {
                fds.extend(rights);
            }
        }
        return Ok((count, fds));
    }
}

/// Lets reads and writes of a descriptor fail with `WouldBlock` instead of waiting.
///
/// # Errors
///
/// When the descriptor does not know the difference.
pub fn set_nonblocking(fd: impl AsFd) -> io::Result<()> {
    Ok(rustix::io::ioctl_fionbio(fd, true)?)
}

/// Keeps a descriptor from the programs that this process starts.
///
/// # Errors
///
/// None that an open descriptor can cause.
pub fn set_cloexec(fd: impl AsFd) -> io::Result<()> {
    Ok(rustix::io::fcntl_setfd(fd, rustix::io::FdFlags::CLOEXEC)?)
}

/// Makes a descriptor this process's stderr.
///
/// # Errors
///
/// None that an open descriptor can cause.
pub fn replace_stderr(fd: OwnedFd) -> io::Result<()> {
    Ok(rustix::stdio::dup2_stderr(fd)?)
}
