//! `Lock` and `RLock`.
#![expect(unsafe_code, reason = "the markers of what may be placed in the arena")]

use std::fmt;
use std::marker::PhantomData;
use std::panic::Location;
use std::time::Duration;

use phalanx_prim::{Arc, AtomicU32, AtomicU64, Ordering};
use phalanx_shm::{
    Acquired, Arena, BlockRef, DeadlockError, Described, Flagged, Kind, KindOps, Local, NOTED,
    Node, Patience, RawLock, Shared, Stuck, WaitError, flag, forget_order, keep_places,
    keeps_places, register_kind, session_if_any,
};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::handle::handle;
use crate::home::{CreateError, Home, Name, Object, placed};
use crate::order::order_wanted;

mod error;

use error::owner_of;
pub use error::{LockError, LockOwner, OwnerDied};

/// What a lock is made of.
#[derive(Debug)]
#[repr(C)]
pub struct LockState<S> {
    raw: RawLock<S>,
    /// Process id of the last owner that died, noted by its sweeper.
    victim: AtomicU32,
    /// 1 once somebody freed it who did not have it: then it is no lock to its users, but a signal.
    signal: AtomicU32,
    name: Name,
    /// Of a shared one: where its owner took it, if it noted that; see [`Arena::place_at`]. Of a private one: its number, if it
    /// has one; see [`Node`].
    place: AtomicU64,
}
placed!(LockState<S>, Lock, S);

/// What a recursive lock is made of.
#[derive(Debug)]
#[repr(C)]
pub struct RLockState<S> {
    raw: RawLock<S>,
    /// How often the owner holds it beyond the first time; the owner's alone.
    depth: AtomicU32,
    /// Process id of the last owner that died, noted by its sweeper.
    victim: AtomicU32,
    name: Name,
    /// Of a shared one: where its owner took it, if it noted that; see [`Arena::place_at`]. Of a private one: its number, if it
    /// has one; see [`Node`].
    place: AtomicU64,
}
placed!(RLockState<S>, RLock, S);

impl<S> Drop for LockState<S> {
    fn drop(&mut self) {
        forget_node(&self.place);
    }
}

impl<S> Drop for RLockState<S> {
    fn drop(&mut self) {
        forget_node(&self.place);
    }
}

/// A private lock that goes takes part in no order any more.
#[inline]
fn forget_node(kept: &AtomicU64) {
    if phalanx_prim::modelled().is_none() {
        let kept = kept.load(Ordering::Relaxed);
        if kept != 0 {
            forget_order(kept);
        }
    }
}

const _: () =
    assert!(size_of::<LockState<Shared>>() <= 64 && size_of::<RLockState<Shared>>() <= 64);

pub(crate) fn install() {
    let destroy = |_: &Arena, _: BlockRef| {};
    register_kind(
        Kind::Lock,
        KindOps {
            recover: |arena, block, dead, wake| {
                recover::<LockState<Shared>>(arena, block, dead, wake, |lock| {
                    (&lock.raw, &lock.victim, &lock.place)
                })
            },
            destroy,
        },
    );
    register_kind(
        Kind::RLock,
        KindOps {
            recover: |arena, block, dead, wake| {
                recover::<RLockState<Shared>>(arena, block, dead, wake, |lock| {
                    (&lock.raw, &lock.victim, &lock.place)
                })
            },
            destroy,
        },
    );
}

fn recover<T: phalanx_shm::Placed>(
    arena: &Arena,
    block: BlockRef,
    dead: u16,
    wake_all: bool,
    parts: fn(&T) -> (&RawLock<Shared>, &AtomicU32, &AtomicU64),
) {
    let Ok(lock) = arena.view::<T>(block) else {
        return;
    };
    let (raw, victim, place) = parts(lock);
    if raw.is_held_by(dead) {
        // First: the next owner reads it as soon as it has the lock.
        victim.store(arena.process(dead).pid, Ordering::Relaxed);
        place.store(0, Ordering::Relaxed);
    }
    if !raw.owner_died(dead) && wake_all {
        raw.wake_all();
    }
}

fn endless(acquired: Result<Acquired, WaitError>) -> Acquired {
    match acquired {
        Ok(acquired) => acquired,
        Err(_) => unreachable!("an endless wait ended"),
    }
}

/// Describes a private lock to whoever reads the wait's note; a shared one is there to be looked at.
fn describe<S: Home>(what: &str, name: &Name) -> Option<Described> {
    (S::WAIT == phalanx_prim::Scope::Private).then(|| match name.as_str() {
        "" => Described::new(format_args!("{what}")),
        name => Described::new(format_args!("{what} {name:?}")),
    })
}

/// What can be read of a lock in the arena.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LockFacts {
    /// The name its user gave it.
    pub name: String,
    /// It is known to be freed by others than its owner.
    pub signal: bool,
    /// Where its owner took it, if it has one that noted it.
    pub place: Option<String>,
}

/// Returns what can be read of the lock in this block.
#[must_use]
pub fn lock_facts(arena: &Arena, block: BlockRef) -> Option<LockFacts> {
    let (name, signal, place) = if let Ok(lock) = arena.view::<LockState<Shared>>(block) {
        let signal = lock.signal.load(Ordering::Relaxed) != 0;
        (&lock.name, signal, &lock.place)
    } else {
        let lock = arena.view::<RLockState<Shared>>(block).ok()?;
        (&lock.name, false, &lock.place)
    };
    Some(LockFacts {
        name: name.as_str().to_owned(),
        signal,
        place: arena.place_at(place.load(Ordering::Relaxed)),
    })
}

macro_rules! lock_api {
    ($Lock:ident, $State:ident, $Guard:ident, $label:literal, $make:expr) => {
        impl $Lock<Shared> {
            /// Makes one that any process of the tree can use. It is a serde value: send it as an argument or through a
            /// queue.
            ///
            /// # Errors
            ///
            /// [`CreateError`] when shared memory is short.
            pub fn new() -> Result<Self, CreateError> {
                Self::named("")
            }

            /// As [`new`](Self::new), with a name for reports (the first 31 bytes are kept).
            ///
            /// # Errors
            ///
            /// [`CreateError`] when shared memory is short.
            pub fn named(name: &str) -> Result<Self, CreateError> {
                let state: fn(&str) -> $State<Shared> = $make;
                Ok(Self {
                    state: Object::new(state(name))?,
                })
            }
        }

        impl $Lock<Local> {
            /// Makes one for the threads of this process.
            #[must_use]
            pub fn local() -> Self {
                Self::local_named("")
            }

            /// As [`local`](Self::local), with a name for reports (the first 31 bytes are kept).
            #[must_use]
            pub fn local_named(name: &str) -> Self {
                let state: fn(&str) -> $State<Local> = $make;
                Self {
                    state: Arc::new(state(name)),
                }
            }
        }

        impl<S: Home> Clone for $Lock<S> {
            /// Makes another handle on the same lock.
            fn clone(&self) -> Self {
                Self {
                    state: self.state.clone(),
                }
            }
        }

        impl<S: Home> fmt::Debug for $Lock<S> {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                let mut debug = f.debug_struct($label);
                if !self.name().is_empty() {
                    debug.field("name", &self.name());
                }
                debug.field("owner", &self.owner()).finish()
            }
        }

        impl Serialize for $Lock<Shared> {
            fn serialize<Z: Serializer>(&self, serializer: Z) -> Result<Z::Ok, Z::Error> {
                self.state.serialize(serializer)
            }
        }

        impl<'de> Deserialize<'de> for $Lock<Shared> {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                Object::deserialize(deserializer).map(|state| Self { state })
            }
        }

        impl<S: Home> $Lock<S> {
            /// Blocks until the lock is had.
            ///
            /// # Errors
            ///
            /// [`OwnerDied`] with the guard: we have the lock, the process that held it before died.
            ///
            /// # Panics
            ///
            /// With the deadlock as its payload, if the wait could never end and somebody wants such waits to fail;
            /// [`lock_with`](Self::lock_with) returns it.
            #[inline]
            #[track_caller]
            pub fn lock(&self) -> Result<$Guard<'_, S>, OwnerDied<$Guard<'_, S>>> {
                let me = S::quick();
                // 0: not known yet, or the place is to be noted.
                if me != 0 && self.clean_as(me) {
                    return Ok(self.guard(me));
                }
                self.lock_slowly(Location::caller())
            }

            #[cold]
            fn lock_slowly(
                &self,
                place: &'static Location<'static>,
            ) -> Result<$Guard<'_, S>, OwnerDied<$Guard<'_, S>>> {
                let patience = Patience {
                    stuck: Stuck::Panics,
                    place: Some(place),
                    ..Patience::FOREVER
                };
                self.orders(Some(place));
                let me = S::token();
                let acquired = if self.clean_as(me) {
                    Acquired::Clean
                } else {
                    endless(self.acquire_slowly(me, patience, flag::GUARDED))
                };
                let guard = self.guard(self.noted(place));
                match acquired {
                    Acquired::Clean => Ok(guard),
                    Acquired::OwnerDied => Err(OwnerDied::new(guard)),
                }
            }

            /// Notes that the calling thread took the lock here, if it does such things; returns its token for the guard.
            fn noted(&self, place: &'static Location<'static>) -> u32 {
                if !keeps_places() {
                    return S::token();
                }
                let arena = session_if_any();
                if !arena.is_some_and(|arena| arena.watch().notes()) {
                    keep_places(false);
                    return S::token();
                }
                if self.is_nested() {
                    return S::token() | NOTED;
                }
                crate::places::taken(self.address(), $label, self.state.name, self.node(), place);
                self.place(arena, place);
                S::token() | NOTED
            }

            fn place(&self, arena: Option<&Arena>, place: &'static Location<'static>) {
                if let Some(arena) = arena
                    && S::WAIT == phalanx_prim::Scope::Shared
                {
                    let bits = arena.place_bits(place);
                    self.state.place.store(bits, Ordering::Relaxed);
                }
            }

            /// Its owner is not there any more.
            fn displace(&self) {
                if S::WAIT == phalanx_prim::Scope::Shared {
                    self.state.place.store(0, Ordering::Relaxed);
                }
            }

            /// Which lock it is among all of the tree's; see [`Node`].
            #[must_use]
            pub fn node(&self) -> Node {
                S::node(&self.state, &self.state.place)
            }

            /// Notes that the calling thread is about to wait for it as long as it takes, if the order of locks is noted.
            fn orders(&self, place: Option<&'static Location<'static>>) {
                if keeps_places()
                    && let Some(place) = place
                    && let Some(arena) = order_wanted()
                    && self.is_ordered()
                {
                    crate::places::takes(arena, self.node(), $label, &self.state.name, place);
                }
            }

            fn address(&self) -> usize {
                std::ptr::from_ref(&self.state.raw) as usize
            }

            /// Forgets where it was taken: its guard frees it.
            fn forget(&self, token: u32) {
                if token & NOTED != 0 {
                    crate::places::freed(self.address());
                    self.displace();
                }
            }

            /// As `forget`, for a while.
            fn suspend(&self, token: u32) {
                if token & NOTED != 0 {
                    let _ = crate::places::away(self.address(), true);
                    self.displace();
                }
            }

            fn resume(&self, token: u32) {
                if token & NOTED != 0
                    && let Some(place) = crate::places::away(self.address(), false)
                {
                    self.place(session_if_any(), place);
                }
            }

            /// As `orders`, before it is had again.
            fn orders_again(&self, token: u32) {
                if token & NOTED != 0 {
                    self.orders(crate::places::place_of(self.address()));
                }
            }

            /// Blocks until the lock is had, for at most `timeout`.
            ///
            /// # Errors
            ///
            /// [`LockError`].
            #[track_caller]
            pub fn lock_timeout(
                &self,
                timeout: Duration,
            ) -> Result<$Guard<'_, S>, LockError<$Guard<'_, S>>> {
                let patience = Patience::timeout(timeout).here();
                self.guarded(self.acquire(patience), patience.place)
            }

            /// Blocks until the lock is had, as `patience` says.
            ///
            /// ```
            /// use phalanx_sync::{Lock, Patience};
            ///
            /// let lock = Lock::local();
            /// // An error instead of a panic, if this can never end and somebody watches.
            /// assert!(lock.lock_with(Patience::or_deadlock()).is_ok());
            /// ```
            ///
            /// # Errors
            ///
            /// [`LockError`].
            #[track_caller]
            pub fn lock_with(
                &self,
                patience: Patience,
            ) -> Result<$Guard<'_, S>, LockError<$Guard<'_, S>>> {
                let place = patience.place.unwrap_or_else(Location::caller);
                if patience.deadline.is_none() {
                    self.orders(Some(place));
                }
                self.guarded(self.acquire_guarded(patience), Some(place))
            }

            /// Takes the lock if it is free now.
            ///
            /// # Errors
            ///
            /// [`LockError`]: `TimedOut` names who holds it.
            #[inline]
            #[track_caller]
            pub fn try_lock(&self) -> Result<$Guard<'_, S>, LockError<$Guard<'_, S>>> {
                let me = S::quick();
                if me != 0 && self.clean_as(me) {
                    return Ok(self.guard(me));
                }
                let acquired = self.try_acquire().ok_or(WaitError::TimedOut);
                self.guarded(acquired, Some(Location::caller()))
            }

            fn guarded(
                &self,
                acquired: Result<Acquired, WaitError>,
                place: Option<&'static Location<'static>>,
            ) -> Result<$Guard<'_, S>, LockError<$Guard<'_, S>>> {
                let guard = || match (S::quick(), place) {
                    (0, Some(place)) => self.guard(self.noted(place)),
                    _ => self.guard(S::token()),
                };
                match acquired {
                    Ok(Acquired::Clean) => Ok(guard()),
                    Ok(Acquired::OwnerDied) => Err(LockError::OwnerDied(OwnerDied::new(guard()))),
                    Err(WaitError::TimedOut) => Err(LockError::TimedOut {
                        owner: self.owner(),
                    }),
                    Err(WaitError::Interrupted) => Err(LockError::Interrupted),
                    Err(WaitError::Deadlock) => Err(LockError::Deadlock(DeadlockError::taken())),
                }
            }

            #[inline]
            fn guard(&self, token: u32) -> $Guard<'_, S> {
                $Guard {
                    lock: self,
                    token,
                    thread: PhantomData,
                }
            }

            /// Returns who holds the lock at this moment.
            #[must_use]
            pub fn owner(&self) -> Option<LockOwner> {
                self.state.raw.owner().map(owner_of)
            }

            /// Returns the process id of the last owner that died, for who was just told [`Acquired::OwnerDied`]; 0 if it is
            /// not known.
            #[must_use]
            pub fn victim(&self) -> u32 {
                phalanx_shm::taken_from()
                    .unwrap_or_else(|| self.state.victim.load(Ordering::Relaxed))
            }

            /// Takes the lock if it is free now and its last owner did not die; the rest is for
            /// [`try_acquire`](Self::try_acquire) to find out.
            #[inline]
            #[must_use = "false says that there is more to it"]
            pub fn try_clean(&self) -> bool {
                self.clean()
            }

            /// Returns `true` if a thread of this process holds the lock.
            #[must_use]
            pub fn is_ours(&self) -> bool {
                self.state
                    .raw
                    .owner()
                    .is_some_and(|owner| S::token() >> 16 == u32::from(owner.slot))
            }

            /// Returns `true` if somebody holds the lock at this moment.
            #[must_use]
            pub fn is_locked(&self) -> bool {
                self.state.raw.is_locked()
            }

            /// Returns `true` if the calling thread holds the lock.
            #[must_use]
            pub fn is_mine(&self) -> bool {
                self.state.raw.is_mine()
            }

            /// Returns the name, empty if it has none.
            #[must_use]
            pub fn name(&self) -> &str {
                self.state.name.as_str()
            }
        }

        /// Holds the lock until dropped. Stays in its thread.
        #[must_use = "the lock is free again as soon as the guard is dropped"]
        #[derive(Debug)]
        pub struct $Guard<'a, S: Home = Shared> {
            lock: &'a $Lock<S>,
            // What it was locked with: cheaper kept than asked for again.
            token: u32,
            // The owner in the word is a thread.
            thread: PhantomData<*const ()>,
        }

        impl<'a, S: Home> $Guard<'a, S> {
            /// Returns the lock it holds.
            pub fn lock(&self) -> &'a $Lock<S> {
                self.lock
            }
        }

        impl<S: Home> Drop for $Guard<'_, S> {
            #[inline]
            fn drop(&mut self) {
                self.lock.release_as(self.token);
            }
        }
    };
}

/// A mutual exclusion lock for the processes of the tree ([`Lock::new`]) or the threads of this one ([`Lock::local`]).
///
/// It knows its owner, survives the owner's death ([`OwnerDied`]) and costs one compare-exchange each way while nobody
/// waits. Taking it twice in one thread blocks, as with Python's `Lock`; see [`RLock`].
///
/// *Fork*: the child has a handle of its own; a lock that a thread of the parent holds stays the parent's. *Ctrl-C*: a
/// waiting call goes on waiting; its handler runs.
///
/// ```
/// use phalanx_sync::Lock;
///
/// let lock = Lock::named("ledger")?;
/// {
///     let _guard = lock.lock().unwrap();
///     assert!(lock.is_mine());
///     assert!(lock.try_lock().is_err(), "held, even by us");
/// }
/// assert_eq!(lock.owner(), None);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Lock<S: Home = Shared> {
    pub(crate) state: S::Ref<LockState<S>>,
}

handle!(Lock<Shared>, LockState<Shared>);
lock_api!(Lock, LockState, LockGuard, "Lock", |name| LockState {
    raw: RawLock::new(),
    victim: AtomicU32::new(0),
    signal: AtomicU32::new(0),
    name: Name::new(name),
    place: AtomicU64::new(0)
});

impl<S: Home> Lock<S> {
    /// Takes the lock without a guard; [`release`](Self::release) frees it. For faces of other languages.
    ///
    /// # Errors
    ///
    /// [`WaitError`] as `patience` says.
    #[inline]
    pub fn acquire(&self, patience: Patience) -> Result<Acquired, WaitError> {
        self.acquire_as(S::token(), patience)
    }

    #[inline]
    fn acquire_as(&self, me: u32, patience: Patience) -> Result<Acquired, WaitError> {
        if self.state.raw.try_clean_as(me) {
            return Ok(Acquired::Clean);
        }
        self.acquire_slowly(me, patience, 0)
    }

    #[cold]
    fn acquire_slowly(
        &self,
        me: u32,
        patience: Patience,
        flags: u32,
    ) -> Result<Acquired, WaitError> {
        let signal = if self.state.signal.load(Ordering::Relaxed) != 0 {
            flag::SIGNAL
        } else {
            0
        };
        let _flagged = Flagged::new(flags | signal);
        let _described = describe::<S>("Lock", &self.state.name);
        self.state.raw.lock_as(me, patience)
    }

    fn acquire_guarded(&self, patience: Patience) -> Result<Acquired, WaitError> {
        match self.try_acquire() {
            Some(acquired) => Ok(acquired),
            None => self.acquire_slowly(S::token(), patience, flag::GUARDED),
        }
    }

    #[inline]
    fn clean_as(&self, me: u32) -> bool {
        self.state.raw.try_clean_as(me)
    }

    #[expect(clippy::unused_self, reason = "a recursive lock's looks at it")]
    fn is_nested(&self) -> bool {
        false
    }

    /// Not one that others than its owner free: that is a signal.
    fn is_ordered(&self) -> bool {
        self.state.signal.load(Ordering::Relaxed) == 0
    }

    #[inline]
    fn clean(&self) -> bool {
        self.state.raw.try_clean()
    }

    /// Takes the lock without a guard if it is free now.
    #[inline]
    pub fn try_acquire(&self) -> Option<Acquired> {
        self.state.raw.try_lock()
    }

    #[inline]
    fn release_as(&self, me: u32) {
        if !self.state.raw.try_unlock_as(me) {
            self.release_slowly(me);
        }
    }

    #[cold]
    fn release_slowly(&self, me: u32) {
        self.forget(me);
        self.state.raw.unlock_contended();
    }

    /// Frees the lock, whoever holds it; `false` if nobody does.
    #[must_use = "false says that the lock was free"]
    pub fn release(&self) -> bool {
        let me = S::token();
        if !self.state.raw.is_held_as(me) {
            return self.release_anothers(me);
        }
        self.state.raw.unlock_as(me);
        true
    }

    #[cold]
    fn release_anothers(&self, me: u32) -> bool {
        let held = self.state.raw.is_locked();
        if held {
            if self.state.signal.swap(1, Ordering::Relaxed) == 0 {
                forget_order(self.state.place.load(Ordering::Relaxed));
            }
            self.state.raw.unlock_as(me);
        }
        held
    }
}

/// A lock that its owner (a thread) can take again; it is free after as many releases.
///
/// ```
/// use phalanx_sync::RLock;
///
/// let lock = RLock::new()?;
/// let _outer = lock.lock().unwrap();
/// let _inner = lock.lock().unwrap();
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct RLock<S: Home = Shared> {
    state: S::Ref<RLockState<S>>,
}

handle!(RLock<Shared>, RLockState<Shared>);
lock_api!(RLock, RLockState, RLockGuard, "RLock", |name| RLockState {
    raw: RawLock::new(),
    depth: AtomicU32::new(0),
    victim: AtomicU32::new(0),
    name: Name::new(name),
    place: AtomicU64::new(0)
});

impl<S: Home> RLock<S> {
    /// Takes the lock without a guard, again if this thread has it; [`release`](Self::release) undoes it.
    ///
    /// # Errors
    ///
    /// [`WaitError`] as `patience` says.
    #[inline]
    pub fn acquire(&self, patience: Patience) -> Result<Acquired, WaitError> {
        self.acquire_as(S::token(), patience)
    }

    #[inline]
    fn acquire_as(&self, me: u32, patience: Patience) -> Result<Acquired, WaitError> {
        if self.state.raw.try_clean_as(me) || self.again() {
            return Ok(Acquired::Clean);
        }
        self.acquire_slowly(me, patience, 0)
    }

    #[cold]
    fn acquire_slowly(
        &self,
        me: u32,
        patience: Patience,
        flags: u32,
    ) -> Result<Acquired, WaitError> {
        let _flagged = Flagged::new(flags);
        let _described = describe::<S>("RLock", &self.state.name);
        self.state
            .raw
            .lock_as(me, patience)
            .map(|acquired| self.first(acquired))
    }

    fn acquire_guarded(&self, patience: Patience) -> Result<Acquired, WaitError> {
        match self.try_acquire() {
            Some(acquired) => Ok(acquired),
            None => self.acquire_slowly(S::token(), patience, flag::GUARDED),
        }
    }

    #[inline]
    fn clean_as(&self, me: u32) -> bool {
        self.state.raw.try_clean_as(me) || self.again()
    }

    /// Not to take it again.
    fn is_ordered(&self) -> bool {
        !self.state.raw.is_mine()
    }

    /// Tells whether its owner has it more than once.
    fn is_nested(&self) -> bool {
        self.state.depth.load(Ordering::Relaxed) > 0
    }

    #[inline]
    fn clean(&self) -> bool {
        self.state.raw.try_clean() || self.again()
    }

    /// Takes the lock without a guard if it is free now or this thread's.
    #[inline]
    pub fn try_acquire(&self) -> Option<Acquired> {
        if self.again() {
            return Some(Acquired::Clean);
        }
        self.state
            .raw
            .try_lock()
            .map(|acquired| self.first(acquired))
    }

    #[inline]
    fn again(&self) -> bool {
        let mine = self.state.raw.is_mine();
        if mine {
            let depth = self.state.depth.load(Ordering::Relaxed);
            self.state.depth.store(depth + 1, Ordering::Relaxed);
        }
        mine
    }

    #[inline]
    fn first(&self, acquired: Acquired) -> Acquired {
        if acquired == Acquired::OwnerDied {
            // The dead one's depth died with it.
            self.state.depth.store(0, Ordering::Relaxed);
        }
        acquired
    }

    #[inline]
    fn release_as(&self, me: u32) {
        match self.state.depth.load(Ordering::Relaxed) {
            0 if self.state.raw.try_unlock_as(me) => {}
            0 => self.release_slowly(me),
            depth => self.state.depth.store(depth - 1, Ordering::Relaxed),
        }
    }

    #[cold]
    fn release_slowly(&self, me: u32) {
        self.forget(me);
        self.state.raw.unlock_contended();
    }

    /// Undoes one acquisition; `false` if the calling thread does not hold the lock.
    #[must_use = "false says that the lock is not this thread's"]
    pub fn release(&self) -> bool {
        let me = S::token();
        let mine = self.state.raw.is_held_as(me);
        if mine {
            self.release_as(me);
        }
        mine
    }

    /// Returns how often the calling thread holds the lock.
    #[must_use]
    pub fn depth(&self) -> u32 {
        if self.is_mine() {
            self.state.depth.load(Ordering::Relaxed) + 1
        } else {
            0
        }
    }

    /// Frees the lock altogether and returns how often this thread held it, for a condition's wait.
    #[must_use]
    pub fn release_all(&self) -> u32 {
        let depth = self.depth();
        if depth > 0 {
            self.state.depth.store(0, Ordering::Relaxed);
            self.state.raw.unlock();
        }
        depth
    }

    /// Takes the lock as often as [`release_all`](Self::release_all) said.
    ///
    /// # Errors
    ///
    /// [`WaitError`] as `patience` says.
    pub fn acquire_all(&self, depth: u32, patience: Patience) -> Result<Acquired, WaitError> {
        let acquired = self.acquire(patience)?;
        self.state
            .depth
            .store(depth.saturating_sub(1), Ordering::Relaxed);
        Ok(acquired)
    }
}

/// Has a lock for a few instructions; see [`Lock::brief`] and [`RLock::brief`].
#[must_use = "the lock is free again as soon as the guard is dropped"]
#[derive(Debug)]
pub struct Brief<'a, S: Home = Shared> {
    raw: &'a RawLock<S>,
    /// What it was locked with; 0 if the thread had it before.
    token: u32,
    // The owner in the word is a thread.
    thread: PhantomData<*const ()>,
}

impl<S: Home> Drop for Brief<'_, S> {
    #[inline]
    fn drop(&mut self) {
        if self.token != 0 {
            self.raw.unlock_as(self.token);
        }
    }
}

impl<S: Home> Lock<S> {
    /// Takes the lock for a few instructions if it is free now and its last owner did not die.
    #[inline]
    pub fn brief(&self) -> Option<Brief<'_, S>> {
        let (raw, token) = (&self.state.raw, S::token());
        raw.try_clean_as(token).then_some(Brief {
            raw,
            token,
            thread: PhantomData,
        })
    }
}

impl<S: Home> RLock<S> {
    /// Takes the lock for a few instructions if it is this thread's, or free now and its last owner did not die. Nothing in
    /// between may acquire or release it.
    #[inline]
    pub fn brief(&self) -> Option<Brief<'_, S>> {
        let (raw, me) = (&self.state.raw, S::token());
        let token = if raw.is_held_as(me) {
            0
        } else if raw.try_clean_as(me) {
            me
        } else {
            return None;
        };
        Some(Brief {
            raw,
            token,
            thread: PhantomData,
        })
    }
}

/// Something a [`Condition`](crate::Condition) can let go while it waits.
pub trait Releasable {
    /// Frees it and returns what it takes to have it again.
    fn let_go(&self) -> u32;
    /// Has it again. Returns `true` if its owner died meanwhile.
    fn have_again(&self, how: u32) -> bool;
    /// Tells whether nobody has it at this moment. A hint: who was notified looks for a while before it queues behind its
    /// notifier.
    fn is_free(&self) -> bool {
        true
    }
}

impl<S: Home> Releasable for LockGuard<'_, S> {
    fn let_go(&self) -> u32 {
        self.lock.suspend(self.token);
        self.lock.release_as(self.token & !NOTED);
        1
    }

    fn have_again(&self, _: u32) -> bool {
        self.lock.orders_again(self.token);
        let acquired = self.lock.state.raw.lock_forever();
        self.lock.resume(self.token);
        acquired == Acquired::OwnerDied
    }

    fn is_free(&self) -> bool {
        !self.lock.is_locked()
    }
}

impl<S: Home> Releasable for RLockGuard<'_, S> {
    fn let_go(&self) -> u32 {
        self.lock.suspend(self.token);
        self.lock.release_all()
    }

    fn have_again(&self, how: u32) -> bool {
        self.lock.orders_again(self.token);
        let acquired = self.lock.acquire_all(how, Patience::FOREVER);
        self.lock.resume(self.token);
        acquired == Ok(Acquired::OwnerDied)
    }

    fn is_free(&self) -> bool {
        !self.lock.is_locked()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;

    const ROUNDS: u32 = if cfg!(miri) { 15 } else { 5_000 };

    /// A number that is only right if one thread at a time is at it.
    struct Plain(Cell<u32>);

    // SAFETY: the tests touch it with their lock held.
    unsafe impl Sync for Plain {}

    impl Plain {
        fn count(&self) {
            let now = self.0.get();
            std::thread::yield_now();
            self.0.set(now + 1);
        }
    }

    fn lock_guards<S: Home>(lock: &Lock<S>) {
        let _dog = phalanx_testkit::watchdog(Duration::from_secs(100));
        let plain = Plain(Cell::new(0));
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    let plain = &plain;
                    for _ in 0..ROUNDS {
                        let guard = lock.lock().unwrap();
                        plain.count();
                        drop(guard);
                    }
                });
            }
        });
        assert_eq!(plain.0.get(), 2 * ROUNDS);
        assert!(!lock.is_locked());
    }

    #[test]
    fn a_private_lock_guards_plain_memory() {
        lock_guards(&Lock::local());
    }

    #[test]
    fn a_shared_lock_guards_plain_memory() {
        lock_guards(&Lock::new().unwrap());
    }

    #[test]
    fn a_recursive_lock_is_let_go_by_its_last_guard() {
        let _dog = phalanx_testkit::watchdog(Duration::from_secs(100));
        let lock = RLock::new().unwrap();
        let plain = Plain(Cell::new(0));
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    let plain = &plain;
                    for _ in 0..ROUNDS {
                        let outer = lock.lock().unwrap();
                        let inner = lock.lock().unwrap();
                        assert_eq!(lock.depth(), 2);
                        drop(inner);
                        plain.count();
                        drop(outer);
                    }
                });
            }
        });
        assert_eq!(plain.0.get(), 2 * ROUNDS);
        assert_eq!(lock.depth(), 0);
    }

    #[test]
    fn a_held_lock_names_its_owner() {
        let lock = Lock::named("till").unwrap();
        let guard = lock.lock().unwrap();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let refused = lock.try_lock();
                assert!(matches!(
                    refused,
                    Err(LockError::TimedOut { owner: Some(_) })
                ));
            });
        });
        assert!(lock.is_mine());
        assert_eq!(lock.name(), "till");
        drop(guard);
        assert!(lock.try_lock().is_ok());
    }
}
