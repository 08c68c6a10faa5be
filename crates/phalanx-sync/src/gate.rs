//! A gate: sleep until a condition may have become true, without losing a wake and without counting sleepers.
//!
//! | bits of the word | meaning |
//! |---|---|
//! | 0 | somebody may sleep |
//! | 1–31 | a sequence number |
//!
//! | who | does |
//! |---|---|
//! | waiter | look; [`prepare`](Gate::prepare) (sequence + 1, bit 0 on; the new word is its key); look again; sleep while the word is the key |
//! | notifier | make the condition true; if bit 0 is on: sequence + 1, wake n; if fewer slept than that, turn bit 0 off unless the word has changed |
//!
//! A waiter that prepared before the notifier's step has another key and does not fall asleep. One that prepared after it
//! looked again after the condition was made true. The bit is turned off only when the kernel says that nobody is left,
//! so a sleeper that was killed costs one futile wake and nothing else: there is no count that it could leave wrong.
//! This is the event count of folly and crossbeam's parking, without the count.

use std::marker::PhantomData;

use phalanx_prim::{Ordering, Word, fence};
use phalanx_shm::{Arena, Patience, Scope, WaitError, Waiting, place_of};

const SLEEPERS: u32 = 1;
const STEP: u32 = 2;

/// See the module's head. 4 bytes; all zero is valid.
#[derive(Debug)]
#[repr(transparent)]
pub struct Gate<S> {
    word: Word,
    scope: PhantomData<S>,
}

/// What a waiter saw when it announced itself.
#[must_use]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Key(u32);

impl Key {
    /// Returns the value the word has while the key is good, for waiting on several gates at once.
    #[must_use]
    pub fn expected(self) -> u32 {
        self.0
    }
}

impl<S: Scope> Default for Gate<S> {
    fn default() -> Self {
        Self::new()
    }
}

impl<S: Scope> Gate<S> {
    /// Creates a gate that nobody waits at.
    #[must_use]
    pub fn new() -> Self {
        Self {
            word: Word::new(0),
            scope: PhantomData,
        }
    }

    /// Announces a waiter. Look at the condition again after this, then [`wait`](Self::wait) with the key.
    pub fn prepare(&self) -> Key {
        self.prepare_after(None).0
    }

    /// As [`prepare`](Self::prepare); also says whether the word is still as `last` left it, so that one waiter can wait in
    /// place of several without missing what was meant for the earlier ones.
    pub fn prepare_after(&self, last: Option<Key>) -> (Key, bool) {
        let mut now = self.word.load(Ordering::Relaxed);
        loop {
            let key = now.wrapping_add(STEP) | SLEEPERS;
            // SeqCst: pairs with the fence in `notify`; either the notifier sees the bit or we see its condition.
            match self
                .word
                .compare_exchange_weak(now, key, Ordering::SeqCst, Ordering::Relaxed)
            {
                Ok(_) => {
                    fence(Ordering::SeqCst);
                    return (Key(key), last == Some(Key(now)));
                }
                Err(seen) => now = seen,
            }
        }
    }

    /// Sleeps until a notification that came after `key` was taken. May return without one.
    ///
    /// The caller holds an [`Interest`](phalanx_shm::Interest) in [`word`](Self::word) where the gate is shared, from
    /// before `prepare` until it has taken what it waited for.
    ///
    /// # Errors
    ///
    /// [`WaitError`] as `patience` says.
    pub fn wait(&self, key: Key, patience: Patience) -> Result<(), WaitError> {
        let mut waiting = Waiting::new();
        loop {
            waiting.looks();
            if self.word.load(Ordering::Acquire) != key.0 {
                return Ok(());
            }
            let at = |arena: &Arena| place_of(arena, &self.word);
            waiting.sleeps(S::GATE, at, 0, patience)?;
            let waited = waiting.wait(&self.word, key.0, patience.deadline, S::WAIT);
            if !waiting.is_cut() {
                return patience.check(waited);
            }
        }
    }

    /// Wakes up to `count` waiters. The condition was made true before. Without waiters this is a fence and a load.
    #[inline]
    pub fn notify(&self, count: u32) {
        // Pairs with `prepare`.
        fence(Ordering::SeqCst);
        if self.word.load(Ordering::Relaxed) & SLEEPERS != 0 {
            self.notify_sleepers(count);
        }
    }

    /// As [`notify`](Self::notify), without its fence: the caller has just unlocked something (by a read-modify-write), and the
    /// condition was made true before that.
    #[inline]
    pub fn notify_after_unlock(&self, count: u32) {
        phalanx_prim::fence_after_rmw();
        if self.word.load(Ordering::Relaxed) & SLEEPERS != 0 {
            self.notify_sleepers(count);
        }
    }

    /// Returns `true` if somebody may be asleep at this moment.
    #[inline]
    pub fn may_have_sleepers(&self) -> bool {
        self.word.load(Ordering::Relaxed) & SLEEPERS != 0
    }

    #[cold]
    fn notify_sleepers(&self, count: u32) {
        let mut now = self.word.load(Ordering::Relaxed);
        let next = loop {
            if now & SLEEPERS == 0 {
                return;
            }
            let next = now.wrapping_add(STEP);
            match self
                .word
                .compare_exchange_weak(now, next, Ordering::SeqCst, Ordering::Relaxed)
            {
                Ok(_) => break next,
                Err(seen) => now = seen,
            }
        };
        phalanx_prim::points::point("gate.waking");
        if self.word.wake(count, S::WAIT) < count {
            // Nobody sleeps any more. Whoever announced itself meanwhile changed the word.
            let _ = self.word.compare_exchange(
                next,
                next & !SLEEPERS,
                Ordering::SeqCst,
                Ordering::Relaxed,
            );
        }
    }

    /// Wakes every waiter.
    #[inline]
    pub fn notify_all(&self) {
        self.notify(u32::MAX);
    }

    /// Wakes every sleeper to look again, whatever the word says. For the sweep after a death.
    pub fn rouse(&self) {
        self.word.fetch_add(STEP, Ordering::SeqCst);
        self.word.wake(u32::MAX, S::WAIT);
    }

    /// Blocks until `ready` answers: looks, spins a little, then sleeps between looks.
    ///
    /// `ready` runs many times and must not block.
    ///
    /// # Errors
    ///
    /// [`WaitError`] as `patience` says.
    pub fn wait_until<T>(
        &self,
        patience: Patience,
        mut ready: impl FnMut() -> Option<T>,
    ) -> Result<T, WaitError> {
        if let Some(answer) = ready() {
            return Ok(answer);
        }
        if patience
            .deadline
            .is_some_and(phalanx_prim::Deadline::has_passed)
        {
            return Err(WaitError::TimedOut);
        }
        if let Some(answer) = phalanx_prim::Spin::until(&mut ready) {
            return Ok(answer);
        }
        self.sleep_until(patience, ready)
    }

    /// As [`wait_until`](Self::wait_until), without spinning.
    ///
    /// # Errors
    ///
    /// [`WaitError`] as `patience` says.
    pub fn sleep_until<T>(
        &self,
        patience: Patience,
        mut ready: impl FnMut() -> Option<T>,
    ) -> Result<T, WaitError> {
        // Until we leave: a wake that was meant for us and dies with us is handed on by the sweep.
        let _interest = S::interest(&self.word);
        let mut waiting = Waiting::new();
        loop {
            let key = self.prepare();
            waiting.looks();
            if let Some(answer) = ready() {
                return Ok(answer);
            }
            phalanx_prim::points::point("gate.sleep");
            let at = |arena: &Arena| place_of(arena, &self.word);
            let slept = waiting.sleeps(S::GATE, at, 0, patience).and_then(|()| {
                patience.check(waiting.wait(&self.word, key.0, patience.deadline, S::WAIT))
            });
            if let Err(error) = slept {
                // What became true at the last moment counts.
                return ready().ok_or(error);
            }
        }
    }

    /// Returns the word, to wait on it together with others.
    #[must_use]
    pub fn word(&self) -> &Word {
        &self.word
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    use phalanx_prim::AtomicU32;
    use phalanx_shm::{Local, Shared};

    const ROUNDS: u32 = if cfg!(miri) { 15 } else { 5_000 };

    fn no_wake_is_lost<S: Scope>() {
        let _dog = phalanx_testkit::watchdog(Duration::from_secs(100));
        let (gate, turn) = (Gate::<S>::new(), AtomicU32::new(0));
        let play = |mine: u32| {
            for round in (0..ROUNDS).map(|round| 2 * round + mine) {
                let mine = || (turn.load(Ordering::Acquire) == round).then_some(());
                gate.wait_until(Patience::FOREVER, mine).unwrap();
                turn.store(round + 1, Ordering::Release);
                gate.notify(1);
            }
        };
        std::thread::scope(|scope| {
            scope.spawn(|| play(1));
            play(0);
        });
        assert_eq!(turn.load(Ordering::Relaxed), 2 * ROUNDS);
    }

    #[test]
    fn two_threads_take_turns_at_a_private_gate() {
        no_wake_is_lost::<Local>();
    }

    #[test]
    fn two_threads_take_turns_at_a_shared_gate() {
        no_wake_is_lost::<Shared>();
    }

    #[test]
    fn what_was_written_before_the_unlock_is_seen_behind_the_gate() {
        let _dog = phalanx_testkit::watchdog(Duration::from_secs(100));
        for _ in 0..ROUNDS {
            let (gate, lock) = (Gate::<Local>::new(), phalanx_shm::RawLock::<Local>::new());
            let done = AtomicU32::new(0);
            std::thread::scope(|scope| {
                scope.spawn(|| {
                    let _ = lock.lock_forever();
                    // Relaxed: the unlock is the only thing that orders it.
                    done.store(1, Ordering::Relaxed);
                    lock.unlock();
                    gate.notify_after_unlock(1);
                });
                let seen = || (done.load(Ordering::Relaxed) == 1).then_some(());
                gate.wait_until(Patience::FOREVER, seen).unwrap();
            });
        }
    }

    #[test]
    fn a_gate_that_nobody_opens_times_out() {
        let gate = Gate::<Local>::new();
        let soon = Patience::timeout(Duration::from_millis(2));
        let waited = gate.wait_until(soon, || None::<()>);
        assert_eq!(waited, Err(WaitError::TimedOut));
    }
}
