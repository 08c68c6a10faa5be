//! Threads with a name, a result and an end one can wait for: the surface of Python's `threading`, typed.
//!
//! ```
//! use std::time::Duration;
//! use phalanx_thread::{Builder, Thread, active_count, current, main_thread};
//!
//! assert_eq!(current().name(), "MainThread");
//! let thread = Thread::spawn(|| 6 * 7)?;
//! assert_eq!(thread.join()?, 42);
//!
//! let (sender, receiver) = std::sync::mpsc::channel::<()>();
//! let waiting = Builder::new().name("waiting").spawn(move || receiver.recv().is_err())?;
//! assert!(waiting.is_alive() && active_count() >= 2);
//! assert!(waiting.join_timeout(Duration::from_millis(10)).is_err(), "it still waits");
//! drop(sender);
//! assert!(waiting.join()?);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! - [`enumerate`] holds threads between their start and their end only: one that was joined is gone from it.
//! - A panic is the error of `join`, with message, place and stack.
//! - A thread that is no *daemon* is waited for by [`join_all`], which a program calls at its end if it wants to.
//! - *Fork*: the child has the forking thread only, as its main thread. *Ctrl-C* is the process's matter, not a thread's.
#![warn(missing_docs)]

mod frozen;
pub mod panics;
mod registry;
mod thread;

pub use registry::{ThreadInfo, active_count, current, enumerate, main_thread};
pub use thread::{Builder, JoinError, Run, Thread, join_all};
