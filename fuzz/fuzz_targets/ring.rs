//! A queue's ring with foreign bytes in it: positions, sizes, records, the payload blocks they name.
#![no_main]

use std::time::Duration;

use libfuzzer_sys::fuzz_target;
use phalanx_channel::{Bounds, RawQueue};
use phalanx_shm::Patience;

fuzz_target!(|data: &[u8]| {
    let arena = phalanx_shm::session().expect("an arena");
    let queue = RawQueue::new(arena, Bounds::default()).expect("memory");
    for len in [3, 100, 2000] {
        queue.put(&[&vec![7; len]], Patience::FOREVER).expect("memory");
    }
    let (segment, payloads) = phalanx_channel::fuzzed::places(&queue);
    // Changes: 2 bytes say which word of the segment (or of a payload block), 8 what it is.
    for change in data.chunks_exact(10) {
        let at = usize::from(change[0]) | usize::from(change[1]) << 8;
        let block = if at % 4 == 3 { payloads[0] } else { segment };
        let at = at / 4 * 8 % arena.capacity_of(block);
        // SAFETY: inside the block, and nobody else uses it at this moment.
        unsafe { arena.region().at(block.offset() + at, 8).as_ptr().copy_from(change[2..].as_ptr(), 8) };
    }
    let now = Patience::timeout(Duration::ZERO);
    for round in 0..8 {
        if let Ok(message) = queue.get(now) {
            std::hint::black_box(message.iter().map(|byte| u64::from(*byte)).sum::<u64>());
        }
        let _ = queue.put(&[&vec![1; round * 400]], now);
    }
    let _ = (queue.len(), queue.bytes(), queue.is_ready(), queue.closed());
});
