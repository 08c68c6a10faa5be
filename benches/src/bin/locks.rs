//! A lock and its release: with nobody else there, and with two at it without a pause.

use std::process::ExitCode;
use std::rc::Rc;
use std::sync::{Arc, Barrier};
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

/// Half of the lockings here, half in a child; each adds 1 to a number that would show two being in at once.
fn two_processes(lock: impl Locked + 'static) -> Result<impl Contestant> {
    let lock = Rc::new(lock);
    let number = Rc::new(Guarded::new()?);
    let add = move |times: u64| {
        for _ in 0..times {
            lock.locked(|| number.add_one());
        }
        number.get()
    };
    let mut other = Ordered::start(&[], || {
        |times: u64| {
            add(times);
        }
    })?;
    let mut before = 0;
    Ok(move |count: u64| {
        let half = count.div_ceil(2);
        other.begin(half);
        let began = Instant::now();
        add(half);
        other.end();
        let time = began.elapsed();
        before += 2 * half;
        all_counted(add(0), before)?;
        Ok(time)
    })
}

/// The same with a second thread of this process.
fn two_threads(lock: impl Locked + Send + Sync + 'static) -> Result<impl Contestant> {
    let shared = Arc::new((lock, Guarded::new()?));
    let mut before = 0;
    Ok(move |count: u64| -> Result<Duration> {
        let half = count.div_ceil(2);
        let ready = Arc::new(Barrier::new(2));
        let add = {
            let shared = Arc::clone(&shared);
            let ready = Arc::clone(&ready);
            move || {
                ready.wait();
                for _ in 0..half {
                    shared.0.locked(|| shared.1.add_one());
                }
            }
        };
        let other = std::thread::spawn(add);
        ready.wait();
        let began = Instant::now();
        for _ in 0..half {
            shared.0.locked(|| shared.1.add_one());
        }
        other.join().map_err(|_| "the other thread panicked")?;
        let time = began.elapsed();
        before += 2 * half;
        all_counted(shared.1.get(), before)?;
        Ok(time)
    })
}

fn all_counted(number: u64, expected: u64) -> Result {
    if number == expected {
        Ok(())
    } else {
        Err(format!("{number} instead of {expected}: two were inside at once").into())
    }
}
