//! The operating system, as the rest of phalanx sees it.
//!
//! Each module answers one question (how to wait on a word, how to map memory that several processes see, how to
//! start a process, …) with the same names on every system. This is the only crate that names `libc` or `rustix`.
//!
//! It promises mechanism, not policy: an interrupted wait is a result ([`wait::Waited::Interrupted`]), a time-out is an
//! absolute [`clock::Deadline`], nothing is retried, nothing is logged, and no thread is started.
#![warn(missing_docs)]

mod select;

pub use select::{
    clock, command, crash, event, ids, image, limits, map, named, others, pidfd, process, signal,
    socket, stream, tie, wait,
};
