//! The condition: a notification reaches one that waits, and is passed on by one that dies of it.

use phalanx_models::{LONG, USUAL, explore, fails, spawn};
use phalanx_prim::model::Fault;
use phalanx_prim::{Arc, AtomicU64, Ordering};
use phalanx_shm::Arena;
use phalanx_sync::{Condition, Lock};

/// Takers wait for tokens that one thread gives, with one notification each.
fn hands_over(takers: u64, all: bool) -> impl Fn(&'static Arena) + Send + Sync {
    move |_| {
        let (lock, more) = (Lock::local(), Condition::local());
        let tokens = Arc::new(AtomicU64::new(0));
        let others: Vec<_> = (0..takers)
            .map(|_| {
                let (lock, more, tokens) = (lock.clone(), more.clone(), Arc::clone(&tokens));
                spawn(move || {
                    let guard = lock.lock().unwrap();
                    let none = || tokens.load(Ordering::Relaxed) == 0;
                    let _guard = more.wait_while(guard, none).unwrap();
                    let now = tokens.load(Ordering::Relaxed);
                    tokens.store(now - 1, Ordering::Relaxed);
                })
            })
            .collect();
        if all {
            let _guard = lock.lock().unwrap();
            tokens.store(takers, Ordering::Relaxed);
            more.notify_all();
        } else {
            for _ in 0..takers {
                let _guard = lock.lock().unwrap();
                let now = tokens.load(Ordering::Relaxed);
                tokens.store(now + 1, Ordering::Relaxed);
                more.notify_one();
            }
        }
        for other in others {
            other.join().unwrap();
        }
        let _guard = lock.lock().unwrap();
        assert_eq!(tokens.load(Ordering::Relaxed), 0);
        assert_eq!(more.waiters(), 0);
    }
}

#[test]
fn one_is_notified() {
    explore(LONG, hands_over(1, false));
}

#[cfg(phalanx_shuttle)]
#[test]
fn two_are_notified_one_by_one() {
    explore(USUAL, hands_over(2, false));
}

#[cfg(phalanx_shuttle)]
#[test]
fn two_are_notified_at_once() {
    explore(USUAL, hands_over(2, true));
}

#[test]
fn fails_when_wakes_are_lost() {
    fails(Fault::LostWakes, LONG, hands_over(1, false));
}

#[test]
fn fails_when_the_exchange_is_torn() {
    fails(Fault::TornExchange, USUAL, hands_over(2, false));
}
