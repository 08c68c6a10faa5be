//! What a queue does with bytes that no process of ours wrote: never a panic, never an endless loop. The short form of the
//! targets in `fuzz/`.

use std::time::Duration;

use phalanx_shm::{BlockRef, Patience, session};
use phalanx_testkit::{Bytes, watchdog};

use crate::message::set_word;
use crate::{Bounds, RawQueue, codec, pipe};

const ROUNDS: u64 = if cfg!(miri) { 5 } else { 2_000 };
const NOW: Patience = Patience {
    deadline: Some(phalanx_prim::Deadline::PAST),
    ..Patience::FOREVER
};

fn queue() -> RawQueue {
    let queue = RawQueue::new(session().unwrap(), Bounds::default()).unwrap();
    for len in [3, 100, 2000] {
        queue.put(&[&vec![7; len]], Patience::FOREVER).unwrap();
    }
    queue
}

fn spoil(queue: &RawQueue, block: BlockRef, words: usize, bytes: &mut Bytes) {
    let arena = queue.held().arena();
    for _ in 0..1 + bytes.number() % 4 {
        let word = bytes.number() as usize % words;
        set_word(arena, block, word * 8, bytes.edge());
    }
}

fn use_up(queue: &RawQueue) {
    for round in 0..8 {
        if let Ok(message) = queue.get(NOW) {
            assert!(message.len() <= 1 << 20);
            std::hint::black_box(message.iter().map(|byte| u64::from(*byte)).sum::<u64>());
        }
        let _ = queue.put(&[&vec![1; round * 400]], NOW);
    }
    let _ = (queue.len(), queue.bytes(), queue.is_ready());
}

#[test]
fn any_ring_is_read_without_harm() {
    let _dog = watchdog(Duration::from_secs(100));
    let mut bytes = Bytes::new(1);
    for _ in 0..ROUNDS {
        let queue = queue();
        let (segment, _) = queue.places();
        // Positions, link, size and the first records.
        spoil(&queue, segment, 80, &mut bytes);
        use_up(&queue);
    }
}

#[test]
fn any_payload_block_is_read_without_harm() {
    let _dog = watchdog(Duration::from_secs(100));
    let mut bytes = Bytes::new(2);
    for _ in 0..ROUNDS {
        let queue = queue();
        let (_, payloads) = queue.places();
        assert_eq!(payloads.len(), 1, "one item is too large for the ring");
        spoil(&queue, payloads[0], 8, &mut bytes);
        use_up(&queue);
    }
}

#[test]
fn any_message_is_a_value_or_an_error() {
    let _dog = watchdog(Duration::from_secs(100));
    let mut bytes = Bytes::new(3);
    let (left, right) = pipe::<Vec<String>, Option<(u64, bool)>>().unwrap();
    let mut whole = Vec::new();
    codec::encode(&vec!["some", "words", ""], &mut whole).unwrap();
    for _ in 0..ROUNDS {
        let mangled = bytes.mangled(&whole);
        left.raw().0.put(&[&mangled], Patience::FOREVER).unwrap();
        right.raw().0.put(&[&mangled], Patience::FOREVER).unwrap();
        if let Ok(words) = right.recv() {
            assert!(words.len() <= mangled.len());
        }
        let _ = left.recv();
        // A number that names nothing, or something else, is no handle.
        assert!(codec::decode::<crate::Queue<u8>>(&mangled).is_err());
        assert!(codec::decode::<phalanx_sync::Lock>(&mangled).is_err());
    }
}
