//! The recursive lock: its depth is the owner's alone.

use phalanx_models::{USUAL, explore, fails, spawn};
use phalanx_prim::model::Fault;

use phalanx_shm::Arena;
use phalanx_sync::RLock;

use crate::Tally;

fn nests() -> impl Fn(&'static Arena) + Send + Sync {
    |_| {
        let lock = RLock::local();
        let tally = Tally::default();
        let play = |lock: &RLock<phalanx_shm::Local>, tally: &Tally| {
            let outer = lock.lock().unwrap();
            {
                let _inner = lock.lock().unwrap();
                assert_eq!(lock.depth(), 2);
                tally.count();
            }
            assert_eq!(lock.depth(), 1);
            drop(outer);
        };
        let (theirs, their_tally) = (lock.clone(), tally.clone());
        let other = spawn(move || play(&theirs, &their_tally));
        play(&lock, &tally);
        other.join().unwrap();
        let _last = lock.lock().unwrap();
        assert_eq!(tally.total(), 2);
    }
}

#[test]
fn nested_locking_excludes_others() {
    explore(USUAL, nests());
}

#[test]
fn fails_when_the_exchange_is_torn() {
    fails(Fault::TornExchange, USUAL, nests());
}

#[test]
fn fails_when_wakes_are_lost() {
    fails(Fault::LostWakes, USUAL, nests());
}
