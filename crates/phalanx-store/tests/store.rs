//! A store beside the standard library's collections, values that carry handles, and deaths at every named point.

use std::collections::BTreeMap;
use std::time::Duration;

use phalanx_prim::points;
use phalanx_shm::{Arena, ExitRecord, Patience, adopt_forked, session};
use phalanx_store::{Item, Open, Store};
use phalanx_testkit::{Level, alone, in_child, watchdog};

fn open(store: &Store) -> Open<'_> {
    store.lock(Patience::FOREVER).unwrap()
}

/// A bad hash on purpose: many keys share one.
fn hash(key: u32) -> u64 {
    u64::from(key % 7) * 0x9e37_79b9
}

/// A value that shows whether it is whole; every fifth is too long for the log.
fn value(number: u32) -> Vec<u8> {
    let words = if number.is_multiple_of(5) {
        2000
    } else {
        1 + number as usize % 50
    };
    number.to_le_bytes().repeat(words)
}

fn number_of(bytes: &[u8]) -> u32 {
    let number = u32::from_le_bytes(bytes[..4].try_into().unwrap());
    assert_eq!(bytes, value(number), "value {number} is torn");
    number
}

fn put(open: &mut Open<'_>, key: u32, number: u32) {
    let bytes = key.to_le_bytes();
    match open.find(hash(key), &bytes) {
        Some(entry) => open.set(entry, &bytes, &value(number), &[]).unwrap(),
        None => open.push(hash(key), &bytes, &value(number), &[]).unwrap(),
    }
}

fn all(open: &Open<'_>) -> Vec<(u32, u32)> {
    open.entries()
        .into_iter()
        .map(|entry| {
            let key = u32::from_le_bytes(open.key(entry).try_into().unwrap());
            assert_eq!(open.find(hash(key), open.key(entry)), Some(entry));
            (key, number_of(&open.value(entry).unwrap().bytes))
        })
        .collect()
}

#[test]
fn a_map_does_what_a_map_does() {
    let _alone = alone();
    let arena = session().unwrap();
    drop(Store::new(true).unwrap());
    let level = Level::now(arena.usage().blocks);
    let store = Store::new(true).unwrap();
    let mut model = BTreeMap::new();
    let mut order = Vec::new();
    let mut state = 1_u32;
    for number in 0..3000 {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        let key = (state >> 16) % 60;
        let mut open = open(&store);
        if state >> 8 & 3 == 0 {
            let found = open.find(hash(key), &key.to_le_bytes());
            assert_eq!(found.is_some(), model.remove(&key).is_some());
            if let Some(entry) = found {
                open.remove(entry);
                order.retain(|other| *other != key);
            }
        } else {
            put(&mut open, key, number);
            if model.insert(key, number).is_none() {
                order.push(key);
            }
        }
        assert_eq!(open.len(), model.len());
    }
    let open = open(&store);
    let expected: Vec<_> = order.iter().map(|key| (*key, model[key])).collect();
    assert_eq!(all(&open), expected);
    assert_eq!(
        open.last().map(|entry| open.key(entry).to_vec()),
        order.last().map(|key| key.to_le_bytes().to_vec())
    );
    drop(open);
    drop(store);
    level.assert_back_with(|| arena.usage().blocks);
}

#[test]
fn a_list_grows_and_shrinks_at_both_ends() {
    let _alone = alone();
    let store = Store::new(false).unwrap();
    let mut model = std::collections::VecDeque::new();
    for number in 0..400 {
        let mut open = open(&store);
        match number % 7 {
            0 | 1 | 3 => {
                open.push(0, &[], &value(number), &[]).unwrap();
                model.push_back(number);
            }
            2 | 4 => {
                open.push_front(&value(number), &[]).unwrap();
                model.push_front(number);
            }
            5 => {
                let first = open.nth(0).unwrap();
                assert_eq!(
                    number_of(&open.value(first).unwrap().bytes),
                    model.pop_front().unwrap()
                );
                open.remove(first);
            }
            _ => {
                let last = open.last().unwrap();
                assert_eq!(
                    number_of(&open.value(last).unwrap().bytes),
                    model.pop_back().unwrap()
                );
                open.remove(last);
            }
        }
    }
    let mut open = open(&store);
    let numbers = |open: &Open<'_>| -> Vec<u32> {
        (0..open.len())
            .map(|place| number_of(&open.value(open.nth(place).unwrap()).unwrap().bytes))
            .collect()
    };
    assert_eq!(numbers(&open), Vec::from(model.clone()));
    let reversed: Vec<_> = open.entries().into_iter().rev().map(Item::Keep).collect();
    open.rewrite(&reversed).unwrap();
    assert_eq!(numbers(&open), model.into_iter().rev().collect::<Vec<_>>());
    open.rewrite(&[]).unwrap();
    assert!(open.is_empty() && open.last().is_none());
}

#[test]
fn what_a_value_names_lives_as_long_as_the_value() {
    let _alone = alone();
    let arena = session().unwrap();
    drop(Store::new(true).unwrap());
    let level = Level::now(arena.usage().blocks);
    let inner = Store::new(false).unwrap();
    let outer = Store::new(true).unwrap();
    let block = inner.held().block();
    let mut inside = open(&outer);
    inside
        .push(1, b"k", b"names it", std::slice::from_ref(inner.held()))
        .unwrap();
    drop(inner);
    assert_eq!(arena.kind_of(block), Some(Store::KIND));
    let found = inside.find(1, b"k").unwrap();
    let value = inside.value(found).unwrap();
    assert_eq!(value.bytes, b"names it");
    assert_eq!(value.holds.len(), 1);
    inside.remove(found);
    assert_eq!(
        arena.kind_of(block),
        Some(Store::KIND),
        "the copy of the value holds it"
    );
    drop(value);
    assert_eq!(arena.kind_of(block), None);
    drop(inside);
    drop(outer);
    level.assert_back_with(|| arena.usage().blocks);
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

const POINTS: [&str; 15] = [
    "store.noted",
    "store.set.committed",
    "store.push.written",
    "store.push.committed",
    "store.remove.committed",
    "store.handed-over",
    "store.discarded",
    "store.replace.noted",
    "store.replace.committed",
    "store.replace.handed-over",
    "store.replace.freed",
    "store.rewrite.built",
    "arena.allocated",
    "arena.placed",
    "lock.held",
];

/// What the victim does, step by step: `progress` says how many steps were begun and `done` how many were finished.
fn step(open: &mut Open<'_>, model: &mut Vec<(u32, u32)>, number: u32) {
    let key = number % 9;
    match number % 6 {
        5 => {
            let reversed: Vec<_> = open.entries().into_iter().rev().map(Item::Keep).collect();
            open.rewrite(&reversed[..reversed.len().min(6)]).unwrap();
            model.reverse();
            model.truncate(6);
        }
        3 => {
            if let Some(entry) = open.find(hash(key), &key.to_le_bytes()) {
                open.remove(entry);
            }
            model.retain(|(other, _)| *other != key);
        }
        _ => {
            put(open, key, number);
            match model.iter_mut().find(|(other, _)| *other == key) {
                Some(pair) => pair.1 = number,
                None => model.push((key, number)),
            }
        }
    }
}

/// A step in a model only.
fn model_step(model: &mut Vec<(u32, u32)>, number: u32) {
    let key = number % 9;
    match number % 6 {
        5 => {
            model.reverse();
            model.truncate(6);
        }
        3 => model.retain(|(other, _)| *other != key),
        _ => match model.iter_mut().find(|(other, _)| *other == key) {
            Some(pair) => pair.1 = number,
            None => model.push((key, number)),
        },
    }
}

#[test]
fn a_death_at_any_point_leaves_the_state_before_or_after_a_step() {
    let _alone = alone();
    let _dog = watchdog(Duration::from_secs(300));
    let arena = session().unwrap();
    drop(Store::new(true).unwrap());
    let mut kills = 0;
    for point in POINTS {
        for nth in [1, 2, 3, 5, 9] {
            let level = Level::now(arena.usage().blocks);
            let store = Store::new(true).unwrap();
            let killed = dies_at(arena, point, nth, || {
                let mut model = Vec::new();
                for number in 0..300 {
                    step(&mut open(&store), &mut model, number);
                }
            });
            kills += u32::from(killed);
            // The states that the victim went through, one after the other: what is there is one of them.
            let mut open_now = open(&store);
            let found = all(&open_now);
            assert_eq!(open_now.len(), found.len());
            let mut model = Vec::new();
            let passed = (0..=300).any(|number| {
                let same = model == found;
                model_step(&mut model, number);
                same
            });
            assert!(passed, "{point} {nth}: {found:?} never was");
            // And it goes on from there.
            let mut model = found;
            for number in 300..330 {
                step(&mut open_now, &mut model, number);
            }
            assert_eq!(all(&open_now), model, "{point} {nth}");
            drop(open_now);
            drop(store);
            level.assert_back_with(|| arena.usage().blocks);
        }
    }
    assert!(
        kills >= 60,
        "only {kills} of the victims died: are the points still passed?"
    );
}

#[test]
fn the_next_owner_recovers_before_any_sweep() {
    let _alone = alone();
    let _dog = watchdog(Duration::from_secs(100));
    let arena = session().unwrap();
    drop(Store::new(true).unwrap());
    for point in POINTS {
        let level = Level::now(arena.usage().blocks);
        let store = Store::new(true).unwrap();
        let slot = arena.reserve_slot().unwrap();
        let child = in_child(|| {
            adopt_forked(slot).unwrap();
            points::arm(point, 2);
            let mut model = Vec::new();
            for number in 0..300 {
                step(&mut open(&store), &mut model, number);
            }
        });
        child.wait();
        drop(child);
        let mut model = all(&open(&store));
        for number in 300..330 {
            step(&mut open(&store), &mut model, number);
        }
        arena.record_exit(slot, ExitRecord::Signal(9));
        arena.sweep(slot);
        assert_eq!(all(&open(&store)), model, "{point}");
        drop(store);
        level.assert_back_with(|| arena.usage().blocks);
    }
}

#[test]
fn several_processes_change_one_map() {
    let _alone = alone();
    let _dog = watchdog(Duration::from_secs(100));
    let arena = session().unwrap();
    let store = Store::new(true).unwrap();
    put(&mut open(&store), 0, 0);
    let children: Vec<_> = (0..3)
        .map(|_| {
            let slot = arena.reserve_slot().unwrap();
            let child = in_child(|| {
                adopt_forked(slot).unwrap();
                for _ in 0..300 {
                    let mut open = open(&store);
                    let entry = open.find(hash(0), &0_u32.to_le_bytes()).unwrap();
                    let number = number_of(&open.value(entry).unwrap().bytes);
                    put(&mut open, 0, number + 1);
                }
            });
            (slot, child)
        })
        .collect();
    for (slot, child) in children {
        assert!(child.wait().is_success());
        arena.record_exit(slot, ExitRecord::Code(0));
        arena.sweep(slot);
    }
    assert_eq!(all(&open(&store)), [(0, 900)]);
}
