//! The one place that chooses an operating system.

#[cfg(not(target_os = "linux"))]
compile_error!(
    "phalanx runs on Linux (x86-64, aarch64) only: it needs futexes, pidfds and memfds. A port adds a sibling of `src/linux` with the same file names"
);

#[cfg(target_os = "linux")]
#[path = "linux/mod.rs"]
mod imp;

pub use imp::{
    clock, command, crash, event, ids, image, limits, map, named, others, pidfd, process, signal,
    socket, stream, tie, wait,
};
