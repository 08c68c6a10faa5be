//! `Event`: a flag to wait for.
//!
//! | bits of the word | meaning |
//! |---|---|
//! | 0 | the flag |
//! | 1 | somebody may sleep |
//! | 2–31 | how often it was set |
//!
//! A waiter leaves when the flag is on *or* the number has grown, so one that was woken by a `set` that a `clear` followed
//! at once does not sleep on. Whoever sets the flag owes the sleepers a wake from that store on, and has the word in its
//! interest list for so long.
#![expect(unsafe_code, reason = "the marker of what may be placed in the arena")]

use std::fmt;
use std::time::Duration;

use phalanx_prim::{Arc, Ordering, Spin, Word, points};
use phalanx_shm::{
    Arena, Kind, KindOps, Local, Patience, Scope, Shared, WaitError, Waiting, place_of,
    register_kind,
};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::handle::handle;
use crate::home::{CreateError, Home, Object, placed};

const SET: u32 = 1;
const SLEEPERS: u32 = 2;
const STEP: u32 = 4;

/// What an event is made of.
#[derive(Debug)]
#[repr(C)]
pub struct EventState<S> {
    word: Word,
    scope: std::marker::PhantomData<S>,
}
placed!(EventState<S>, Event, S);

pub(crate) fn install() {
    register_kind(
        Kind::Event,
        KindOps {
            recover: |arena, block, _, wake_all| {
                if wake_all && let Ok(event) = arena.view::<EventState<Shared>>(block) {
                    event.word.wake(u32::MAX, Shared::WAIT);
                }
            },
            destroy: |_, _| {},
        },
    );
}

/// A flag that threads and processes wait for.
///
/// ```
/// use phalanx_sync::Event;
///
/// let event = Event::local();
/// std::thread::scope(|scope| {
///     scope.spawn(|| event.set());
///     event.wait();
/// });
/// assert!(event.is_set());
/// ```
pub struct Event<S: Home = Shared> {
    state: S::Ref<EventState<S>>,
}

handle!(Event<Shared>, EventState<Shared>);

impl Event<Shared> {
    /// Makes one that any process of the tree can use; the flag is off.
    ///
    /// # Errors
    ///
    /// [`CreateError`] when shared memory is short.
    pub fn new() -> Result<Self, CreateError> {
        Ok(Self {
            state: Object::new(EventState {
                word: Word::new(0),
                scope: std::marker::PhantomData,
            })?,
        })
    }
}

impl Event<Local> {
    /// Makes one for the threads of this process; the flag is off.
    #[must_use]
    pub fn local() -> Self {
        Self {
            state: Arc::new(EventState {
                word: Word::new(0),
                scope: std::marker::PhantomData,
            }),
        }
    }
}

impl<S: Home> Event<S> {
    /// Returns `true` if the flag is on.
    #[inline]
    #[must_use]
    pub fn is_set(&self) -> bool {
        // Acquire: what was done before `set` is seen.
        self.state.word.load(Ordering::Acquire) & SET != 0
    }

    /// Turns the flag on and wakes everybody who waits.
    pub fn set(&self) {
        let word = &self.state.word;
        if self.is_set() {
            return;
        }
        let _owed = S::interest(word);
        let mut now = word.load(Ordering::Relaxed);
        while now & SET == 0 {
            let on = (now & !SLEEPERS).wrapping_add(STEP) | SET;
            match word.compare_exchange_weak(now, on, Ordering::AcqRel, Ordering::Relaxed) {
                Ok(_) => {
                    points::point("event.set");
                    if now & SLEEPERS != 0 {
                        word.wake(u32::MAX, S::WAIT);
                    }
                    return;
                }
                Err(seen) => now = seen,
            }
        }
    }

    /// Turns the flag off.
    pub fn clear(&self) {
        self.state.word.fetch_and(!SET, Ordering::AcqRel);
    }

    /// Blocks until the flag is on.
    ///
    /// # Panics
    ///
    /// With the deadlock as its payload, if the wait could never end and somebody wants such waits to fail;
    /// [`wait_with`](Self::wait_with) returns it.
    #[track_caller]
    pub fn wait(&self) {
        let waited = self.wait_with(Patience::or_panic());
        debug_assert!(waited.is_ok());
    }

    /// Blocks until the flag is on, for at most `timeout`; returns whether it was.
    #[must_use = "false says that time was up"]
    #[track_caller]
    pub fn wait_timeout(&self, timeout: Duration) -> bool {
        self.wait_with(Patience::timeout(timeout).here()).is_ok()
    }

    /// Blocks until the flag is on, as `patience` says.
    ///
    /// # Errors
    ///
    /// [`WaitError`] as `patience` says.
    pub fn wait_with(&self, patience: Patience) -> Result<(), WaitError> {
        self.wait_heard(patience, || true)
    }

    /// As [`wait_with`](Self::wait_with), for faces of other languages: `heard` is called when a signal handler is due, and says
    /// whether to give up.
    ///
    /// # Errors
    ///
    /// [`WaitError`] as `patience` and `heard` say.
    pub fn wait_heard(
        &self,
        patience: Patience,
        mut heard: impl FnMut() -> bool,
    ) -> Result<(), WaitError> {
        if self.is_set() {
            return Ok(());
        }
        if Spin::until(|| self.is_set().then_some(())).is_some() {
            return Ok(());
        }
        let word = &self.state.word;
        let _interest = S::interest(word);
        let mut first = None;
        let mut waiting = Waiting::new();
        loop {
            waiting.looks();
            let now = word.load(Ordering::Acquire);
            let generation = now / STEP;
            if now & SET != 0 || *first.get_or_insert(generation) != generation {
                return Ok(());
            }
            if now & SLEEPERS == 0
                && word
                    .compare_exchange(now, now | SLEEPERS, Ordering::Relaxed, Ordering::Relaxed)
                    .is_err()
            {
                continue;
            }
            points::point("event.sleep");
            let at = |arena: &Arena| place_of(arena, word);
            let slept = waiting.sleeps(S::GATE, at, 0, patience).and_then(|()| {
                patience.check(waiting.wait(word, now | SLEEPERS, patience.deadline, S::WAIT))
            });
            if let Err(error) = slept {
                if error == WaitError::Interrupted && !heard() {
                    continue;
                }
                return if self.is_set() { Ok(()) } else { Err(error) };
            }
        }
    }
}

impl<S: Home> Clone for Event<S> {
    /// Makes another handle on the same event.
    fn clone(&self) -> Self {
        Self {
            state: self.state.clone(),
        }
    }
}

impl<S: Home> fmt::Debug for Event<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Event")
            .field("is_set", &self.is_set())
            .finish()
    }
}

impl Serialize for Event<Shared> {
    fn serialize<Z: Serializer>(&self, serializer: Z) -> Result<Z::Ok, Z::Error> {
        self.state.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Event<Shared> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Object::deserialize(deserializer).map(|state| Self { state })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROUNDS: u32 = if cfg!(miri) { 10 } else { 2_000 };

    fn answers<S: Home>(there: &Event<S>, back: &Event<S>) {
        let _dog = phalanx_testkit::watchdog(Duration::from_secs(100));
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for _ in 0..ROUNDS {
                    there.wait();
                    there.clear();
                    back.set();
                }
            });
            for _ in 0..ROUNDS {
                there.set();
                back.wait();
                back.clear();
            }
        });
        assert!(!there.is_set() && !back.is_set());
    }

    #[test]
    fn two_threads_answer_each_other() {
        answers(&Event::local(), &Event::local());
        answers(&Event::new().unwrap(), &Event::new().unwrap());
    }

    #[test]
    fn all_who_wait_are_woken_though_it_is_cleared_at_once() {
        let _dog = phalanx_testkit::watchdog(Duration::from_secs(100));
        let event = Event::new().unwrap();
        std::thread::scope(|scope| {
            let waiters: Vec<_> = (0..3).map(|_| scope.spawn(|| event.wait())).collect();
            // One that comes late waits for the next.
            while waiters.iter().any(|waiter| !waiter.is_finished()) {
                event.set();
                event.clear();
                std::thread::yield_now();
            }
        });
        assert!(!event.wait_timeout(Duration::from_millis(2)));
    }
}
