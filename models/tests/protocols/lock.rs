//! The lock word: exclusion, no lost wake, and what an owner's death does.

use phalanx_models::{LONG, USUAL, explore, fails, spawn};
use phalanx_prim::model::Fault;

use phalanx_shm::{Acquired, Arena, Local, RawLock, Shared};

use crate::Tally;
use phalanx_prim::Arc;

/// Threads of one process count under a lock.
fn excludes(threads: usize) -> impl Fn(&'static Arena) + Send + Sync {
    move |_| {
        let lock = Arc::new(RawLock::<Local>::new());
        let tally = Tally::default();
        let play = |lock: &RawLock<Local>, tally: &Tally| {
            assert_eq!(lock.lock_forever(), Acquired::Clean);
            tally.count();
            lock.unlock();
        };
        let others: Vec<_> = (1..threads)
            .map(|_| {
                let (lock, tally) = (Arc::clone(&lock), tally.clone());
                spawn(move || play(&lock, &tally))
            })
            .collect();
        play(&lock, &tally);
        for other in others {
            other.join().unwrap();
        }
        let _ = lock.lock_forever();
        assert_eq!(tally.total(), threads as u64, "two were inside at once");
        assert!(lock.is_locked());
    }
}

#[test]
fn two_threads_exclude_each_other() {
    explore(USUAL, excludes(2));
}

#[test]
fn three_threads_exclude_each_other() {
    explore(LONG, excludes(3));
}

#[test]
fn fails_when_the_exchange_is_torn() {
    fails(Fault::TornExchange, USUAL, excludes(2));
}

#[test]
fn fails_when_wakes_are_lost() {
    fails(Fault::LostWakes, USUAL, excludes(2));
}

#[cfg(phalanx_loom)]
#[test]
fn fails_when_nothing_is_ordered() {
    fails(Fault::Relaxed, USUAL, excludes(2));
}

/// One tries while the other holds: whoever gets it is alone.
#[test]
fn trying_excludes_too() {
    explore(USUAL, |_| {
        let lock = Arc::new(RawLock::<Local>::new());
        let tally = Tally::default();
        let play = |lock: &RawLock<Local>, tally: &Tally| {
            let had = lock.try_lock().is_some();
            if had {
                tally.count();
                lock.unlock();
            }
            u64::from(had)
        };
        let (theirs, their_tally) = (Arc::clone(&lock), tally.clone());
        let other = spawn(move || play(&theirs, &their_tally));
        let mine = play(&lock, &tally);
        let had = mine + other.join().unwrap();
        let _ = lock.lock_forever();
        assert!(had >= 1 && tally.total() == had);
    });
}

/// A raw lock may live anywhere; this keeps the shared one in use outside of the arena.
#[test]
fn a_shared_lock_outside_of_the_arena_needs_no_ledger() {
    explore(USUAL, |_| {
        let lock = Arc::new(RawLock::<Shared>::new());
        let tally = Tally::default();
        let (theirs, their_tally) = (Arc::clone(&lock), tally.clone());
        let other = spawn(move || {
            let _ = theirs.lock_forever();
            their_tally.count();
            theirs.unlock();
        });
        let _ = lock.lock_forever();
        tally.count();
        lock.unlock();
        other.join().unwrap();
        assert_eq!(tally.total(), 2);
    });
}
