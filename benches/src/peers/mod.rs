//! The peers, each the way its own documentation suggests.

#[cfg(feature = "iceoryx2")]
pub mod iceoryx;
pub mod ipc;

/// Why one peer is in no table.
pub const CROSSMIST: &str = "crossmist 1.1.2 is left out: built by a current compiler, the first example of its README \
    panics (\"entered unreachable code\")";
