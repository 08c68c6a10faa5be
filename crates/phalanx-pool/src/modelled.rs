//! The task record, for the models in `models/`.

use phalanx_shm::{AllocError, Arena, Patience};

use crate::record::{self, ABANDONED, Choices, DONE, ORPHAN, Outcome, QUEUED, RUNNING, TaskView};

/// A task of the arena.
#[derive(Clone, Copy, Debug)]
pub struct Task(TaskView);

impl Task {
    /// Makes a queued task with these arguments.
    ///
    /// # Errors
    ///
    /// [`AllocError`] when memory is short.
    pub fn new(arena: &'static Arena, args: &[u8]) -> Result<Self, AllocError> {
        record::install();
        TaskView::new(arena, Choices::default(), args, &[]).map(Self)
    }

    /// A worker's claim.
    #[must_use]
    pub fn claim(self, seat: u32) -> bool {
        self.0.claim(seat)
    }

    /// Who claimed it last.
    #[must_use]
    pub fn claimed_by(self) -> u32 {
        self.0.claimed_by()
    }

    /// A worker's result of a task it runs.
    ///
    /// # Errors
    ///
    /// [`AllocError`] when memory is short.
    pub fn set_result(self, bytes: &[u8]) -> Result<(), AllocError> {
        self.0.set_result(bytes, &[])
    }

    /// A worker's end of a task it runs. Returns whether it was its claimer's to end, and whether nobody wants it any more.
    #[must_use]
    pub fn finish(self) -> Option<bool> {
        let flags = self.0.finish(RUNNING, Outcome::Value)?;
        Some(flags & ABANDONED != 0)
    }

    /// The supervisor's end of a task whose worker died.
    #[must_use]
    pub fn finish_died(self) -> bool {
        self.0.finish(RUNNING, Outcome::Died).is_some()
    }

    /// The submitter's cancel of a task that waits; `false` if a worker has it.
    #[must_use]
    pub fn cancel(self) -> bool {
        self.0.finish(QUEUED, Outcome::Cancelled).is_some()
    }

    /// Drops the handle: returns `true` if the task is done, so that the submitter frees it now; whoever ends it later
    /// leaves it to the supervisor.
    #[must_use]
    pub fn let_go(self) -> bool {
        TaskView::is_done_in(self.0.flag(ABANDONED))
    }

    /// Returns `true` if the supervisor must free it.
    #[must_use]
    pub fn is_orphan(self) -> bool {
        self.0.has(ORPHAN)
    }

    /// Sends a running task back to the queue.
    pub fn requeue(self) {
        self.0.requeue();
    }

    /// Blocks until it is done. Returns whether it ended with a value, and the result's bytes.
    #[must_use]
    pub fn wait(self) -> (bool, Vec<u8>) {
        let waited = self.0.wait(Patience::FOREVER);
        assert!(waited.is_ok() && self.0.state() == DONE);
        (
            self.0.outcome() == Outcome::Value,
            self.0.with_result(<[u8]>::to_vec),
        )
    }

    /// Returns `true` if it ended by a cancel.
    #[must_use]
    pub fn was_cancelled(self) -> bool {
        self.0.outcome() == Outcome::Cancelled
    }

    /// Frees the record.
    pub fn free(self) {
        self.0.free();
    }
}
