//! Helpers: this same executable, started again to be a peer's other process.

use std::io;
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use crate::{Result, peers, sys, zygote};

/// Names the role that a helper plays; set in helpers only.
const ROLE: &str = "PHALANX_BENCH_HELPER";
/// What the helper needs to know to reach its parent.
const ADDRESS: &str = "PHALANX_BENCH_ADDRESS";

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
            .spawn()?;
        Ok(Self { child })
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

/// Does what a helper is there for, and ends the process; returns at once if this process is no helper.
pub fn answer() {
    let Some(role) = std::env::var_os(ROLE) else {
        return;
    };
    sys::end_with_parent();
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
