//! The models, one file per protocol. Built and run by `cargo xtask model`.
#![cfg(any(phalanx_loom, phalanx_shuttle))]

mod barrier;
mod condition;
mod event;
mod gate;
mod lock;
mod rlock;
mod semaphore;
// In an arena: shuttle's.
#[cfg(phalanx_shuttle)]
mod block;
#[cfg(phalanx_shuttle)]
mod deaths;
#[cfg(phalanx_shuttle)]
mod hold;
#[cfg(phalanx_shuttle)]
mod permits;
#[cfg(phalanx_shuttle)]
mod queue;
#[cfg(phalanx_shuttle)]
mod start;
#[cfg(phalanx_shuttle)]
mod task;
#[cfg(phalanx_shuttle)]
mod watch;

use phalanx_prim::{Arc, AtomicU64, Ordering};

/// What a lock protects: counts with a load and a store, so that two at once, or one that does not see the other's store,
/// lose a count.
#[derive(Clone, Default)]
struct Tally(Arc<AtomicU64>);

impl Tally {
    fn count(&self) {
        let now = self.0.load(Ordering::Relaxed);
        self.0.store(now + 1, Ordering::Relaxed);
    }

    fn total(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}
