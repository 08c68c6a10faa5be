//! The gate: no wake is lost between the last look and the sleep.

use phalanx_models::{USUAL, explore, fails, spawn};
use phalanx_prim::model::Fault;
use phalanx_prim::{Arc, AtomicU64, Ordering};
use phalanx_shm::{Arena, Local, Patience};
use phalanx_sync::Gate;

/// Waiters for a flag that another thread sets.
fn passes(waiters: usize, all: bool) -> impl Fn(&'static Arena) + Send + Sync {
    move |_| {
        let gate = Arc::new(Gate::<Local>::new());
        let flag = Arc::new(AtomicU64::new(0));
        let others: Vec<_> = (0..waiters)
            .map(|_| {
                let (gate, flag) = (Arc::clone(&gate), Arc::clone(&flag));
                spawn(move || {
                    let up = || (flag.load(Ordering::Relaxed) != 0).then_some(());
                    gate.wait_until(Patience::FOREVER, up).unwrap();
                })
            })
            .collect();
        flag.store(1, Ordering::Relaxed);
        if all {
            gate.notify_all();
        } else {
            for _ in 0..waiters {
                gate.notify(1);
            }
        }
        for other in others {
            other.join().unwrap();
        }
    }
}

#[test]
fn one_waiter_is_woken() {
    explore(USUAL, passes(1, false));
}

#[test]
fn all_waiters_are_woken() {
    explore(USUAL, passes(2, true));
}

#[test]
fn waiters_are_woken_one_by_one() {
    explore(USUAL, passes(2, false));
}

#[test]
fn fails_when_wakes_are_lost() {
    fails(Fault::LostWakes, USUAL, passes(1, false));
}

#[test]
fn fails_when_one_is_woken_of_all() {
    fails(Fault::OneWake, USUAL, passes(2, true));
}

#[cfg(phalanx_loom)]
#[test]
fn fails_without_its_fences() {
    fails(Fault::NoFences, USUAL, passes(1, false));
}

/// Tokens are handed over one by one, from two givers to two takers, with one wake each.
#[cfg(phalanx_shuttle)]
#[test]
fn a_wake_per_token_is_enough() {
    explore(USUAL, |_| {
        let gate = Arc::new(Gate::<Local>::new());
        let tokens = Arc::new(AtomicU64::new(0));
        let takers: Vec<_> = (0..2)
            .map(|_| {
                let (gate, tokens) = (Arc::clone(&gate), Arc::clone(&tokens));
                spawn(move || {
                    let take = || {
                        let less = |now: u64| now.checked_sub(1);
                        let took = tokens.fetch_update(Ordering::AcqRel, Ordering::Acquire, less);
                        took.ok()
                    };
                    gate.wait_until(Patience::FOREVER, take).unwrap();
                })
            })
            .collect();
        let give = |gate: &Gate<Local>, tokens: &AtomicU64| {
            tokens.fetch_add(1, Ordering::AcqRel);
            gate.notify_after_unlock(1);
        };
        let (theirs, their_tokens) = (Arc::clone(&gate), Arc::clone(&tokens));
        let giver = spawn(move || give(&theirs, &their_tokens));
        give(&gate, &tokens);
        giver.join().unwrap();
        for taker in takers {
            taker.join().unwrap();
        }
        assert_eq!(tokens.load(Ordering::Relaxed), 0);
    });
}
