//! Permits without guards: what a death holds comes back once, a death between two steps costs one at most, and none is made.

use phalanx_models::{LONG, USUAL, explore, fails, spawn};
use phalanx_prim::model::{Fault, die_at};
use phalanx_prim::points;
use phalanx_shm::modelled::{process, vanish};
use phalanx_shm::{Arena, Patience};
use phalanx_sync::{Hint, Permits};

use crate::Tally;

/// Where a process dies that has a permit and neither takes nor gives it.
const HELD: &str = "model.held";

fn borrow(permits: &Permits) {
    permits.acquire(Patience::FOREVER).unwrap();
    points::point(HELD);
    permits.release().unwrap();
}

/// As `borrow`, by the functions for callers who exclude each other.
fn borrow_alone(permits: &Permits) {
    let hint = Hint::default();
    if permits.try_acquire_alone(&hint) {
        points::point(HELD);
        permits.release_alone(&hint).unwrap();
    }
}

/// Processes 2 and up count under the one permit, as does process 1.
fn excluded(processes: u16) -> impl Fn(&'static Arena) + Send + Sync {
    move |_| {
        let permits = Permits::new(1, 1).unwrap();
        let tally = Tally::default();
        let play = |permits: &Permits, tally: &Tally| {
            permits.acquire(Patience::FOREVER).unwrap();
            tally.count();
            permits.release().unwrap();
        };
        let other = |slot| {
            let (permits, tally) = (permits.clone(), tally.clone());
            spawn(move || process(slot, 1, || play(&permits, &tally)).unwrap())
        };
        let others: Vec<_> = (2..=processes).map(other).collect();
        play(&permits, &tally);
        for other in others {
            other.join().unwrap();
        }
        permits.acquire(Patience::FOREVER).unwrap();
        assert_eq!((tally.total(), permits.value()), (u64::from(processes), 0));
    }
}

#[test]
fn one_permit_is_a_lock() {
    explore(LONG, excluded(2));
    explore(USUAL, excluded(3));
}

#[test]
fn fails_when_wakes_are_lost() {
    fails(Fault::LostWakes, USUAL, excluded(2));
}

#[test]
fn fails_when_the_exchange_is_torn() {
    fails(Fault::TornExchange, USUAL, excluded(2));
}

/// Process 2 dies at a point, while 1 and 3 want permits of two. Nobody waits for ever, and in the end as many are there as were
/// made, less one if the death was between the steps of taking or giving.
fn borrower_dies(
    point: &'static str,
    life: fn(&Permits),
    costs: u32,
) -> impl Fn(&'static Arena) + Send + Sync {
    move |_| {
        let permits = Permits::new(2, 2).unwrap();
        let other = |slot: u16| {
            let permits = permits.clone();
            spawn(move || {
                process(slot, 1, || {
                    if slot == 2 {
                        die_at(point, 1);
                        life(&permits);
                    } else {
                        borrow(&permits);
                    }
                })
                .is_none()
            })
        };
        let others = [other(2), other(3)];
        borrow(&permits);
        let died = others.map(|other| other.join().unwrap()).contains(&true);
        assert_eq!(permits.value(), 2 - costs * u32::from(died), "{point}");
    }
}

#[test]
fn what_a_dead_process_held_comes_back() {
    for life in [borrow, borrow_alone] {
        explore(LONG, borrower_dies(HELD, life, 0));
    }
}

#[test]
fn a_death_between_two_steps_costs_a_permit_and_makes_none() {
    for life in [borrow, borrow_alone] {
        explore(LONG, borrower_dies("permits.taken", life, 1));
        explore(LONG, borrower_dies("permits.giving", life, 1));
    }
}

#[test]
fn a_wake_of_the_dead_reaches_another() {
    for point in ["gate.sleep", "gate.waking"] {
        explore(LONG, borrower_dies(point, borrow, 0));
    }
}

/// The one permit is the dead process's: its death alone lets the other on.
#[test]
fn who_waits_for_the_dead_gets_on() {
    explore(LONG, |_| {
        let permits = Permits::new(1, 1).unwrap();
        let theirs = permits.clone();
        let other = spawn(move || {
            process(2, 1, || {
                die_at(HELD, 1);
                borrow(&theirs);
            })
        });
        borrow(&permits);
        let _ = other.join().unwrap();
        assert_eq!(permits.value(), 1);
    });
}

#[test]
fn fails_when_no_permit_is_swept() {
    fails(Fault::None, USUAL, |_| {
        let permits = Permits::new(1, 1).unwrap();
        let theirs = permits.clone();
        let other = spawn(move || {
            phalanx_prim::model::be(2);
            let lived = phalanx_prim::model::living(|| {
                die_at(HELD, 1);
                borrow(&theirs);
            });
            vanish(2);
            phalanx_prim::model::be(1);
            lived
        });
        let _ = other.join().unwrap();
        borrow(&permits);
    });
}

/// Process 3 gives what it does not hold while 2 dies with a permit: from then on it is a signal. The dead one's permit may
/// have come back before or not; nothing comes back twice.
#[test]
fn a_signal_during_a_death_makes_no_permit_but_its_own() {
    explore(LONG, |_| {
        let permits = Permits::new(2, 9).unwrap();
        let other = |slot: u16| {
            let permits = permits.clone();
            spawn(move || {
                process(slot, 1, || {
                    if slot == 2 {
                        die_at(HELD, 1);
                        borrow(&permits);
                    } else {
                        permits.release().unwrap();
                    }
                })
            })
        };
        for other in [other(2), other(3)] {
            let _ = other.join().unwrap();
        }
        assert!((2..=3).contains(&permits.value()), "{permits:?}");
    });
}
