//! Helpers: the other processes of a contestant, forked for the limits, this same executable started again for peers.

use std::io;
use std::os::fd::OwnedFd;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::rc::Rc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use crate::sys::{self, Forked, Map};
use crate::{Result, SPIN, peers, zygote};

/// Names the role that a helper plays; set in helpers only.
const ROLE: &str = "PHALANX_BENCH_HELPER";
/// What the helper needs to know to reach its parent.
const ADDRESS: &str = "PHALANX_BENCH_ADDRESS";
/// Whose end is the helper's, too.
const PARENT: &str = "PHALANX_BENCH_PARENT";

/// A helper process: ends by itself when its contestant says so, killed two seconds later if not.
#[derive(Debug)]
pub struct Helper {
    child: Child,
}

impl Helper {
    /// Starts this executable again as a helper.
    ///
    /// # Errors
    /// The kernel's.
    pub fn start(role: &str, address: &str) -> io::Result<Self> {
        let child = Command::new("/proc/self/exe")
            .env(ROLE, role)
            .env(ADDRESS, address)
            .env(PARENT, std::process::id().to_string())
            .spawn()?;
        Ok(Self { child })
    }

    /// Starts a helper that takes orders on its standard input, whose end ends it, and reports on its output.
    ///
    /// # Errors
    /// The kernel's.
    pub fn guided(role: &str, address: &str) -> io::Result<(Self, ChildStdin, ChildStdout)> {
        let mut child = Command::new("/proc/self/exe")
            .env(ROLE, role)
            .env(ADDRESS, address)
            .env(PARENT, std::process::id().to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let stdin = child.stdin.take();
        let stdout = child.stdout.take();
        let helper = Self { child };
        let missing = || io::Error::other("the helper has no pipes");
        Ok((
            helper,
            stdin.ok_or_else(missing)?,
            stdout.ok_or_else(missing)?,
        ))
    }
}

impl Drop for Helper {
    fn drop(&mut self) {
        let deadline = Instant::now() + Duration::from_secs(2);
        while Instant::now() < deadline {
            if !matches!(self.child.try_wait(), Ok(None)) {
                return;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        eprintln!("a helper did not end by itself: killed");
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A forked helper that works when ordered to and sleeps in between; ended when dropped.
#[derive(Debug)]
pub struct Ordered {
    map: Rc<Map>,
    serial: u32,
    _process: Forked,
}

const ORDERS: usize = 0;
const REPORTS: usize = 1;

impl Ordered {
    /// Forks a helper in which `prepare` runs once and what it returns is called with the number of each order.
    ///
    /// # Errors
    /// The kernel's.
    pub fn start<W: FnMut(u64)>(
        keep: &[&OwnedFd],
        prepare: impl FnOnce() -> W,
    ) -> io::Result<Self> {
        let map = Rc::new(Map::new(4096)?);
        let process = Forked::start(keep, || {
            let mut work = prepare();
            let mut serial = 0_u32;
            loop {
                serial = serial.wrapping_add(1);
                let orders = map.line(ORDERS);
                orders.wait_for(serial, Duration::ZERO);
                map.line(REPORTS + 1).publish(serial);
                work(orders.wide.load(Ordering::Relaxed));
                map.line(REPORTS).publish(serial);
            }
        })?;
        Ok(Self {
            map,
            serial: 0,
            _process: process,
        })
    }

    /// Orders the helper to work and returns as soon as it has begun.
    pub fn begin(&mut self, count: u64) {
        self.serial = self.serial.wrapping_add(1);
        let orders = self.map.line(ORDERS);
        orders.wide.store(count, Ordering::Relaxed);
        orders.publish(self.serial);
        self.map
            .line(REPORTS + 1)
            .wait_for(self.serial, Duration::ZERO);
    }

    /// Blocks until the helper has done what it was ordered.
    pub fn end(&self) {
        self.map.line(REPORTS).wait_for(self.serial, SPIN);
    }
}

/// Does what a helper is there for, and ends the process; returns at once if this process is no helper.
pub fn answer() {
    let Some(role) = std::env::var_os(ROLE) else {
        return;
    };
    let parent = std::env::var(PARENT).ok().and_then(|id| id.parse().ok());
    sys::end_with_parent(parent.unwrap_or(0));
    let address = std::env::var(ADDRESS).unwrap_or_default();
    let outcome: Result = match role.to_str() {
        Some(zygote::SPAWNED) => zygote::spawned(&address),
        Some(peers::ipc::ECHO) => peers::ipc::echo(address),
        Some(peers::ipc::SINK) => peers::ipc::sink(address),
        #[cfg(feature = "iceoryx2")]
        Some(peers::iceoryx::HELPER) => peers::iceoryx::helper(&address),
        _ => Err("no such helper".into()),
    };
    match outcome {
        Ok(()) => std::process::exit(0),
        Err(error) => {
            eprintln!("helper {}: {error}", role.display());
            std::process::exit(1)
        }
    }
}
