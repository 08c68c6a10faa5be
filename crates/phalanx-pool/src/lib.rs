//! Workers under supervision.
//!
//! [`Pool`] runs tasks in worker processes, each with one or more threads; [`ThreadPool`] has the same API over threads of
//! this process. The essay is `README.md` beside this crate; `record` has the protocol's state table.
#![warn(missing_docs)]

mod board;
mod crew;
mod done;
mod engine;
mod error;
#[cfg(fuzzing)]
#[doc(hidden)]
pub mod fuzzed;
mod hand;
mod handle;
mod lot;
mod map;
#[cfg(any(phalanx_loom, phalanx_shuttle))]
#[doc(hidden)]
pub mod modelled;
mod pool;
mod progress;
mod record;
mod thread_map;
mod threads;
mod worker;

pub use board::SEATS;
pub use crew::{Crew, Lot, News, Settled};
pub use engine::{PoolStats, WorkerStats};
pub use error::{BuildError, PoolError, SubmitError, WorkerDeath};
pub use hand::{CrewWorker, Leaving, Work};
pub use handle::TaskHandle;
pub use lot::{End, LotSpec};
pub use map::{Imap, ImapUnordered, MapHandle, Numbered};
pub use pool::{InitFn, JoinPoolError, Pool, PoolBuilder, TaskOptions};
pub use progress::Progress;
pub use thread_map::{ThreadImap, ThreadImapUnordered, ThreadMapHandle};
pub use threads::{
    Spread, ThreadPool, ThreadPoolBuilder, ThreadTask, ThreadTaskError, with_thread_state,
};
pub use worker::{WorkerId, current_worker, worker_state};
