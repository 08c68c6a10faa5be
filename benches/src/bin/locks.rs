//! A lock and its release: with nobody else there, and with two at it without a pause.

use std::process::ExitCode;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use phalanx_benches::helper::Ordered;
use phalanx_benches::lock::{Futex, Guarded, Locked, Pthread};
use phalanx_benches::{Contestant, Entry, Group, Options, Result, Role, program, run};

const PARKING_LOT: &str = "parking_lot::Mutex (private)";
const ROBUST: &str = "pthread mutex (shared, robust)";

fn main() -> ExitCode {
    program(table)
}

fn table(options: &Options) -> Result {
    // The C library leaves the atomics out of a private mutex while a process has one thread. No program that needs a
    // lock is in that case.
    let (alive, second) = std::sync::mpsc::channel::<()>();
    let second = std::thread::spawn(move || second.recv().is_ok());
    let title = "Locks: lock + unlock, nobody else";
    if options.wants(title) {
        run(Group::new(title, PARKING_LOT, alone()), options)?;
    }
    let title = "Locks: lock + unlock by two at once, time per locking";
    if options.wants(title) {
        run(Group::new(title, ROBUST, contended()), options)?;
    }
    drop(alive);
    second.join().map_err(|_| "the second thread panicked")?;
    Ok(())
}

/// All rows without contention. This project's own belong at the end, as `Role::Phalanx`: whatever is [`Locked`].
fn alone() -> Vec<Entry> {
    vec![
        Entry::new(Role::InProcess, PARKING_LOT, || {
            uncontended(parking_lot::Mutex::new(()))
        }),
        Entry::new(Role::InProcess, "std::sync::Mutex (private)", || {
            uncontended(std::sync::Mutex::new(()))
        }),
        Entry::new(Role::Limit, "pthread mutex (private)", || {
            uncontended(Pthread::new(false, false)?)
        }),
        Entry::new(Role::Limit, "bare futex lock (shared)", || {
            uncontended(Futex::new()?)
        }),
        Entry::new(Role::Limit, "pthread mutex (shared)", || {
            uncontended(Pthread::new(true, false)?)
        }),
        Entry::new(Role::Limit, ROBUST, || {
            uncontended(Pthread::new(true, true)?)
        }),
        Entry::new(Role::Phalanx, "Lock (private)", || {
            uncontended(phalanx::Lock::local())
        }),
        Entry::new(Role::Phalanx, "Lock (shared, robust)", || {
            uncontended(phalanx::Lock::new()?)
        }),
    ]
}

/// All rows with contention. This project's own belong at the end, as `Role::Phalanx`.
fn contended() -> Vec<Entry> {
    vec![
        Entry::new(Role::Limit, "bare futex lock (shared)", || {
            two_processes(Futex::new()?)
        }),
        Entry::new(Role::Limit, "pthread mutex (shared)", || {
            two_processes(Pthread::new(true, false)?)
        }),
        Entry::new(Role::Limit, ROBUST, || {
            two_processes(Pthread::new(true, true)?)
        }),
        Entry::new(Role::InProcess, "std::sync::Mutex, two threads", || {
            two_threads(std::sync::Mutex::new(()))
        }),
        Entry::new(Role::InProcess, "parking_lot::Mutex, two threads", || {
            two_threads(parking_lot::Mutex::new(()))
        }),
        Entry::new(Role::Phalanx, "Lock (shared, robust)", || {
            two_processes(phalanx::Lock::new()?)
        }),
        Entry::new(Role::Phalanx, "Lock (private), two threads", || {
            two_threads(phalanx::Lock::local())
        }),
    ]
}

/// One thread, one lock.
fn uncontended(lock: impl Locked) -> Result<impl Contestant> {
    Ok(move |count| {
        let lock = std::hint::black_box(&lock);
        let began = Instant::now();
        for _ in 0..count {
            lock.locked(|| std::hint::black_box(()));
        }
        Ok(began.elapsed())
    })
}

/// Counts what both sides lock while this side locks `count` times. Each adds 1 to a number in two steps, which would
/// show two being in at once.
fn two_at_once(count: u64, number: &Guarded, mut lock_and_add: impl FnMut()) -> Duration {
    // Both are at it before the clock starts, if there is a core for each; if not, the scheduler has had its time.
    let before = number.get();
    let patience = Instant::now();
    while number.get() < before + 1000 && patience.elapsed() < Duration::from_millis(10) {
        std::hint::spin_loop();
    }
    let before = number.get();
    let began = Instant::now();
    for _ in 0..count {
        lock_and_add();
    }
    let time = began.elapsed();
    let both = (number.get() - before).max(1);
    time.mul_f64(count as f64 / both as f64)
}

/// What the two sides have in common, in memory of both.
struct Arena<L> {
    lock: L,
    number: Guarded,
    /// What the other side has added, written when it stops.
    other: Guarded,
    stop: Guarded,
}

impl<L: Locked> Arena<L> {
    fn new(lock: L) -> Result<Self> {
        Ok(Self {
            lock,
            number: Guarded::new()?,
            other: Guarded::new()?,
            stop: Guarded::new()?,
        })
    }

    fn lock_and_add(&self) {
        self.lock.locked(|| self.number.add_one());
    }

    /// Locks until told to stop.
    fn keep_locking(&self) {
        let mut times = 0;
        while self.stop.get() == 0 {
            for _ in 0..16 {
                self.lock_and_add();
            }
            times += 16;
        }
        self.other.set(self.other.get() + times);
    }

    /// Measures this side and the other together, which is at it already; `finish` waits until it has stopped.
    fn measure(
        &self,
        count: u64,
        mine: &mut u64,
        finish: impl FnOnce() -> Result,
    ) -> Result<Duration> {
        let time = two_at_once(count, &self.number, || self.lock_and_add());
        *mine += count;
        self.stop.set(1);
        finish()?;
        self.stop.set(0);
        all_counted(self.number.get(), *mine + self.other.get())?;
        Ok(time)
    }
}

/// This process and a child.
fn two_processes(lock: impl Locked + 'static) -> Result<impl Contestant> {
    let arena = Rc::new(Arena::new(lock)?);
    let mut other = Ordered::start(&[], || |_| arena.keep_locking())?;
    let mut mine = 0;
    Ok(move |count: u64| {
        other.begin(0);
        arena.measure(count, &mut mine, || {
            other.end();
            Ok(())
        })
    })
}

/// Two threads of this process.
fn two_threads(lock: impl Locked + Send + Sync + 'static) -> Result<impl Contestant> {
    let arena = Arc::new(Arena::new(lock)?);
    let mut mine = 0;
    Ok(move |count: u64| -> Result<Duration> {
        let theirs = Arc::clone(&arena);
        let other = std::thread::spawn(move || theirs.keep_locking());
        arena.measure(count, &mut mine, || {
            Ok(other.join().map_err(|_| "the other thread panicked")?)
        })
    })
}

fn all_counted(number: u64, expected: u64) -> Result {
    if number == expected {
        Ok(())
    } else {
        Err(format!("{number} instead of {expected}: two were inside at once").into())
    }
}
