//! A pool's task record with foreign words in it.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let arena = phalanx_shm::session().expect("an arena");
    let block = phalanx_pool::fuzzed::task(arena, &[1, 2, 3, 4]);
    // Changes: a byte says which word, 8 what it is.
    for change in data.chunks_exact(9) {
        let at = usize::from(change[0]) % 32 * 8;
        // SAFETY: inside the record's block, which nobody else uses at this moment.
        unsafe { arena.region().at(block.offset() + at, 8).as_ptr().copy_from(change[1..].as_ptr(), 8) };
    }
    phalanx_pool::fuzzed::read(arena, block.to_bits());
    for bits in data.chunks_exact(8) {
        phalanx_pool::fuzzed::read(arena, u64::from_le_bytes(bits.try_into().expect("8 bytes")));
    }
});
