//! How long to spin before sleeping.
//!
//! A wake-up through the kernel costs microseconds; an answer that comes from another core within that time is worth
//! spinning for, and nothing else is. So a spin lasts at most [`LIMIT_NS`], and a thread that spun in vain spins less
//! often: after each failure it skips twice as many waits as before (up to [`MOST_SKIPPED`]) before it tries again. With
//! every core busy this leaves one spin of a few microseconds per [`MOST_SKIPPED`] sleeps; with a core free the first
//! success restores spinning. Three things keep two threads that answer each other from staying asleep by turns:
//!
//! - *Credit.* Each success earns [`LIMIT_NS`], up to [`CREDIT_MOST_NS`], which a later spin may spend beyond the limit: an
//!   interrupt that holds the other side up for a moment does not put both to sleep.
//! - *Probes.* Once both sleep, each one's spin ends before the other has been woken, which takes longer than the spin. So
//!   a thread whose sleeps are short (it notes how long they last) now and then spins for as long as such a sleep takes.
//!   The intervals double while that fails, and a thread whose sleeps are long never probes.
//! - *Episodes.* The kernel may have put both on one core, where no spin can succeed; it moves one of them only when it sees
//!   both wanting to run for a while. So a thread whose spins begin to fail skips none for [`EPISODE_NS`], at most once
//!   per [`EPISODE_EVERY_NS`], and more rarely while that fails; each then lasts as long as a probe, so that an episode is
//!   not spent on spins that end while the other is being woken.
//!
//! All spinning in vain together costs what spinning has saved before, plus a few percent of the time spent waiting.

use std::cell::Cell;

use crate::global::{AtomicU32, Ordering};
use crate::{clock, hint};

/// The longest spin without credit and but for a probe, in nanoseconds: about what sleeping and waking costs.
pub(crate) const LIMIT_NS: u64 = 5_000;
const CREDIT_MOST_NS: u64 = 100_000;
const MOST_SKIPPED: u32 = 64;
/// Spins between two looks at the clock.
const BURST: u32 = 16;
/// A sleep that takes longer than this is not a wake-up's time, but the other side's.
const PROBE_MOST_NS: u64 = 100_000;
const PROBE_FIRST: u32 = 8;
const PROBE_RAREST: u32 = 2048;
const BACKOFF_ROUNDS: u32 = 7;
const EPISODE_NS: u64 = 60_000_000;
const EPISODE_EVERY_NS: u64 = 1_000_000_000;
const EPISODE_RAREST_NS: u64 = 16_000_000_000;

/// Cells, so that a success writes only what it changes: it is on the way of every answer.
struct History {
    /// Waits to skip before the next spin.
    skip: Cell<u32>,
    /// How many to skip after the next failure.
    step: Cell<u32>,
    /// Waits until the next probe, and how many until the one after it.
    probe_in: Cell<u32>,
    probe_step: Cell<u32>,
    /// How long sleeps have lasted lately.
    sleep_ns: Cell<u64>,
    /// What a spin may take beyond the limit.
    credit_ns: Cell<u64>,
    in_episode: Cell<bool>,
    /// When the episode ends, when the next may begin, and how long after that the one after it.
    episode_until: Cell<u64>,
    episode_from: Cell<u64>,
    episode_every: Cell<u64>,
}

thread_local! {
    static HISTORY: History = const { History::new() };
}

/// Notes how long a sleep of this thread took.
#[cfg(not(any(phalanx_loom, phalanx_shuttle)))]
pub(crate) fn slept(ns: u64) {
    HISTORY.with(|history| {
        let sleep_ns = history.sleep_ns.get();
        // A quarter of the news: one long sleep ends the probes for a few waits, not for good.
        let news = ns.min(16 * PROBE_MOST_NS) / 4;
        history.sleep_ns.set(sleep_ns - sleep_ns / 4 + news);
    });
}

impl History {
    const fn new() -> Self {
        Self {
            skip: Cell::new(0),
            step: Cell::new(1),
            probe_in: Cell::new(PROBE_FIRST),
            probe_step: Cell::new(PROBE_FIRST),
            sleep_ns: Cell::new(0),
            credit_ns: Cell::new(0),
            in_episode: Cell::new(false),
            episode_until: Cell::new(0),
            episode_from: Cell::new(0),
            episode_every: Cell::new(EPISODE_EVERY_NS),
        }
    }

    #[inline]
    fn succeeded(&self, spent: u64) {
        let thriving = self.credit_ns.get() == CREDIT_MOST_NS
            && spent <= LIMIT_NS
            && self.skip.get() == 0
            && self.step.get() == 1;
        if !thriving {
            self.recovers(spent);
        }
    }

    fn recovers(&self, spent: u64) {
        self.skip.set(0);
        self.step.set((self.step.get() / 2).max(1));
        self.probe_step.set(PROBE_FIRST);
        let left = self.credit_ns.get().saturating_sub(spent);
        self.credit_ns.set((left + LIMIT_NS).min(CREDIT_MOST_NS));
        if self.credit_ns.get() == CREDIT_MOST_NS {
            // It pays: when it ceases to, an episode may begin at once.
            self.episode_from.set(0);
            self.episode_every.set(EPISODE_EVERY_NS);
        }
    }

    fn failed(&self, now: u64) {
        self.credit_ns.set(0);
        if now < self.episode_until.get() {
            return;
        }
        self.in_episode.set(false);
        if now >= self.episode_from.get() && self.sleep_ns.get() < PROBE_MOST_NS {
            let every = self.episode_every.get();
            self.in_episode.set(true);
            self.episode_until.set(now + EPISODE_NS);
            self.episode_from.set(now + every);
            self.episode_every.set((every * 2).min(EPISODE_RAREST_NS));
            return;
        }
        if self.skip.get() == 0 {
            let step = self.step.get();
            self.skip.set(step);
            self.step.set((step * 2).min(MOST_SKIPPED));
        }
    }

    /// Returns how long to spin in this wait, `None` for not at all.
    #[inline]
    fn limit(&self) -> Option<u64> {
        if self.skip.get() == 0 {
            let usual = LIMIT_NS + self.credit_ns.get();
            return Some(if self.in_episode.get() {
                usual.max(self.probe_ns())
            } else {
                usual
            });
        }
        self.skips()
    }

    fn skips(&self) -> Option<u64> {
        self.skip.set(self.skip.get() - 1);
        self.probe_in.set(self.probe_in.get().saturating_sub(1));
        if self.probe_in.get() > 0 || self.sleep_ns.get() > PROBE_MOST_NS {
            return None;
        }
        let step = self.probe_step.get();
        self.probe_in.set(step);
        self.probe_step.set((step * 2).min(PROBE_RAREST));
        Some(self.probe_ns())
    }

    /// As long as the other's wake-up and answer take.
    fn probe_ns(&self) -> u64 {
        (self.sleep_ns.get().min(PROBE_MOST_NS) * 3 / 2).max(LIMIT_NS)
    }
}

/// The spinning half of a wait: a few microseconds at most, and rarely where it does not pay.
///
/// Where even that is too much (a machine with more to do than it has cores, or a battery), it can be turned off: by
/// `PHALANX_SPIN=0` in the environment for a whole tree, by [`allow`](Self::allow) for one process.
#[derive(Debug)]
pub struct Spin;

impl Spin {
    /// Spins until `ready` answers, for a few microseconds at most, or not at all where spinning has not paid lately.
    ///
    /// Returns what `ready` answered, `None` when it is time to sleep.
    #[inline]
    pub fn until<T>(mut ready: impl FnMut() -> Option<T>) -> Option<T> {
        if !Self::is_allowed() {
            return None;
        }
        let limit = HISTORY.with(History::limit)?;
        let (mut began, mut spent) = (0, 0);
        loop {
            for _ in 0..BURST {
                if let Some(answer) = ready() {
                    HISTORY.with(|history| history.succeeded(spent));
                    return Some(answer);
                }
                hint::spin_loop();
            }
            let now = clock::now_ns();
            if began == 0 {
                began = now;
            }
            spent = now - began;
            if spent >= limit {
                HISTORY.with(|history| history.failed(now));
                return None;
            }
        }
    }
}

impl Spin {
    /// As [`until`](Self::until) for a lock: looks less and less often, so that whoever holds it gets on undisturbed, and
    /// gives up after about as long as a short critical section lasts.
    #[inline]
    pub fn backoff<T>(mut ready: impl FnMut() -> Option<T>) -> Option<T> {
        if !Self::is_allowed() {
            return None;
        }
        for round in 0..BACKOFF_ROUNDS {
            for _ in 0..1 << round {
                hint::spin_loop();
            }
            if let Some(answer) = ready() {
                return Some(answer);
            }
        }
        None
    }
}

const UNKNOWN: u32 = 0;
const ON: u32 = 1;
const OFF: u32 = 2;

/// Whether this process spins. Not a lock: a fork in the middle of the first look would leave it taken in the child. Not
/// modelled: models never spin.
static SPINS: AtomicU32 = AtomicU32::new(UNKNOWN);

impl Spin {
    /// Says whether this process may spin before it sleeps. Without a call it may unless it has one CPU only or
    /// `PHALANX_SPIN` is `0`. Processes made by fork have their parent's choice.
    pub fn allow(spin: bool) {
        SPINS.store(if spin { ON } else { OFF }, Ordering::Relaxed);
    }

    #[inline]
    fn is_allowed() -> bool {
        if cfg!(any(phalanx_loom, phalanx_shuttle)) {
            return false;
        }
        match SPINS.load(Ordering::Relaxed) {
            UNKNOWN => Self::decide(),
            choice => choice == ON,
        }
    }

    #[cold]
    fn decide() -> bool {
        let spin = phalanx_sys::ids::cpus() > 1
            && std::env::var_os("PHALANX_SPIN").is_none_or(|choice| choice != "0");
        Self::allow(spin);
        spin
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_spin_answers_or_gives_up() {
        let mut looks = 0;
        let answer = Spin::until(|| {
            looks += 1;
            (looks == 3).then_some(looks)
        });
        // On one CPU nobody spins.
        assert_eq!(answer, Spin::decide().then_some(3));
        assert_eq!(Spin::until(|| None::<()>), None);
        assert_eq!(Spin::backoff(|| None::<()>), None);
    }

    #[test]
    fn who_spins_in_vain_spins_less_often() {
        let history = History::new();
        history.sleep_ns.set(PROBE_MOST_NS + 1);
        history.episode_from.set(u64::MAX);
        for step in [1, 2, 4] {
            assert!(history.limit().is_some());
            history.failed(1);
            assert!((0..step).all(|_| history.limit().is_none()));
        }
        history.succeeded(0);
        assert_eq!(history.limit(), Some(LIMIT_NS + LIMIT_NS));
    }
}
