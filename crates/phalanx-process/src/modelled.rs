//! The start record, for the models in `models/`.

use phalanx_channel::Loan;
use phalanx_shm::{AllocError, Arena, BlockRef, Patience};

use crate::start::{DIED, StartHandle, VALUE};

/// A hold on a start record.
#[derive(Debug)]
pub struct Start(StartHandle);

impl Start {
    /// Makes a record that owns these arguments.
    ///
    /// # Errors
    ///
    /// [`AllocError`] when memory is short.
    pub fn new(arena: &'static Arena, args: &[u8]) -> Result<Self, AllocError> {
        let mut loan = Loan::new(arena, args.len(), &[])?;
        loan.copy_from_slice(args);
        StartHandle::new(arena, loan, None).map(Self)
    }

    /// Takes a hold, as the child does; `None` if the record is gone.
    #[must_use]
    pub fn join(arena: &'static Arena, block: BlockRef) -> Option<Self> {
        arena.hold(block).ok().map(StartHandle::from_held).map(Self)
    }

    /// Returns the record's name.
    #[must_use]
    pub fn block(&self) -> BlockRef {
        self.0.block()
    }

    /// The child takes its arguments.
    #[must_use]
    pub fn take_args(&self) -> Option<Vec<u8>> {
        self.0.take_args().map(phalanx_channel::Message::into_vec)
    }

    /// The child ends with a value.
    ///
    /// # Errors
    ///
    /// [`AllocError`] when memory is short.
    pub fn finish(&self, arena: &'static Arena, result: &[u8]) -> Result<(), AllocError> {
        let mut loan = Loan::new(arena, result.len(), &[])?;
        loan.copy_from_slice(result);
        self.0.finish(VALUE, Some(loan));
        Ok(())
    }

    /// Who reaped the child says that it is dead.
    pub fn died(&self) {
        self.0.finish(DIED, None);
    }

    /// Blocks until there is an outcome; returns whether it is a value.
    #[must_use]
    pub fn wait(&self) -> bool {
        matches!(self.0.wait(Patience::FOREVER), Ok(VALUE))
    }

    /// Takes the result's bytes.
    #[must_use]
    pub fn take_result(&self) -> Option<Vec<u8>> {
        self.0.take_result().map(phalanx_channel::Message::into_vec)
    }
}
