//! The lock word: one algorithm for threads and for processes, which survives its owner.
//!
//! | word | meaning |
//! |---|---|
//! | `0` | free |
//! | `DIED` | free; the last owner died holding it and nobody has been told yet |
//! | `owner` | held, nobody sleeps |
//! | `owner + CONTENDED` | held, somebody may sleep |
//!
//! | from | to | by |
//! |---|---|---|
//! | `0` | `owner` | [`RawLock::lock`], one compare-exchange |
//! | `owner` | `0` | [`RawLock::unlock`], one compare-exchange |
//! | `owner` | `owner + CONTENDED` | a waiter, before it sleeps |
//! | `owner + CONTENDED` | `0`, wake one | `unlock` |
//! | `0` or `DIED` | `owner + CONTENDED` | a waiter that slept (others may still sleep) |
//! | dead owner | `owner' + CONTENDED` | a waiter that found the owner dead: it is told [`Acquired::OwnerDied`] |
//! | dead owner | `DIED`, wake all | the sweeper |
//!
//! Two wakes could die with the process that owes them, and neither is found in the word: the one of an unlocker killed
//! between clearing the word and waking, and the one handed to a waiter killed before it took the lock. Both processes
//! have the word in their [`Interest`] list at that moment, and the sweeper wakes everybody who sleeps on a word the dead
//! one was interested in. So sleeping needs no second look by a timer, but for those whom a sweeper may wait for, who would
//! wait for the sweeper in turn: threads that sweep, or collect the dead ([`LookAgain`]), and any sleeper on the arena's own
//! locks ([`RawLock::lock_looking`]), which are taken with locks of the process held. They look every now and then.
//!
//! The three-state futex mutex is Ulrich Drepper's ("Futexes Are Tricky", 2011); owner and death are ours.

use std::marker::PhantomData;
use std::panic::Location;
use std::time::Duration;

use phalanx_prim::{Deadline, Ordering, Spin, Waited, Word, points};

use crate::arena::Arena;
use crate::stuck::Stuck;
use crate::token::{self, Owner};
use crate::waits::{Subject, Waiting, place_of};
use crate::{session, slots, sweep};

const CONTENDED: u32 = 1 << 31;
const DIED: u32 = 1 << 30;
/// How often a sleeper that nobody else would wake looks whether the owner died.
const LOOK_AGAIN: Duration = Duration::from_millis(10);

/// Whether a word is seen by the threads of one process or by every process of the tree.
pub trait Scope: Send + Sync + 'static {
    /// The way to wait on a word of this scope.
    const WAIT: phalanx_prim::Scope;

    /// What a wait for a lock of this scope is noted as.
    #[doc(hidden)]
    const LOCK: Subject;

    /// What a wait at a gate of this scope is noted as.
    #[doc(hidden)]
    const GATE: Subject;

    /// Returns the token of the calling thread.
    fn token() -> u32;

    /// Returns the token of the calling thread if that is all there is to it, else 0.
    #[doc(hidden)]
    fn quick() -> u32;

    /// Returns `true` if the process of this owner is known to be gone. Asks the kernel: not for the hot path.
    fn is_dead(owner: Owner) -> bool;

    /// Returns `true` if an owner may have died before a sleeper came, with nobody left to wake it.
    fn is_mortal() -> bool {
        false
    }

    /// Returns the process id of this owner, 0 where there is only one process or the process is gone.
    fn pid_of(_: Owner) -> u32 {
        0
    }

    /// Records that this process sleeps on `word` or owes its sleepers a wake; see [`Interest`].
    fn interest(word: &Word) -> Interest;

    /// Returns `true` if a sleeper must look by itself whether the owner died meanwhile, because the one who would wake it
    /// may be itself.
    fn looks_again() -> bool {
        false
    }
}

/// Threads of this process.
#[derive(Debug)]
pub struct Local;

/// Processes of the tree; the word lives in the arena.
#[derive(Debug)]
pub struct Shared;

impl Scope for Local {
    const WAIT: phalanx_prim::Scope = phalanx_prim::Scope::Private;
    const LOCK: Subject = Subject::PrivateLock;
    const GATE: Subject = Subject::PrivateGate;

    #[inline]
    fn token() -> u32 {
        token::local_token()
    }

    #[inline]
    fn quick() -> u32 {
        token::local_quick()
    }

    fn is_dead(_: Owner) -> bool {
        false
    }

    fn interest(_: &Word) -> Interest {
        Interest(None)
    }
}

impl Scope for Shared {
    const WAIT: phalanx_prim::Scope = phalanx_prim::Scope::Shared;
    const LOCK: Subject = Subject::SharedLock;
    const GATE: Subject = Subject::SharedGate;

    #[inline]
    fn token() -> u32 {
        token::shared_token()
    }

    #[inline]
    fn quick() -> u32 {
        token::shared_quick()
    }

    fn is_dead(owner: Owner) -> bool {
        session::session_if_any().is_some_and(|arena| arena.process_is_gone(owner.slot))
    }

    fn is_mortal() -> bool {
        true
    }

    fn pid_of(owner: Owner) -> u32 {
        session::session_if_any().map_or(0, |arena| arena.process(owner.slot).pid)
    }

    fn interest(word: &Word) -> Interest {
        Interest::of(word)
    }

    fn looks_again() -> bool {
        // The reaper, in a sweep or at the rest of its work: the next death is for it to see.
        // In a model somebody else always does.
        !cfg!(any(phalanx_loom, phalanx_shuttle))
            && (LOOKS_AGAIN.get() > 0 || sweep::sweeping().is_some())
    }
}

thread_local! {
    static LOOKS_AGAIN: std::cell::Cell<u32> = const { std::cell::Cell::new(0) };
    /// After whom this thread asked last, and when: the lock's address and the owner's word.
    static ASKED: std::cell::Cell<((usize, u32), u64)> = const { std::cell::Cell::new(((0, 0), 0)) };
}

/// How a sleep on the lock ended.
enum Slept {
    /// Neither by a wake nor by the caller's time: it is time to ask about the owner.
    Long,
    Ended(Waited),
}

/// While it lives, the calling thread looks every now and then whether the owner of a lock it sleeps on has died.
///
/// For threads that collect dead processes, or hold something that such a thread waits for: who else would sweep, and wake
/// them? Everybody else is woken.
#[must_use = "the thread looks again only while this lives"]
#[derive(Debug)]
pub struct LookAgain(PhantomData<*const ()>);

impl LookAgain {
    /// Begins to look.
    #[expect(clippy::new_without_default, reason = "it acts")]
    pub fn new() -> Self {
        LOOKS_AGAIN.set(LOOKS_AGAIN.get() + 1);
        Self(PhantomData)
    }
}

impl Drop for LookAgain {
    fn drop(&mut self) {
        LOOKS_AGAIN.set(LOOKS_AGAIN.get() - 1);
    }
}

/// A line in this process's ledger: "if I die now, wake everybody who sleeps on this word". Ends on drop.
#[derive(Debug)]
pub struct Interest(
    // Ends the entry when it is dropped.
    #[expect(dead_code, reason = "held for its destructor")] Option<slots::InterestEntry>,
);

impl Interest {
    /// Records interest in a word of the arena; a word elsewhere is private and needs none.
    #[must_use]
    pub fn of(word: &Word) -> Self {
        Self(session::session_if_any().and_then(|arena| arena.note_interest(word)))
    }
}

/// As [`Interest`], for one short operation that does not sleep: "if I die before I end this, wake everybody who sleeps on
/// this word". Costs two stores.
#[derive(Debug)]
pub struct Brief(
    #[expect(dead_code, reason = "held for its destructor")] Option<slots::BriefEntry>,
);

impl Brief {
    /// Records interest in a word of the arena; a word elsewhere is private and needs none.
    #[inline]
    #[must_use]
    pub fn of(word: &Word) -> Self {
        Self(session::session_if_any().map(|arena| arena.note_brief(word)))
    }
}

/// How long and how a call waits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Patience {
    /// When to give up; `None` waits for as long as it takes.
    pub deadline: Option<Deadline>,
    /// Return [`WaitError::Interrupted`] when a signal handler ran, instead of waiting on.
    pub interruptible: bool,
    /// What to do when the wait is proved never to end.
    pub stuck: Stuck,
    /// Where in the program the call was made, for reports.
    pub place: Option<&'static Location<'static>>,
}

impl Patience {
    /// Waits for as long as it takes, signals notwithstanding.
    pub const FOREVER: Self = Self {
        deadline: None,
        interruptible: false,
        stuck: Stuck::Waits,
        place: None,
    };

    /// Waits for as long as it takes, signals notwithstanding; a wait that is proved never to end is
    /// [`WaitError::Deadlock`].
    #[inline]
    #[must_use]
    #[track_caller]
    pub const fn or_deadlock() -> Self {
        Self {
            stuck: Stuck::Fails,
            ..Self::FOREVER.here()
        }
    }

    /// As [`or_deadlock`](Self::or_deadlock), for calls that cannot return it: such a wait panics with the deadlock.
    #[inline]
    #[must_use]
    #[track_caller]
    pub const fn or_panic() -> Self {
        Self {
            stuck: Stuck::Panics,
            ..Self::FOREVER.here()
        }
    }

    /// The same, called from the caller's place.
    #[inline]
    #[must_use]
    #[track_caller]
    pub const fn here(self) -> Self {
        Self {
            place: Some(Location::caller()),
            ..self
        }
    }

    /// Waits until `deadline`, signals notwithstanding.
    #[must_use]
    pub fn until(deadline: Deadline) -> Self {
        Self {
            deadline: Some(deadline),
            ..Self::FOREVER
        }
    }

    /// Waits for `timeout` from now, signals notwithstanding.
    #[must_use]
    pub fn timeout(timeout: std::time::Duration) -> Self {
        Self::until(Deadline::after(timeout))
    }

    /// Turns the end of one sleep into the end of the whole call where it is one.
    ///
    /// # Errors
    ///
    /// [`WaitError`] when the deadline passed or a signal came and the caller wants to hear of it.
    pub fn check(&self, waited: Waited) -> Result<(), WaitError> {
        match waited {
            Waited::TimedOut => Err(WaitError::TimedOut),
            Waited::Interrupted if self.interruptible => Err(WaitError::Interrupted),
            Waited::Woken | Waited::Changed | Waited::Interrupted => Ok(()),
        }
    }
}

/// A wait that ended without what it waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WaitError {
    /// The deadline passed.
    #[error("timed out")]
    TimedOut,
    /// It could never have ended, and somebody wants such waits to fail; [`take_deadlock`](crate::take_deadlock) says why.
    #[error("a deadlock: this wait could never have ended")]
    Deadlock,
    /// A signal handler ran in this thread.
    #[error("interrupted by a signal")]
    Interrupted,
}

thread_local! {
    static TAKEN_FROM: std::cell::Cell<u32> = const { std::cell::Cell::new(0) };
}

/// Returns and forgets the process id of the dead owner that the calling thread took a lock from, if it took one before the
/// owner was swept. What the sweeper noted is with the object the lock belongs to.
#[must_use]
pub fn taken_from() -> Option<u32> {
    let pid = TAKEN_FROM.replace(0);
    (pid != 0).then_some(pid)
}

/// How a lock came to its new owner.
#[must_use]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Acquired {
    /// It was free.
    Clean,
    /// The process that held it died; what it protects may be half-changed. Told once.
    OwnerDied,
}

/// A lock without data: 4 bytes, all zero is a free lock.
#[derive(Debug)]
#[repr(transparent)]
pub struct RawLock<S> {
    word: Word,
    scope: PhantomData<S>,
}

impl<S: Scope> Default for RawLock<S> {
    fn default() -> Self {
        Self::new()
    }
}

impl<S: Scope> RawLock<S> {
    /// Creates a free lock.
    #[cfg(not(phalanx_loom))]
    #[must_use]
    pub const fn new() -> Self {
        Self {
            word: Word::new(0),
            scope: PhantomData,
        }
    }

    /// Creates a free lock.
    #[cfg(phalanx_loom)]
    #[must_use]
    pub fn new() -> Self {
        Self {
            word: Word::new(0),
            scope: PhantomData,
        }
    }

    /// Blocks until the lock is free and takes it.
    ///
    /// Recursive locking blocks (another thread may unlock). If the owner's process died, returns
    /// [`Acquired::OwnerDied`] and the lock is held.
    ///
    /// # Errors
    ///
    /// [`WaitError`] as `patience` says.
    #[inline]
    pub fn lock(&self, patience: Patience) -> Result<Acquired, WaitError> {
        self.lock_as(S::token(), patience)
    }

    /// As [`lock`](Self::lock), for a caller that has its token ([`Scope::token`]) at hand.
    ///
    /// # Errors
    ///
    /// [`WaitError`] as `patience` says.
    #[inline]
    pub fn lock_as(&self, me: u32, patience: Patience) -> Result<Acquired, WaitError> {
        // Acquire: pairs with the Release of `unlock`, so that we see what the last owner wrote.
        if self
            .word
            .compare_exchange(0, me, Ordering::Acquire, Ordering::Relaxed)
            .is_ok()
        {
            return Ok(Acquired::Clean);
        }
        self.lock_contended(me, patience)
    }

    /// Blocks until the lock is free, whatever signals come.
    #[inline]
    pub fn lock_forever(&self) -> Acquired {
        match self.lock(Patience::FOREVER) {
            Ok(acquired) => acquired,
            // Without a deadline and deaf to signals a wait has no other end.
            Err(_) => unreachable!("an endless wait ended"),
        }
    }

    /// As [`lock_forever`](Self::lock_forever), for a lock that is taken with locks of the process held: the thread that
    /// would sweep a dead owner may wait for one of those.
    #[inline]
    pub(crate) fn lock_looking(&self) -> Acquired {
        if self
            .word
            .compare_exchange(0, S::token(), Ordering::Acquire, Ordering::Relaxed)
            .is_ok()
        {
            return Acquired::Clean;
        }
        let _looking = LookAgain::new();
        self.lock_forever()
    }

    /// Takes the lock if it is free now and its last owner did not die.
    #[inline]
    #[must_use = "false says that there is more to it"]
    pub fn try_clean(&self) -> bool {
        self.try_clean_as(S::token())
    }

    /// As [`try_clean`](Self::try_clean), for a caller that has its token at hand.
    #[inline]
    #[must_use = "false says that there is more to it"]
    pub fn try_clean_as(&self, me: u32) -> bool {
        self.word
            .compare_exchange(0, me, Ordering::Acquire, Ordering::Relaxed)
            .is_ok()
    }

    /// Takes the lock if it is free now.
    #[inline]
    pub fn try_lock(&self) -> Option<Acquired> {
        let me = S::token();
        let mut now = 0;
        loop {
            match self.word.compare_exchange(
                now,
                me | now & CONTENDED,
                Ordering::Acquire,
                // As in `lock_contended`.
                Ordering::Acquire,
            ) {
                Ok(_) if now & DIED != 0 => {
                    TAKEN_FROM.set(0);
                    return Some(Acquired::OwnerDied);
                }
                Ok(_) => return Some(Acquired::Clean),
                Err(seen) if Owner::of(seen).is_none() && seen != now => now = seen,
                Err(seen) => {
                    let owner = Owner::of(seen)?;
                    if !S::is_mortal() || !self.may_ask(seen) || !S::is_dead(owner) {
                        return None;
                    }
                    return self.take_over(seen, me).then_some(Acquired::OwnerDied);
                }
            }
        }
    }

    /// Returns `true` if it is time to ask the kernel after the owner that `seen` names. Who tries again and again to get one
    /// lock asks now and then only: between two questions the sweeper is as quick.
    fn may_ask(&self, seen: u32) -> bool {
        let whom = (std::ptr::from_ref(&self.word) as usize, seen & !CONTENDED);
        let now = phalanx_prim::clock::now_ns();
        let (asked, when) = ASKED.get();
        let may = asked != whom || now.saturating_sub(when) >= LOOK_AGAIN.as_nanos() as u64;
        if may {
            ASKED.set((whom, now));
        }
        may
    }

    fn take_over(&self, seen: u32, me: u32) -> bool {
        // Before it is swept and forgotten.
        let pid = Owner::of(seen).map_or(0, S::pid_of);
        let taken = self
            .word
            .compare_exchange(seen, me | CONTENDED, Ordering::Acquire, Ordering::Relaxed)
            .is_ok();
        if taken {
            TAKEN_FROM.set(pid);
        }
        taken
    }

    #[cold]
    fn lock_contended(&self, me: u32, patience: Patience) -> Result<Acquired, WaitError> {
        let free = || {
            (self.word.load(Ordering::Relaxed) == 0
                && self
                    .word
                    .compare_exchange(0, me, Ordering::Acquire, Ordering::Relaxed)
                    .is_ok())
            .then_some(())
        };
        if Spin::backoff(free).is_some() {
            return Ok(Acquired::Clean);
        }
        // From here on we sleep: whoever wakes us may owe others a wake that only we can pass on.
        let _interest = S::interest(&self.word);
        let mut waiting = Waiting::new();
        let mut slept = 0;
        // Asking the kernel costs more than most waits last: only an owner that has not let go after a first short sleep is
        // asked about.
        let (mut doubted, mut asked) = (None, None);
        loop {
            waiting.looks();
            // Acquire: what we see of the owner's process is not older than its hold.
            let now = self.word.load(Ordering::Acquire);
            let Some(owner) = Owner::of(now) else {
                let mine = me | (now & CONTENDED) | slept;
                if self
                    .word
                    .compare_exchange(now, mine, Ordering::Acquire, Ordering::Relaxed)
                    .is_ok()
                {
                    return Ok(if now & DIED != 0 {
                        TAKEN_FROM.set(0);
                        Acquired::OwnerDied
                    } else {
                        Acquired::Clean
                    });
                }
                continue;
            };
            if asked != Some(owner) {
                asked = None;
            }
            // Did the owner die before we came? From then on its sweeper wakes us.
            if doubted == Some(owner) {
                doubted = None;
                if S::is_dead(owner) {
                    if self.take_over(now, me) {
                        return Ok(Acquired::OwnerDied);
                    }
                    continue;
                }
                asked = Some(owner);
            }
            if now & CONTENDED == 0
                && self
                    .word
                    .compare_exchange(now, now | CONTENDED, Ordering::Relaxed, Ordering::Relaxed)
                    .is_err()
            {
                continue;
            }
            points::point("lock.sleep");
            slept = CONTENDED;
            // A first note takes a block of the arena: not while one of the arena's own locks is waited for, or had.
            if LOOKS_AGAIN.get() == 0 {
                let at = |arena: &Arena| place_of(arena, &self.word);
                waiting.sleeps(S::LOCK, at, u32::from(owner.thread), patience)?;
            }
            let ask = S::is_mortal() && asked.is_none();
            let waited = self.sleep(&mut waiting, now | CONTENDED, patience.deadline, ask);
            points::point("lock.woken");
            if matches!(waited, Slept::Long | Slept::Ended(Waited::TimedOut)) {
                doubted = Some(owner);
            }
            let waited = match waited {
                Slept::Long => Waited::Changed,
                Slept::Ended(waited) => waited,
            };
            match patience.check(waited) {
                // Before giving up: the time may have been shorter than a look takes.
                Err(WaitError::TimedOut) if ask && S::is_dead(owner) => {}
                checked => checked?,
            }
        }
    }

    fn sleep(
        &self,
        waiting: &mut Waiting,
        expected: u32,
        deadline: Option<Deadline>,
        ask: bool,
    ) -> Slept {
        if !ask && !S::looks_again() {
            return Slept::Ended(waiting.wait(&self.word, expected, deadline, S::WAIT));
        }
        let look = Deadline::after(LOOK_AGAIN);
        let until = deadline.map_or(look, |deadline| deadline.min(look));
        match waiting.wait(&self.word, expected, Some(until), S::WAIT) {
            Waited::TimedOut if deadline != Some(until) => Slept::Long,
            waited => Slept::Ended(waited),
        }
    }

    /// Frees the lock and wakes one sleeper. Any thread of any process may call it; the holder should.
    #[inline]
    pub fn unlock(&self) {
        self.unlock_as(S::token());
    }

    /// As [`unlock`](Self::unlock), for a caller that has the token it locked with at hand.
    #[inline]
    pub fn unlock_as(&self, me: u32) {
        if !self.try_unlock_as(me) {
            self.unlock_contended();
        }
    }

    /// Frees the lock if it is held with this token and nobody may sleep.
    #[inline]
    #[must_use = "false says that there is more to it"]
    pub fn try_unlock_as(&self, me: u32) -> bool {
        points::point("lock.held");
        // Release: pairs with the Acquire of `lock`.
        self.word
            .compare_exchange(me, 0, Ordering::Release, Ordering::Relaxed)
            .is_ok()
    }

    /// As [`unlock`](Self::unlock), when [`try_unlock_as`](Self::try_unlock_as) said that there is more to it.
    #[cold]
    pub fn unlock_contended(&self) {
        let _interest = S::interest(&self.word);
        let was = self.word.swap(0, Ordering::Release);
        points::point("lock.unlocked");
        if was & CONTENDED != 0 {
            self.word.wake(1, S::WAIT);
        }
    }

    /// Returns `true` if somebody holds the lock at this moment.
    #[must_use]
    pub fn is_locked(&self) -> bool {
        self.owner().is_some()
    }

    /// Returns who holds the lock at this moment.
    #[must_use]
    pub fn owner(&self) -> Option<Owner> {
        Owner::of(self.word.load(Ordering::Relaxed))
    }

    /// Returns `true` if the calling thread holds the lock.
    #[inline]
    #[must_use]
    pub fn is_mine(&self) -> bool {
        self.is_held_as(S::token())
    }

    /// As [`is_mine`](Self::is_mine), for a caller that has its token at hand.
    #[inline]
    #[must_use]
    pub fn is_held_as(&self, me: u32) -> bool {
        self.word.load(Ordering::Relaxed) & !(CONTENDED | DIED) == me
    }

    /// Frees the lock if the process in `slot`, which is dead, holds it; the next owner is told. Wakes all sleepers.
    ///
    /// Returns `true` if it was held by `slot`.
    pub fn owner_died(&self, slot: u16) -> bool {
        let mut now = self.word.load(Ordering::Relaxed);
        while Owner::of(now).is_some_and(|owner| owner.slot == slot) {
            match self
                .word
                .compare_exchange(now, DIED, Ordering::AcqRel, Ordering::Relaxed)
            {
                Ok(_) => {
                    self.wake_all();
                    return true;
                }
                Err(seen) => now = seen,
            }
        }
        false
    }

    /// Returns `true` if the process in `slot` holds the lock.
    #[must_use]
    pub fn is_held_by(&self, slot: u16) -> bool {
        self.owner().is_some_and(|owner| owner.slot == slot)
    }

    /// Wakes every sleeper to look again. Always safe: sleepers look before they sleep again.
    pub fn wake_all(&self) {
        self.word.wake(u32::MAX, S::WAIT);
    }

    /// Returns the word, to wait on or to name it in a report.
    #[must_use]
    pub fn word(&self) -> &Word {
        &self.word
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    const ROUNDS: u32 = if cfg!(miri) { 25 } else { 10_000 };

    fn counts_right<S: Scope>() {
        let _dog = phalanx_testkit::watchdog(Duration::from_secs(100));
        let lock = RawLock::<S>::new();
        // Two words that only a lock keeps equal.
        let pair = [Word::new(0), Word::new(0)];
        std::thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| {
                    for _ in 0..ROUNDS {
                        assert_eq!(lock.lock_forever(), Acquired::Clean);
                        let now = pair[0].load(Ordering::Relaxed);
                        assert_eq!(now, pair[1].load(Ordering::Relaxed));
                        pair[0].store(now + 1, Ordering::Relaxed);
                        std::thread::yield_now();
                        pair[1].store(now + 1, Ordering::Relaxed);
                        lock.unlock();
                    }
                });
            }
        });
        assert_eq!(pair[0].load(Ordering::Relaxed), 3 * ROUNDS);
        assert!(!lock.is_locked());
    }

    #[test]
    fn one_thread_at_a_time_has_a_private_lock() {
        counts_right::<Local>();
    }

    #[test]
    fn one_thread_at_a_time_has_a_shared_lock() {
        counts_right::<Shared>();
    }

    #[test]
    fn a_wait_for_a_held_lock_ends_in_time() {
        let lock = RawLock::<Local>::new();
        assert_eq!(lock.try_lock(), Some(Acquired::Clean));
        assert!(lock.is_mine());
        std::thread::scope(|scope| {
            scope.spawn(|| {
                assert_eq!(lock.try_lock(), None);
                let soon = Patience::timeout(Duration::from_millis(2));
                assert_eq!(lock.lock(soon), Err(WaitError::TimedOut));
            });
        });
        lock.unlock();
        assert_eq!(lock.owner(), None);
    }

    #[test]
    fn the_next_owner_hears_of_a_death_once() {
        let lock = RawLock::<Shared>::new();
        // A thread of a process that is not there any more, in a slot that nobody has.
        let dead = 77 << 16 | 1;
        assert_eq!(lock.lock_as(dead, Patience::FOREVER), Ok(Acquired::Clean));
        assert!(lock.is_held_by(77));
        assert!(!lock.owner_died(78));
        assert!(lock.owner_died(77));
        assert_eq!(lock.lock_forever(), Acquired::OwnerDied);
        lock.unlock();
        assert_eq!(lock.lock_forever(), Acquired::Clean);
        lock.unlock();
    }
}
