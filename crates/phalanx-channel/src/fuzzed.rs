//! Where a queue keeps its bytes, for the targets in `fuzz/` that write into them.

use phalanx_shm::BlockRef;

use crate::RawQueue;

/// Returns the segment that is read next, and the payload blocks that its records name.
#[must_use]
pub fn places(queue: &RawQueue) -> (BlockRef, Vec<BlockRef>) {
    queue.places()
}
