//! One monotonic clock, the same in every process of the machine.

use std::time::Duration;

use rustix::time::{ClockId, Timespec, clock_gettime};

/// Returns the nanoseconds that `CLOCK_MONOTONIC` has counted; comparable between processes.
#[must_use]
pub fn now_ns() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    (now.tv_sec as u64)
        .saturating_mul(1_000_000_000)
        .saturating_add(now.tv_nsec as u64)
}

/// An instant on the monotonic clock by which a call has to return.
///
/// Absolute, so that a call made of several waits still has one bound.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Deadline(u64);

impl Deadline {
    /// A deadline that has passed: look, do not wait.
    pub const PAST: Self = Self(0);

    /// Returns the instant `timeout` from now; a sum past the end of the clock is the end of the clock.
    #[must_use]
    pub fn after(timeout: Duration) -> Self {
        let ns = u64::try_from(timeout.as_nanos()).unwrap_or(u64::MAX);
        Self(now_ns().saturating_add(ns).min(i64::MAX as u64))
    }

    /// Returns the deadline at `ns` nanoseconds of [`now_ns`].
    #[must_use]
    pub fn at_ns(ns: u64) -> Self {
        Self(ns)
    }

    /// Returns the instant in nanoseconds of [`now_ns`].
    #[must_use]
    pub fn as_ns(self) -> u64 {
        self.0
    }

    /// Returns the time left, zero when the deadline has passed.
    #[must_use]
    pub fn remaining(self) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(now_ns()))
    }

    /// Returns `true` if the deadline has passed.
    #[must_use]
    pub fn has_passed(self) -> bool {
        now_ns() >= self.0
    }

    pub(crate) fn timespec(self) -> Timespec {
        Timespec {
            tv_sec: (self.0 / 1_000_000_000) as i64,
            tv_nsec: (self.0 % 1_000_000_000) as _,
        }
    }
}
