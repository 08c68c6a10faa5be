//! Many: random true circles over threads and processes, which must all be found; a soak of random operations without any,
//! in which nobody may be accused; parties that die in the middle; one circle of very many.
#![cfg(not(miri))]

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use phalanx_shm::session;
use phalanx_sync::{Barrier, Event, Lock, LockError, OwnerDied, RLock, Semaphore, Shared};
use phalanx_testkit::{Child, in_child, watchdog};
use phalanx_watch::{Action, Options, enable_with, recover};

const LIMIT: Duration = Duration::from_secs(170);

fn watch(every_ms: u64) {
    let every = Duration::from_millis(every_ms);
    enable_with(Options::new(Action::Raise).every(every)).unwrap();
}

/// A small, fast generator of numbers (xorshift), so that a failure can be repeated.
struct Dice(u64);

impl Dice {
    fn below(&mut self, most: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % most
    }
}

/// A lock of either scope; threads of other processes use shared ones.
enum Either {
    Private(Lock<phalanx_sync::Local>),
    Shared(Lock),
    Recursive(RLock),
}

impl Either {
    fn new(shared: bool, dice: &mut Dice) -> Self {
        match (shared, dice.below(2)) {
            (false, 0) => Self::Private(Lock::local()),
            (_, 0) => Self::Recursive(RLock::new().unwrap()),
            _ => Self::Shared(Lock::new().unwrap()),
        }
    }

    fn with(&self, f: impl FnOnce()) {
        match self {
            Self::Private(lock) => {
                let _held = lock.lock().unwrap_or_else(OwnerDied::into_guard);
                f();
            }
            Self::Shared(lock) => {
                let _held = lock.lock().unwrap_or_else(OwnerDied::into_guard);
                f();
            }
            Self::Recursive(lock) => {
                let _held = lock.lock().unwrap_or_else(OwnerDied::into_guard);
                f();
            }
        }
    }
}

/// A thread of the plan: it takes its lock, meets all others, and wants the next one's lock.
struct Party {
    process: u64,
    has: usize,
    wants: usize,
    /// Parties of its circle.
    of: usize,
}

/// Runs the threads of one process; returns in how many a wait had to fail.
fn play(process: u64, parties: &[Party], locks: &[Either], met: &Barrier) -> u64 {
    let failed = AtomicU32::new(0);
    std::thread::scope(|scope| {
        for party in parties.iter().filter(|party| party.process == process) {
            scope.spawn(|| {
                let done = recover(|| {
                    locks[party.has].with(|| {
                        met.wait().unwrap();
                        locks[party.wants].with(|| ());
                    });
                });
                if let Err(deadlock) = done {
                    assert!(deadlock.circle, "{deadlock}");
                    assert_eq!(deadlock.parties.len(), party.of, "{deadlock}");
                    failed.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
    });
    u64::from(failed.load(Ordering::Relaxed))
}

#[test]
fn random_circles_over_threads_and_processes_are_all_found() {
    let _dog = watchdog(LIMIT);
    watch(10);
    let mut dice = Dice(0x0dd5_eed5);
    let (mut circles, mut found) = (0, 0);
    for round in 0..40 {
        let processes = 1 + dice.below(3);
        let (mut parties, mut locks) = (Vec::new(), Vec::new());
        let here = 1 + dice.below(3);
        for _ in 0..here {
            let count = 2 + dice.below(4) as usize;
            let first = locks.len();
            // A circle in one process may have private locks.
            let alone = dice.below(2) == 0;
            let home = dice.below(processes);
            for i in 0..count {
                locks.push(Either::new(!alone, &mut dice));
                parties.push(Party {
                    process: if alone { home } else { dice.below(processes) },
                    has: first + i,
                    wants: first + (i + 1) % count,
                    of: count,
                });
            }
            circles += 1;
        }
        let met = Barrier::new(parties.len() as u32).unwrap();
        let sum = Shared::new(0_u64).unwrap();
        let children: Vec<Child> = (1..processes)
            .map(|process| {
                in_child(|| {
                    let failed = play(process, &parties, &locks, &met);
                    *sum.lock().unwrap() += failed;
                })
            })
            .collect();
        let mut failed = play(0, &parties, &locks, &met);
        for child in children {
            assert!(child.wait().is_success(), "round {round}");
        }
        failed += *sum.lock().unwrap();
        assert_eq!(failed, here, "round {round}: one of each circle");
        found += failed;
    }
    println!("found/false table: random circles {circles}, found {found}, false 0");
    assert_eq!(found, circles);
}

/// Ordered locks, time-outs, tries, semaphores and events that are always set in the end: nobody ever waits for ever.
fn work(
    seed: u64,
    steps: u64,
    locks: &[Either],
    permits: &Semaphore,
    flag: &Event,
    crossed: &[Lock; 2],
) {
    let mut dice = Dice(seed);
    let count = locks.len() as u64;
    let mut step = 0;
    while step < steps {
        match dice.below(40) {
            0 => {
                let permit = permits.acquire();
                std::thread::yield_now();
                drop(permit);
                step += 1;
            }
            1 => {
                flag.set();
                flag.wait();
                step += 1;
            }
            2 => {
                // In any order, but for a moment only.
                let (a, b) = (
                    dice.below(2) as usize,
                    Duration::from_micros(dice.below(3000)),
                );
                let _first = crossed[a].lock().unwrap();
                if let Err(LockError::TimedOut { .. }) = crossed[1 - a].lock_timeout(b) {
                    std::thread::yield_now();
                }
                step += 2;
            }
            _ => {
                let low = dice.below(count - 2) as usize;
                let middle = low + 1 + dice.below(count - low as u64 - 2) as usize;
                let nap = dice.below(400);
                locks[low].with(|| {
                    locks[middle].with(|| {
                        locks[locks.len() - 1].with(|| {
                            if nap == 0 {
                                std::thread::sleep(Duration::from_millis(3));
                            }
                        });
                    });
                });
                step += 3;
            }
        }
    }
}

#[test]
fn a_million_random_operations_accuse_nobody() {
    let _dog = watchdog(LIMIT);
    // As often as can be: each sleep is cut short many times.
    watch(1);
    let mut dice = Dice(0x50ac);
    let locks: Vec<Either> = (0..8).map(|_| Either::new(true, &mut dice)).collect();
    let private: Vec<Either> = (0..5).map(|_| Either::Private(Lock::local())).collect();
    let (permits, flag) = (Semaphore::new(2).unwrap(), Event::new().unwrap());
    let crossed = [Lock::new().unwrap(), Lock::new().unwrap()];
    let (processes, threads, steps) = (3, 5, 70_000);
    let run = |process: u64| {
        std::thread::scope(|scope| {
            for thread in 0..threads {
                let (locks, private) = (&locks, &private);
                let (permits, flag, crossed) = (&permits, &flag, &crossed);
                scope.spawn(move || {
                    let seed = 0x9e37_79b9 * (1 + process * threads + thread);
                    let mine = if thread % 2 == 0 { locks } else { private };
                    let done = recover(|| work(seed, steps, mine, permits, flag, crossed));
                    assert!(done.is_ok(), "nobody was stuck: {}", done.unwrap_err());
                });
            }
        });
    };
    let children: Vec<Child> = (1..processes)
        .map(|process| in_child(|| run(process)))
        .collect();
    run(0);
    for child in children {
        assert!(child.wait().is_success());
    }
    println!(
        "found/false table: soak of {} lock operations, circles 0, false 0",
        processes * threads * steps
    );
}

#[test]
fn a_party_that_dies_in_the_middle_ends_the_circle() {
    let _dog = watchdog(LIMIT);
    watch(10);
    let mut dice = Dice(0xdead);
    for round in 0..30 {
        let (a, b) = (Lock::new().unwrap(), Lock::new().unwrap());
        let met = Barrier::new(2).unwrap();
        let child = in_child(|| {
            let _ = recover(|| {
                let _b = b.lock().unwrap_or_else(OwnerDied::into_guard);
                met.wait().unwrap();
                let _a = a.lock().unwrap_or_else(OwnerDied::into_guard);
                loop {
                    std::thread::park();
                }
            });
            loop {
                std::thread::park();
            }
        });
        let delay = Duration::from_micros(dice.below(60_000));
        let (crossed, wait) = std::sync::mpsc::channel();
        std::thread::scope(|scope| {
            let (a, b, met) = (&a, &b, &met);
            let ours = scope.spawn(move || {
                recover(|| {
                    let _a = a.lock().unwrap_or_else(OwnerDied::into_guard);
                    met.wait().unwrap();
                    crossed.send(()).unwrap();
                    let _b = b.lock().unwrap_or_else(OwnerDied::into_guard);
                })
            });
            wait.recv().unwrap();
            std::thread::sleep(delay);
            child.kill();
            child.wait_dead();
            // There is no reaper here: this test is one.
            let arena = session().unwrap();
            let dead = arena
                .processes()
                .into_iter()
                .find(|process| process.pid == child.pid());
            arena.sweep(dead.unwrap().slot);
            // It has the lock of the dead one, or was made to fail before: in either case it goes on.
            let done = ours.join().unwrap();
            if let Err(deadlock) = done {
                assert_eq!(deadlock.parties.len(), 2, "round {round}: {deadlock}");
            }
        });
        assert!(child.wait().is_killed(), "round {round}");
    }
}

#[test]
fn one_circle_of_two_hundred_threads_in_each_of_eight_processes() {
    let _dog = watchdog(LIMIT);
    watch(200);
    let (processes, threads) = (8_u64, 200_u64);
    let count = (processes * threads) as usize;
    let locks: Vec<Lock> = (0..count).map(|_| Lock::new().unwrap()).collect();
    let met = Barrier::new(count as u32).unwrap();
    let sum = Shared::new(0_u64).unwrap();
    let run = |process: u64| {
        let failed = AtomicU32::new(0);
        std::thread::scope(|scope| {
            for thread in 0..threads {
                let (locks, met, failed) = (&locks, &met, &failed);
                let body = move || {
                    // Neighbours are in different processes.
                    let at = (thread * processes + process) as usize;
                    let done = recover(|| {
                        let _mine = locks[at].lock().unwrap();
                        met.wait().unwrap();
                        let _next = locks[(at + 1) % count].lock().unwrap();
                    });
                    if let Err(deadlock) = done {
                        assert_eq!(deadlock.parties.len(), count);
                        failed.fetch_add(1, Ordering::Relaxed);
                    }
                };
                let builder = std::thread::Builder::new().stack_size(256 << 10);
                builder.spawn_scoped(scope, body).unwrap();
            }
        });
        u64::from(failed.load(Ordering::Relaxed))
    };
    let children: Vec<Child> = (1..processes)
        .map(|process| {
            in_child(|| {
                let failed = run(process);
                *sum.lock().unwrap() += failed;
            })
        })
        .collect();
    let failed = run(0);
    for child in children {
        assert!(child.wait().is_success());
    }
    assert_eq!(failed + *sum.lock().unwrap(), 1);
}
