//! What a started worker reads, for the targets in `fuzz/`.

use crate::entry::{Orders, split};

/// Parses what a parent puts into the environment.
pub fn orders(line: &str) {
    if let Err(reason) = Orders::parse(line) {
        assert!(!reason.is_empty());
    }
}

/// Takes a start's payload apart and looks for the function it names.
pub fn payload(bytes: &[u8]) {
    if let Ok((task, from)) = split(bytes) {
        assert!(from <= bytes.len());
        let _ = task.resolve();
    }
}
