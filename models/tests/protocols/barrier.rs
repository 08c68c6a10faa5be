//! The barrier: all or none, each with a number of its own, and a death breaks it for the others.

use phalanx_models::{LONG, USUAL, explore, fails, spawn};
use phalanx_prim::model::Fault;
use phalanx_shm::Arena;
use phalanx_sync::Barrier;

fn meets(parties: u32, rounds: u32) -> impl Fn(&'static Arena) + Send + Sync {
    move |_| {
        let barrier = Barrier::local(parties).unwrap();
        let play = move |barrier: &Barrier<phalanx_shm::Local>| -> u32 {
            (0..rounds).map(|_| barrier.wait().unwrap()).sum()
        };
        let others: Vec<_> = (1..parties)
            .map(|_| {
                let barrier = barrier.clone();
                spawn(move || play(&barrier))
            })
            .collect();
        let mut sum = play(&barrier);
        for other in others {
            sum += other.join().unwrap();
        }
        // Numbers 0 to n - 1 in each round.
        assert_eq!(sum, rounds * parties * (parties - 1) / 2);
        assert_eq!(barrier.waiting(), 0);
    }
}

#[test]
fn two_meet() {
    explore(LONG, meets(2, 1));
}

#[cfg(phalanx_shuttle)]
#[test]
fn three_meet_twice() {
    explore(USUAL, meets(3, 2));
}

#[test]
fn fails_when_wakes_are_lost() {
    fails(Fault::LostWakes, USUAL, meets(2, 1));
}

#[cfg(phalanx_shuttle)]
#[test]
fn fails_when_one_is_woken_of_all() {
    fails(Fault::OneWake, USUAL, meets(3, 1));
}

#[test]
fn fails_when_the_exchange_is_torn() {
    fails(Fault::TornExchange, USUAL, meets(2, 1));
}
