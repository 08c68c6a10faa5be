//! Children made by a bare fork: no part of the engine under test has a hand in them.
#![expect(unsafe_code, reason = "fork")]

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use phalanx_sys::clock::Deadline;
use phalanx_sys::pidfd::{ExitStatus, PidFd, Polled};
use phalanx_sys::process::{self, Forked};
use phalanx_sys::{signal, tie};

/// The exit code of a child whose closure panicked.
pub const PANICKED: i32 = 101;

/// How a child ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ended(pub ExitStatus);

impl Ended {
    /// Returns `true` if SIGKILL ended it.
    #[must_use]
    pub fn is_killed(self) -> bool {
        matches!(self.0, ExitStatus::Signaled { signal, .. } if signal == signal::SIGKILL)
    }

    /// Returns `true` if its closure returned.
    #[must_use]
    pub fn is_success(self) -> bool {
        self.0 == ExitStatus::Exited(0)
    }
}

/// A forked child. Dropped, it is killed and collected.
#[derive(Debug)]
pub struct Child {
    pid: u32,
    watch: PidFd,
    // The child's end kills it when this one closes, that is when this process dies.
    _tie: tie::ParentEnd,
}

/// Forks a child that runs `f` and exits: with 0, or with [`PANICKED`]. Nothing of the test around it runs in the child.
///
/// # Panics
///
/// When the system has no room for another process.
pub fn in_child<F: FnOnce()>(f: F) -> Child {
    let (ours, theirs) = tie::tie_pair().expect("a test has two descriptors to spare");
    // SAFETY: the closure is a test's own, and uses what a lone thread can use after a fork: the C library's allocator, and
    // the engine, which has its own at-fork handlers. It never returns into the test harness.
    let forked = unsafe { process::fork() }.expect("a test can fork");
    match forked {
        Forked::Parent(pid) => Child {
            pid,
            watch: PidFd::open(pid).expect("the child is a zombie at worst"),
            _tie: ours,
        },
        Forked::Child => {
            drop(ours);
            if theirs.arm().is_err() {
                // Its parent died before it could be tied to it.
                process::exit_now(PANICKED);
            }
            let outcome = catch_unwind(AssertUnwindSafe(f));
            process::exit_now(if outcome.is_ok() { 0 } else { PANICKED })
        }
    }
}

impl Child {
    /// Returns its process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Kills it with SIGKILL; it stays a zombie until [`wait`](Self::wait).
    pub fn kill(&self) {
        let _ = self.watch.signal(signal::SIGKILL);
    }

    /// Blocks until it has ended, without collecting it: it stays a zombie.
    pub fn wait_dead(&self) {
        while self.watch.poll(None) != Polled::Ready {}
    }

    /// Returns `true` if it ends within `limit`.
    #[must_use]
    pub fn dies_within(&self, limit: Duration) -> bool {
        let deadline = Deadline::after(limit);
        loop {
            match self.watch.poll(Some(deadline)) {
                Polled::Ready => return true,
                Polled::TimedOut => return false,
                Polled::Interrupted => {}
            }
        }
    }

    /// Blocks until it has stopped (by SIGSTOP) or ended; `false` if it ended.
    #[must_use]
    pub fn wait_stopped(&self) -> bool {
        loop {
            match state_of(self.pid) {
                Some('T' | 't') => return true,
                None | Some('Z' | 'X') => return false,
                Some(_) => std::thread::sleep(Duration::from_millis(1)),
            }
        }
    }

    /// Blocks until it sleeps in the kernel (waits for something), for as long as that takes.
    ///
    /// # Panics
    ///
    /// If it does not within 10 seconds.
    pub fn wait_asleep(&self) {
        let patience = Instant::now() + Duration::from_secs(10);
        while state_of(self.pid) != Some('S') {
            assert!(
                Instant::now() < patience,
                "process {} is not asleep",
                self.pid
            );
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Blocks until it has ended, and collects it.
    pub fn wait(&self) -> Ended {
        self.wait_dead();
        match self.watch.wait_exit() {
            Ok(Some(status)) => Ended(status),
            Ok(None) | Err(_) => Ended(ExitStatus::Unknown),
        }
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        self.kill();
        self.wait();
    }
}

fn state_of(pid: u32) -> Option<char> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, rest) = stat.rsplit_once(')')?;
    rest.trim_start().chars().next()
}

/// Sends SIGKILL to any process by its id; one that is gone already is fine.
pub fn kill(pid: u32) {
    let _ = process::signal(pid, signal::SIGKILL);
}
