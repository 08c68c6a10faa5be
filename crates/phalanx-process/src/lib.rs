//! Processes with a lifetime.
#![warn(missing_docs)]

mod child;
mod entry;
mod error;
mod fork;
mod panics;
mod process;
mod reaper;
pub mod registry;
mod start;
mod task;
mod zygote;

pub use child::Child;
pub use entry::{PANICKED_CODE, REFUSED_CODE, enter, has_entered, leave_children, parent_pid};
pub use error::{Death, MemoryVerdict, ProcessError, StartError};
pub use fork::{Fork, ForkedChild, When, at_fork, fork};
pub use panics::PanicReport;
pub use phalanx_sys::pidfd::ExitStatus;
pub use process::{ActiveChild, Builder, Process, StartMethod, active_children};
pub use task::{TaskError, TaskFn, TaskRef};
pub use zygote::Zygote;
