//! Wait for many descriptors, and a descriptor to be woken by.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::event::epoll;
use rustix::event::{EventfdFlags, eventfd};
use rustix::io::Errno;
use rustix::time::Timespec;

use super::clock::Deadline;

/// A counter that is a descriptor: readable while it is not 0.
#[derive(Debug)]
pub struct EventFd(OwnedFd);

impl EventFd {
    /// Makes one, not readable, closed on exec, not blocking.
    ///
    /// # Errors
    ///
    /// When no descriptor is left.
    pub fn new() -> io::Result<Self> {
        Ok(Self(eventfd(
            0,
            EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK,
        )?))
    }

    /// Takes over a descriptor of one that was made elsewhere.
    #[must_use]
    pub fn from_fd(fd: OwnedFd) -> Self {
        Self(fd)
    }

    /// Makes it readable.
    pub fn ring(&self) {
        // A full counter is readable already.
        let _ = rustix::io::write(&self.0, &1_u64.to_ne_bytes());
    }

    /// Makes it unreadable; returns `true` if it was readable.
    pub fn clear(&self) -> bool {
        rustix::io::read(&self.0, &mut [0_u8; 8]).is_ok()
    }

    /// Blocks until it is readable; `false` when the deadline came first.
    pub fn wait(&self, deadline: Option<Deadline>) -> bool {
        loop {
            match super::pidfd::poll_input(self.0.as_fd(), deadline) {
                super::pidfd::Polled::Ready => return true,
                super::pidfd::Polled::TimedOut => return false,
                super::pidfd::Polled::Interrupted => {}
            }
        }
    }
}

impl AsFd for EventFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Waits for input on any number of descriptors, each known by a number of the caller's.
#[derive(Debug)]
pub struct Epoll(OwnedFd);

impl Epoll {
    /// Makes one that watches nothing.
    ///
    /// # Errors
    ///
    /// When no descriptor is left.
    pub fn new() -> io::Result<Self> {
        Ok(Self(epoll::create(epoll::CreateFlags::CLOEXEC)?))
    }

    /// Returns another handle on the same set.
    ///
    /// # Errors
    ///
    /// When no descriptor is left.
    pub fn share(&self) -> io::Result<Self> {
        Ok(Self(self.0.try_clone()?))
    }

    /// Watches a descriptor for input or hang-up.
    ///
    /// # Errors
    ///
    /// When it is watched already or cannot be watched.
    pub fn add(&self, fd: impl AsFd, key: u64) -> io::Result<()> {
        Ok(epoll::add(
            &self.0,
            fd,
            epoll::EventData::new_u64(key),
            epoll::EventFlags::IN,
        )?)
    }

    /// Stops watching a descriptor.
    pub fn remove(&self, fd: impl AsFd) {
        // Not watched any more is what was wanted.
        let _ = epoll::delete(&self.0, fd);
    }

    /// Blocks until something is ready and returns the keys of up to 64 ready descriptors; none when the deadline passed or
    /// a signal came.
    ///
    /// # Errors
    ///
    /// None that correct use can cause.
    pub fn wait(&self, deadline: Option<Deadline>) -> io::Result<Vec<u64>> {
        let timeout = deadline.map(|deadline| {
            let left = deadline.remaining();
            Timespec {
                tv_sec: left.as_secs() as i64,
                tv_nsec: left.subsec_nanos().into(),
            }
        });
        let mut events = Vec::with_capacity(64);
        match epoll::wait(
            &self.0,
            rustix::buffer::spare_capacity(&mut events),
            timeout.as_ref(),
        ) {
            Ok(_) => Ok(events
                .iter()
                .map(|event: &epoll::Event| event.data.u64())
                .collect()),
            Err(Errno::INTR) => Ok(Vec::new()),
            Err(error) => Err(error.into()),
        }
    }
}
