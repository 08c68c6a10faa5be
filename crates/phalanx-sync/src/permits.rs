//! Permits for faces of other languages: a semaphore that is as quick as a bare counter, and follows who holds what.
//!
//! The value is one word. Beside it each process has a line with what it holds, which only it writes:
//!
//! | acquire | killed after it |
//! |---|---|
//! | value − 1 | this permit does not come back |
//! | my line + 1 | it comes back |
//!
//! | release | killed after it |
//! |---|---|
//! | my line − 1 | this permit does not come back |
//! | value + 1, wake | it is back; the waiters are woken by the sweep (the gate is in the interest list) |
//!
//! So a death between two instructions may cost a permit, and never makes one. [`Semaphore`](crate::Semaphore) loses none,
//! at the price of a lock around each step. Whether permits are held at all is found out: from the moment on at which a
//! process gives back what it does not hold, the semaphore is a signal, and nothing comes back by itself.
//!
//! A line has two counts: one for callers who exclude each other by other means (the lock of an interpreter) and need no
//! atomic addition, one for all others.
#![expect(unsafe_code, reason = "the marker of what may be placed in the arena")]

use std::fmt;

use phalanx_prim::{AtomicU32, Ordering, points};
use phalanx_shm::{Brief, Kind, KindOps, Patience, Shared, WaitError, current_slot, register_kind};

use crate::Gate;
use crate::handle::handle;
use crate::home::{CreateError, Object, placed};
use crate::semaphore::{OverRelease, SEMAPHORE_MOST};

/// Most processes whose permits are followed.
const LINES: usize = 80;

#[derive(Debug)]
#[repr(C)]
struct Line {
    /// Whose it is; 0 for nobody's.
    slot: AtomicU32,
    alone: AtomicU32,
    shared: AtomicU32,
}

/// What permits are made of.
#[derive(Debug)]
#[repr(C)]
pub struct PermitsState {
    value: AtomicU32,
    most: AtomicU32,
    gate: Gate<Shared>,
    /// 1 once somebody gave back what it did not hold.
    signal: AtomicU32,
    lines: [Line; LINES],
}
placed!(PermitsState, Permits);

pub(crate) fn install() {
    register_kind(
        Kind::Permits,
        KindOps {
            recover: |arena, block, dead, wake_all| {
                if let Ok(permits) = arena.view::<PermitsState>(block) {
                    permits.holder_died(dead);
                    if wake_all {
                        permits.gate.rouse();
                    }
                }
            },
            destroy: |_, _| {},
        },
    );
}

impl PermitsState {
    #[inline]
    fn take(&self) -> bool {
        let mut now = self.value.load(Ordering::Relaxed);
        while now > 0 {
            // Acquire: pairs with the Release of `put`.
            match self.value.compare_exchange_weak(
                now,
                now - 1,
                Ordering::Acquire,
                Ordering::Relaxed,
            ) {
                Ok(_) => return true,
                Err(seen) => now = seen,
            }
        }
        false
    }

    #[inline]
    fn put(&self) -> bool {
        let most = self.most.load(Ordering::Relaxed);
        let mut now = self.value.load(Ordering::Relaxed);
        while now < most {
            match self.value.compare_exchange_weak(
                now,
                now + 1,
                Ordering::Release,
                Ordering::Relaxed,
            ) {
                Ok(_) => return true,
                Err(seen) => now = seen,
            }
        }
        false
    }

    #[inline]
    fn is_signal(&self) -> bool {
        self.signal.load(Ordering::Relaxed) != 0
    }

    /// Returns this process's line, looking first where it was the last time.
    #[inline]
    fn line(&self, hint: &AtomicU32) -> Option<&Line> {
        let slot = u32::from(current_slot());
        let line = &self.lines[hint.load(Ordering::Relaxed) as usize % LINES];
        if line.slot.load(Ordering::Relaxed) == slot {
            return Some(line);
        }
        self.find_line(hint, slot)
    }

    #[cold]
    fn find_line(&self, hint: &AtomicU32, slot: u32) -> Option<&Line> {
        let mine = |line: &&Line| line.slot.load(Ordering::Relaxed) == slot;
        let found = self.lines.iter().find(mine).or_else(|| {
            self.lines.iter().find(|line| {
                line.slot
                    .compare_exchange(0, slot, Ordering::AcqRel, Ordering::Relaxed)
                    .is_ok()
                    || mine(line)
            })
        });
        match found {
            Some(line) => {
                let offset = std::ptr::from_ref(line) as usize - self.lines.as_ptr() as usize;
                hint.store((offset / size_of::<Line>()) as u32, Ordering::Relaxed);
            }
            // Too many processes to follow: it cannot be known any more who holds what.
            None => self.signal.store(1, Ordering::Relaxed),
        }
        found
    }

    fn holder_died(&self, dead: u16) {
        for line in &self.lines {
            if line.slot.load(Ordering::Relaxed) != u32::from(dead) {
                continue;
            }
            // First: a sweeper that dies here costs permits; the other order would make some.
            let held = line.held();
            line.alone.store(0, Ordering::Relaxed);
            line.shared.store(0, Ordering::Relaxed);
            line.slot.store(0, Ordering::Release);
            if !self.is_signal() {
                for _ in 0..held.max(0) {
                    self.put();
                }
                self.gate.notify_all();
            }
        }
    }
}

impl Line {
    /// Each count alone may be below zero: what was taken by one way can be given back by the other.
    fn held(&self) -> i32 {
        self.alone
            .load(Ordering::Relaxed)
            .wrapping_add(self.shared.load(Ordering::Relaxed))
            .cast_signed()
    }
}

/// A number of permits that processes take and give back without guards. See the module's head for what a death does.
///
/// ```
/// use phalanx_sync::{Patience, Permits};
///
/// let permits = Permits::new(2, 2)?;
/// permits.acquire(Patience::FOREVER).unwrap();
/// permits.release()?;
/// assert!(permits.release().is_err());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Permits {
    state: Object<PermitsState>,
}

/// Where this process's line was the last time; the caller's to keep, one for each handle.
#[derive(Debug, Default)]
pub struct Hint(AtomicU32);

handle!(Permits, PermitsState);

impl Permits {
    /// Makes some with `value` permits and never more than `most`. With a value of 0 it is a signal: there is nothing to hold
    /// before somebody adds a permit.
    ///
    /// # Errors
    ///
    /// [`CreateError`] when shared memory is short or a number is larger than [`SEMAPHORE_MOST`].
    pub fn new(value: u32, most: u32) -> Result<Self, CreateError> {
        if value.max(most) > SEMAPHORE_MOST {
            return Err(CreateError::Invalid {
                what: "a semaphore with a value",
                given: u64::from(value.max(most)),
                instead: "it counts to 2,147,483,647",
            });
        }
        let state = PermitsState {
            value: AtomicU32::new(value),
            most: AtomicU32::new(most),
            gate: Gate::new(),
            signal: AtomicU32::new(u32::from(value == 0)),
            lines: std::array::from_fn(|_| Line {
                slot: AtomicU32::new(0),
                alone: AtomicU32::new(0),
                shared: AtomicU32::new(0),
            }),
        };
        Ok(Self {
            state: Object::new(state)?,
        })
    }

    /// Takes a permit if there is one now.
    ///
    /// Those who use the functions with a [`Hint`] must exclude each other within this process, or counts go wrong.
    #[inline]
    #[must_use = "false says that there was none"]
    pub fn try_acquire_alone(&self, hint: &Hint) -> bool {
        let state = &*self.state;
        if !state.take() {
            return false;
        }
        points::point("permits.taken");
        if !state.is_signal()
            && let Some(line) = state.line(&hint.0)
        {
            let held = line.alone.load(Ordering::Relaxed);
            line.alone.store(held.wrapping_add(1), Ordering::Relaxed);
        }
        true
    }

    /// Adds a permit: one that this process holds, or a signal. See [`try_acquire_alone`](Self::try_acquire_alone).
    ///
    /// # Errors
    ///
    /// [`OverRelease`] when the value is at its largest already.
    #[inline]
    pub fn release_alone(&self, hint: &Hint) -> Result<(), OverRelease> {
        let state = &*self.state;
        let line = if state.is_signal() {
            None
        } else {
            state.line(&hint.0)
        };
        if let Some(line) = line {
            if line.held() <= 0 {
                state.signal.store(1, Ordering::Relaxed);
            }
            let held = line.alone.load(Ordering::Relaxed);
            line.alone.store(held.wrapping_sub(1), Ordering::Relaxed);
        }
        if self.give() {
            return Ok(());
        }
        if let Some(line) = line {
            let held = line.alone.load(Ordering::Relaxed);
            line.alone.store(held.wrapping_add(1), Ordering::Relaxed);
        }
        Err(self.over())
    }

    /// Blocks until there is a permit and takes it.
    ///
    /// # Errors
    ///
    /// [`WaitError`] as `patience` says.
    pub fn acquire(&self, patience: Patience) -> Result<(), WaitError> {
        let state = &*self.state;
        state
            .gate
            .wait_until(patience, || state.take().then_some(()))?;
        points::point("permits.taken");
        if !state.is_signal()
            && let Some(line) = state.line(&AtomicU32::new(0))
        {
            line.shared.fetch_add(1, Ordering::Relaxed);
        }
        Ok(())
    }

    /// Adds a permit: one that this process holds, or a signal.
    ///
    /// # Errors
    ///
    /// [`OverRelease`] when the value is at its largest already.
    pub fn release(&self) -> Result<(), OverRelease> {
        let state = &*self.state;
        let line = if state.is_signal() {
            None
        } else {
            state.line(&AtomicU32::new(0))
        };
        if let Some(line) = line {
            if line.held() <= 0 {
                state.signal.store(1, Ordering::Relaxed);
            }
            line.shared.fetch_sub(1, Ordering::Relaxed);
        }
        if self.give() {
            return Ok(());
        }
        if let Some(line) = line {
            line.shared.fetch_add(1, Ordering::Relaxed);
        }
        Err(self.over())
    }

    #[inline]
    fn give(&self) -> bool {
        let state = &*self.state;
        points::point("permits.giving");
        let _owed = state
            .gate
            .may_have_sleepers()
            .then(|| Brief::of(state.gate.word()));
        let given = state.put();
        if given {
            state.gate.notify_after_unlock(1);
        }
        given
    }

    #[cold]
    fn over(&self) -> OverRelease {
        OverRelease {
            bound: self.state.most.load(Ordering::Relaxed),
        }
    }

    /// Returns how many permits there are at this moment.
    #[must_use]
    pub fn value(&self) -> u32 {
        self.state.value.load(Ordering::Relaxed)
    }
}

impl Clone for Permits {
    /// Makes another handle on the same permits.
    fn clone(&self) -> Self {
        Self {
            state: self.state.clone(),
        }
    }
}

impl fmt::Debug for Permits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Permits")
            .field("value", &self.value())
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_given_back_without_being_held_makes_a_signal() {
        let permits = Permits::new(1, 5).unwrap();
        let hint = Hint::default();
        assert!(permits.try_acquire_alone(&hint));
        assert!(!permits.try_acquire_alone(&hint));
        permits.release_alone(&hint).unwrap();
        assert!(!permits.state.is_signal());
        permits.release_alone(&hint).unwrap();
        assert!(permits.state.is_signal());
        assert_eq!(permits.value(), 2);
    }

    #[test]
    fn permits_of_a_dead_process_come_back_once() {
        let permits = Permits::new(3, 3).unwrap();
        let hint = Hint::default();
        assert!(permits.try_acquire_alone(&hint));
        permits.acquire(Patience::FOREVER).unwrap();
        let slot = current_slot();
        permits.state.holder_died(slot + 1);
        assert_eq!(permits.value(), 1);
        permits.state.holder_died(slot);
        permits.state.holder_died(slot);
        assert_eq!(permits.value(), 3);
        assert_eq!(permits.release(), Err(OverRelease { bound: 3 }));
    }

    #[test]
    fn a_release_too_many_changes_nothing() {
        let permits = Permits::new(1, 1).unwrap();
        assert!(permits.release().is_err());
        permits.acquire(Patience::FOREVER).unwrap();
        assert_eq!(permits.value(), 0);
        permits.release().unwrap();
        assert_eq!(permits.value(), 1);
    }
}
