//! Named points inside the protocols, at which a test can kill its own process.
//!
//! With the feature `points` off (as it ships), [`point`] compiles to nothing. With it on, a test's child calls
//! `arm` and dies by SIGKILL when it passes the point for the n-th time: the same death an operator deals, at a
//! place the operator could not aim at.

#[cfg(all(feature = "points", not(any(phalanx_loom, phalanx_shuttle))))]
mod armed {
    use std::sync::Mutex;
    use std::sync::atomic::{AtomicBool, Ordering};

    static ARMED: AtomicBool = AtomicBool::new(false);
    static TARGET: Mutex<Option<(String, u32)>> = Mutex::new(None);

    /// Passes a named point; kills this process if it is the armed one and its count is up.
    #[inline]
    pub fn point(name: &str) {
        if ARMED.load(Ordering::Relaxed) {
            passed(name);
        }
    }

    #[cold]
    fn passed(name: &str) {
        let Ok(mut target) = TARGET.lock() else {
            return;
        };
        if let Some((wanted, left)) = target.as_mut()
            && wanted == name
        {
            *left = left.saturating_sub(1);
            if *left == 0 {
                phalanx_sys::ids::kill_self();
            }
        }
    }

    /// Arms a point: this process dies when it passes `name` for the `nth` time (1 is the next time).
    pub fn arm(name: &str, nth: u32) {
        if let Ok(mut target) = TARGET.lock() {
            *target = Some((name.to_owned(), nth.max(1)));
        }
        ARMED.store(true, Ordering::Relaxed);
    }
}

#[cfg(all(feature = "points", not(any(phalanx_loom, phalanx_shuttle))))]
pub use armed::{arm, point};

/// Passes a named point. Without the feature `points` this is nothing.
#[cfg(not(all(feature = "points", not(any(phalanx_loom, phalanx_shuttle)))))]
#[inline(always)]
pub fn point(_name: &str) {}
