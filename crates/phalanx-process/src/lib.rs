//! Processes with a lifetime.
#![warn(missing_docs)]

mod child;
mod crash;
mod entry;
mod error;
mod fork;
#[cfg(fuzzing)]
#[doc(hidden)]
pub mod fuzzed;
#[cfg(any(phalanx_loom, phalanx_shuttle))]
#[doc(hidden)]
pub mod modelled;
mod oom;
mod process;
mod reaper;
pub mod registry;
mod start;
mod task;
mod ward;
mod zygote;

pub use child::Child;
pub use crash::CrashStack;
pub use entry::{PANICKED_CODE, REFUSED_CODE, enter, has_entered, leave_children, parent_pid};
pub use error::{Death, MemoryVerdict, ProcessError, StartError};
pub use fork::{Fork, ForkedChild, When, at_fork, fork};
pub use phalanx_sys::pidfd::ExitStatus;
pub use phalanx_thread::panics::PanicReport;
pub use process::{ActiveChild, Builder, Process, StartMethod, active_children};
pub use task::{Payload, Task, TaskError, TaskFn, TaskRef, Trampoline, key_of};
pub use ward::{
    Ward, after_fork, await_ward, before_fork, enter as enter_as_ward,
    enter_by_number as enter_as_ward_by_number, resume as resume_after_fork, serve_forks,
    ward_descriptor, ward_ended,
};
pub use zygote::Zygote;

#[doc(hidden)]
pub use inventory;

/// What the macros' output names.
#[doc(hidden)]
pub mod __private {
    pub use crate::registry::{AtEnter, Registered, type_id_of};
    pub use crate::task::trampoline_of;
    pub use crate::{enter, leave_children};
    pub use inventory;
}
