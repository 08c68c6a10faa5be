//! Shuttle's machine: the real atomics, with a point before each operation at which another thread may run.

pub use shuttle::sync::{Arc, Mutex, MutexGuard};
pub(super) use shuttle::thread::ThreadId;
pub use shuttle::{hint, thread};
pub use std::cell::UnsafeCell;

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use phalanx_sys::clock::Deadline;
use phalanx_sys::wait::{Scope, Waited};

use super::{Fault, Ordering, fault, is_dead, operations};

thread_local! {
    // Shuttle schedules at operations on its own atomics: this one stands for all of ours.
    static STEP: RefCell<Option<Rc<shuttle::sync::atomic::AtomicBool>>> = const { RefCell::new(None) };
    static SLEEPERS: RefCell<Vec<Sleeper>> = const { RefCell::new(Vec::new()) };
}

struct Sleeper {
    word: usize,
    thread: thread::Thread,
    woken: Rc<Cell<bool>>,
}

pub(super) fn begin() {
    STEP.set(Some(Rc::new(shuttle::sync::atomic::AtomicBool::new(false))));
    SLEEPERS.take();
}

pub(super) fn current() -> ThreadId {
    thread::current().id()
}

fn step() {
    let step = STEP.with_borrow(Clone::clone);
    if let Some(step) = step {
        step.store(true, Ordering::SeqCst);
    }
}

/// Orders nothing more than there is: each operation is sequentially consistent.
pub fn fence(_: Ordering) {
    if !is_dead() {
        step();
    }
}

macro_rules! atomic {
    ($Atomic:ident, $int:ty) => {
        /// The real atomic, seen by the explorer.
        #[derive(Debug, Default)]
        #[repr(transparent)]
        pub struct $Atomic(std::sync::atomic::$Atomic);

        impl $Atomic {
            /// Creates one with this value.
            #[must_use]
            pub const fn new(value: $int) -> Self {
                Self(std::sync::atomic::$Atomic::new(value))
            }

            fn run(
                &self,
                order: Ordering,
                operation: impl FnOnce(&std::sync::atomic::$Atomic, Ordering) -> $int,
            ) -> $int {
                if is_dead() {
                    return 0;
                }
                step();
                operation(&self.0, order)
            }
        }
        operations!($Atomic, $int);
    };
}
atomic!(AtomicU32, u32);
atomic!(AtomicU64, u64);

/// An atomic word one can wait on.
#[derive(Debug, Default)]
#[repr(transparent)]
pub struct Word(AtomicU32);

impl Word {
    /// Creates a word with this value.
    #[must_use]
    pub const fn new(value: u32) -> Self {
        Self(AtomicU32::new(value))
    }

    fn address(&self) -> usize {
        std::ptr::from_ref(self).addr()
    }

    /// Blocks while the word holds `expected`. Time does not pass in a model: a deadline that can expire expires at once.
    pub fn wait(&self, expected: u32, deadline: Option<Deadline>, _: Scope) -> Waited {
        if is_dead() {
            return Waited::Changed;
        }
        step();
        // No step from the look to the entry: as in the kernel, no wake comes in between.
        if self.0.0.load(Ordering::SeqCst) != expected {
            return Waited::Changed;
        }
        if deadline.is_some() {
            return Waited::TimedOut;
        }
        let woken = Rc::new(Cell::new(false));
        SLEEPERS.with_borrow_mut(|sleepers| {
            sleepers.push(Sleeper {
                word: self.address(),
                thread: thread::current(),
                woken: Rc::clone(&woken),
            });
        });
        while !woken.get() {
            thread::park();
        }
        Waited::Woken
    }

    /// Wakes up to `count` waiters and returns how many were woken.
    pub fn wake(&self, count: u32, _: Scope) -> u32 {
        if is_dead() || fault() == Fault::LostWakes {
            return 0;
        }
        step();
        let most = if fault() == Fault::OneWake { 1 } else { count };
        let mut woken = Vec::new();
        SLEEPERS.with_borrow_mut(|sleepers| {
            sleepers.retain(|sleeper| {
                let chosen = sleeper.word == self.address() && (woken.len() as u32) < most;
                if chosen {
                    sleeper.woken.set(true);
                    woken.push(sleeper.thread.clone());
                }
                !chosen
            });
        });
        for thread in &woken {
            thread.unpark();
        }
        woken.len() as u32
    }
}

impl std::ops::Deref for Word {
    type Target = AtomicU32;

    fn deref(&self) -> &AtomicU32 {
        &self.0
    }
}
