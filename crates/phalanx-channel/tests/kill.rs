//! Deaths inside the queue's protocol, at every named point of it: nothing torn, nothing twice, nothing lost but what the
//! dead one had taken, nothing leaked, nobody left asleep.

use std::time::Duration;

use phalanx_channel::{Bounds, GetError, Queue, RawGetError, RawQueue, pipe};
use phalanx_prim::points;
use phalanx_shm::{Arena, ExitRecord, Patience, adopt_forked, session};
use phalanx_testkit::{Level, alone, in_child, watchdog};

const PUT: [&str; 6] = [
    "queue.put.noted",
    "queue.put.committed",
    "queue.put.handed-over",
    "queue.put.unlocked",
    "queue.grow.noted",
    "queue.grow.linked",
];
const GET: [&str; 8] = [
    "queue.get.claimed",
    "queue.get.noted",
    "queue.get.seized",
    "queue.get.counted",
    "queue.get.committed",
    "queue.get.unlocked",
    "queue.advance.noted",
    "queue.advance.moved",
];

/// An item that shows whether it is whole: its number, over and over. Every third is too large for the ring.
fn item(number: u32) -> Vec<u8> {
    let words = if number % 3 == 2 {
        700
    } else {
        1 + number as usize % 40
    };
    number.to_le_bytes().repeat(words)
}

fn number_of(item: &[u8]) -> u32 {
    let number = u32::from_le_bytes(item[..4].try_into().unwrap());
    assert_eq!(item, self::item(number), "item {number} is torn");
    number
}

const SOON: Duration = Duration::from_secs(20);

fn take_all(queue: &RawQueue) -> Vec<u32> {
    let mut numbers = Vec::new();
    while let Ok(message) = queue.get(Patience::timeout(Duration::from_millis(1))) {
        numbers.push(number_of(&message));
    }
    numbers
}

/// Runs `work` in a process of the tree that dies at `point`, then sweeps it. `false` if the point was not passed.
fn dies_at(arena: &'static Arena, point: &'static str, nth: u32, work: impl FnOnce()) -> bool {
    let slot = arena.reserve_slot().unwrap();
    let child = in_child(move || {
        adopt_forked(slot).unwrap();
        points::arm(point, nth);
        work();
    });
    let ended = child.wait();
    arena.record_exit(slot, ExitRecord::Signal(9));
    arena.sweep(slot);
    ended.is_killed()
}

fn start() -> &'static Arena {
    let arena = session().unwrap();
    // This process's own hold table stays; it belongs to the level.
    drop(Queue::<u8>::new().unwrap());
    arena
}

#[test]
fn producers_die_at_every_point() {
    let _alone = alone();
    let _dog = watchdog(Duration::from_secs(200));
    let arena = start();
    let mut kills = 0;
    for point in PUT {
        for nth in [1, 2, 3, 7] {
            let level = Level::now(arena.usage().blocks);
            let queue = RawQueue::new(arena, Bounds::default()).unwrap();
            let killed = dies_at(arena, point, nth, || {
                for number in 0..400 {
                    queue.put(&[&item(number)], Patience::FOREVER).unwrap();
                }
            });
            kills += u32::from(killed);
            // Whoever comes next meets a queue that is whole: all items before some number, and none behind it.
            let numbers = take_all(&queue);
            assert_eq!(
                numbers,
                (0..numbers.len() as u32).collect::<Vec<_>>(),
                "{point} {nth}"
            );
            queue.put(&[&item(7)], Patience::timeout(SOON)).unwrap();
            assert_eq!(number_of(&queue.get(Patience::timeout(SOON)).unwrap()), 7);
            drop(queue);
            level.assert_back_with(|| arena.usage().blocks);
        }
    }
    assert!(
        kills >= 18,
        "only {kills} of the producers died: are the points still passed?"
    );
}

#[test]
fn an_echo_of_what_was_never_put_is_not_heard() {
    let _alone = alone();
    let _dog = watchdog(Duration::from_secs(200));
    let arena = start();
    let queue = RawQueue::new(arena, Bounds::default()).unwrap();
    let killed = dies_at(arena, "queue.put.echoed", 1, || {
        queue.put(&[b"tiny"], Patience::FOREVER).unwrap();
    });
    assert!(killed);
    // It gets the place in the ring, and has no echo of its own.
    queue.put(&[&[7; 100]], Patience::timeout(SOON)).unwrap();
    assert_eq!(*queue.get(Patience::timeout(SOON)).unwrap(), [7; 100]);
    assert!(queue.is_empty());
}

#[test]
fn consumers_die_at_every_point() {
    let _alone = alone();
    let _dog = watchdog(Duration::from_secs(200));
    let arena = start();
    let mut kills = 0;
    for point in GET {
        for nth in [1, 2, 3] {
            for bounds in [
                Bounds {
                    joinable: true,
                    ..Bounds::default()
                },
                Bounds {
                    items: Some(500),
                    ..Bounds::default()
                },
            ] {
                let level = Level::now(arena.usage().blocks);
                let queue = RawQueue::new(arena, bounds).unwrap();
                let taken = RawQueue::new(arena, Bounds::default()).unwrap();
                for number in 0..400 {
                    queue.put(&[&item(number)], Patience::FOREVER).unwrap();
                }
                let killed = dies_at(arena, point, nth, || {
                    while let Ok(message) = queue.get(Patience::timeout(Duration::from_millis(1))) {
                        taken.put(&[&message], Patience::FOREVER).unwrap();
                    }
                });
                kills += u32::from(killed);
                let before = take_all(&taken);
                let mut left = Vec::new();
                while let Ok(message) = queue.get(Patience::timeout(Duration::from_millis(1))) {
                    left.push(number_of(&message));
                    assert_eq!(queue.task_done(), bounds.joinable);
                }
                let all: Vec<u32> = before.iter().chain(&left).copied().collect();
                let lost = 400 - all.len();
                assert!(lost <= 1, "{point} {nth}: {lost} items are lost");
                let gap = before.len() as u32;
                let expected = (0..400).filter(|number| lost == 0 || *number != gap);
                assert_eq!(all, expected.collect::<Vec<_>>(), "{point} {nth}");
                if bounds.joinable {
                    // What the dead one had taken counts as done, and as lost.
                    let dead = queue.join(Patience::timeout(SOON)).unwrap();
                    assert!(
                        !killed || dead >= lost as u64,
                        "{point} {nth}: {dead} were reported, {lost} are lost"
                    );
                }
                drop((queue, taken));
                level.assert_back_with(|| arena.usage().blocks);
            }
        }
    }
    assert!(
        kills >= 30,
        "only {kills} of the consumers died: are the points still passed?"
    );
}

#[test]
fn a_wake_that_was_owed_is_given_after_a_death() {
    let _alone = alone();
    let _dog = watchdog(Duration::from_secs(100));
    let arena = start();
    for point in ["queue.put.committed", "queue.put.unlocked"] {
        let queue = RawQueue::new(arena, Bounds::default()).unwrap();
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| {
                queue
                    .get(Patience::timeout(SOON))
                    .map(|message| number_of(&message))
            });
            // Asleep by then, as a rule; awake, it sees the item without a wake.
            std::thread::sleep(Duration::from_millis(30));
            assert!(dies_at(arena, point, 1, || queue
                .put(&[&item(1)], Patience::FOREVER)
                .unwrap()));
            assert_eq!(waiting.join().unwrap().unwrap(), 1, "{point}");
        });
        let queue = RawQueue::new(
            arena,
            Bounds {
                items: Some(1),
                ..Bounds::default()
            },
        )
        .unwrap();
        queue.put(&[&item(2)], Patience::FOREVER).unwrap();
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| queue.put(&[&item(3)], Patience::timeout(SOON)));
            std::thread::sleep(Duration::from_millis(30));
            assert!(dies_at(arena, "queue.get.unlocked", 1, || drop(
                queue.get(Patience::FOREVER).unwrap()
            )));
            waiting.join().unwrap().unwrap();
        });
    }
}

#[test]
fn the_other_end_of_a_dead_process_hears_of_it() {
    let _alone = alone();
    let _dog = watchdog(Duration::from_secs(100));
    let arena = start();
    let level = Level::now(arena.usage().blocks);
    let (ours, theirs) = pipe::<u32, u32>().unwrap();
    let handover = Queue::new().unwrap();
    handover.put(theirs).unwrap();
    assert!(dies_at(arena, "lock.held", 40, || {
        let end = handover.get().unwrap();
        for number in 0.. {
            end.send(number).unwrap();
        }
    }));
    let mut expected = 0;
    let reason = loop {
        match ours.recv_timeout(SOON) {
            Ok(number) => {
                assert_eq!(number, expected);
                expected += 1;
            }
            Err(GetError::Closed(reason)) => break reason,
            Err(error) => panic!("{error}"),
        }
    };
    assert!(reason.to_string().contains("SIGKILL"), "{reason}");
    assert_eq!(ours.send(5).unwrap_err().value, 5);
    drop((ours, handover));
    level.assert_back_with(|| arena.usage().blocks);
}

#[test]
fn many_producers_and_consumers_are_killed_at_random() {
    let _alone = alone();
    let _dog = watchdog(Duration::from_secs(300));
    let arena = start();
    let level = Level::now(arena.usage().blocks);
    let queue = RawQueue::new(
        arena,
        Bounds {
            items: Some(64),
            ..Bounds::default()
        },
    )
    .unwrap();
    let taken = RawQueue::new(arena, Bounds::default()).unwrap();
    let mut seen = std::collections::HashMap::<u32, u32>::new();
    let mut accepted = 0_u32;
    for round in 0..300_u32 {
        let slots = [arena.reserve_slot().unwrap(), arena.reserve_slot().unwrap()];
        let first = round * 10_000;
        let (theirs, counted) = (queue.clone(), phalanx_sync::Shared::new(0_u32).unwrap());
        let count = counted.clone();
        let producer = in_child(move || {
            adopt_forked(slots[0]).unwrap();
            for number in first..first + 9_999 {
                theirs.put(&[&item(number)], Patience::FOREVER).unwrap();
                count.set(number - first + 1);
            }
        });
        let (theirs, into) = (queue.clone(), taken.clone());
        let consumer = in_child(move || {
            adopt_forked(slots[1]).unwrap();
            while let Ok(message) = theirs.get(Patience::FOREVER) {
                into.put(&[&message], Patience::FOREVER).unwrap();
            }
        });
        // As random as the machine.
        std::thread::sleep(Duration::from_micros(u64::from(round * 7919 % 4001)));
        let order = if round % 2 == 0 {
            [&producer, &consumer]
        } else {
            [&consumer, &producer]
        };
        for child in order {
            child.kill();
        }
        for (child, slot) in [(&producer, slots[0]), (&consumer, slots[1])] {
            child.wait();
            arena.record_exit(slot, ExitRecord::Signal(9));
            arena.sweep(slot);
        }
        accepted += counted.get();
        for number in take_all(&taken).into_iter().chain(take_all(&queue)) {
            *seen.entry(number).or_default() += 1;
        }
    }
    assert!(seen.values().all(|times| *times == 1), "an item came twice");
    // Each round may lose the item that its consumer had, and gain the one whose count its producer did not live to write.
    let got = seen.len() as u32;
    assert!(
        got + 300 >= accepted && got <= accepted + 300,
        "{got} of {accepted} items came"
    );
    // What is missing before the last of a producer's items that came was taken by a consumer that died with it.
    let mut last = [None; 300];
    for number in seen.keys() {
        let last = &mut last[*number as usize / 10_000];
        *last = (*last).max(Some(number % 10_000));
    }
    let put: u32 = last.iter().flatten().map(|last| last + 1).sum();
    println!(
        "kill table: Queue: 600 kills, {put} items, {} lost with who had taken them, 0 twice, 0 torn",
        put - got
    );
    assert!(put - got <= 300, "more are lost than were taken");
    assert!(matches!(
        queue.get(Patience::timeout(Duration::from_millis(1))),
        Err(RawGetError::Wait(_))
    ));
    drop((queue, taken));
    level.assert_back_with(|| arena.usage().blocks);
}
