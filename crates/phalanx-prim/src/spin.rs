//! How long to spin before sleeping.
//!
//! A wake-up through the kernel costs microseconds; an answer that comes from another core within that time is worth
//! spinning for, and nothing else is. So a spin lasts at most [`LIMIT_NS`], and a thread that spun in vain spins less
//! often: after each failure it skips twice as many waits as before (up to [`MOST_SKIPPED`]) before it tries again. With
//! every core busy this leaves one spin of a few microseconds per [`MOST_SKIPPED`] sleeps; with a core free the first
//! success restores spinning.

use std::cell::Cell;

use crate::{clock, hint};

/// The longest spin, in nanoseconds: about what sleeping and waking costs.
pub(crate) const LIMIT_NS: u64 = 5_000;
const MOST_SKIPPED: u32 = 64;
/// Spins between two looks at the clock.
const BURST: u32 = 16;

thread_local! {
    // (waits to skip before the next spin, how many to skip after the next failure)
    static HISTORY: Cell<(u32, u32)> = const { Cell::new((0, 1)) };
}

/// The spinning half of a wait.
#[derive(Debug)]
pub struct Spin;

impl Spin {
    /// Spins until `ready` answers, for a few microseconds at most, or not at all where spinning has not paid lately.
    ///
    /// Returns what `ready` answered, `None` when it is time to sleep.
    #[inline]
    pub fn until<T>(mut ready: impl FnMut() -> Option<T>) -> Option<T> {
        if cfg!(any(phalanx_loom, phalanx_shuttle)) || cpus() == 1 {
            return None;
        }
        let (skip, step) = HISTORY.get();
        if skip > 0 {
            HISTORY.set((skip - 1, step));
            return None;
        }
        let mut until = 0;
        loop {
            for _ in 0..BURST {
                if let Some(answer) = ready() {
                    HISTORY.set((0, (step / 2).max(1)));
                    return Some(answer);
                }
                hint::spin_loop();
            }
            let now = clock::now_ns();
            if until == 0 {
                until = now + LIMIT_NS;
            } else if now >= until {
                HISTORY.set((step, (step * 2).min(MOST_SKIPPED)));
                return None;
            }
        }
    }
}

fn cpus() -> usize {
    use std::sync::OnceLock;
    static CPUS: OnceLock<usize> = OnceLock::new();
    *CPUS.get_or_init(phalanx_sys::ids::cpus)
}
