//! What a foreign command needs: a wait for several descriptors, and a leash.
//!
//! A leash is the tie of [`tie`](super::tie) for a program that does not help: the parent itself tells the kernel whom to
//! kill when its end of a socket pair closes. The other end is inherited by the command and stays open there.
#![expect(unsafe_code, reason = "F_SETOWN, F_SETSIG and F_SETFD")]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;

use super::clock::Deadline;

/// What to wait for at a descriptor. An error or a closed other side counts as ready.
#[derive(Clone, Copy, Debug)]
pub enum Interest<'a> {
    /// Something to read.
    Readable(BorrowedFd<'a>),
    /// Room to write.
    Writable(BorrowedFd<'a>),
}

/// Blocks until a descriptor is ready, a signal handler ran, or `deadline`; returns which are ready.
///
/// # Errors
///
/// When the kernel has no memory.
pub fn poll<const N: usize>(
    interests: [Option<Interest<'_>>; N],
    deadline: Option<Deadline>,
) -> io::Result<[bool; N]> {
    let mut fds = Vec::with_capacity(N);
    for interest in interests.iter().flatten() {
        fds.push(match interest {
            Interest::Readable(fd) => PollFd::from_borrowed_fd(*fd, PollFlags::IN),
            Interest::Writable(fd) => PollFd::from_borrowed_fd(*fd, PollFlags::OUT),
        });
    }
    let timeout = deadline.map(|deadline| {
        let left = deadline.remaining();
        Timespec {
            tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: left.subsec_nanos().into(),
        }
    });
    let polled = match rustix::event::poll(&mut fds, timeout.as_ref()) {
        Err(Errno::INTR) => false,
        polled => polled? > 0,
    };
    let mut ready = [false; N];
    let wanted = (0..N).filter(|index| interests[*index].is_some());
    for (index, fd) in wanted.zip(&fds) {
        ready[index] = polled && !fd.revents().is_empty();
    }
    Ok(ready)
}

/// Whom a leash is put on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Worn {
    /// One process.
    Process(u32),
    /// All processes of a group, by its leader.
    Group(u32),
}

/// What kills a command when this process ends or drops it.
#[derive(Debug)]
pub struct Leash {
    // Dropped first: closing it is what kills.
    _hand: OwnedFd,
    collar: OwnedFd,
}

impl Leash {
    /// Makes one that nobody wears yet.
    ///
    /// # Errors
    ///
    /// When no descriptors are left.
    pub fn new() -> io::Result<Self> {
        let (hand, collar) = super::socket::stream_pair()?;
        Ok(Self {
            _hand: hand,
            collar,
        })
    }

    /// Lets programs that are started from now on inherit the end they keep open, or not.
    ///
    /// # Errors
    ///
    /// Never, as the descriptor is open.
    pub fn inherit(&self, inherit: bool) -> io::Result<()> {
        let flags = if inherit { 0 } else { libc::FD_CLOEXEC };
        self.set(libc::F_SETFD, flags)
    }

    /// Puts it on: from now on the kernel kills them when this process's end closes.
    ///
    /// # Errors
    ///
    /// When there is no such process or group.
    pub fn put_on(&self, whom: Worn) -> io::Result<()> {
        let owner = match whom {
            Worn::Process(pid) => pid.cast_signed(),
            Worn::Group(leader) => -leader.cast_signed(),
        };
        self.set(libc::F_SETOWN, owner)?;
        self.set(super::tie::F_SETSIG, libc::SIGKILL)?;
        self.set(libc::F_SETFL, libc::O_ASYNC | libc::O_NONBLOCK)
    }

    /// Takes it off: they live on when this process ends.
    pub fn take_off(self) {
        // An open descriptor whose flags were set before takes them back.
        let _ = self.set(libc::F_SETFL, libc::O_NONBLOCK);
    }

    fn set(&self, command: libc::c_int, value: libc::c_int) -> io::Result<()> {
        // SAFETY: an open socket; none of these commands takes a pointer.
        let answer = unsafe { libc::fcntl(self.collar.as_raw_fd(), command, value) };
        if answer < 0 {
            Err(io::Error::last_os_error())
        } else {
            Ok(())
        }
    }
}
