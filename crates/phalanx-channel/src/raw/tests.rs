use super::*;
use std::time::Duration;

use phalanx_shm::session;
use phalanx_testkit::watchdog;

const ITEMS: usize = if cfg!(miri) { 12 } else { 5_000 };
/// Some in the ring, some in blocks of their own.
const SIZES: [usize; 4] = [0, 9, 500, INLINE_MOST + 100];

fn queue(bounds: Bounds) -> RawQueue {
    crate::install();
    RawQueue::new(session().unwrap(), bounds).unwrap()
}

fn item(number: usize) -> Vec<u8> {
    vec![number as u8; SIZES[number % SIZES.len()]]
}

#[test]
fn items_of_one_producer_come_in_order() {
    let _dog = watchdog(Duration::from_secs(200));
    let queue = queue(Bounds::default());
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for number in 0..ITEMS {
                queue.put(&[&item(number)], Patience::FOREVER).unwrap();
            }
        });
        for number in 0..ITEMS {
            let message = queue.get(Patience::FOREVER).unwrap();
            assert_eq!(*message, item(number));
        }
    });
    assert_eq!((queue.len(), queue.bytes()), (0, 0));
}

#[test]
fn an_empty_item_that_fills_the_ring_leaves_the_first_one_alone() {
    let queue = queue(Bounds::default());
    // Records of 16 bytes, but for two of 8 that are the ring's last one and one in the middle.
    let ring = FIRST_RING / 16;
    let items = |at: usize| if at == 3 || at == ring { 0 } else { 8 };
    for at in 0..=ring {
        queue
            .put(&[&vec![7; items(at)]], Patience::FOREVER)
            .unwrap();
    }
    for at in 0..=ring {
        let message = queue.get(Patience::FOREVER).unwrap();
        assert_eq!(*message, vec![7; items(at)], "{at} of {ring}");
    }
}

#[test]
fn two_producers_and_two_consumers_lose_nothing_at_a_bound() {
    let _dog = watchdog(Duration::from_secs(200));
    let bounds = Bounds {
        items: Some(3),
        ..Bounds::default()
    };
    let queue = queue(bounds);
    let taken = AtomicU64::new(0);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                for number in 0..ITEMS {
                    queue.put(&[&item(number)], Patience::FOREVER).unwrap();
                }
            });
            scope.spawn(|| {
                for _ in 0..ITEMS {
                    let message = queue.get(Patience::FOREVER).unwrap();
                    taken.fetch_add(message.len() as u64, Ordering::Relaxed);
                }
            });
        }
    });
    let all: usize = (0..ITEMS).map(|number| item(number).len()).sum();
    assert_eq!(taken.load(Ordering::Relaxed), 2 * all as u64);
    assert!(queue.is_empty());
}

#[test]
fn a_ring_that_is_full_grows_and_is_freed_with_what_is_in_it() {
    let arena = session().unwrap();
    let queue = queue(Bounds::default());
    let (first, _) = queue.places();
    for number in 0..4 * SIZES.len() {
        let mut bytes = item(number);
        bytes.resize(bytes.len().max(1000), 7);
        queue.put(&[&bytes], Patience::FOREVER).unwrap();
    }
    let (_, payloads) = queue.places();
    drop(queue);
    assert_eq!(arena.kind_of(first), None);
    assert!(payloads.iter().all(|block| arena.kind_of(*block).is_none()));
}

#[test]
fn bytes_of_any_length_come_out_as_they_went_in() {
    let queue = queue(Bounds::default());
    let bytes: Vec<u8> = (1..=40).collect();
    for len in 0..=bytes.len() {
        queue.put(&[&bytes[..len]], Patience::FOREVER).unwrap();
        let (one, two) = bytes[..len].split_at(len / 2);
        queue.put(&[one, two], Patience::FOREVER).unwrap();
    }
    for len in 0..=bytes.len() {
        for _ in 0..2 {
            assert_eq!(*queue.get(Patience::FOREVER).unwrap(), bytes[..len]);
        }
    }
}

#[test]
fn a_loan_is_read_where_it_was_written() {
    let queue = queue(Bounds::default());
    let mut loan = queue.loan(3000).unwrap();
    loan.fill(5);
    let written = loan.as_ptr();
    queue.put_loan(loan, Patience::FOREVER).unwrap();
    let message = queue.get(Patience::FOREVER).unwrap();
    assert!(message.is_in_place());
    assert_eq!(message.as_ptr(), written);
    assert_eq!(message.into_vec(), vec![5; 3000]);
}
