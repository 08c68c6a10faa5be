//! Panics as values: what was said, where, and how it came to it.

use std::any::Any;
use std::backtrace::Backtrace;
use std::cell::RefCell;
use std::fmt;
use std::panic::{self, AssertUnwindSafe};
use std::sync::Once;

use serde::{Deserialize, Serialize};

/// A panic that was caught. It can be sent to another process.
///
/// ```
/// use phalanx_thread::{JoinError, Thread};
///
/// let thread = Thread::spawn(|| -> u8 { panic!("out of luck") })?;
/// let Err(JoinError::Panicked(report)) = thread.join() else {
///     panic!("it returned")
/// };
/// assert_eq!(report.message, "out of luck");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PanicReport {
    /// What was said; of a payload that is no string, that it is none.
    pub message: String,
    /// File, line and column.
    pub location: Option<String>,
    /// The stack at that moment.
    pub backtrace: String,
    /// The thread's name.
    pub thread: String,
}

impl fmt::Display for PanicReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "thread '{}' panicked", self.thread)?;
        if let Some(location) = &self.location {
            write!(f, " at {location}")?;
        }
        write!(f, ": {}", self.message)
    }
}

impl std::error::Error for PanicReport {}

#[derive(Default)]
struct Seen {
    // How many `catch` this thread is in.
    depth: usize,
    location: Option<String>,
    backtrace: Option<String>,
}

thread_local! {
    static SEEN: RefCell<Seen> = RefCell::new(Seen::default());
}

/// Notes location and stack of a panic in a thread that is inside [`catch`]; all others go to the hook that was there.
fn install_hook() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let before = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            let inside = SEEN.try_with(|seen| {
                let Ok(mut seen) = seen.try_borrow_mut() else {
                    return false;
                };
                if seen.depth > 0 {
                    seen.location = info.location().map(ToString::to_string);
                    seen.backtrace = Some(Backtrace::force_capture().to_string());
                }
                seen.depth > 0
            });
            if inside != Ok(true) {
                before(info);
            }
        }));
    });
}

/// Runs `f`; a panic in it becomes a report and is not printed.
///
/// # Errors
///
/// [`PanicReport`] when `f` panicked. What it was changing may be half-changed.
pub fn catch<T>(f: impl FnOnce() -> T) -> Result<T, PanicReport> {
    install_hook();
    SEEN.with_borrow_mut(|seen| seen.depth += 1);
    let caught = panic::catch_unwind(AssertUnwindSafe(f));
    let (location, backtrace) = SEEN.with_borrow_mut(|seen| {
        seen.depth -= 1;
        (seen.location.take(), seen.backtrace.take())
    });
    caught.map_err(|payload| PanicReport {
        message: message_of(payload.as_ref()),
        location,
        backtrace: backtrace.unwrap_or_default(),
        thread: std::thread::current()
            .name()
            .unwrap_or("<unnamed>")
            .to_owned(),
    })
}

fn message_of(payload: &(dyn Any + Send)) -> String {
    if let Some(text) = payload.downcast_ref::<&str>() {
        (*text).to_owned()
    } else if let Some(text) = payload.downcast_ref::<String>() {
        text.clone()
    } else {
        "a value that is no text was thrown".to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_is_reported_with_place_and_stack() {
        let report = catch(|| panic!("no {}", 7)).unwrap_err();
        assert_eq!(report.message, "no 7");
        assert!(
            report
                .location
                .as_deref()
                .unwrap_or("")
                .contains("panics.rs")
        );
        assert!(report.backtrace.contains("panics"), "{}", report.backtrace);
        assert_eq!(catch(|| 5), Ok(5));
    }

    #[test]
    fn a_payload_that_is_no_text_is_said_to_be_none() {
        let report = catch(|| panic::panic_any(7)).unwrap_err();
        assert!(report.message.contains("no text"), "{report}");
    }
}
