//! What an explorer (loom or shuttle) sees of the machine: atomics, a wait, processes that die, and faults.
//!
//! The engine's structures live in zeroed or reused bytes, so a modelled atomic has the size of the real one and is valid
//! in any bytes. Under shuttle it *is* the real one, with a point before each operation at which another thread may run:
//! shuttle explores orders, not weak memory. Under loom it becomes the name of one of loom's atomics when it is first used.
//!
//! A modelled thread is a thread of a modelled process ([`be`]). It can be told to die at a named point ([`die_at`]): from
//! then on nothing it does has an effect, and it is unwound to [`living`]. What a kill leaves behind is so exactly what the
//! dead one had stored.
//!
//! Each protocol also has models that must fail, so that we know that the net catches fish. They run the real code on a
//! machine that is broken in one way, a [`Fault`].

#[cfg(phalanx_loom)]
#[path = "loom.rs"]
mod machine;
#[cfg(not(phalanx_loom))]
#[path = "shuttle.rs"]
mod machine;

use crate::Me;
use std::cell::RefCell;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

pub use machine::{
    Arc, AtomicU32, AtomicU64, Mutex, MutexGuard, UnsafeCell, Word, fence, hint, thread,
};
// Flags of one process; no modelled protocol has one.
pub use std::sync::atomic::{AtomicBool, Ordering};

/// What is broken about the machine, in models that must fail.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Fault {
    /// Nothing.
    #[default]
    None,
    /// A compare-exchange is a load and a store, and others come in between.
    TornExchange,
    /// A wake wakes nobody.
    LostWakes,
    /// A wake wakes one, however many it should wake.
    OneWake,
    /// Fences order nothing. Loom only.
    NoFences,
    /// Every ordering is relaxed. Loom only.
    Relaxed,
}

#[derive(Default)]
struct World {
    fault: Fault,
    /// Threads that died and are being unwound.
    dying: u32,
    people: Vec<Person>,
}

struct Person {
    thread: machine::ThreadId,
    me: Me,
    dead: bool,
    // The point to die at, and after how many passes.
    armed: Option<(&'static str, u32)>,
}

thread_local! {
    // Explorers run all modelled threads on one thread of the system, so this is the state of one execution.
    static WORLD: RefCell<World> = RefCell::default();
}

/// Begins an execution on a machine with this fault. The first thing a model does.
pub fn begin(fault: Fault) {
    WORLD.with_borrow_mut(|world| {
        *world = World {
            fault,
            dying: 0,
            people: Vec::new(),
        };
    });
    machine::begin();
}

fn fault() -> Fault {
    WORLD.with_borrow(|world| world.fault)
}

fn person<R>(look: impl FnOnce(&mut Person) -> R) -> R {
    let thread = machine::current();
    WORLD.with_borrow_mut(|world| {
        let known = world.people.iter().position(|one| one.thread == thread);
        let at = known.unwrap_or_else(|| {
            let ordinal = world.people.len() as u16 + 1;
            world.people.push(Person {
                thread,
                me: Me { slot: 1, ordinal },
                dead: false,
                armed: None,
            });
            world.people.len() - 1
        });
        look(&mut world.people[at])
    })
}

/// Returns who the calling thread is: a thread of process 1 unless it said otherwise.
#[must_use]
pub fn modelled() -> Option<Me> {
    if is_over() {
        return Some(Me {
            slot: 1,
            ordinal: 1,
        });
    }
    Some(person(|one| one.me))
}

/// Makes the calling thread one of the process in this slot.
pub fn be(slot: u16) {
    person(|one| one.me.slot = slot);
}

/// Tells the calling thread to die when it passes this point for the `nth` time.
pub fn die_at(point: &'static str, nth: u32) {
    person(|one| one.armed = Some((point, nth.max(1))));
}

/// Returns `true` while a failed execution is unwound, from outside of the explorer: nothing is modelled any more.
fn is_over() -> bool {
    std::thread::panicking() && WORLD.with_borrow(|world| world.dying == 0)
}

fn is_dead() -> bool {
    is_over() || person(|one| one.dead)
}

struct Killed;

/// Passes a named point.
pub fn point(name: &str) {
    let dies = !is_over()
        && person(|one| match &mut one.armed {
            Some((armed, left)) if *armed == name && !one.dead => {
                *left -= 1;
                one.dead = *left == 0;
                one.dead
            }
            _ => false,
        });
    if dies {
        WORLD.with_borrow_mut(|world| world.dying += 1);
        resume_unwind(Box::new(Killed));
    }
}

/// Runs `life` until it ends or the calling thread dies, `None` then. Afterwards the thread lives again, as somebody else
/// who saw the dead one's end.
pub fn living<R>(life: impl FnOnce() -> R) -> Option<R> {
    let ended = catch_unwind(AssertUnwindSafe(life));
    person(|one| {
        one.dead = false;
        one.armed = None;
    });
    match ended {
        Ok(value) => Some(value),
        Err(panic) if panic.is::<Killed>() => {
            WORLD.with_borrow_mut(|world| world.dying -= 1);
            None
        }
        Err(panic) => resume_unwind(panic),
    }
}

/// As on a kernel that cannot wait on several words: no model does.
pub fn wait_any(
    _: &[(&AtomicU32, u32)],
    _: Option<crate::Deadline>,
    _: crate::Scope,
) -> crate::WaitedAny {
    crate::WaitedAny::Unsupported
}

/// Orders everything before a read-modify-write that the caller has just done before everything after it.
pub fn fence_after_rmw() {
    fence(Ordering::SeqCst);
}

/// The operations of an atomic, on top of `run`, which gives one of the explorer's.
macro_rules! operations {
    ($Atomic:ident, $int:ty) => {
        impl $Atomic {
            /// As the real one.
            pub fn load(&self, order: Ordering) -> $int {
                self.run(order, |atomic, order| atomic.load(order))
            }

            /// As the real one.
            pub fn store(&self, value: $int, order: Ordering) {
                self.run(order, |atomic, order| {
                    atomic.store(value, order);
                    0
                });
            }

            /// As the real one.
            pub fn swap(&self, value: $int, order: Ordering) -> $int {
                self.run(order, |atomic, order| atomic.swap(value, order))
            }

            /// As the real one.
            pub fn fetch_add(&self, by: $int, order: Ordering) -> $int {
                self.run(order, |atomic, order| atomic.fetch_add(by, order))
            }

            /// As the real one.
            pub fn fetch_sub(&self, by: $int, order: Ordering) -> $int {
                self.run(order, |atomic, order| atomic.fetch_sub(by, order))
            }

            /// As the real one.
            pub fn fetch_and(&self, bits: $int, order: Ordering) -> $int {
                self.run(order, |atomic, order| atomic.fetch_and(bits, order))
            }

            /// As the real one.
            pub fn fetch_or(&self, bits: $int, order: Ordering) -> $int {
                self.run(order, |atomic, order| atomic.fetch_or(bits, order))
            }

            /// As the real one.
            pub fn fetch_max(&self, other: $int, order: Ordering) -> $int {
                self.run(order, |atomic, order| atomic.fetch_max(other, order))
            }

            /// As the real one.
            #[expect(clippy::missing_errors_doc, reason = "as the real one")]
            pub fn compare_exchange(
                &self,
                from: $int,
                to: $int,
                success: Ordering,
                failure: Ordering,
            ) -> Result<$int, $int> {
                if $crate::model::is_dead() {
                    return Ok(from);
                }
                if $crate::model::fault() == $crate::model::Fault::TornExchange {
                    let now = self.load(failure);
                    if now != from {
                        return Err(now);
                    }
                    self.store(to, Ordering::Relaxed);
                    return Ok(now);
                }
                let mut swapped = Err(0);
                self.run(success, |atomic, success| {
                    swapped = atomic.compare_exchange(from, to, success, failure);
                    0
                });
                swapped
            }

            /// As the real one, without its chance failures.
            #[expect(clippy::missing_errors_doc, reason = "as the real one")]
            pub fn compare_exchange_weak(
                &self,
                from: $int,
                to: $int,
                success: Ordering,
                failure: Ordering,
            ) -> Result<$int, $int> {
                self.compare_exchange(from, to, success, failure)
            }

            /// As the real one.
            #[expect(clippy::missing_errors_doc, reason = "as the real one")]
            pub fn fetch_update(
                &self,
                set: Ordering,
                fetch: Ordering,
                mut update: impl FnMut($int) -> Option<$int>,
            ) -> Result<$int, $int> {
                let mut now = self.load(fetch);
                while let Some(next) = update(now) {
                    match self.compare_exchange(now, next, set, fetch) {
                        Ok(was) => return Ok(was),
                        Err(seen) => now = seen,
                    }
                }
                Err(now)
            }
        }
    };
}
use operations;
