//! Counting the words of every text file below a directory.
//!
//! [`discover`] finds the files, [`count`] counts one batch of them, [`modes`] does that for all batches in several
//! ways that must agree.

pub mod count;
pub mod discover;
pub mod modes;
