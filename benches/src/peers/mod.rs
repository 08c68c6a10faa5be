//! The peers, each the way its own documentation suggests.

#[cfg(feature = "iceoryx2")]
pub mod iceoryx;
pub mod ipc;
