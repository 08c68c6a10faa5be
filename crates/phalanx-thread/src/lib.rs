//! (under construction)
pub mod panics;
