//! Tools of the tests: a watchdog, a level to come back to, children that die on command, and
//! bytes to be wary of.
//!
//! A test of this house leaves nothing behind and cannot hang: it starts a [`watchdog`], takes a [`Level`] before and
//! compares it after, and does whatever may die in a child made by [`in_child`]. Tests that count processes or descriptors
//! of the whole process take [`alone`] first, because a test binary runs its tests on threads.
//!
//! # Examples
//!
//! ```
//! use std::time::Duration;
//!
//! let _dog = phalanx_testkit::watchdog(Duration::from_secs(10));
//! let level = phalanx_testkit::Level::now(0);
//! let child = phalanx_testkit::in_child(|| std::thread::sleep(Duration::from_secs(60)));
//! child.kill();
//! assert!(child.wait().is_killed());
//! drop(child);
//! level.assert_back(0);
//! ```
#![warn(missing_docs)]

mod bytes;
mod child;
mod level;
mod watchdog;

pub use bytes::Bytes;
pub use child::{Child, Ended, PANICKED, in_child, kill};
pub use level::{Level, alone};
pub use watchdog::{Watchdog, watchdog};
