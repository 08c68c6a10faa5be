//! Counted objects: the count is what the tables say, whoever dies in between.

use phalanx_models::{Effort, LONG, explore, fails, spawn};
use phalanx_prim::model::{Fault, die_at};
use phalanx_shm::modelled::{process, vanish};
use phalanx_shm::{Arena, Held, Kind};

const SHORT: Effort = Effort {
    preemptions: 1,
    orders: 100,
};

fn object(arena: &'static Arena) -> Held {
    let block = arena.alloc(100, Kind::Bytes).unwrap();
    arena.publish(block).unwrap()
}

/// Two processes take and drop holds on one object while its maker drops it.
fn counts() -> impl Fn(&'static Arena) + Send + Sync {
    |arena| {
        let held = object(arena);
        let block = held.block();
        let other = spawn(move || {
            process(2, 1, || {
                // Stale if the maker was faster, and then for good.
                let Ok(held) = arena.hold(block) else {
                    assert!(arena.hold(block).is_err());
                    return;
                };
                let again = held.clone();
                drop(held);
                assert!(arena.holds_on(block) >= 1, "destroyed while held");
                drop(again);
            });
        });
        drop(held);
        other.join().unwrap();
        assert_eq!(arena.kind_of(block), None, "the last hold destroys it");
    }
}

#[test]
fn the_last_hold_destroys() {
    explore(SHORT, counts());
}

#[test]
fn fails_when_the_exchange_is_torn() {
    fails(Fault::TornExchange, LONG, counts());
}

/// Process 2 dies at a step of taking or dropping a hold, while process 1 takes and drops its own.
fn dies_at(point: &'static str, nth: u32, sweep: bool) -> impl Fn(&'static Arena) + Send + Sync {
    move |arena| {
        let held = object(arena);
        let block = held.block();
        let other = spawn(move || {
            let life = || {
                die_at(point, nth);
                let mine = arena.hold(block).unwrap();
                drop(mine.clone());
                drop(mine);
            };
            if sweep {
                process(2, 1, life);
            } else {
                phalanx_prim::model::be(2);
                let _ = phalanx_prim::model::living(life);
                vanish(2);
                phalanx_prim::model::be(1);
            }
        });
        drop(held.clone());
        other.join().unwrap();
        assert_eq!(arena.holds_on(block), 1, "after a death at {point}");
        drop(held);
        assert_eq!(arena.kind_of(block), None);
    }
}

#[cfg(phalanx_shuttle)]
#[test]
fn a_death_gives_back_what_the_tables_say() {
    for point in [
        "registry.armed",
        "registry.counted",
        "registry.noted",
        "registry.disarmed",
        "registry.dropped",
        "lock.held",
        "lock.sleep",
        "lock.woken",
        "lock.unlocked",
    ] {
        for nth in 1..=3 {
            explore(SHORT, dies_at(point, nth, true));
        }
    }
}

#[test]
fn a_death_between_count_and_note_is_undone() {
    explore(SHORT, dies_at("registry.counted", 1, true));
}

#[test]
fn fails_when_nobody_sweeps() {
    fails(Fault::None, SHORT, dies_at("registry.disarmed", 1, false));
}

/// The destroyer dies on the way: the sweep destroys again.
#[cfg(phalanx_shuttle)]
#[test]
fn a_dead_destroyers_object_is_destroyed_by_the_sweep() {
    for point in [
        "registry.dropped",
        "registry.condemned",
        "registry.disarmed",
        "object.condemned",
    ] {
        explore(SHORT, move |arena| {
            let held = object(arena);
            let block = held.block();
            let mine = spawn(move || {
                process(2, 1, || {
                    if let Ok(theirs) = arena.hold(block) {
                        die_at(point, 1);
                        drop(theirs);
                    }
                });
            });
            drop(held);
            mine.join().unwrap();
            assert_eq!(arena.kind_of(block), None, "after a death at {point}");
            assert!(arena.hold(block).is_err());
        });
    }
}
