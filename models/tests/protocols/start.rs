//! The start record: its outcome is written once, whoever is first.

use phalanx_models::{Effort, USUAL, explore, fails, spawn};
use phalanx_prim::model::Fault;
use phalanx_process::modelled::Start;
use phalanx_shm::Arena;

const SHORT: Effort = Effort {
    preemptions: 1,
    orders: 200,
};

/// The child ends with a value; the parent waits and takes it.
fn returns() -> impl Fn(&'static Arena) + Send + Sync {
    |arena| {
        let start = Start::new(arena, b"args").unwrap();
        let block = start.block();
        let child = spawn(move || {
            phalanx_prim::model::be(2);
            let start = Start::join(arena, block).unwrap();
            assert_eq!(start.take_args().as_deref(), Some(&b"args"[..]));
            start.finish(arena, b"value").unwrap();
            drop(start);
        });
        assert!(start.wait());
        assert_eq!(start.take_result().as_deref(), Some(&b"value"[..]));
        child.join().unwrap();
        assert!(start.take_result().is_none(), "taken twice");
    }
}

#[test]
fn a_value_arrives() {
    explore(SHORT, returns());
}

#[test]
fn fails_when_wakes_are_lost() {
    fails(Fault::LostWakes, USUAL, returns());
}

/// The reaper says "died" while the child, which is not quite dead, writes its value: what was seen once stays.
fn ends_once() -> impl Fn(&'static Arena) + Send + Sync {
    |arena| {
        let start = Start::new(arena, b"").unwrap();
        let block = start.block();
        let child = spawn(move || {
            phalanx_prim::model::be(2);
            let start = Start::join(arena, block).unwrap();
            start.finish(arena, b"value").unwrap();
        });
        start.died();
        let first = start.wait();
        child.join().unwrap();
        assert_eq!(start.wait(), first, "the outcome changed");
        // A value has its result.
        assert!(!first || start.take_result().is_some());
    }
}

#[test]
fn the_first_outcome_stays() {
    explore(SHORT, ends_once());
}

#[test]
fn fails_when_the_exchange_is_torn() {
    // The two stores must come right after one another, among the many steps of the child: it takes more orders.
    let effort = Effort {
        orders: 20_000,
        ..SHORT
    };
    fails(Fault::TornExchange, effort, ends_once());
}

/// The child dies at any step of ending: the parent hears of it, and nothing is left in the arena.
#[cfg(phalanx_shuttle)]
#[test]
fn a_death_at_the_end_is_an_outcome_too() {
    use phalanx_prim::model::die_at;
    use phalanx_shm::modelled::process;

    for point in [
        "start.result-stored",
        "start.finishing",
        "gate.waking",
        "registry.counted",
        "registry.dropped",
        "arena.allocated",
        "lock.held",
    ] {
        explore(SHORT, move |arena| {
            let start = Start::new(arena, b"args").unwrap();
            let block = start.block();
            let child = spawn(move || {
                let ended = process(2, 1, || {
                    die_at(point, 1);
                    let start = Start::join(arena, block).unwrap();
                    let _ = start.take_args();
                    start.finish(arena, b"value").unwrap();
                });
                // As the reaper does.
                if ended.is_none()
                    && let Some(start) = Start::join(arena, block)
                {
                    start.died();
                }
            });
            let value = start.wait();
            child.join().unwrap();
            assert!(!value || start.take_result().is_some());
            drop(start);
            let left: Vec<_> = arena
                .census()
                .into_iter()
                .filter(|(kind, _)| *kind != phalanx_shm::Kind::Holds)
                .collect();
            assert!(left.is_empty(), "after a death at {point}: {left:?}");
        });
    }
}
