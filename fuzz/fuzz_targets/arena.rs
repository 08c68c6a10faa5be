//! A file that is, or nearly is, an arena: refused with the reason, or looked at without harm.
#![no_main]

use std::os::fd::AsFd;

use libfuzzer_sys::fuzz_target;
use phalanx_shm::{Arena, BlockRef};
use phalanx_sys::map::SharedFile;

const LEN: usize = 16 << 20;

fuzz_target!(|data: &[u8]| {
    // Half of the inputs are whole files; the others are changes to a true arena, 8 bytes at an offset each.
    let Some((&how, data)) = data.split_first() else {
        return;
    };
    let file = if how % 2 == 0 {
        let file = SharedFile::create("fuzz", data.len().max(1)).expect("a file");
        let region = phalanx_shm::Region::map(file, data.len().max(1)).expect("a map");
        // SAFETY: the region has that many bytes, and nobody else sees it.
        unsafe { region.at(0, data.len()).as_ptr().copy_from(data.as_ptr(), data.len()) };
        region.file().expect("it is mapped").as_fd().try_clone_to_owned().expect("a descriptor")
    } else {
        let arena = Arena::create(LEN).expect("an arena");
        let _ = (arena.alloc(100, phalanx_shm::Kind::Bytes), arena.alloc(100_000, phalanx_shm::Kind::Lock));
        for change in data.chunks_exact(11) {
            let at = usize::from(change[0]) | usize::from(change[1]) << 8 | usize::from(change[2]) << 16;
            let at = at % (LEN - 8);
            // SAFETY: inside the arena, which nobody else uses at this moment.
            unsafe { arena.region().at(at, 8).as_ptr().copy_from(change[3..].as_ptr(), 8) };
        }
        arena.region().file().expect("it is mapped").as_fd().try_clone_to_owned().expect("a descriptor")
    };
    let arena = match Arena::open(SharedFile::from_fd(file)) {
        Ok(arena) => arena,
        Err(error) => {
            assert!(!error.to_string().is_empty());
            return;
        }
    };
    let _ = (arena.identity(), arena.processes(), arena.usage(), arena.census());
    for bits in data.chunks_exact(8) {
        let bits = u64::from_le_bytes(bits.try_into().expect("8 bytes"));
        for bits in [bits, bits % (LEN as u64 / 64)] {
            if let Some(block) = BlockRef::from_bits(bits) {
                let _ = (arena.kind_of(block), arena.holder_of(block), arena.len_of(block));
                let _ = (arena.capacity_of(block), arena.holds_on(block), arena.free(block));
            }
        }
    }
});
