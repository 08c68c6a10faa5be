//! Named points inside the protocols, at which a test can kill its own process.
//!
//! With the feature `points` off (as it ships), [`point`] compiles to nothing. With it on, a test's child calls
//! `arm` and dies by SIGKILL when it passes the point for the n-th time: the same death an operator deals, at a
//! place the operator could not aim at. Or it calls `arm_stop` and stands still there (SIGSTOP), in the middle of the
//! protocol, until somebody continues or kills it.

#[cfg(all(feature = "points", not(any(phalanx_loom, phalanx_shuttle))))]
mod armed {
    use std::sync::Mutex;
    use std::sync::atomic::{AtomicBool, Ordering};

    static ARMED: AtomicBool = AtomicBool::new(false);
    static TARGET: Mutex<Option<Target>> = Mutex::new(None);

    struct Target {
        name: String,
        left: u32,
        stops: bool,
    }

    /// Passes a named point; kills this process if it is the armed one and its count is up.
    #[inline]
    pub fn point(name: &str) {
        if ARMED.load(Ordering::Relaxed) {
            passed(name);
        }
    }

    #[cold]
    fn passed(name: &str) {
        let stops = {
            let Ok(mut target) = TARGET.lock() else {
                return;
            };
            let Some(target) = target.as_mut().filter(|target| target.name == name) else {
                return;
            };
            if target.left == 0 {
                return;
            }
            target.left -= 1;
            if target.left > 0 {
                return;
            }
            target.stops
        };
        if stops {
            phalanx_sys::ids::stop_self();
        } else {
            phalanx_sys::ids::kill_self();
        }
    }

    /// Arms a point: this process dies when it passes `name` for the `nth` time (1 is the next time).
    pub fn arm(name: &str, nth: u32) {
        set(name, nth, false);
    }

    /// Arms a point: this process stops when it passes `name` for the `nth` time, and goes on when it is continued.
    pub fn arm_stop(name: &str, nth: u32) {
        set(name, nth, true);
    }

    fn set(name: &str, nth: u32, stops: bool) {
        if let Ok(mut target) = TARGET.lock() {
            *target = Some(Target {
                name: name.to_owned(),
                left: nth.max(1),
                stops,
            });
        }
        ARMED.store(true, Ordering::Relaxed);
    }
}

#[cfg(all(feature = "points", not(any(phalanx_loom, phalanx_shuttle))))]
pub use armed::{arm, arm_stop, point};

#[cfg(any(phalanx_loom, phalanx_shuttle))]
pub use crate::model::point;

/// Passes a named point. Without the feature `points` this is nothing.
#[cfg(not(any(feature = "points", phalanx_loom, phalanx_shuttle)))]
#[inline(always)]
pub fn point(_name: &str) {}
