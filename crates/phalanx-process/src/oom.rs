//! Whether the kernel's out-of-memory killer was at work: its count, compared with what it was before.
//!
//! Reading the count costs more than starting a process. It is read once per process, before its first child, and whenever a
//! child was killed by somebody else.

use phalanx_prim::clock;
use phalanx_prim::global::{AtomicU64, Ordering};
use phalanx_sys::limits;

const UNREAD: u64 = u64::MAX;
/// Nobody counts here.
const UNCOUNTED: u64 = u64::MAX - 1;
/// It may end several processes at once, of which we hear one after the other.
const AT_ONCE_NS: u64 = 2_000_000_000;

/// The count as it was last seen.
static COUNT: AtomicU64 = AtomicU64::new(UNREAD);
/// When it was seen to rise, 0 if never.
static ROSE_NS: AtomicU64 = AtomicU64::new(0);

/// Notes the count, unless that was done.
pub(crate) fn begin() {
    if COUNT.load(Ordering::Relaxed) == UNREAD {
        let count = limits::oom_kills().unwrap_or(UNCOUNTED);
        let _ = COUNT.compare_exchange(UNREAD, count, Ordering::Relaxed, Ordering::Relaxed);
    }
}

/// Tells whether the count rose just now.
pub(crate) fn was_at_work() -> bool {
    let before = COUNT.load(Ordering::Relaxed);
    if before >= UNCOUNTED {
        return false;
    }
    if let Some(now) = limits::oom_kills()
        && now > before
    {
        COUNT.store(now, Ordering::Relaxed);
        ROSE_NS.store(clock::now_ns().max(1), Ordering::Relaxed);
    }
    let rose = ROSE_NS.load(Ordering::Relaxed);
    rose != 0 && clock::now_ns().saturating_sub(rose) < AT_ONCE_NS
}
