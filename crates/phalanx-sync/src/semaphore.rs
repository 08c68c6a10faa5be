//! `Semaphore` and `BoundedSemaphore`.
//!
//! The count, and who holds permits, change under one robust lock. A change notes the old values first:
//!
//! | step | killed after it |
//! |---|---|
//! | note value, entry, old entry; arm | next owner of the lock writes the old values back: nothing happened |
//! | change value, change entry | the same |
//! | disarm | it happened |
//! | notify, unlock | the next owner notifies all |
//!
//! Permits that a dead process held come back. Those of a bare `acquire` belong to nobody: a semaphore may be a signal.
#![expect(unsafe_code, reason = "the marker of what may be placed in the arena")]

use std::fmt;
use std::time::Duration;

use phalanx_prim::{Arc, AtomicU32, AtomicU64, Ordering, points};
use phalanx_shm::{
    Acquired, Kind, KindOps, Local, Patience, RawLock, Shared, WaitError, current_slot,
    register_kind,
};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::Gate;
use crate::handle::handle;
use crate::holders::{Holders, MOST};
use crate::home::{CreateError, Home, Object, placed};

/// The largest count of a semaphore.
pub const SEMAPHORE_MOST: u32 = i32::MAX as u32;

/// What a semaphore is made of.
#[derive(Debug)]
#[repr(C)]
pub struct SemaphoreState<S> {
    raw: RawLock<S>,
    value: AtomicU32,
    /// The largest value, 0 for any.
    bound: AtomicU32,
    gate: Gate<S>,
    armed: AtomicU32,
    was_value: AtomicU32,
    entry: AtomicU32,
    reserved: AtomicU32,
    was_entry: AtomicU64,
    holders: Holders,
}
placed!(SemaphoreState<S>, Semaphore, S);

pub(crate) fn install() {
    register_kind(
        Kind::Semaphore,
        KindOps {
            recover: |arena, block, dead, wake_all| {
                if let Ok(semaphore) = arena.view::<SemaphoreState<Shared>>(block) {
                    semaphore.holder_died(dead);
                    if wake_all {
                        semaphore.gate.rouse();
                        semaphore.raw.wake_all();
                    }
                }
            },
            destroy: |_, _| {},
        },
    );
}

impl<S: Home> SemaphoreState<S> {
    fn new(value: u32, bound: u32) -> Self {
        Self {
            raw: RawLock::new(),
            value: AtomicU32::new(value),
            bound: AtomicU32::new(bound),
            gate: Gate::new(),
            armed: AtomicU32::new(0),
            was_value: AtomicU32::new(0),
            entry: AtomicU32::new(0),
            reserved: AtomicU32::new(0),
            was_entry: AtomicU64::new(0),
            holders: Holders::new(),
        }
    }

    fn lock(&self) {
        if self.raw.lock_forever() == Acquired::OwnerDied {
            if self.armed.load(Ordering::Acquire) != 0 {
                self.value
                    .store(self.was_value.load(Ordering::Relaxed), Ordering::Relaxed);
                let entry = self.entry.load(Ordering::Relaxed) as usize;
                if entry < MOST {
                    self.holders
                        .write(entry, self.was_entry.load(Ordering::Relaxed));
                }
                self.armed.store(0, Ordering::Release);
            }
            self.gate.notify_all();
        }
    }

    /// Changes value and entry together. The lock is held.
    fn change(&self, value: u32, entry: Option<(usize, u64)>) {
        self.was_value
            .store(self.value.load(Ordering::Relaxed), Ordering::Relaxed);
        let index = entry.map_or(MOST, |(index, _)| index);
        self.entry.store(index as u32, Ordering::Relaxed);
        if let Some((index, _)) = entry {
            self.was_entry
                .store(self.holders.read(index), Ordering::Relaxed);
        }
        // Release: the note is complete; a process dies between two instructions, with the earlier stores done.
        self.armed.store(1, Ordering::Release);
        points::point("semaphore.armed");
        self.value.store(value, Ordering::Release);
        points::point("semaphore.changed");
        if let Some((index, now)) = entry {
            self.holders.write(index, now);
        }
        self.armed.store(0, Ordering::Release);
        points::point("semaphore.disarmed");
    }

    fn mine(&self, tracked: bool, by: i64) -> Option<(usize, u64)> {
        if !tracked || S::WAIT == phalanx_prim::Scope::Private {
            return None;
        }
        let slot = current_slot();
        let index = self.holders.find(slot)?;
        Some((index, self.holders.changed(index, slot, by)))
    }

    fn try_take(&self, tracked: bool) -> bool {
        if self.value.load(Ordering::Relaxed) == 0 {
            return false;
        }
        self.lock();
        let value = self.value.load(Ordering::Relaxed);
        if value > 0 {
            self.change(value - 1, self.mine(tracked, 1));
        }
        self.raw.unlock();
        value > 0
    }

    fn acquire(&self, tracked: bool, patience: Patience) -> Result<(), WaitError> {
        if self.try_take(tracked) {
            return Ok(());
        }
        self.gate
            .wait_until(patience, || self.try_take(tracked).then_some(()))
    }

    /// Adds `count`; `false` if that would exceed the bound.
    fn release(&self, count: u32, tracked: bool) -> bool {
        self.lock();
        let value = self.value.load(Ordering::Relaxed);
        let most = match self.bound.load(Ordering::Relaxed) {
            0 => SEMAPHORE_MOST,
            bound => bound,
        };
        let fits = value.checked_add(count).filter(|sum| *sum <= most);
        if let Some(sum) = fits {
            self.change(sum, self.mine(tracked, -i64::from(count)));
            self.gate.notify(count);
        }
        self.raw.unlock();
        fits.is_some()
    }

    fn untrack(&self) {
        self.lock();
        self.change(self.value.load(Ordering::Relaxed), self.mine(true, -1));
        self.raw.unlock();
    }

    fn holder_died(&self, dead: u16) {
        self.lock();
        if let Some((index, count)) = self.holders.of(dead) {
            let value = self.value.load(Ordering::Relaxed).saturating_add(count);
            let most = match self.bound.load(Ordering::Relaxed) {
                0 => SEMAPHORE_MOST,
                bound => bound,
            };
            self.change(value.min(most), Some((index, 0)));
            self.gate.notify_all();
        }
        self.raw.unlock();
    }
}

/// A release that would exceed the bound: there were more releases than acquisitions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "released more often than acquired: the semaphore's value is {bound} already; release once per acquisition"
)]
pub struct OverRelease {
    /// The largest value.
    pub bound: u32,
}

macro_rules! semaphore {
    ($Semaphore:ident, $label:literal, $bounded:expr, $(#[$doc:meta])*) => {
        $(#[$doc])*
        pub struct $Semaphore<S: Home = Shared> {
            state: S::Ref<SemaphoreState<S>>,
        }

        handle!($Semaphore<Shared>, SemaphoreState<Shared>);

        impl $Semaphore<Shared> {
            /// Makes one with `value` permits that any process of the tree can use.
            ///
            /// # Errors
            ///
            /// [`CreateError`] when shared memory is short or `value` is larger than [`SEMAPHORE_MOST`].
            pub fn new(value: u32) -> Result<Self, CreateError> {
                check(value)?;
                Ok(Self { state: Object::new(SemaphoreState::new(value, bound($bounded, value)))? })
            }
        }

        impl $Semaphore<Local> {
            /// Makes one with `value` permits for the threads of this process.
            ///
            /// # Panics
            ///
            /// If `value` is larger than [`SEMAPHORE_MOST`].
            #[must_use]
            pub fn local(value: u32) -> Self {
                assert!(value <= SEMAPHORE_MOST, "a semaphore counts to {SEMAPHORE_MOST}");
                Self { state: Arc::new(SemaphoreState::new(value, bound($bounded, value))) }
            }
        }

        impl<S: Home> $Semaphore<S> {
            /// Blocks until there is a permit and takes it. The permit comes back when it is dropped, or when this process
            /// dies (of up to 120 processes that hold permits at once).
            ///
            /// # Panics
            ///
            /// With the deadlock as its payload, if the wait could never end and somebody wants such waits to fail;
            /// [`acquire_with`](Self::acquire_with) returns it.
            #[track_caller]
            pub fn acquire(&self) -> Permit<'_, S> {
                match self.state.acquire(true, Patience::or_panic()) {
                    Ok(()) => Permit { state: &self.state },
                    Err(_) => unreachable!("an endless wait ended"),
                }
            }

            /// As [`acquire`](Self::acquire), as `patience` says.
            ///
            /// # Errors
            ///
            /// [`WaitError`] as `patience` says.
            pub fn acquire_with(&self, patience: Patience) -> Result<Permit<'_, S>, WaitError> {
                self.state.acquire(true, patience)?;
                Ok(Permit { state: &self.state })
            }

            /// Takes a permit within `timeout`.
            #[must_use]
            #[track_caller]
            pub fn acquire_timeout(&self, timeout: Duration) -> Option<Permit<'_, S>> {
                self.state.acquire(true, Patience::timeout(timeout).here()).is_ok().then(|| Permit { state: &self.state })
            }

            /// Takes a permit if there is one now.
            #[must_use]
            pub fn try_acquire(&self) -> Option<Permit<'_, S>> {
                self.state.try_take(true).then(|| Permit { state: &self.state })
            }

            /// Takes a permit without a guard; it belongs to nobody and does not come back with a death.
            ///
            /// # Errors
            ///
            /// [`WaitError`] as `patience` says.
            pub fn acquire_raw(&self, patience: Patience) -> Result<(), WaitError> {
                self.state.acquire(false, patience)
            }

            /// Adds a permit.
            ///
            /// # Errors
            ///
            /// [`OverRelease`] when the value is at its largest already.
            pub fn release(&self) -> Result<(), OverRelease> {
                self.release_many(1)
            }

            /// Adds `count` permits, or none.
            ///
            /// # Errors
            ///
            /// [`OverRelease`] when they would not all fit.
            pub fn release_many(&self, count: u32) -> Result<(), OverRelease> {
                if self.state.release(count, false) {
                    return Ok(());
                }
                let bound = self.state.bound.load(Ordering::Relaxed);
                Err(OverRelease { bound: if bound == 0 { SEMAPHORE_MOST } else { bound } })
            }

            /// Returns how many permits there are at this moment.
            #[must_use]
            pub fn value(&self) -> u32 {
                self.state.value.load(Ordering::Relaxed)
            }
        }

        impl<S: Home> Clone for $Semaphore<S> {
            /// Makes another handle on the same semaphore.
            fn clone(&self) -> Self {
                Self { state: self.state.clone() }
            }
        }

        impl<S: Home> fmt::Debug for $Semaphore<S> {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.debug_struct($label).field("value", &self.value()).finish()
            }
        }

        impl Serialize for $Semaphore<Shared> {
            fn serialize<Z: Serializer>(&self, serializer: Z) -> Result<Z::Ok, Z::Error> {
                self.state.serialize(serializer)
            }
        }

        impl<'de> Deserialize<'de> for $Semaphore<Shared> {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                Object::deserialize(deserializer).map(|state| Self { state })
            }
        }
    };
}

fn bound(bounded: bool, value: u32) -> u32 {
    if bounded { value.max(1) } else { 0 }
}

fn check(value: u32) -> Result<(), CreateError> {
    if value <= SEMAPHORE_MOST {
        return Ok(());
    }
    let instead = "it counts to 2,147,483,647";
    Err(CreateError::Invalid {
        what: "a semaphore with a value",
        given: u64::from(value),
        instead,
    })
}

semaphore! {
    Semaphore, "Semaphore", false,
    /// A number of permits that threads and processes take and give back.
    ///
    /// ```
    /// use phalanx_sync::Semaphore;
    ///
    /// let seats = Semaphore::new(2)?;
    /// let _one = seats.acquire();
    /// let _two = seats.acquire();
    /// assert!(seats.try_acquire().is_none());
    /// # Ok::<(), phalanx_sync::CreateError>(())
    /// ```
}

semaphore! {
    BoundedSemaphore, "BoundedSemaphore", true,
    /// A semaphore whose value never exceeds the one it was made with: a release too many is an error.
    ///
    /// ```
    /// use phalanx_sync::BoundedSemaphore;
    ///
    /// let seats = BoundedSemaphore::local(1);
    /// assert!(seats.release().is_err());
    /// ```
}

/// A permit of a semaphore; given back on drop.
///
/// ```
/// use phalanx_sync::Semaphore;
///
/// let seats = Semaphore::local(1);
/// let permit = seats.acquire();
/// assert_eq!(seats.value(), 0);
/// drop(permit);
/// assert_eq!(seats.value(), 1);
/// ```
#[must_use = "the permit goes back as soon as it is dropped"]
pub struct Permit<'a, S: Home = Shared> {
    state: &'a SemaphoreState<S>,
}

impl<S: Home> Permit<'_, S> {
    /// Keeps the permit for good: somebody else gives it back with `release`.
    pub fn forget(self) {
        self.state.untrack();
        std::mem::forget(self);
    }
}

impl<S: Home> Drop for Permit<'_, S> {
    fn drop(&mut self) {
        self.state.release(1, true);
    }
}

impl<S: Home> fmt::Debug for Permit<'_, S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Permit")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use phalanx_prim::AtomicU32;

    const ROUNDS: u32 = if cfg!(miri) { 10 } else { 5_000 };

    fn never_more_than_two<S: Home>(seats: &Semaphore<S>) {
        let _dog = phalanx_testkit::watchdog(Duration::from_secs(100));
        let (inside, most) = (AtomicU32::new(0), AtomicU32::new(0));
        std::thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| {
                    for _ in 0..ROUNDS {
                        let permit = seats.acquire();
                        let now = inside.fetch_add(1, Ordering::Relaxed) + 1;
                        most.fetch_max(now, Ordering::Relaxed);
                        std::thread::yield_now();
                        inside.fetch_sub(1, Ordering::Relaxed);
                        drop(permit);
                    }
                });
            }
        });
        assert!((1..=2).contains(&most.load(Ordering::Relaxed)));
        assert_eq!(seats.value(), 2);
    }

    #[test]
    fn threads_share_private_permits() {
        never_more_than_two(&Semaphore::local(2));
    }

    #[test]
    fn threads_share_permits_in_the_arena() {
        never_more_than_two(&Semaphore::new(2).unwrap());
    }

    #[test]
    fn a_bounded_one_takes_no_more_than_it_gave() {
        let seats = BoundedSemaphore::new(1).unwrap();
        let permit = seats.acquire();
        assert!(seats.acquire_timeout(Duration::from_millis(2)).is_none());
        drop(permit);
        assert!(seats.release().is_err());
        seats.acquire().forget();
        assert_eq!(seats.value(), 0);
        seats.release().unwrap();
        assert!(seats.try_acquire().is_some());
    }
}
