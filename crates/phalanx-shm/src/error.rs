//! What can go wrong with shared memory, with the numbers.

use std::io;

/// Memory could not be had.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AllocError {
    /// The system (or a limit of this process or its control group) has no memory left for the request.
    #[error(
        "out of shared memory: {requested} bytes asked for, {available} available, {in_use} in use by this process tree; free some, or raise the limit"
    )]
    OutOfMemory {
        /// Bytes that were asked for.
        requested: usize,
        /// Bytes the system said were available.
        available: u64,
        /// Bytes the arena uses already.
        in_use: u64,
    },
    /// The arena's reserved address range is used up or too small for the request.
    #[error(
        "the arena of {reserved} reserved bytes has no room for {requested} more; start the program with a larger one (SessionOptions::reserve, PHALANX_ARENA_BYTES)"
    )]
    Exhausted {
        /// Bytes that were asked for.
        requested: usize,
        /// Size of the reserved range.
        reserved: usize,
    },
    /// All process slots are taken.
    #[error(
        "{} processes are in this tree already; join some before starting more",
        crate::MAX_PROCESSES
    )]
    TooManyProcesses,
}

/// An arena could not be made or joined.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// The system refused a descriptor or the mapping.
    #[error("cannot map the shared arena: {0}")]
    Io(#[from] io::Error),
    /// The descriptor is not an arena.
    #[error(
        "this file is not a phalanx arena ({0}); a worker must be started by a phalanx process"
    )]
    Foreign(&'static str),
    /// The other side is built from a version with another layout.
    #[error(
        "the arena has layout {theirs}, this program has {ours}; build parent and worker from the same version"
    )]
    Version {
        /// Layout in the arena.
        theirs: u32,
        /// Layout of this program.
        ours: u32,
    },
    /// The place in the process table that was reserved for this process is gone.
    #[error(
        "whoever started this process died or gave up before it could join the tree; start it again"
    )]
    Abandoned,
    /// This process belongs to another arena already.
    #[error(
        "this process already belongs to an arena; join one before the first use of any other part"
    )]
    AlreadyJoined,
}

/// A handle whose object is gone: every process that held it dropped it or died.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "this handle's object no longer exists: every holder dropped it or died before it arrived; keep one handle alive until the receiver has its own"
)]
pub struct StaleHandle;
