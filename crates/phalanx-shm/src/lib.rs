//! Memory that several processes see, and who holds what in it.
//!
//! One [`Arena`] per process tree: an anonymous shared file with a large, sparse mapping. Everything the engine shares
//! lives in it as a *block* and is named by a [`BlockRef`], an offset with a generation, so that a handle means the same
//! thing in every process of the tree. Each block says in one word what it is and which process holds it; when a
//! process dies, [`Arena::sweep`] walks the blocks and returns what the dead one held. The essay is `README.md` beside
//! this crate.
#![warn(missing_docs)]

mod arena;
mod block;
mod error;
mod hold;
mod inspect;
#[cfg(any(phalanx_loom, phalanx_shuttle))]
pub mod modelled;
mod order;
mod places;
mod region;
mod robust;
mod session;
mod slots;
mod stuck;
mod sweep;
mod token;
mod waits;

pub use arena::{Arena, PLACED_MOST, Placed, Usage};
pub use block::{BlockRef, Kind, NOBODY, OBJECT, TRANSIT};
pub use error::{AllocError, OpenError, StaleHandle};
pub use hold::{Held, HoldOrAlloc};
pub use order::{GATES_MOST, Node, Step, StepText, forget_order, mixed, thread_number};
pub use places::place_text;
pub use region::Region;
pub use robust::{
    Acquired, Brief, Interest, Local, LookAgain, Patience, RawLock, Scope, Shared, WaitError,
    taken_from,
};
pub use session::{
    SessionOptions, adopt, adopt_forked, has_joined, on_join, promise_slot, session,
    session_if_any, session_options,
};
pub use slots::{ExitRecord, MAX_PROCESSES, ProcessInfo, SlotState, Ticket};
pub use stuck::{DeadlockError, Stuck, has_deadlock, take_deadlock};
pub use sweep::{KindOps, Kinds, Swept, register_kind, sweeping};
pub use token::{
    NOTED, Owner, after_fork_in_child, current_slot, keep_places, keeps_places, local_token,
    shared_token, thread_identity,
};

pub use waits::{
    Described, Detective, Flagged, Instead, Known, Look, Subject, Verdict, Wait, Waiting, Watch,
    flag, leave, mark_helper, name_thread, place_of, set_detective, set_timed,
};

#[doc(hidden)]
pub use inventory;

/// The version of everything that is laid out in the arena. A process of another version is refused at the door.
pub const LAYOUT_VERSION: u32 = 4;
