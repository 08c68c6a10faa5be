//! Locks and friends.
#![warn(missing_docs)]
mod gate;
pub use gate::{Gate, Key};
