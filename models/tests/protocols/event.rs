//! The event: a set is never missed, not even one that a clear follows at once.

use phalanx_models::{USUAL, explore, fails, spawn};
use phalanx_prim::model::Fault;
use phalanx_shm::Arena;

use phalanx_sync::Event;

fn sets(waiters: usize, clear: bool) -> impl Fn(&'static Arena) + Send + Sync {
    move |_| {
        let event = Event::local();
        let others: Vec<_> = (0..waiters)
            .map(|_| {
                let event = event.clone();
                spawn(move || event.wait())
            })
            .collect();
        event.set();
        if clear {
            event.clear();
            assert!(!event.is_set());
            // For a waiter that comes only now.
            event.set();
        }
        for other in others {
            other.join().unwrap();
        }
        assert!(event.is_set());
    }
}

#[test]
fn one_waiter_is_let_go() {
    explore(USUAL, sets(1, false));
}

#[test]
fn two_waiters_are_let_go() {
    explore(USUAL, sets(2, false));
}

#[test]
fn a_clear_in_between_keeps_nobody() {
    explore(USUAL, sets(1, true));
}

#[test]
fn fails_when_wakes_are_lost() {
    fails(Fault::LostWakes, USUAL, sets(1, false));
}

#[test]
fn fails_when_one_is_woken_of_all() {
    fails(Fault::OneWake, USUAL, sets(2, false));
}

#[test]
fn fails_when_the_exchange_is_torn() {
    // The waiter's store of "somebody sleeps" takes the flag off again.
    fails(Fault::TornExchange, USUAL, sets(1, false));
}
