//! `Condition`: wait for a notification, with a lock let go meanwhile.
//!
//! Waiters stand in a table, each with a word of its own:
//!
//! | word | meaning |
//! |---|---|
//! | 0 | free |
//! | 1 | its owner waits, and looks at the word again before it sleeps |
//! | 2 | its owner was notified and has not noticed yet |
//! | 3 | its owner waits and sleeps, or is about to: who notifies it must wake it |
//!
//! 0 → 1 and 1, 3 → 2 happen under the table's lock; 1 → 3 and 2 → 0 are the owner's alone and need none. `notify(n)` picks the n that wait longest. So exactly n are woken, the right ones, and nobody wakes without a reason
//! except those who found the table full (they stand at a gate in common). A waiter that times out looks under the table's
//! lock whether it was notified at the last moment. A waiter that dies notified passes its notification on.
#![expect(unsafe_code, reason = "the marker of what may be placed in the arena")]

use std::fmt;
use std::time::Duration;

use phalanx_prim::{Arc, AtomicU32, AtomicU64, Ordering, Word, points};
use phalanx_shm::{
    Acquired, Arena, DeadlockError, Kind, KindOps, Local, Patience, RawLock, Shared, WaitError,
    Waiting, current_slot, place_of, register_kind,
};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::Gate;
use crate::handle::handle;
use crate::home::{CreateError, Home, Object, placed};
use crate::lock::Releasable;

const PLACES: usize = 60;
const FREE: u32 = 0;
const WAITING: u32 = 1;
const NOTIFIED: u32 = 2;
const SLEEPING: u32 = 3;

fn waits(word: u32) -> bool {
    word == WAITING || word == SLEEPING
}

#[derive(Debug)]
#[repr(C)]
struct Place {
    word: Word,
    slot: AtomicU32,
    ticket: AtomicU64,
}

/// What a condition is made of.
#[derive(Debug)]
#[repr(C)]
pub struct ConditionState<S> {
    raw: RawLock<S>,
    /// Where those wait who found no place.
    crowd: Gate<S>,
    next_ticket: AtomicU64,
    places: [Place; PLACES],
}
placed!(ConditionState<S>, Condition, S);

pub(crate) fn install() {
    register_kind(
        Kind::Condition,
        KindOps {
            recover: |arena, block, dead, wake_all| {
                if let Ok(condition) = arena.view::<ConditionState<Shared>>(block) {
                    condition.waiter_died(dead);
                    if wake_all {
                        condition.raw.wake_all();
                        condition.crowd.rouse();
                        condition.rewake();
                    }
                }
            },
            destroy: |_, _| {},
        },
    );
}

impl<S: Home> ConditionState<S> {
    fn new() -> Self {
        Self {
            raw: RawLock::new(),
            crowd: Gate::new(),
            next_ticket: AtomicU64::new(0),
            places: std::array::from_fn(|_| Place {
                word: Word::new(FREE),
                slot: AtomicU32::new(0),
                ticket: AtomicU64::new(0),
            }),
        }
    }

    fn lock(&self) {
        if self.raw.lock_forever() == Acquired::OwnerDied {
            // It may have owed a wake; each single store left the table whole.
            self.rewake();
            self.crowd.rouse();
        }
    }

    fn rewake(&self) {
        for place in &self.places {
            if place.word.load(Ordering::Relaxed) != FREE {
                place.word.wake(1, S::WAIT);
            }
        }
    }

    fn take_place(&self) -> Option<&Place> {
        self.lock();
        let place = self
            .places
            .iter()
            .find(|place| place.word.load(Ordering::Relaxed) == FREE);
        if let Some(place) = place {
            let slot = if S::WAIT == phalanx_prim::Scope::Shared {
                current_slot()
            } else {
                0
            };
            place.slot.store(u32::from(slot), Ordering::Relaxed);
            let ticket = self.next_ticket.fetch_add(1, Ordering::Relaxed);
            place.ticket.store(ticket, Ordering::Relaxed);
            // The store that makes it a waiter's comes last.
            place.word.store(WAITING, Ordering::Release);
        }
        self.raw.unlock();
        place
    }

    /// Leaves the place; `true` if it was notified.
    fn leave(&self, place: &Place) -> bool {
        if place.word.load(Ordering::Acquire) == NOTIFIED {
            // Nobody else touches it any more: not behind the notifier, who still has the table's lock.
            place.word.store(FREE, Ordering::Release);
            return true;
        }
        self.lock();
        let notified = place.word.load(Ordering::Relaxed) == NOTIFIED;
        place.word.store(FREE, Ordering::Release);
        self.raw.unlock();
        notified
    }

    fn notify(&self, count: usize) {
        self.lock();
        self.notify_locked(count);
        self.raw.unlock();
    }

    fn notify_locked(&self, count: usize) {
        let mut woken = 0;
        while woken < count {
            let waiting = self
                .places
                .iter()
                .filter(|place| waits(place.word.load(Ordering::Relaxed)));
            let Some(oldest) = waiting.min_by_key(|place| place.ticket.load(Ordering::Relaxed))
            else {
                break;
            };
            let was = oldest.word.swap(NOTIFIED, Ordering::AcqRel);
            points::point("condition.notified");
            if was == SLEEPING {
                oldest.word.wake(1, S::WAIT);
            }
            woken += 1;
        }
        if woken < count {
            self.crowd
                .notify(u32::try_from(count - woken).unwrap_or(u32::MAX));
        }
    }

    fn waiter_died(&self, dead: u16) {
        self.lock();
        for place in &self.places {
            let word = place.word.load(Ordering::Relaxed);
            if word == FREE || place.slot.load(Ordering::Relaxed) != u32::from(dead) {
                continue;
            }
            if word == NOTIFIED {
                self.notify_locked(1);
            }
            place.word.store(FREE, Ordering::Release);
        }
        self.raw.unlock();
    }

    fn wait(
        &self,
        place: Option<&Place>,
        key: Option<crate::Key>,
        patience: Patience,
        heard: &mut impl FnMut() -> bool,
    ) -> Result<(), WaitError> {
        let Some(place) = place else {
            let Some(key) = key else { return Ok(()) };
            let _interest = S::interest(self.crowd.word());
            loop {
                match self.crowd.wait(key, patience) {
                    Err(WaitError::Interrupted) if !heard() => {}
                    waited => return waited,
                }
            }
        };
        // The notifier wakes under the lock: if it dies before, its lock's next owner wakes us.
        let ready = || (place.word.load(Ordering::Acquire) == NOTIFIED).then_some(());
        if phalanx_prim::Spin::until(ready).is_some() {
            self.leave(place);
            return Ok(());
        }
        let mut waiting = Waiting::new();
        loop {
            waiting.looks();
            if ready().is_some() {
                drop(waiting);
                self.leave(place);
                return Ok(());
            }
            // Fails if it sleeps already (for the second time) or was notified.
            let _ =
                place
                    .word
                    .compare_exchange(WAITING, SLEEPING, Ordering::AcqRel, Ordering::Relaxed);
            points::point("condition.sleep");
            let at = |arena: &Arena| place_of(arena, &place.word);
            let slept = waiting.sleeps(S::GATE, at, 0, patience).and_then(|()| {
                patience.check(waiting.wait(&place.word, SLEEPING, patience.deadline, S::WAIT))
            });
            if let Err(error) = slept {
                // Still in the table: the handler itself may notify.
                if error == WaitError::Interrupted && !heard() {
                    continue;
                }
                return if self.leave(place) {
                    Ok(())
                } else {
                    Err(error)
                };
            }
        }
    }
}

/// Waiting for something that another thread or process makes true under a lock.
///
/// ```
/// use phalanx_sync::{Condition, Lock};
/// use std::sync::atomic::{AtomicBool, Ordering};
///
/// let (lock, ready) = (Lock::local(), Condition::local());
/// let flag = AtomicBool::new(false);
/// std::thread::scope(|scope| {
///     scope.spawn(|| {
///         let _guard = lock.lock();
///         flag.store(true, Ordering::Relaxed);
///         ready.notify_all();
///     });
///     let guard = lock.lock().unwrap();
///     let _guard = ready.wait_while(guard, || !flag.load(Ordering::Relaxed)).unwrap();
/// });
/// ```
pub struct Condition<S: Home = Shared> {
    state: S::Ref<ConditionState<S>>,
}

handle!(Condition<Shared>, ConditionState<Shared>);

impl Condition<Shared> {
    /// Makes one that any process of the tree can use.
    ///
    /// # Errors
    ///
    /// [`CreateError`] when shared memory is short.
    pub fn new() -> Result<Self, CreateError> {
        Ok(Self {
            state: Object::new(ConditionState::new())?,
        })
    }
}

impl Condition<Local> {
    /// Makes one for the threads of this process.
    #[must_use]
    pub fn local() -> Self {
        Self {
            state: Arc::new(ConditionState::new()),
        }
    }
}

/// A wait that gave the lock back dirty: its owner died while we waited. The guard inside has the lock.
pub type WaitResult<G> = Result<G, crate::OwnerDied<G>>;

impl<S: Home> Condition<S> {
    /// Lets the lock go, blocks until notified, and has the lock again.
    ///
    /// # Errors
    ///
    /// [`OwnerDied`](crate::OwnerDied) with the guard when a process died holding the lock meanwhile.
    ///
    /// # Panics
    ///
    /// With the deadlock as its payload, if the wait could never end and somebody wants such waits to fail;
    /// [`wait_with`](Self::wait_with) returns it. The guard is dropped then.
    #[track_caller]
    pub fn wait<G: Releasable>(&self, guard: G) -> WaitResult<G> {
        let (waited, died) = self.wait_with(&guard, Patience::or_deadlock());
        if waited == Err(WaitError::Deadlock) {
            // Only here the lock is ours again, as the guard says.
            phalanx_shm::leave(DeadlockError::taken());
        }
        if died {
            Err(crate::OwnerDied::new(guard))
        } else {
            Ok(guard)
        }
    }

    /// As [`wait`](Self::wait), for at most `timeout`; the second value says whether it was notified.
    ///
    /// # Errors
    ///
    /// As for `wait`.
    #[track_caller]
    pub fn wait_timeout<G: Releasable>(
        &self,
        guard: G,
        timeout: Duration,
    ) -> WaitResult<(G, bool)> {
        let (waited, died) = self.wait_with(&guard, Patience::timeout(timeout).here());
        let both = (guard, waited.is_ok());
        if died {
            Err(crate::OwnerDied::new(both))
        } else {
            Ok(both)
        }
    }

    /// Waits again and again while `blocked` says so.
    ///
    /// # Errors
    ///
    /// As for [`wait`](Self::wait).
    ///
    /// # Panics
    ///
    /// As for [`wait`](Self::wait).
    #[track_caller]
    pub fn wait_while<G: Releasable>(
        &self,
        guard: G,
        mut blocked: impl FnMut() -> bool,
    ) -> WaitResult<G> {
        let mut guard = guard;
        while blocked() {
            guard = self.wait(guard)?;
        }
        Ok(guard)
    }

    /// As [`wait_while`](Self::wait_while), for at most `timeout` in all; the second value is `false` when time was up and
    /// `blocked` still said so.
    ///
    /// # Errors
    ///
    /// As for [`wait`](Self::wait).
    #[track_caller]
    pub fn wait_timeout_while<G: Releasable>(
        &self,
        guard: G,
        timeout: Duration,
        mut blocked: impl FnMut() -> bool,
    ) -> WaitResult<(G, bool)> {
        let patience = Patience::timeout(timeout).here();
        while blocked() {
            let (waited, died) = self.wait_with(&guard, patience);
            if died {
                let done = !blocked();
                return Err(crate::OwnerDied::new((guard, done)));
            }
            if waited.is_err() {
                let done = !blocked();
                return Ok((guard, done));
            }
        }
        Ok((guard, true))
    }

    /// Lets `lock` go, waits, has it again. Returns how the wait ended and whether the lock's owner died meanwhile. For
    /// faces of other languages.
    pub fn wait_with<G: Releasable>(
        &self,
        lock: &G,
        patience: Patience,
    ) -> (Result<(), WaitError>, bool) {
        self.wait_heard(lock, patience, || true)
    }

    /// As [`wait_with`](Self::wait_with); `heard` is called when a signal handler is due, without the lock, and says whether to
    /// give up.
    pub fn wait_heard<G: Releasable>(
        &self,
        lock: &G,
        patience: Patience,
        mut heard: impl FnMut() -> bool,
    ) -> (Result<(), WaitError>, bool) {
        let state = &*self.state;
        // In the table before the lock is free: a notification from then on finds us.
        let place = state.take_place();
        let key = if place.is_none() {
            Some(state.crowd.prepare())
        } else {
            None
        };
        let how = lock.let_go();
        let waited = state.wait(place, key, patience, &mut heard);
        if waited.is_ok() {
            // Its notifier has the lock, most likely, and not for long: cheaper to look than to sleep once more.
            let _ = phalanx_prim::Spin::until(|| lock.is_free().then_some(()));
        }
        let died = lock.have_again(how);
        (waited, died)
    }

    /// Wakes the one that waits longest.
    pub fn notify_one(&self) {
        self.state.notify(1);
    }

    /// Wakes the `count` that wait longest.
    pub fn notify(&self, count: usize) {
        self.state.notify(count);
    }

    /// Wakes everybody who waits.
    pub fn notify_all(&self) {
        self.state.notify(usize::MAX);
    }

    /// Returns how many wait at this moment (those beyond 60 are not counted).
    #[must_use]
    pub fn waiters(&self) -> usize {
        self.state
            .places
            .iter()
            .filter(|place| waits(place.word.load(Ordering::Relaxed)))
            .count()
    }
}

impl<S: Home> Clone for Condition<S> {
    /// Makes another handle on the same condition.
    fn clone(&self) -> Self {
        Self {
            state: self.state.clone(),
        }
    }
}

impl<S: Home> fmt::Debug for Condition<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Condition")
            .field("waiters", &self.waiters())
            .finish()
    }
}

impl Serialize for Condition<Shared> {
    fn serialize<Z: Serializer>(&self, serializer: Z) -> Result<Z::Ok, Z::Error> {
        self.state.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Condition<Shared> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Object::deserialize(deserializer).map(|state| Self { state })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Lock;

    const ROUNDS: u32 = if cfg!(miri) { 8 } else { 2_000 };

    fn hands_over<S: Home>(lock: &Lock<S>, changed: &Condition<S>) {
        let _dog = phalanx_testkit::watchdog(Duration::from_secs(100));
        let turn = phalanx_prim::AtomicU32::new(0);
        let play = |mine: u32| {
            for round in (0..ROUNDS).map(|round| 2 * round + mine) {
                let guard = lock.lock().unwrap();
                // Relaxed: the lock orders it.
                let other = || turn.load(Ordering::Relaxed) != round;
                let guard = changed.wait_while(guard, other).unwrap();
                turn.store(round + 1, Ordering::Relaxed);
                changed.notify_one();
                drop(guard);
            }
        };
        std::thread::scope(|scope| {
            scope.spawn(|| play(1));
            play(0);
        });
        assert_eq!(turn.load(Ordering::Relaxed), 2 * ROUNDS);
        assert_eq!(changed.waiters(), 0);
    }

    #[test]
    fn two_threads_take_turns() {
        hands_over(&Lock::local(), &Condition::local());
        hands_over(&Lock::new().unwrap(), &Condition::new().unwrap());
    }

    #[test]
    fn a_wait_that_nobody_ends_has_the_lock_again() {
        let (lock, changed) = (Lock::new().unwrap(), Condition::new().unwrap());
        let guard = lock.lock().unwrap();
        let (guard, notified) = changed
            .wait_timeout(guard, Duration::from_millis(2))
            .unwrap();
        assert!(!notified && lock.is_mine());
        drop(guard);
        assert!(!lock.is_locked());
    }
}
