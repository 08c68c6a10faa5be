//! The queue of bytes, by threads of one process.

use phalanx_channel::{Bounds, RawGetError, RawQueue};
use phalanx_shm::{Patience, session};
use std::sync::Mutex;
use std::time::Duration;

/// One counts the arena's blocks: the tests of one process take turns.
static TURN: Mutex<()> = Mutex::new(());

#[test]
fn items_come_out_in_order_small_and_large() {
    let _turn = TURN.lock();
    let queue = RawQueue::new(session().unwrap(), Bounds::default()).unwrap();
    for i in 0..2000_usize {
        let item = vec![i as u8; (i * 7) % 5000];
        queue.put(&[&item], Patience::FOREVER).unwrap();
    }
    assert_eq!(queue.len(), 2000);
    for i in 0..2000_usize {
        let item = queue.get(Patience::FOREVER).unwrap();
        assert_eq!(&*item, &vec![i as u8; (i * 7) % 5000][..], "item {i}");
    }
    assert!(matches!(
        queue.get(Patience::timeout(Duration::from_millis(5))),
        Err(RawGetError::Wait(phalanx_shm::WaitError::TimedOut))
    ));
}

#[test]
fn many_producers_and_consumers_lose_and_double_nothing() {
    let _turn = TURN.lock();
    let before = session().unwrap().usage().blocks;
    let queue = RawQueue::new(
        session().unwrap(),
        Bounds {
            items: Some(16),
            ..Bounds::default()
        },
    )
    .unwrap();
    let (producers, each) = (3_u64, 20_000_u64);
    let mut sums = Vec::new();
    std::thread::scope(|scope| {
        for p in 0..producers {
            let queue = queue.clone();
            scope.spawn(move || {
                for i in 0..each {
                    let number = p * each + i;
                    queue
                        .put(&[&number.to_le_bytes()], Patience::FOREVER)
                        .unwrap();
                }
            });
        }
        let consumers: Vec<_> = (0..3)
            .map(|_| {
                let queue = queue.clone();
                scope.spawn(move || {
                    let mut seen = Vec::new();
                    for _ in 0..each {
                        let item = queue.get(Patience::FOREVER).unwrap();
                        seen.push(u64::from_le_bytes((*item).try_into().unwrap()));
                    }
                    seen
                })
            })
            .collect();
        for consumer in consumers {
            sums.extend(consumer.join().unwrap());
        }
    });
    sums.sort_unstable();
    assert_eq!(sums, (0..producers * each).collect::<Vec<_>>());
    drop(queue);
    assert!(
        session().unwrap().usage().blocks <= before + 1,
        "only the hold table may stay"
    );
}
