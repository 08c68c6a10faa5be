//! A hang becomes a failure with a name.

use std::panic::Location;
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::time::Duration;

/// Ends the test's time limit on drop; see [`watchdog`].
#[derive(Debug)]
pub struct Watchdog {
    // Dropping the sender is the message.
    _alive: Sender<()>,
}

/// Aborts this process, naming the caller's line, unless the guard is dropped within `limit`.
///
/// Children made by [`in_child`](crate::in_child) go with it.
#[track_caller]
#[must_use = "the time limit ends when the guard is dropped"]
pub fn watchdog(limit: Duration) -> Watchdog {
    let caller = Location::caller();
    let (alive, ended) = channel::<()>();
    let bark = move || {
        if ended.recv_timeout(limit) == Err(RecvTimeoutError::Timeout) {
            let test = std::thread::current();
            eprintln!(
                "watchdog: the test at {caller} still runs after {limit:?} ({}); aborting",
                test.name().unwrap_or("unnamed")
            );
            std::process::abort();
        }
    };
    std::thread::Builder::new()
        .name("watchdog".to_owned())
        .spawn(bark)
        .expect("a test can start one thread");
    Watchdog { _alive: alive }
}
