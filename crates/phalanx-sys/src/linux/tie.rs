//! Ties a child's life to its parent's, without a thread and whichever thread started it.
//!
//! Parent and child hold the two ends of a pipe. The child asks the kernel to send it SIGKILL when its end has news
//! (`F_SETSIG`, `O_ASYNC`); the only news ever is that the other end was closed, which the kernel does for the parent
//! however it goes. `PR_SET_PDEATHSIG` would follow the parent's *thread*, and not at all a child made by a zygote.
#![expect(unsafe_code, reason = "F_SETOWN and F_SETSIG")]

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, IntoRawFd, OwnedFd, RawFd};

use rustix::fs::{Mode, OFlags};

use super::clock::Deadline;
use super::pidfd::{Polled, poll_input};

/// The parent's end: when its last copy is closed, the child is killed.
#[derive(Debug)]
pub struct ParentEnd(#[expect(dead_code, reason = "held to be closed")] OwnedFd);

/// The child's end.
#[derive(Debug)]
pub struct ChildEnd(OwnedFd);

/// Makes a tie. Both ends close on exec.
///
/// # Errors
///
/// When no descriptors are left.
pub fn tie_pair() -> io::Result<(ParentEnd, ChildEnd)> {
    let (child, parent) = super::socket::pipe()?;
    Ok((ParentEnd(parent), ChildEnd(child)))
}

impl ChildEnd {
    /// Takes over an end that was received.
    #[must_use]
    pub fn from_fd(fd: OwnedFd) -> Self {
        Self(fd)
    }

    /// Takes over the end that this process inherited under a number.
    ///
    /// # Safety
    ///
    /// The number is an open descriptor that nothing else in this process owns.
    #[must_use]
    pub unsafe fn inherited(fd: RawFd) -> Self {
        // SAFETY: open and owned by nobody else (the caller's promise).
        Self(unsafe { OwnedFd::from_raw_fd(fd) })
    }

    /// Ties the calling process: from now on it is killed when the parent's end closes. The end stays open for good.
    ///
    /// # Errors
    ///
    /// When the parent is gone already ([`io::ErrorKind::BrokenPipe`]) or the kernel refuses signals for descriptors.
    pub fn arm(self) -> io::Result<()> {
        kill_me_on_news(&self.0)?;
        let _stays_open = self.0.into_raw_fd();
        Ok(())
    }
}

/// Asks for SIGKILL when the descriptor has news, which is that its other end was closed.
fn kill_me_on_news(end: &OwnedFd) -> io::Result<()> {
    let fd = end.as_raw_fd();
    let me = super::ids::pid().cast_signed();
    // SAFETY: an open descriptor; the call only sets who is signalled.
    check(unsafe { libc::fcntl(fd, libc::F_SETOWN, me) })?;
    // SAFETY: as above; sets which signal.
    check(unsafe { libc::fcntl(fd, F_SETSIG, libc::SIGKILL) })?;
    // SAFETY: as above; turns the signal on.
    check(unsafe { libc::fcntl(fd, libc::F_SETFL, libc::O_ASYNC | libc::O_NONBLOCK) })?;
    // Was it closed before we were listening?
    if poll_input(end.as_fd(), Some(Deadline::at_ns(0))) == Polled::Ready {
        return Err(io::Error::new(
            io::ErrorKind::BrokenPipe,
            "the parent is gone",
        ));
    }
    Ok(())
}

/// The end of a line that its first process keeps: when its last copy is closed, all who are on the line are killed.
#[derive(Debug)]
pub struct LineHolder(#[expect(dead_code, reason = "held to be closed")] OwnedFd);

/// The end of a line by which any number of processes put themselves on it, grandchildren too.
#[derive(Debug)]
pub struct LineEnd(OwnedFd);

/// Makes a line: a tie for a whole tree of processes, each of which arms it for itself. Both ends close on exec.
///
/// # Errors
///
/// When no descriptors are left.
pub fn line() -> io::Result<(LineHolder, LineEnd)> {
    let (read, write) = super::socket::pipe()?;
    Ok((LineHolder(write), LineEnd(read)))
}

impl LineEnd {
    /// Takes over an end that was inherited or received.
    #[must_use]
    pub fn from_fd(fd: OwnedFd) -> Self {
        Self(fd)
    }

    /// Puts the calling process on the line, until what is returned (and its copies in forked children) is dropped.
    ///
    /// # Errors
    ///
    /// When the holder is gone already ([`io::ErrorKind::BrokenPipe`]), or the kernel refuses.
    pub fn arm(&self) -> io::Result<OnLine> {
        // Opened anew: who is signalled is noted in the open file, which copies of a descriptor share.
        let path = format!("/proc/self/fd/{}", self.0.as_raw_fd());
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let own = rustix::fs::open(path, flags, Mode::empty())?;
        kill_me_on_news(&own)?;
        Ok(OnLine(own))
    }
}

/// A process's place on a line.
#[derive(Debug)]
pub struct OnLine(#[expect(dead_code, reason = "held to be closed")] OwnedFd);

impl AsFd for LineEnd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

// Not in libc for every target.
pub(super) const F_SETSIG: libc::c_int = 10;

fn check(answer: libc::c_int) -> io::Result<()> {
    if answer < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

impl AsFd for ChildEnd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
