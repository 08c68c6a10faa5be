//! Locks and friends, in two scopes with one algorithm, and shared data.
//!
//! | | threads of this process | processes of the tree |
//! |---|---|---|
//! | make | `Lock::local()` | `Lock::new()?` |
//! | lives | on the heap | in the arena; no descriptor, no name in the file system |
//! | send | clone it | clone it, or serialize it into an argument, queue or pipe |
//! | owner dies | cannot (a panicking thread drops its guard) | the next owner gets [`OwnerDied`] with the guard |
//!
//! The essay is `README.md` beside this crate; each module has the state table of its protocol.
#![warn(missing_docs)]

mod barrier;
mod condition;
mod event;
mod gate;
pub mod handle;
mod holders;
mod home;
mod lock;
mod order;
mod permits;
mod places;
mod semaphore;
mod shared;

pub use barrier::{Barrier, BarrierError, BarrierState};
pub use condition::{Condition, ConditionState, WaitResult};
pub use event::{Event, EventState};
pub use gate::{Gate, Key};
pub use home::{CreateError, Home, Name, Object};
pub use lock::{
    Brief, Lock, LockError, LockFacts, LockGuard, LockOwner, LockState, OwnerDied, RLock,
    RLockGuard, RLockState, Releasable, lock_facts,
};
pub use order::{note_order, order_wanted};
pub use permits::{Hint, Permits, PermitsState};
pub use phalanx_shm::{
    Acquired, DeadlockError, Local, Patience, Shared as SharedScope, Stuck, WaitError,
};
pub use places::{Holding, held_here};
pub use semaphore::{
    BoundedSemaphore, OverRelease, Permit, SEMAPHORE_MOST, Semaphore, SemaphoreState,
};
pub use shared::{
    OutOfRange, Plain, Shared, SharedGuard, SharedMemory, SharedSlice, SharedSliceGuard,
    SharedState,
};

/// Tells the sweep what to do with this crate's objects when a process dies. Called by whoever makes or receives one, and
/// when a process joins a tree.
pub fn install() {
    static ONCE: std::sync::Once = std::sync::Once::new();
    ONCE.call_once(|| {
        lock::install();
        event::install();
        semaphore::install();
        permits::install();
        condition::install();
        barrier::install();
        shared::install();
    });
}
