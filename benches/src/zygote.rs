//! New processes as cheap as they come: a bare zygote, and this executable started again.
#![expect(
    unsafe_code,
    reason = "the zygote forks without the C library's preparations"
)]

use std::ffi::CString;
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use crate::Result;
use crate::sys::{self, Forked, Map};

/// The role of a helper that computes one function and ends.
pub const SPAWNED: &str = "spawned";

/// What is computed in the new process.
pub fn function(argument: u64) -> u64 {
    std::hint::black_box(argument) + 1
}

/// A small single-threaded process that forks on request.
#[derive(Debug)]
pub struct Zygote {
    map: Map,
    requests: UnixStream,
    serial: u32,
    /// Whether the new process becomes the requester's child, who then waits for its end, too.
    adopted: bool,
    _process: Forked,
}

impl Zygote {
    /// Forks it: early, while this process is small.
    ///
    /// # Errors
    /// The kernel's.
    pub fn start(adopted: bool) -> io::Result<Self> {
        let map = Map::new(4096)?;
        let (requests, theirs) = UnixStream::pair()?;
        let theirs = OwnedFd::from(theirs);
        let process = Forked::start(&[&theirs], || serve(&theirs, &map, adopted))?;
        Ok(Self {
            map,
            requests,
            serial: 0,
            adopted,
            _process: process,
        })
    }

    /// Runs [`function`] in a new process and returns its result and, if it is ours to wait for, its id.
    ///
    /// # Errors
    /// The kernel's.
    pub fn start_one(&mut self, argument: u64) -> io::Result<(u64, i32)> {
        self.serial = self.serial.wrapping_add(1);
        self.requests.write_all(&argument.to_ne_bytes())?;
        let answer = self.map.line(0);
        answer.wait_for(self.serial, Duration::ZERO);
        let result = answer.wide.load(std::sync::atomic::Ordering::Relaxed);
        let pid = self
            .map
            .line(1)
            .word
            .load(std::sync::atomic::Ordering::Relaxed);
        Ok((result, pid.cast_signed()))
    }

    /// Runs [`function`] in a new process and returns its result.
    ///
    /// # Errors
    /// The kernel's.
    pub fn call(&mut self, argument: u64) -> io::Result<u64> {
        let (result, pid) = self.start_one(argument)?;
        if self.adopted {
            sys::reap(pid)?;
        }
        Ok(result)
    }
}

fn serve(requests: &OwnedFd, map: &Map, adopted: bool) {
    sys::never_reap();
    let flags = if adopted { libc::CLONE_PARENT } else { 0 };
    let mut serial = 0_u32;
    while let Ok(Some(argument)) = sys::read_u64(requests) {
        serial = serial.wrapping_add(1);
        // SAFETY: the zygote has one thread, and the child does no more than the lines below.
        match unsafe { sys::bare_fork(flags) } {
            Ok(0) => {
                map.line(1)
                    .word
                    .store(std::process::id(), std::sync::atomic::Ordering::Relaxed);
                let answer = map.line(0);
                answer
                    .wide
                    .store(function(argument), std::sync::atomic::Ordering::Relaxed);
                answer.publish(serial);
                sys::exit_now(0)
            }
            Ok(_) => {}
            Err(_) => return,
        }
    }
}

/// Runs [`function`] in this executable, started again with `posix_spawn`; the result comes through a pipe.
///
/// # Errors
/// The kernel's.
pub fn spawn_self(argument: u64) -> Result<u64> {
    let (reader, writer) = sys::pipe()?;
    let role = CString::new(format!("PHALANX_BENCH_HELPER={SPAWNED}"))?;
    let address = CString::new(format!("PHALANX_BENCH_ADDRESS={argument}"))?;
    let parent = CString::new(format!("PHALANX_BENCH_PARENT={}", std::process::id()))?;
    let pid = sys::spawn_self(&[&role, &address, &parent], &writer)?;
    drop(writer);
    let result = sys::read_u64(&reader)?;
    sys::reap(pid)?;
    Ok(result.ok_or("the new process wrote no result")?)
}

/// Runs [`function`] in a plain fork; the result comes through a pipe.
///
/// # Errors
/// The kernel's.
pub fn fork_and_pipe(argument: u64) -> Result<u64> {
    let (reader, writer) = sys::pipe()?;
    let child = Forked::start(&[&writer], || {
        let _ = sys::write_u64(&writer, function(argument));
    })?;
    drop(writer);
    let result = sys::read_u64(&reader)?;
    child.join()?;
    Ok(result.ok_or("the new process wrote no result")?)
}

/// What the helper of [`spawn_self`] does.
///
/// # Errors
/// The kernel's.
pub fn spawned(argument: &str) -> Result {
    let result = function(argument.parse()?);
    sys::write_u64(&sys::result_pipe(), result)?;
    sys::exit_now(0)
}

/// Starts `count` processes that only wait, by way of a zygote: what idle workers weigh at least. They end with the
/// returned handle.
///
/// # Errors
/// The kernel's.
pub fn idle_children(count: usize) -> io::Result<(Vec<u32>, UnixStream, Forked)> {
    let (mut ours, theirs) = UnixStream::pair()?;
    let theirs = OwnedFd::from(theirs);
    let zygote = Forked::start(&[&theirs], || {
        sys::never_reap();
        let zygote = std::process::id();
        for _ in 0..count {
            // SAFETY: the zygote has one thread; the child does no more than the lines below.
            match unsafe { sys::bare_fork(0) } {
                Ok(0) => {
                    sys::end_with_parent(zygote);
                    let _ = sys::write_u64(&theirs, u64::from(std::process::id()));
                    // Nobody writes to it: this returns when the parent has dropped its end.
                    let _ = sys::read_u64(&theirs);
                    sys::exit_now(0)
                }
                Ok(_) => {}
                Err(_) => return,
            }
        }
        let _ = sys::read_u64(&theirs);
    })?;
    let mut pids = vec![zygote.pid()];
    let mut bytes = [0; 8];
    for _ in 0..count {
        ours.read_exact(&mut bytes)?;
        pids.push(u32::try_from(u64::from_ne_bytes(bytes)).unwrap_or(0));
    }
    Ok((pids, ours, zygote))
}
