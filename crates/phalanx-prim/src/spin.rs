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

use crate::global::{AtomicUsize, Ordering};
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

#[derive(Clone, Copy)]
struct History {
    /// Waits to skip before the next spin.
    skip: u32,
    /// How many to skip after the next failure.
    step: u32,
    /// Waits until the next probe, and how many until the one after it.
    probe_in: u32,
    probe_step: u32,
    /// How long sleeps have lasted lately.
    sleep_ns: u64,
    /// What a spin may take beyond the limit.
    credit_ns: u64,
    /// When the episode ends, when the next may begin, and how long after that the one after it.
    in_episode: bool,
    episode_until: u64,
    episode_from: u64,
    episode_every: u64,
}

thread_local! {
    static HISTORY: Cell<History> = const {
        Cell::new(History {
            skip: 0,
            step: 1,
            probe_in: PROBE_FIRST,
            probe_step: PROBE_FIRST,
            sleep_ns: 0,
            credit_ns: 0,
            in_episode: false,
            episode_until: 0,
            episode_from: 0,
            episode_every: EPISODE_EVERY_NS,
        })
    };
}

/// Notes how long a sleep of this thread took.
#[cfg(not(any(phalanx_loom, phalanx_shuttle)))]
pub(crate) fn slept(ns: u64) {
    let mut history = HISTORY.get();
    // A quarter of the news: one long sleep ends the probes for a few waits, not for good.
    history.sleep_ns = history.sleep_ns - history.sleep_ns / 4 + ns.min(16 * PROBE_MOST_NS) / 4;
    HISTORY.set(history);
}

impl History {
    fn succeeded(&mut self, spent: u64) {
        self.skip = 0;
        self.step = (self.step / 2).max(1);
        self.probe_step = PROBE_FIRST;
        self.credit_ns = (self.credit_ns.saturating_sub(spent) + LIMIT_NS).min(CREDIT_MOST_NS);
        if self.credit_ns == CREDIT_MOST_NS {
            // It pays: when it ceases to, an episode may begin at once.
            self.episode_from = 0;
            self.episode_every = EPISODE_EVERY_NS;
        }
    }

    fn failed(&mut self, now: u64) {
        self.credit_ns = 0;
        if now < self.episode_until {
            return;
        }
        self.in_episode = false;
        if now >= self.episode_from && self.sleep_ns < PROBE_MOST_NS {
            self.in_episode = true;
            self.episode_until = now + EPISODE_NS;
            self.episode_from = now + self.episode_every;
            self.episode_every = (self.episode_every * 2).min(EPISODE_RAREST_NS);
            return;
        }
        if self.skip == 0 {
            self.skip = self.step;
            self.step = (self.step * 2).min(MOST_SKIPPED);
        }
    }

    /// Returns how long to spin in this wait, `None` for not at all.
    fn limit(&mut self) -> Option<u64> {
        if self.skip == 0 {
            let usual = LIMIT_NS + self.credit_ns;
            return Some(if self.in_episode {
                usual.max(self.probe_ns())
            } else {
                usual
            });
        }
        self.skip -= 1;
        self.probe_in = self.probe_in.saturating_sub(1);
        if self.probe_in > 0 || self.sleep_ns > PROBE_MOST_NS {
            return None;
        }
        self.probe_in = self.probe_step;
        self.probe_step = (self.probe_step * 2).min(PROBE_RAREST);
        Some(self.probe_ns())
    }

    /// As long as the other's wake-up and answer take.
    fn probe_ns(&self) -> u64 {
        (self.sleep_ns.min(PROBE_MOST_NS) * 3 / 2).max(LIMIT_NS)
    }
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
        let mut history = HISTORY.get();
        let Some(limit) = history.limit() else {
            HISTORY.set(history);
            return None;
        };
        let (mut began, mut spent) = (0, 0);
        loop {
            for _ in 0..BURST {
                if let Some(answer) = ready() {
                    history.succeeded(spent);
                    HISTORY.set(history);
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
                history.failed(now);
                HISTORY.set(history);
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
        if cfg!(any(phalanx_loom, phalanx_shuttle)) || cpus() == 1 {
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

fn cpus() -> usize {
    // Not a lock: a fork in the middle of the first look would leave it taken in the child.
    static CPUS: AtomicUsize = AtomicUsize::new(0);
    match CPUS.load(Ordering::Relaxed) {
        0 => {
            let cpus = phalanx_sys::ids::cpus();
            CPUS.store(cpus, Ordering::Relaxed);
            cpus
        }
        cpus => cpus,
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
        assert_eq!(answer, (cpus() > 1).then_some(3));
        assert_eq!(Spin::until(|| None::<()>), None);
        assert_eq!(Spin::backoff(|| None::<()>), None);
    }

    #[test]
    fn who_spins_in_vain_spins_less_often() {
        let mut history = HISTORY.get();
        history.sleep_ns = PROBE_MOST_NS + 1;
        history.episode_from = u64::MAX;
        for step in [1, 2, 4] {
            assert!(history.limit().is_some());
            history.failed(1);
            assert!((0..step).all(|_| history.limit().is_none()));
        }
        history.succeeded(0);
        assert_eq!(history.limit(), Some(LIMIT_NS + LIMIT_NS));
    }
}
