//! Deaths of those who hold or want a lock and its friends: the next one gets on, and is told where it must be.

use phalanx_models::{Effort, LONG, USUAL, explore, fails, spawn};
use phalanx_prim::model::{Fault, die_at};
use phalanx_prim::{Arc, AtomicU64, Ordering};
use phalanx_shm::modelled::{process, vanish};
use phalanx_shm::{Acquired, Arena, Patience};
use phalanx_sync::{Barrier, BarrierError, Condition, Event, Lock, RLock, Semaphore, SharedScope};

use crate::Tally;

/// Process 2 dies at a point of locking or unlocking; processes 1 and 3 want the lock as well. Nobody hangs, and exactly
/// one of them is told if and only if the dead one held it.
fn owner_dies(point: &'static str, parties: u16) -> impl Fn(&'static Arena) + Send + Sync {
    move |_| {
        let lock = Lock::<SharedScope>::new().unwrap();
        let told = Tally::default();
        let play = |raw: &Lock<SharedScope>, told: &Tally| {
            if raw.acquire(Patience::FOREVER) == Ok(Acquired::OwnerDied) {
                told.count();
            }
            assert!(raw.release());
        };
        let other = |slot: u16| {
            let (lock, told) = (lock.clone(), told.clone());
            spawn(move || {
                process(slot, 1, || {
                    if slot == 2 {
                        die_at(point, 1);
                    }
                    play(&lock, &told);
                })
                .is_none()
            })
        };
        let others: Vec<_> = (2..parties + 2).map(other).collect();
        play(&lock, &told);
        let died = others.into_iter().map(|other| other.join().unwrap());
        let died = died.filter(|died| *died).count();
        // One more: the death may have come after everybody else had left.
        play(&lock, &told);
        let held = point == "lock.held";
        assert_eq!(told.total(), u64::from(held && died == 1));
        assert!(!lock.is_locked());
    }
}

#[test]
fn the_next_owner_is_told_of_a_death_in_the_lock() {
    explore(LONG, owner_dies("lock.held", 1));
}

#[test]
fn a_death_before_sleeping_holds_nobody_up() {
    explore(LONG, owner_dies("lock.sleep", 1));
}

#[test]
fn a_wake_that_died_with_the_woken_is_given_again() {
    explore(LONG, owner_dies("lock.woken", 1));
}

#[test]
fn a_wake_that_an_unlocker_owed_is_given_by_the_sweep() {
    explore(LONG, owner_dies("lock.unlocked", 1));
}

#[test]
fn the_same_with_three_processes() {
    for point in ["lock.held", "lock.sleep", "lock.woken", "lock.unlocked"] {
        explore(LONG, owner_dies(point, 2));
    }
}

/// Without a sweep whoever sleeps on a dead owner's lock sleeps for good.
#[test]
fn fails_when_no_lock_is_swept() {
    let effort = Effort {
        preemptions: 2,
        ..USUAL
    };
    fails(Fault::None, effort, |_| {
        let lock = Lock::<SharedScope>::new().unwrap();
        let theirs = lock.clone();
        let other = spawn(move || {
            phalanx_prim::model::be(2);
            let lived = phalanx_prim::model::living(|| {
                die_at("lock.held", 1);
                let _ = theirs.acquire(Patience::FOREVER);
                assert!(theirs.release());
            });
            assert!(lived.is_none());
            vanish(2);
            phalanx_prim::model::be(1);
        });
        let _ = lock.acquire(Patience::FOREVER);
        other.join().unwrap();
    });
}

/// The sweeper and a waiter that saw the owner dead by itself: one of them takes the lock over, not both.
#[test]
fn the_sweep_and_a_waiter_agree() {
    explore(LONG, |arena| {
        let lock = Lock::<SharedScope>::new().unwrap();
        phalanx_prim::model::be(2);
        let _ = lock.acquire(Patience::FOREVER);
        phalanx_prim::model::be(1);
        vanish(2);
        let theirs = lock.clone();
        let other = spawn(move || {
            phalanx_prim::model::be(3);
            theirs.acquire(Patience::FOREVER).unwrap() == Acquired::OwnerDied && theirs.release()
        });
        arena.sweep(2);
        let mine = lock.acquire(Patience::FOREVER).unwrap() == Acquired::OwnerDied;
        assert!(lock.release());
        let told = other.join().unwrap();
        assert!(told != mine, "told: they {told}, we {mine}");
    });
}

/// An owner dies two deep: the next one is told, and is one deep.
#[test]
fn a_dead_owners_depth_dies_with_it() {
    explore(LONG, |_| {
        let lock = RLock::<phalanx_sync::SharedScope>::new().unwrap();
        let theirs = lock.clone();
        let other = spawn(move || {
            process(2, 1, || {
                let _ = theirs.acquire(Patience::FOREVER);
                let _ = theirs.acquire(Patience::FOREVER);
                assert!(theirs.release());
                die_at("lock.held", 1);
                assert!(theirs.release());
            })
        });
        let mut told = 0;
        for _ in 0..2 {
            told += u32::from(lock.acquire(Patience::FOREVER) == Ok(Acquired::OwnerDied));
            assert_eq!(lock.depth(), 1);
            assert!(lock.release());
        }
        assert!(other.join().unwrap().is_none());
        told += u32::from(lock.acquire(Patience::FOREVER) == Ok(Acquired::OwnerDied));
        assert_eq!((lock.depth(), told), (1, 1));
    });
}

/// Whoever set it dies before it woke the sleepers: the sweep does.
#[test]
fn a_wake_that_died_is_given_by_the_sweep() {
    explore(USUAL, |_| {
        let event = Event::<phalanx_sync::SharedScope>::new().unwrap();
        let theirs = event.clone();
        let other = spawn(move || {
            process(2, 1, || {
                die_at("event.set", 1);
                theirs.set();
            })
        });
        event.wait();
        assert!(other.join().unwrap().is_none());
    });
}

/// Process 2 dies at a point of taking or giving back: its permit comes back, and there is one again.
#[test]
fn permits_of_the_dead_come_back() {
    for point in [
        "semaphore.armed",
        "semaphore.changed",
        "semaphore.disarmed",
        "lock.held",
        "lock.unlocked",
        "gate.sleep",
        "gate.waking",
    ] {
        for nth in 1..=2 {
            explore(LONG, move |_| {
                let semaphore = Semaphore::<SharedScope>::new(1).unwrap();
                let others: Vec<_> = (2..=3)
                    .map(|slot| {
                        let semaphore = semaphore.clone();
                        spawn(move || {
                            process(slot, 1, || {
                                if slot == 2 {
                                    die_at(point, nth);
                                }
                                drop(semaphore.acquire());
                            });
                        })
                    })
                    .collect();
                drop(semaphore.acquire());
                for other in others {
                    other.join().unwrap();
                }
                assert_eq!(semaphore.value(), 1, "after a death at {point}");
            });
        }
    }
}

/// Without the sweep the permit is gone.
#[test]
fn fails_when_no_permit_is_swept() {
    fails(Fault::None, USUAL, |_| {
        let semaphore = Semaphore::<SharedScope>::new(1).unwrap();
        let theirs = semaphore.clone();
        let other = spawn(move || {
            phalanx_prim::model::be(2);
            let lived = phalanx_prim::model::living(|| {
                die_at("lock.held", 2);
                drop(theirs.acquire());
            });
            phalanx_shm::modelled::vanish(2);
            phalanx_prim::model::be(1);
            lived
        });
        let lived = other.join().unwrap();
        assert!(lived.is_none());
        drop(semaphore.acquire());
    });
}

/// Process 2 dies while it waits or when it was notified; process 3 waits too. One token, one notification: it reaches 3,
/// or 2 took the token before.
#[test]
fn a_notified_ones_death_passes_it_on() {
    for (point, nth) in [
        ("condition.sleep", 1),
        ("lock.held", 2),
        ("lock.held", 3),
        ("lock.woken", 1),
    ] {
        explore(USUAL, move |_| {
            let lock = Lock::<SharedScope>::new().unwrap();
            let more = Condition::<SharedScope>::new().unwrap();
            let tokens = Arc::new(AtomicU64::new(0));
            let others: Vec<_> = (2..=3)
                .map(|slot| {
                    let (lock, more, tokens) = (lock.clone(), more.clone(), Arc::clone(&tokens));
                    spawn(move || {
                        process(slot, 1, || {
                            if slot == 2 {
                                die_at(point, nth);
                            }
                            let guard = match lock.lock() {
                                Ok(guard) => guard,
                                Err(died) => died.into_guard(),
                            };
                            let mut guard = Some(guard);
                            while tokens.load(Ordering::Relaxed) == 0 {
                                let Some(held) = guard.take() else { break };
                                guard = Some(match more.wait(held) {
                                    Ok(guard) => guard,
                                    Err(died) => died.into_guard(),
                                });
                            }
                            let now = tokens.load(Ordering::Relaxed);
                            tokens.store(now - 1, Ordering::Relaxed);
                            drop(guard);
                            1_u64
                        })
                        .unwrap_or(0)
                    })
                })
                .collect();
            // Two tokens, two notifications; the dead one may take its own with it, never the other's.
            for _ in 0..2 {
                let _guard = match lock.lock() {
                    Ok(guard) => guard,
                    Err(died) => died.into_guard(),
                };
                let now = tokens.load(Ordering::Relaxed);
                tokens.store(now + 1, Ordering::Relaxed);
                more.notify_one();
            }
            let left: u64 = others.into_iter().map(|other| other.join().unwrap()).sum();
            assert!(left >= 1, "process 3 got its token");
            assert_eq!(more.waiters(), 0);
        });
    }
}

/// A party dies at any step: the others are let go, with an error if it had not come to the end.
#[test]
fn a_partys_death_lets_the_others_go() {
    for point in [
        "barrier.arrived",
        "barrier.ending",
        "gate.sleep",
        "gate.waking",
        "lock.held",
        "lock.unlocked",
    ] {
        explore(LONG, move |_| {
            let barrier = Barrier::<SharedScope>::new(2).unwrap();
            let theirs = barrier.clone();
            let other = spawn(move || {
                process(2, 1, || {
                    die_at(point, 1);
                    theirs.wait()
                })
            });
            let ended = barrier.wait();
            assert!(matches!(ended, Ok(_) | Err(BarrierError::Broken)));
            other.join().unwrap();
            assert_eq!(barrier.waiting(), 0);
        });
    }
}
