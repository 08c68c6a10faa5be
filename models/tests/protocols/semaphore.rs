//! The semaphore: permits are neither lost nor doubled, by deaths neither.

use phalanx_models::{LONG, USUAL, explore, fails, spawn};
use phalanx_prim::model::Fault;
use phalanx_shm::Arena;

use phalanx_sync::Semaphore;

use crate::Tally;

fn permits(threads: usize) -> impl Fn(&'static Arena) + Send + Sync {
    move |_| {
        let semaphore = Semaphore::local(1);
        let tally = Tally::default();
        let play = |semaphore: &Semaphore<phalanx_shm::Local>, tally: &Tally| {
            let _permit = semaphore.acquire();
            tally.count();
        };
        let others: Vec<_> = (1..threads)
            .map(|_| {
                let (semaphore, tally) = (semaphore.clone(), tally.clone());
                spawn(move || play(&semaphore, &tally))
            })
            .collect();
        play(&semaphore, &tally);
        for other in others {
            other.join().unwrap();
        }
        let _permit = semaphore.acquire();
        assert_eq!(tally.total(), threads as u64);
        assert_eq!(semaphore.value(), 0);
    }
}

#[test]
fn one_permit_is_a_lock() {
    explore(LONG, permits(2));
}

#[cfg(phalanx_shuttle)]
#[test]
fn three_share_one_permit() {
    explore(USUAL, permits(3));
}

#[test]
fn fails_when_wakes_are_lost() {
    fails(Fault::LostWakes, USUAL, permits(2));
}

#[test]
fn fails_when_the_exchange_is_torn() {
    fails(Fault::TornExchange, USUAL, permits(2));
}
