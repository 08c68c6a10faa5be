//! The queue: each item arrives once and whole, in its producer's order, whoever dies.

use phalanx_channel::{Bounds, RawGetError, RawQueue};
use phalanx_models::{Effort, LONG, USUAL, explore, fails, spawn};
use phalanx_prim::model::{Fault, die_at};
use phalanx_shm::modelled::{process, vanish};
use phalanx_shm::{Arena, BlockRef, Patience};

const SHORT: Effort = Effort {
    preemptions: 1,
    orders: 60,
};

fn join(arena: &'static Arena, block: BlockRef) -> RawQueue {
    RawQueue::from_held(arena.hold(block).unwrap())
}

/// An item: who put it, its number there, and filling that shows a torn copy.
fn item(slot: u8, number: u8, len: usize) -> Vec<u8> {
    let mut bytes = vec![slot ^ number; len];
    (bytes[0], bytes[1]) = (slot, number);
    bytes
}

fn check(bytes: &[u8], len: usize) -> (u8, u8) {
    let (slot, number) = (bytes[0], bytes[1]);
    assert_eq!(bytes, item(slot, number, len), "a torn item");
    (slot, number)
}

/// Takes until the queue is closed and empty.
fn drain(queue: &RawQueue, len: usize) -> Vec<(u8, u8)> {
    let mut got = Vec::new();
    loop {
        match queue.get(Patience::FOREVER) {
            Ok(message) => got.push(check(&message, len)),
            Err(RawGetError::Closed(_)) => return got,
            Err(error) => panic!("{error}"),
        }
    }
}

fn in_order(got: &[(u8, u8)]) -> bool {
    (0..8).all(|slot| {
        let one = got.iter().filter(|(by, _)| *by == slot);
        one.clone().is_sorted()
    })
}

/// Two producers and two consumers; items of `len` bytes, `bound` of them at most.
fn carries(len: usize, bound: Option<u64>) -> impl Fn(&'static Arena) + Send + Sync {
    const EACH: u8 = 3;
    move |arena| {
        let bounds = Bounds {
            items: bound,
            ..Bounds::default()
        };
        let queue = RawQueue::new(arena, bounds).unwrap();
        let block = queue.held().block();
        let producers = [2_u8, 3].map(|slot| {
            spawn(move || {
                process(u16::from(slot), 1, || {
                    let queue = join(arena, block);
                    for number in 0..EACH {
                        let bytes = item(slot, number, len);
                        queue.put(&[&bytes], Patience::FOREVER).unwrap();
                    }
                });
            })
        });
        let consumer =
            spawn(move || process(4, 1, || drain(&join(arena, block), len)).unwrap_or_default());
        let mine = spawn(move || process(5, 1, || drain(&join(arena, block), len)).unwrap());
        for producer in producers {
            producer.join().unwrap();
        }
        queue.close();
        let (first, second) = (consumer.join().unwrap(), mine.join().unwrap());
        assert!(in_order(&first) && in_order(&second));
        let mut all = [first, second].concat();
        all.sort_unstable();
        let put: Vec<_> = [2, 3]
            .into_iter()
            .flat_map(|slot| (0..EACH).map(move |number| (slot, number)))
            .collect();
        assert_eq!(all, put);
        assert_eq!((queue.len(), queue.bytes()), (0, 0));
    }
}

#[test]
fn small_items_arrive_once() {
    explore(LONG, carries(40, None));
}

/// Tiny items are read from the echo of the last record, while others are put.
#[test]
fn tiny_items_arrive_once() {
    explore(LONG, carries(2, None));
    explore(USUAL, carries(13, None));
}

#[test]
fn a_full_queue_makes_producers_wait() {
    explore(LONG, carries(40, Some(1)));
}

#[test]
fn a_ring_that_is_full_is_followed_by_another() {
    explore(LONG, carries(1500, None));
}

#[test]
fn large_items_arrive_once() {
    explore(SHORT, carries(2000, Some(2)));
}

#[test]
fn fails_when_the_exchange_is_torn() {
    fails(Fault::TornExchange, USUAL, carries(40, None));
}

#[test]
fn fails_when_wakes_are_lost() {
    fails(Fault::LostWakes, USUAL, carries(40, Some(1)));
}

#[test]
fn fails_when_one_is_woken_of_all() {
    // The close wakes all consumers.
    fails(Fault::OneWake, USUAL, carries(40, None));
}

/// Process 2 produces, process 3 consumes, and one of them dies at a point. What is left is taken by process 1.
fn dies(
    who: u16,
    point: &'static str,
    len: usize,
    sweep: bool,
) -> impl Fn(&'static Arena) + Send + Sync {
    const EACH: u8 = 3;
    move |arena| {
        let bounds = Bounds {
            joinable: true,
            ..Bounds::default()
        };
        let queue = RawQueue::new(arena, bounds).unwrap();
        let block = queue.held().block();
        let died = move |slot: u16, life: &dyn Fn()| -> bool {
            let life = || {
                if slot == who {
                    die_at(point, 1);
                }
                life();
            };
            if sweep {
                return process(slot, 1, life).is_none();
            }
            phalanx_prim::model::be(slot);
            let died = phalanx_prim::model::living(life).is_none();
            if died {
                vanish(slot);
            }
            phalanx_prim::model::be(1);
            died
        };
        // What the consumer had taken when it died is lost with it, and known here.
        let taken = phalanx_prim::Arc::new(phalanx_prim::AtomicU64::new(0));
        let put = phalanx_prim::Arc::new(phalanx_prim::AtomicU64::new(0));
        let theirs = phalanx_prim::Arc::clone(&put);
        let producer = spawn(move || {
            died(2, &|| {
                let queue = join(arena, block);
                for number in 0..EACH {
                    let bytes = item(2, number, len);
                    queue.put(&[&bytes], Patience::FOREVER).unwrap();
                    theirs.fetch_add(1, phalanx_prim::Ordering::Relaxed);
                }
            })
        });
        let theirs = phalanx_prim::Arc::clone(&taken);
        let consumer = spawn(move || {
            died(3, &|| {
                let queue = join(arena, block);
                for _ in 0..2 {
                    let Ok(message) = queue.get(Patience::FOREVER) else {
                        return;
                    };
                    let (_, number) = check(&message, len);
                    theirs.fetch_or(1 << number, phalanx_prim::Ordering::Relaxed);
                    let _ = queue.task_done();
                }
            })
        });
        let mut died = producer.join().unwrap();
        queue.close();
        died |= consumer.join().unwrap();
        let rest = drain(&queue, len);
        assert!(rest.is_sorted(), "out of order: {rest:?}");
        let mut seen = taken.load(phalanx_prim::Ordering::Relaxed);
        for (_, number) in &rest {
            assert_eq!(seen >> number & 1, 0, "item {number} was delivered twice");
            seen |= 1 << number;
        }
        let lost = u32::from(EACH) - seen.count_ones();
        match who {
            // The point may not have been passed: not every lock is waited for, not every item has a block.
            _ if !died => assert_eq!(lost, 0, "{point} was not passed"),
            // What was put before is there, and no item is missing before one that is there.
            2 => {
                assert_eq!(seen & (seen + 1), 0, "{seen:b} after {point}");
                let done = put.load(phalanx_prim::Ordering::Relaxed);
                let there = u64::from(seen.count_ones());
                assert!(there == done || there == done + 1, "{seen:b} after {point}");
            }
            // Killed in its first get: at most that one item is lost.
            _ => assert!(lost <= 1, "{lost} items are lost after {point}"),
        }
        assert_eq!((queue.len(), queue.bytes()), (0, 0), "after {point}");
        // Those the dead one took count as done, and as lost.
        while queue.task_done() {}
        assert_eq!(
            queue.join(Patience::FOREVER).unwrap(),
            u64::from(lost * u32::from(who == 3))
        );
        drop(queue);
        let left: Vec<_> = arena
            .census()
            .into_iter()
            .filter(|(kind, _)| *kind != phalanx_shm::Kind::Holds)
            .collect();
        assert!(left.is_empty(), "left after a death at {point}: {left:?}");
    }
}

#[test]
fn a_producers_death_loses_nothing_that_was_put() {
    for point in [
        "queue.put.noted",
        "queue.put.echoed",
        "queue.put.committed",
        "queue.put.handed-over",
        "queue.put.unlocked",
        "lock.held",
        "lock.sleep",
        "lock.woken",
        "gate.waking",
        "arena.allocated",
    ] {
        for len in [2, 40, 2000] {
            explore(SHORT, dies(2, point, len, true));
        }
    }
}

#[test]
fn a_consumers_death_loses_one_item_at_most() {
    for point in [
        "queue.get.claimed",
        "queue.get.noted",
        "queue.get.seized",
        "queue.get.counted",
        "queue.get.committed",
        "queue.get.unlocked",
        "lock.held",
        "lock.sleep",
        "lock.woken",
        "gate.sleep",
    ] {
        for len in [40, 2000] {
            explore(SHORT, dies(3, point, len, true));
        }
    }
}

#[test]
fn fails_when_nobody_sweeps() {
    fails(Fault::None, SHORT, dies(3, "queue.get.seized", 2000, false));
}

/// Process 2 puts or takes one item and dies before it has told anybody; process 1, who may sleep, waits for just that.
fn owes_a_wake(
    takes: bool,
    point: &'static str,
    sweep: bool,
) -> impl Fn(&'static Arena) + Send + Sync {
    const LEN: usize = 40;
    move |arena| {
        let bounds = Bounds {
            items: Some(1),
            ..Bounds::default()
        };
        let queue = RawQueue::new(arena, bounds).unwrap();
        let block = queue.held().block();
        let put = |number: u8| {
            let bytes = item(1, number, LEN);
            queue.put(&[&bytes], Patience::FOREVER).unwrap();
        };
        if takes {
            put(0);
        }
        let dead = spawn(move || {
            let life = || {
                die_at(point, 1);
                let queue = join(arena, block);
                if takes {
                    let _ = queue.get(Patience::FOREVER).unwrap();
                } else {
                    let bytes = item(2, 0, LEN);
                    queue.put(&[&bytes], Patience::FOREVER).unwrap();
                }
            };
            if sweep {
                process(2, 1, life);
                return;
            }
            phalanx_prim::model::be(2);
            if phalanx_prim::model::living(life).is_none() {
                vanish(2);
            }
            phalanx_prim::model::be(1);
        });
        if takes {
            put(1);
        } else {
            check(&queue.get(Patience::FOREVER).unwrap(), LEN);
        }
        dead.join().unwrap();
    }
}

#[test]
fn a_wake_that_the_dead_owed_comes_from_the_sweep() {
    for takes in [false, true] {
        let unlocked = if takes {
            "queue.get.unlocked"
        } else {
            "queue.put.unlocked"
        };
        for point in [unlocked, "gate.waking"] {
            explore(USUAL, owes_a_wake(takes, point, true));
        }
    }
}

#[test]
fn fails_when_a_wake_is_owed_and_nobody_sweeps() {
    fails(
        Fault::None,
        USUAL,
        owes_a_wake(false, "queue.put.unlocked", false),
    );
}

/// A death between two segments, on either side.
#[test]
fn a_death_between_segments_loses_nothing() {
    for (who, point) in [
        (2, "queue.grow.noted"),
        (2, "queue.grow.linked"),
        (3, "queue.advance.noted"),
        (3, "queue.advance.moved"),
    ] {
        explore(SHORT, move |arena| {
            const LEN: usize = 1500;
            let queue = RawQueue::new(arena, Bounds::default()).unwrap();
            let block = queue.held().block();
            let producer = spawn(move || {
                let mut put = 0;
                process(2, 1, || {
                    if who == 2 {
                        die_at(point, 1);
                    }
                    let queue = join(arena, block);
                    for number in 0..4 {
                        let bytes = item(2, number, LEN);
                        queue.put(&[&bytes], Patience::FOREVER).unwrap();
                        put += 1;
                    }
                });
                put
            });
            let consumer = spawn(move || {
                let mut got = Vec::new();
                process(3, 1, || {
                    if who == 3 {
                        die_at(point, 1);
                    }
                    let queue = join(arena, block);
                    while let Ok(message) = queue.get(Patience::FOREVER) {
                        got.push(check(&message, LEN));
                    }
                });
                got
            });
            let put = producer.join().unwrap();
            queue.close();
            let mut got = consumer.join().unwrap();
            got.extend(drain(&queue, LEN));
            // No item is between hands at these points.
            let all: Vec<_> = (0..put).map(|number| (2, number)).collect();
            assert_eq!(got, all, "after a death at {point}");
            drop(queue);
            let left = arena.census();
            let segments = left
                .iter()
                .filter(|(kind, _)| *kind == phalanx_shm::Kind::Segment);
            assert_eq!(segments.count(), 0, "a segment is left after {point}");
        });
    }
}
