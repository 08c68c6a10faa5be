//! The detective: finds threads, of any processes of the tree, that wait for each other and can never go on.
//!
//! ```no_run
//! use phalanx_watch::{self as watch, Action};
//! use std::time::Duration;
//!
//! // From now on every process of the tree looks for waits that never end, and prints what it finds.
//! watch::enable(Action::Report)?;
//!
//! // Or: the youngest waiter's call fails, so that the program can back off and go on. Its error is or has as its source a
//! // `DeadlockError`; a call that cannot return it panics with the `Deadlock`, which frees the guards on the way, and
//! // `recover` catches it.
//! watch::enable(Action::Raise)?;
//! let done = watch::recover(|| { /* locks, queues, joins */ });
//! if let Err(deadlock) = done {
//!     eprintln!("{deadlock}");
//! }
//!
//! // What every thread of another process's tree waits for and holds, as `phalanx dump PID` shows it.
//! println!("{}", watch::dump(4711)?);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # How it works
//!
//! A thread that is about to sleep writes down what it waits for (`phalanx_shm`'s `waits`; nothing on the path of a lock
//! that is free). While the detective is on, every sleeper wakes up each 200 ms ([`Options::every`]), looks whether it
//! can go on, writes down that it looked, and sometimes reads the notes of all others. A circle in them is a suspicion;
//! what makes it proof is in the essay above `survey.rs`. A thread of the circle then asks the others where they are, waits for their
//! answers, proves the circle again, and acts.
//!
//! | a waiter, at each look | next |
//! |---|---|
//! | was asked where it is | answers with its stack and what it holds |
//! | nothing is suspected of it | at most one of the tree per 50 ms surveys, and tells the leader of each circle that it proves |
//! | it is a suspected leader, and proves the circle | asks the others |
//! | the others have answered, or do not within two seconds, and it proves the circle again | reports, fails, or aborts; once for each circle |
//! | the circle is not there any more | forgets |
//!
//! The leader is the party that has to fail (the youngest that can), or the first of them. Any party may die meanwhile: then there is no
//! circle any more, or it has another leader.
//!
//! # What happens when
//!
//! *Fork*: a child has the detective of its parent. *Death*: what the dead held is freed by the sweep, and the circle with
//! it. *Ctrl-C*: as without the detective. *Deadlines*: a wait with a deadline is never part of a deadlock.
#![warn(missing_docs)]

mod detective;
mod dump;
mod graph;
mod order;
mod picture;
mod report;
mod survey;
mod witness;

pub use detective::{
    Action, EnableError, Options, deadlock_in, disable, enable, enable_with, install, recover,
    set_paths, take_deadlock, taking,
};
pub use dump::{Dump, DumpError, DumpedProcess, DumpedThread, dump};
pub use order::{Inversion, Taking, disable_lock_order, enable_lock_order, inversions};
pub use phalanx_shm::DeadlockError;
pub use report::{Deadlock, Party, Thing};
pub use witness::{Witness, set_witness};
