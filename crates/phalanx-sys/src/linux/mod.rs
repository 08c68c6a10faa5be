//! Linux: futexes, pidfds, memfds.
pub mod clock;
pub mod command;
pub mod crash;
pub mod event;
pub mod ids;
pub mod image;
pub mod limits;
pub mod map;
pub mod named;
pub mod others;
pub mod pidfd;
pub mod process;
pub mod signal;
pub mod socket;
pub mod stream;
pub mod tie;
pub mod wait;
