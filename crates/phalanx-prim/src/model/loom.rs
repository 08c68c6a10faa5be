//! Loom's machine: an atomic is the name of one of loom's.
//!
//! Loom wants an atomic made before two threads share it, so what lies in zeroed memory (an arena's own tables) is for one
//! thread to use here; models with an arena are shuttle's.

pub use loom::cell::UnsafeCell;
pub use loom::sync::{Mutex, MutexGuard};
pub(super) use loom::thread::ThreadId;
pub use loom::{hint, thread};
// Whether a handle is dropped in time is no protocol of ours.
pub use std::sync::Arc;

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use loom::sync::Condvar;
use phalanx_sys::clock::Deadline;
use phalanx_sys::wait::{Scope, Waited};

use super::{Fault, Ordering, fault, is_dead, operations};

/// Who sleeps on one word, in the order in which they came.
type Bed = Rc<(Mutex<Vec<Rc<Cell<bool>>>>, Condvar)>;

#[derive(Default)]
struct Execution {
    small: Vec<Rc<loom::sync::atomic::AtomicU32>>,
    large: Vec<Rc<loom::sync::atomic::AtomicU64>>,
    // Each with the address of its word.
    beds: Vec<(usize, Bed)>,
}

thread_local! {
    static EXECUTION: RefCell<Execution> = RefCell::default();
}

pub(super) fn begin() {
    EXECUTION.take();
}

pub(super) fn current() -> ThreadId {
    thread::current().id()
}

/// As the real one.
pub fn fence(order: Ordering) {
    if !is_dead() && fault() != Fault::NoFences {
        loom::sync::atomic::fence(order);
    }
}

macro_rules! atomic {
    ($Atomic:ident, $int:ty, $named:ident, $tag:literal) => {
        /// The name of one of loom's. In zeroed memory, bytes that are a value until it is first used.
        #[derive(Debug)]
        #[repr(transparent)]
        pub struct $Atomic(std::sync::atomic::$Atomic);

        impl Default for $Atomic {
            fn default() -> Self {
                Self::new(0)
            }
        }

        impl $Atomic {
            /// Creates one with this value.
            #[must_use]
            pub fn new(value: $int) -> Self {
                let name = Self::name(loom::sync::atomic::$Atomic::new(value));
                Self(std::sync::atomic::$Atomic::new(name))
            }

            fn name(atomic: loom::sync::atomic::$Atomic) -> $int {
                EXECUTION.with_borrow_mut(|all| {
                    all.$named.push(Rc::new(atomic));
                    $tag | (all.$named.len() as $int - 1)
                })
            }

            fn named(&self) -> Rc<loom::sync::atomic::$Atomic> {
                const INDEX: $int = 0xf_ffff;
                let mut name = self.0.load(Ordering::Relaxed);
                // No value of the engine's looks like a name.
                if name & !INDEX != $tag {
                    name = Self::name(loom::sync::atomic::$Atomic::new(name));
                    self.0.store(name, Ordering::Relaxed);
                }
                EXECUTION.with_borrow(|all| Rc::clone(&all.$named[(name & INDEX) as usize]))
            }

            fn run(
                &self,
                order: Ordering,
                operation: impl FnOnce(&loom::sync::atomic::$Atomic, Ordering) -> $int,
            ) -> $int {
                if is_dead() {
                    return 0;
                }
                let order = if fault() == Fault::Relaxed {
                    Ordering::Relaxed
                } else {
                    order
                };
                operation(&self.named(), order)
            }
        }
        operations!($Atomic, $int);
    };
}
atomic!(AtomicU32, u32, small, 0xfab0_0000);
atomic!(AtomicU64, u64, large, 0xfab5_fab5_fab0_0000);

/// An atomic word one can wait on.
#[derive(Debug, Default)]
#[repr(transparent)]
pub struct Word(AtomicU32);

impl Word {
    /// Creates a word with this value.
    #[must_use]
    pub fn new(value: u32) -> Self {
        Self(AtomicU32::new(value))
    }

    fn bed(&self) -> Bed {
        let address = std::ptr::from_ref(self).addr();
        let known = EXECUTION.with_borrow(|all| {
            let bed = all.beds.iter().find(|(at, _)| *at == address);
            bed.map(|(_, bed)| Rc::clone(bed))
        });
        known.unwrap_or_else(|| {
            let bed = Rc::new((Mutex::new(Vec::new()), Condvar::new()));
            EXECUTION.with_borrow_mut(|all| all.beds.push((address, Rc::clone(&bed))));
            bed
        })
    }

    /// Blocks while the word holds `expected`. Time does not pass in a model: a deadline that can expire expires at once.
    ///
    /// # Panics
    ///
    /// Never: no thread panics while it holds the explorer's own lock.
    pub fn wait(&self, expected: u32, deadline: Option<Deadline>, _: Scope) -> Waited {
        if is_dead() {
            return Waited::Changed;
        }
        let bed = self.bed();
        // The lock stands for the kernel's: no wake comes between the look and the entry.
        let mut sleepers = bed.0.lock().unwrap();
        if self.0.named().load(Ordering::SeqCst) != expected {
            return Waited::Changed;
        }
        if deadline.is_some() {
            return Waited::TimedOut;
        }
        let woken = Rc::new(Cell::new(false));
        sleepers.push(Rc::clone(&woken));
        while !woken.get() {
            sleepers = bed.1.wait(sleepers).unwrap();
        }
        Waited::Woken
    }

    /// Wakes up to `count` waiters and returns how many were woken.
    ///
    /// # Panics
    ///
    /// Never: no thread panics while it holds the explorer's own lock.
    pub fn wake(&self, count: u32, _: Scope) -> u32 {
        if is_dead() || fault() == Fault::LostWakes {
            return 0;
        }
        let most = if fault() == Fault::OneWake { 1 } else { count };
        let bed = self.bed();
        let mut sleepers = bed.0.lock().unwrap();
        let count = sleepers.len().min(most as usize);
        for woken in sleepers.drain(..count) {
            woken.set(true);
        }
        if count > 0 {
            bed.1.notify_all();
        }
        count as u32
    }
}

impl std::ops::Deref for Word {
    type Target = AtomicU32;

    fn deref(&self) -> &AtomicU32 {
        &self.0
    }
}
