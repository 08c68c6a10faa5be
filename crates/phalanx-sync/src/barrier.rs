//! `Barrier`: a number of parties wait for each other.
//!
//! | state (under the lock) | next |
//! |---|---|
//! | filling: fewer arrived than parties | full (the last arrives), broken (time-out, death or abort of one that waits) |
//! | full: the last one runs the action | the next generation, filling; or broken (the action panicked, its process died) |
//! | broken | filling, by `reset` |
//!
//! Each end of a generation adds one to it and notes in one bit whether it was good, so that a waiter that wakes late still
//! learns how *its* generation ended (of the last 64).
#![expect(unsafe_code, reason = "the marker of what may be placed in the arena")]

use std::fmt;
use std::time::Duration;

use phalanx_prim::{Arc, AtomicU32, AtomicU64, Ordering, points};
use phalanx_shm::{
    Acquired, DeadlockError, Kind, KindOps, Local, Patience, RawLock, Shared, WaitError,
    current_slot, register_kind,
};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::Gate;
use crate::handle::handle;
use crate::holders::Holders;
use crate::home::{CreateError, Home, Object, placed};

/// What a barrier is made of.
#[derive(Debug)]
#[repr(C)]
pub struct BarrierState<S> {
    raw: RawLock<S>,
    parties: AtomicU32,
    arrived: AtomicU32,
    broken: AtomicU32,
    gate: Gate<S>,
    reserved: AtomicU32,
    generation: AtomicU64,
    /// One bit per generation, modulo 64: 1 if it ended well.
    outcomes: AtomicU64,
    waiting: Holders,
}
placed!(BarrierState<S>, Barrier, S);

pub(crate) fn install() {
    register_kind(
        Kind::Barrier,
        KindOps {
            recover: |arena, block, dead, wake_all| {
                if let Ok(barrier) = arena.view::<BarrierState<Shared>>(block) {
                    barrier.party_died(dead);
                    if wake_all {
                        barrier.gate.rouse();
                        barrier.raw.wake_all();
                    }
                }
            },
            destroy: |_, _| {},
        },
    );
}

/// A barrier that somebody will not reach: a party timed out, died or gave up. `reset` makes it usable again.
///
/// ```
/// use phalanx_sync::{Barrier, BarrierError};
///
/// let barrier = Barrier::local(2)?;
/// let alone = barrier.wait_timeout(std::time::Duration::from_millis(1));
/// assert!(matches!(alone, Err(BarrierError::TimedOut { arrived: 1, parties: 2 })));
/// assert!(barrier.is_broken());
/// barrier.reset();
/// # Ok::<(), phalanx_sync::CreateError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BarrierError {
    /// Another party timed out, died, or called `abort`; or this one found it broken.
    #[error(
        "the barrier is broken: a party timed out, died or gave up; call reset() when the parties are ready again"
    )]
    Broken,
    /// This party's time was up, which broke the barrier for all.
    #[error(
        "timed out: {arrived} of {parties} parties had arrived; the barrier is broken now, call reset() to use it again"
    )]
    TimedOut {
        /// How many had arrived, this one included.
        arrived: u32,
        /// How many it takes.
        parties: u32,
    },
    /// A signal handler ran in this thread; the barrier is broken.
    #[error("interrupted by a signal; the barrier is broken now, call reset() to use it again")]
    Interrupted,
    /// The wait could never have ended, and somebody wants such waits to fail; the barrier is broken.
    #[error("{0}; the barrier is broken now, call reset() to use it again")]
    Deadlock(#[source] DeadlockError),
}

impl<S: Home> BarrierState<S> {
    fn new(parties: u32) -> Self {
        Self {
            raw: RawLock::new(),
            parties: AtomicU32::new(parties),
            arrived: AtomicU32::new(0),
            broken: AtomicU32::new(0),
            gate: Gate::new(),
            reserved: AtomicU32::new(0),
            generation: AtomicU64::new(0),
            outcomes: AtomicU64::new(0),
            waiting: Holders::new(),
        }
    }

    fn lock(&self) {
        if self.raw.lock_forever() == Acquired::OwnerDied {
            // Whoever died in here was a party, or was ending a generation that cannot be told from a half-ended one.
            self.end(false);
            self.broken.store(1, Ordering::Release);
        }
    }

    /// Ends the generation. The lock is held.
    fn end(&self, good: bool) {
        let generation = self.generation.load(Ordering::Relaxed);
        let bit = 1 << (generation % 64);
        if good {
            self.outcomes.fetch_or(bit, Ordering::Relaxed);
        } else {
            self.outcomes.fetch_and(!bit, Ordering::Relaxed);
        }
        self.arrived.store(0, Ordering::Relaxed);
        self.waiting.clear();
        points::point("barrier.ending");
        // Release: a waiter that sees the new generation sees the outcome.
        self.generation.store(generation + 1, Ordering::Release);
        self.gate.notify_all();
    }

    fn shared() -> bool {
        S::WAIT == phalanx_prim::Scope::Shared
    }

    fn note(&self, by: i64) {
        if Self::shared() {
            let slot = current_slot();
            if let Some(index) = self.waiting.find(slot) {
                self.waiting
                    .write(index, self.waiting.changed(index, slot, by));
            }
        }
    }

    fn sleep(
        &self,
        patience: Patience,
        generation: u64,
        heard: &mut impl FnMut() -> bool,
    ) -> Result<(), BarrierError> {
        let over = || (self.generation.load(Ordering::Acquire) != generation).then_some(());
        loop {
            match self.gate.wait_until(patience, over) {
                Ok(()) => return Ok(()),
                Err(WaitError::Interrupted) if !heard() => {}
                Err(error) => return Err(self.give_up(generation, error)),
            }
        }
    }

    fn wait(
        &self,
        patience: Patience,
        action: impl FnOnce() -> bool,
        mut heard: impl FnMut() -> bool,
    ) -> Result<u32, BarrierError> {
        let parties = self.parties.load(Ordering::Relaxed);
        let (generation, index) = loop {
            self.lock();
            if self.broken.load(Ordering::Relaxed) != 0 {
                self.raw.unlock();
                return Err(BarrierError::Broken);
            }
            let generation = self.generation.load(Ordering::Relaxed);
            let arrived = self.arrived.load(Ordering::Relaxed);
            if arrived < parties {
                self.arrived.store(arrived + 1, Ordering::Relaxed);
                self.note(1);
                points::point("barrier.arrived");
                self.raw.unlock();
                break (generation, arrived);
            }
            // Full: its last party runs the action.
            self.raw.unlock();
            self.sleep(patience, generation, &mut heard)?;
        };
        if index + 1 == parties {
            self.finish(generation, action)?;
            return Ok(index);
        }
        self.sleep(patience, generation, &mut heard)?;
        if self.outcomes.load(Ordering::Acquire) >> (generation % 64) & 1 == 1 {
            Ok(index)
        } else {
            Err(BarrierError::Broken)
        }
    }

    fn finish(&self, generation: u64, action: impl FnOnce() -> bool) -> Result<(), BarrierError> {
        struct BreakOnPanic<'a, S: Home>(Option<&'a BarrierState<S>>);
        impl<S: Home> Drop for BreakOnPanic<'_, S> {
            fn drop(&mut self) {
                if let Some(barrier) = self.0 {
                    barrier.abort();
                }
            }
        }
        let mut guard = BreakOnPanic(Some(self));
        if !action() {
            return Err(BarrierError::Broken);
        }
        guard.0 = None;
        self.lock();
        // Aborted, or reset, while the action ran.
        let good = self.generation.load(Ordering::Relaxed) == generation;
        if good {
            self.end(true);
        }
        self.raw.unlock();
        if good {
            Ok(())
        } else {
            Err(BarrierError::Broken)
        }
    }

    fn give_up(&self, generation: u64, error: WaitError) -> BarrierError {
        self.lock();
        let arrived = self.arrived.load(Ordering::Relaxed);
        let ours = self.generation.load(Ordering::Relaxed) == generation;
        if ours {
            self.broken.store(1, Ordering::Release);
            self.end(false);
        }
        self.raw.unlock();
        match error {
            _ if !ours => BarrierError::Broken,
            WaitError::TimedOut => BarrierError::TimedOut {
                arrived,
                parties: self.parties.load(Ordering::Relaxed),
            },
            WaitError::Interrupted => BarrierError::Interrupted,
            WaitError::Deadlock => BarrierError::Deadlock(DeadlockError::taken()),
        }
    }

    fn abort(&self) {
        self.lock();
        self.broken.store(1, Ordering::Release);
        self.end(false);
        self.raw.unlock();
    }

    fn party_died(&self, dead: u16) {
        self.lock();
        if self.waiting.of(dead).is_some() {
            self.broken.store(1, Ordering::Release);
            self.end(false);
        }
        self.raw.unlock();
    }
}

/// A meeting point of a fixed number of threads or processes.
///
/// A party that dies while it waits breaks the barrier for the others, as a time-out does.
///
/// ```
/// use phalanx_sync::Barrier;
///
/// let barrier = Barrier::local(2)?;
/// std::thread::scope(|scope| {
///     scope.spawn(|| barrier.wait());
///     barrier.wait().unwrap();
/// });
/// # Ok::<(), phalanx_sync::CreateError>(())
/// ```
pub struct Barrier<S: Home = Shared> {
    state: S::Ref<BarrierState<S>>,
}

fn check(parties: u32) -> Result<(), CreateError> {
    if parties == 0 {
        let instead = "it takes at least one party";
        return Err(CreateError::Invalid {
            what: "a barrier for a number of parties",
            given: 0,
            instead,
        });
    }
    Ok(())
}

handle!(Barrier<Shared>, BarrierState<Shared>);

impl Barrier<Shared> {
    /// Makes one for `parties` that any process of the tree can use.
    ///
    /// # Errors
    ///
    /// [`CreateError`] when shared memory is short or `parties` is 0.
    pub fn new(parties: u32) -> Result<Self, CreateError> {
        check(parties)?;
        Ok(Self {
            state: Object::new(BarrierState::new(parties))?,
        })
    }
}

impl Barrier<Local> {
    /// Makes one for `parties` threads of this process.
    ///
    /// # Errors
    ///
    /// [`CreateError::Invalid`] when `parties` is 0.
    pub fn local(parties: u32) -> Result<Self, CreateError> {
        check(parties)?;
        Ok(Self {
            state: Arc::new(BarrierState::new(parties)),
        })
    }
}

impl<S: Home> Barrier<S> {
    /// Blocks until all parties have called it; returns this one's number in the order of arrival, from 0.
    ///
    /// # Errors
    ///
    /// [`BarrierError::Broken`], [`BarrierError::Deadlock`].
    #[track_caller]
    pub fn wait(&self) -> Result<u32, BarrierError> {
        self.state.wait(Patience::or_deadlock(), || true, || true)
    }

    /// As [`wait`](Self::wait), for at most `timeout`; a time-out breaks the barrier.
    ///
    /// # Errors
    ///
    /// [`BarrierError`].
    #[track_caller]
    pub fn wait_timeout(&self, timeout: Duration) -> Result<u32, BarrierError> {
        self.state
            .wait(Patience::timeout(timeout).here(), || true, || true)
    }

    /// As [`wait`](Self::wait), as `patience` says; the last party runs `action` before anybody is let go. A panic in it
    /// breaks the barrier and goes on in that party.
    ///
    /// # Errors
    ///
    /// [`BarrierError`].
    pub fn wait_with(
        &self,
        patience: Patience,
        action: impl FnOnce(),
    ) -> Result<u32, BarrierError> {
        let action = || {
            action();
            true
        };
        self.state.wait(patience, action, || true)
    }

    /// As [`wait_with`](Self::wait_with), for faces of other languages: `action` says whether it went well, and breaks the
    /// barrier if not; `heard` is called when a signal handler is due, with nothing held, and says whether to give up.
    ///
    /// # Errors
    ///
    /// [`BarrierError`].
    pub fn wait_heard(
        &self,
        patience: Patience,
        action: impl FnOnce() -> bool,
        heard: impl FnMut() -> bool,
    ) -> Result<u32, BarrierError> {
        self.state.wait(patience, action, heard)
    }

    /// Breaks the barrier: all who wait, and all who come, get [`BarrierError::Broken`] until [`reset`](Self::reset).
    pub fn abort(&self) {
        self.state.abort();
    }

    /// Makes it as new. Those who wait at this moment get [`BarrierError::Broken`].
    pub fn reset(&self) {
        let state = &*self.state;
        state.lock();
        if state.arrived.load(Ordering::Relaxed) > 0 {
            state.end(false);
        }
        state.broken.store(0, Ordering::Release);
        state.raw.unlock();
    }

    /// Returns how many parties it takes.
    #[must_use]
    pub fn parties(&self) -> u32 {
        self.state.parties.load(Ordering::Relaxed)
    }

    /// Returns how many wait at this moment.
    #[must_use]
    pub fn waiting(&self) -> u32 {
        self.state.arrived.load(Ordering::Relaxed)
    }

    /// Returns `true` if it is broken.
    #[must_use]
    pub fn is_broken(&self) -> bool {
        self.state.broken.load(Ordering::Acquire) != 0
    }
}

impl<S: Home> Clone for Barrier<S> {
    /// Makes another handle on the same barrier.
    fn clone(&self) -> Self {
        Self {
            state: self.state.clone(),
        }
    }
}

impl<S: Home> fmt::Debug for Barrier<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Barrier")
            .field("parties", &self.parties())
            .field("waiting", &self.waiting())
            .field("broken", &self.is_broken())
            .finish()
    }
}

impl Serialize for Barrier<Shared> {
    fn serialize<Z: Serializer>(&self, serializer: Z) -> Result<Z::Ok, Z::Error> {
        self.state.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Barrier<Shared> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Object::deserialize(deserializer).map(|state| Self { state })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use phalanx_prim::AtomicU32;

    const ROUNDS: u32 = if cfg!(miri) { 8 } else { 1_000 };

    fn nobody_runs_ahead<S: Home>(barrier: &Barrier<S>) {
        let _dog = phalanx_testkit::watchdog(Duration::from_secs(100));
        let (came, led) = (AtomicU32::new(0), AtomicU32::new(0));
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    for round in 1..=ROUNDS {
                        came.fetch_add(1, Ordering::Relaxed);
                        let place = barrier.wait().unwrap();
                        let seen = came.load(Ordering::Relaxed);
                        assert!((2 * round..=2 * round + 1).contains(&seen));
                        led.fetch_add(u32::from(place == 0), Ordering::Relaxed);
                    }
                });
            }
        });
        assert_eq!(led.load(Ordering::Relaxed), ROUNDS);
        assert_eq!(barrier.waiting(), 0);
    }

    #[test]
    fn threads_meet_at_a_private_barrier() {
        nobody_runs_ahead(&Barrier::local(2).unwrap());
    }

    #[test]
    fn threads_meet_at_a_shared_barrier() {
        nobody_runs_ahead(&Barrier::new(2).unwrap());
    }

    #[test]
    fn one_who_gives_up_breaks_it_until_it_is_reset() {
        let barrier = Barrier::new(2).unwrap();
        assert!(barrier.wait_timeout(Duration::from_millis(2)).is_err());
        assert!(barrier.is_broken());
        barrier.reset();
        nobody_runs_ahead(&barrier);
    }
}
