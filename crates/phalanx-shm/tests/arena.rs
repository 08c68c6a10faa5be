//! Blocks and holds by the threads of one process; memory that runs short; files that are no arena.
#![expect(unsafe_code, reason = "blocks are filled and looked at")]

use std::collections::HashMap;
use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::sync::Barrier;
use std::time::Duration;

use phalanx_prim::{AtomicU64, Ordering};
use phalanx_shm::{
    AllocError, Arena, BlockRef, Kind, KindOps, OBJECT, OpenError, Placed, current_slot,
    register_kind, session,
};
use phalanx_sys::limits;
use phalanx_sys::map::SharedFile;
use phalanx_testkit::{Level, alone, in_child, watchdog};

const MIB: usize = 1 << 20;

fn stamp(arena: &Arena, block: BlockRef, len: usize, byte: u8) {
    let at = arena.region().at(block.offset(), len);
    // SAFETY: the block was allocated with this length and is the calling test's alone.
    unsafe { at.write_bytes(byte, len) };
}

fn bears(arena: &Arena, block: BlockRef, len: usize, byte: u8) -> bool {
    let at = arena.region().at(block.offset(), len);
    // SAFETY: as above; nobody writes meanwhile.
    let bytes = unsafe { std::slice::from_raw_parts(at.as_ptr(), len) };
    bytes.iter().all(|one| *one == byte)
}

fn every_size() -> Vec<usize> {
    let mut sizes = vec![0, 1, 63];
    for power in 6..=24 {
        let size = 1 << power;
        sizes.extend([size - 1, size, size + 1]);
    }
    sizes
}

#[test]
fn blocks_of_every_size_come_and_go() {
    let _alone = alone();
    let _dog = watchdog(Duration::from_secs(60));
    let arena = session().unwrap();
    let level = Level::now(arena.usage().blocks);
    let bytes = arena.usage().bytes;
    let mut blocks = Vec::new();
    for (i, len) in every_size().into_iter().enumerate() {
        let block = arena.alloc(len, Kind::Bytes).unwrap();
        assert_eq!(arena.len_of(block), len);
        assert!(arena.capacity_of(block) >= len);
        assert_eq!(arena.kind_of(block), Some(Kind::Bytes));
        assert_eq!(arena.holder_of(block), Some(current_slot()));
        let align = match len {
            0..=64 => 64,
            65..=8192 => 128,
            _ => 4096,
        };
        assert!(
            arena.address(block).as_ptr().addr().is_multiple_of(align),
            "{len}"
        );
        stamp(arena, block, len, i as u8);
        blocks.push((block, len, i as u8));
    }
    assert_eq!(arena.usage().blocks, level.blocks + blocks.len());
    assert_eq!(
        arena.usage().bytes,
        bytes + blocks.iter().map(|(_, len, _)| len).sum::<usize>()
    );
    for (block, len, byte) in &blocks {
        assert!(
            bears(arena, *block, *len, *byte),
            "{len} bytes were overwritten"
        );
    }
    for (block, ..) in &blocks {
        assert!(arena.free(*block));
        assert!(!arena.free(*block), "a second freeing does nothing");
        assert_eq!(arena.kind_of(*block), None);
        assert_eq!(arena.holder_of(*block), None);
        assert!(!arena.rehold(*block, current_slot(), OBJECT));
    }
    level.assert_back(arena.usage().blocks);
}

#[test]
fn memory_of_large_blocks_is_reused_and_given_back() {
    let _alone = alone();
    let _dog = watchdog(Duration::from_secs(60));
    let arena = Arena::create(1 << 30).unwrap();
    for _ in 0..20 {
        let block = arena.alloc(30 * MIB, Kind::Bytes).unwrap();
        stamp(&arena, block, 30 * MIB, 1);
        assert!(arena.free(block));
    }
    let committed = arena.usage().committed;
    assert!(
        committed < 34 * MIB as u64,
        "{committed} bytes for one block at a time"
    );
    arena.trim();
    let trimmed = arena.usage().committed;
    assert!(trimmed < MIB as u64, "{trimmed} bytes after a trim");
    // Beyond what is kept warm, freeing gives back at once; that is more where there is much.
    let most = phalanx_sys::limits::available_memory().available / 16;
    let blocks: Vec<_> = (0..10)
        .map(|_| arena.alloc(40 * MIB, Kind::Bytes).unwrap())
        .collect();
    for block in blocks {
        arena.free(block);
    }
    let kept = arena.usage().committed;
    assert!(
        kept <= most.max(256 * MIB as u64) + 44 * MIB as u64,
        "{kept} bytes are kept"
    );
}

#[test]
fn threads_at_once_share_no_block_and_lose_none() {
    let _alone = alone();
    let _dog = watchdog(Duration::from_secs(120));
    let arena = session().unwrap();
    let level = Level::now(arena.usage().blocks);
    let mut committed = Vec::new();
    for _ in 0..4 {
        let together = Barrier::new(4);
        std::thread::scope(|scope| {
            for thread in 0..4_u64 {
                let together = &together;
                scope.spawn(move || {
                    together.wait();
                    churn(arena, 0x9e37_79b9 * (thread + 1));
                });
            }
        });
        assert_eq!(arena.usage().blocks, level.blocks);
        committed.push(arena.usage().committed);
    }
    // Hints that went astray must not let the arena grow for ever.
    assert!(
        committed[3] <= committed[0] * 3 / 2,
        "the same work again and again takes {committed:?} bytes"
    );
    level.assert_back(arena.usage().blocks);
}

fn churn(arena: &Arena, seed: u64) {
    let mut state = seed;
    let mut random = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    let mut mine: Vec<(BlockRef, usize, u8)> = Vec::new();
    for _ in 0..12_000 {
        if mine.len() < 60 && random() % 2 == 0 {
            let len = match random() % 40 {
                0 => (random() % 300_000) as usize,
                1..=5 => (random() % 20_000) as usize,
                _ => (random() % 700) as usize,
            };
            let block = arena.alloc(len, Kind::Bytes).unwrap();
            let byte = random() as u8;
            stamp(arena, block, len, byte);
            mine.push((block, len, byte));
        } else if !mine.is_empty() {
            let which = (random() % mine.len() as u64) as usize;
            let (block, len, byte) = mine.swap_remove(which);
            assert!(bears(arena, block, len, byte), "two owners of one block");
            assert!(arena.free(block));
        }
    }
    for (block, len, byte) in mine {
        assert!(bears(arena, block, len, byte), "two owners of one block");
        assert!(arena.free(block));
    }
}

#[test]
fn the_census_tells_kinds_and_holders() {
    let _alone = alone();
    let _dog = watchdog(Duration::from_secs(60));
    let arena = Arena::create(256 * MIB).unwrap();
    let mut expected: HashMap<(Kind, u16), usize> = HashMap::new();
    for i in 0..3_000_usize {
        let block = arena.alloc((i * 37) % 9_000, Kind::Bytes).unwrap();
        let kind = if i % 3 == 0 { Kind::Task } else { Kind::Bytes };
        arena.rekind(block, kind);
        let holder = if i % 5 == 0 { OBJECT } else { current_slot() };
        arena.seize(block, holder);
        *expected.entry((kind, holder)).or_default() += 1;
    }
    let mut counted = HashMap::new();
    for line in arena.census() {
        *counted.entry(line).or_default() += 1;
    }
    assert_eq!(counted, expected);
}

/// Something counted, which owns nothing.
#[repr(C)]
struct Plain {
    number: AtomicU64,
}

// SAFETY: repr(C), atomics only, and the only type placed under its kind here.
unsafe impl Placed for Plain {
    const KIND: Kind = Kind::Event;
}

static DESTROYED: AtomicU64 = AtomicU64::new(0);

fn install() {
    register_kind(
        Kind::Event,
        KindOps {
            recover: |_, _, _, _| {},
            destroy: |_, _| {
                DESTROYED.fetch_add(1, Ordering::Relaxed);
            },
        },
    );
}

fn plain(arena: &Arena, number: u64) -> BlockRef {
    let number = AtomicU64::new(number);
    arena.emplace(Plain { number }).unwrap()
}

#[test]
fn an_object_lives_as_long_as_somebody_holds_it() {
    let _alone = alone();
    let _dog = watchdog(Duration::from_secs(60));
    install();
    let arena = session().unwrap();
    drop(arena.publish(plain(arena, 0)).unwrap());
    let level = Level::now(arena.usage().blocks);
    let destroyed = DESTROYED.load(Ordering::Relaxed);

    let held = arena.publish(plain(arena, 7)).unwrap();
    let block = held.block();
    let again = arena.hold(block).unwrap();
    let cloned = held.clone();
    assert_eq!(arena.holds_on(block), 3);
    drop(held);
    drop(again);
    assert_eq!(cloned.view::<Plain>().number.load(Ordering::Relaxed), 7);
    assert_eq!(DESTROYED.load(Ordering::Relaxed), destroyed);
    drop(cloned);
    assert_eq!(DESTROYED.load(Ordering::Relaxed), destroyed + 1);
    assert!(arena.hold(block).is_err());
    assert!(arena.view::<Plain>(block).is_err());
    assert_eq!(arena.holds_on(block), 0);
    level.assert_back(arena.usage().blocks);
}

#[test]
fn holds_taken_and_dropped_by_many_threads_balance() {
    let _alone = alone();
    let _dog = watchdog(Duration::from_secs(120));
    install();
    let arena = session().unwrap();
    // The hold tables stay: have as many as the threads will need.
    let warm: Vec<_> = (0..400)
        .map(|i| arena.publish(plain(arena, i)).unwrap())
        .collect();
    drop(warm);
    let level = Level::now(arena.usage().blocks);
    let destroyed = DESTROYED.load(Ordering::Relaxed);
    let shared = arena.publish(plain(arena, 1)).unwrap();
    let rounds = 3_000;
    std::thread::scope(|scope| {
        for thread in 0..4_u64 {
            let shared = &shared;
            scope.spawn(move || {
                let mut kept = Vec::new();
                for i in 0..rounds {
                    kept.push(shared.clone());
                    let own = arena.publish(plain(arena, thread << 32 | i)).unwrap();
                    let number = own.view::<Plain>().number.load(Ordering::Relaxed);
                    assert_eq!(number, thread << 32 | i);
                    kept.push(own.clone());
                    drop(own);
                    if kept.len() > 40 {
                        kept.drain(..35);
                    }
                }
            });
        }
    });
    assert_eq!(arena.holds_on(shared.block()), 1);
    assert_eq!(
        DESTROYED.load(Ordering::Relaxed),
        destroyed + 4 * rounds,
        "each object is destroyed once"
    );
    drop(shared);
    level.assert_back(arena.usage().blocks);
}

#[test]
fn more_holds_than_fit_one_table() {
    let _alone = alone();
    let _dog = watchdog(Duration::from_secs(60));
    install();
    let arena = session().unwrap();
    let held = arena.publish(plain(arena, 3)).unwrap();
    let many: Vec<_> = (0..2_500).map(|_| held.clone()).collect();
    assert_eq!(arena.holds_on(held.block()), 2_501);
    // A forked member of the tree has as many of its own, and gives them back by dying.
    let slot = arena.reserve_slot().unwrap();
    let block = held.block();
    let child = in_child(|| {
        phalanx_shm::adopt_forked(slot).unwrap();
        assert_eq!(arena.holds_on(block), 5_002);
    });
    assert!(child.wait().is_success());
    assert_eq!(arena.holds_on(block), 5_002);
    arena.sweep(slot);
    assert_eq!(arena.holds_on(block), 2_501);
    drop(many);
    assert_eq!(arena.holds_on(block), 1);
}

#[test]
fn a_full_arena_says_how_large_it_is() {
    let _alone = alone();
    let _dog = watchdog(Duration::from_secs(60));
    let arena = Arena::create(32 * MIB).unwrap();
    let mut blocks = Vec::new();
    let error = loop {
        match arena.alloc(MIB, Kind::Bytes) {
            Ok(block) => blocks.push(block),
            Err(error) => break error,
        }
    };
    match &error {
        AllocError::Exhausted {
            requested,
            reserved,
        } => {
            assert_eq!((*requested, *reserved), (MIB, 32 * MIB));
        }
        other => panic!("{other:?}"),
    }
    let text = error.to_string();
    assert!(
        text.contains("33554432") && text.contains("PHALANX_ARENA_BYTES"),
        "{text}"
    );
    // Small ones go on in the spans there are, and freed memory serves again.
    assert!(arena.free(blocks.swap_remove(3)));
    blocks.push(arena.alloc(MIB, Kind::Bytes).unwrap());
    assert!(arena.alloc(64 * MIB, Kind::Bytes).is_err());
    assert!(arena.alloc(usize::MAX, Kind::Bytes).is_err());
    assert!(arena.alloc(usize::MAX / 2 + 2, Kind::Bytes).is_err());
    for block in blocks {
        assert!(arena.free(block));
    }
    assert_eq!(arena.usage().blocks, 0);
}

#[test]
fn more_than_the_machine_has_is_refused_with_the_numbers() {
    let _alone = alone();
    let _dog = watchdog(Duration::from_secs(60));
    let memory = limits::available_memory();
    let wanted = usize::try_from(memory.total).unwrap() + (1 << 30);
    let arena = Arena::create(wanted.next_power_of_two() * 4).unwrap();
    let before = arena.usage();
    // Again and again: a refusal uses nothing up.
    for _ in 0..20 {
        let error = arena.alloc(wanted, Kind::Bytes).unwrap_err();
        match error {
            AllocError::OutOfMemory {
                requested,
                available,
                ..
            } => {
                assert_eq!(requested, wanted.next_multiple_of(4096));
                assert!(available > 0 && available < wanted as u64);
            }
            other => panic!("{other:?}"),
        }
    }
    let after = arena.usage();
    assert_eq!(after.blocks, before.blocks);
    assert!(after.committed < before.committed + MIB as u64);
    // And what there is serves on.
    let block = arena.alloc(MIB, Kind::Bytes).unwrap();
    stamp(&arena, block, MIB, 9);
    assert!(arena.free(block));
}

#[test]
fn a_limit_on_file_sizes_is_an_error_not_a_signal() {
    let _alone = alone();
    let _dog = watchdog(Duration::from_secs(60));
    let child = in_child(|| {
        limits::limit_file_size(64 * MIB as u64).unwrap();
        let error = Arena::create(1 << 30).unwrap_err().to_string();
        assert!(
            error.contains("67108864") && error.contains("1073741824"),
            "{error}"
        );
        // Within the limit everything works, up to the last byte.
        let arena = Arena::create(64 * MIB).unwrap();
        let block = arena.alloc(20 * MIB, Kind::Bytes).unwrap();
        stamp(&arena, block, 20 * MIB, 5);
        while let Ok(block) = arena.alloc(60_000, Kind::Bytes) {
            stamp(&arena, block, 60_000, 6);
        }
    });
    assert!(child.wait().is_success());
}

#[test]
fn a_limit_on_addresses_is_an_error_not_a_signal() {
    let _alone = alone();
    let _dog = watchdog(Duration::from_secs(60));
    let child = in_child(|| {
        // What the parent mapped counts too: a terabyte leaves room for its arenas, and for no larger one.
        limits::limit_address_space(1 << 40).unwrap();
        let error = Arena::create(2 << 40).unwrap_err();
        assert!(matches!(error, OpenError::Io(_)), "{error:?}");
        let arena = Arena::create(64 * MIB).unwrap();
        assert!(arena.alloc(MIB, Kind::Bytes).is_ok());
    });
    assert!(child.wait().is_success());
}

fn opened(file: &SharedFile) -> Result<Arena, OpenError> {
    Arena::open(SharedFile::from_fd(
        file.as_fd().try_clone_to_owned().unwrap(),
    ))
}

/// An arena's file with some bytes at the beginning changed.
fn forged(at: u64, bytes: &[u8]) -> Result<Arena, OpenError> {
    let arena = Arena::create(32 * MIB).unwrap();
    let file = arena.region().file().unwrap();
    let raw = File::from(file.as_fd().try_clone_to_owned().unwrap());
    raw.write_all_at(bytes, at).unwrap();
    opened(file)
}

#[test]
fn an_arena_opened_again_is_the_same() {
    let _alone = alone();
    let arena = Arena::create(64 * MIB).unwrap();
    let again = opened(arena.region().file().unwrap()).unwrap();
    assert_eq!(arena.identity(), again.identity());
    let block = arena.alloc(5_000, Kind::Bytes).unwrap();
    stamp(&arena, block, 5_000, 0x5a);
    assert!(bears(&again, block, 5_000, 0x5a));
    assert_eq!(again.usage().blocks, 1);
    assert!(again.free(block));
    assert_eq!(arena.usage().blocks, 0);
}

#[test]
fn a_foreign_file_is_refused_at_the_door() {
    let _alone = alone();
    let refused = |file: SharedFile| match Arena::open(file) {
        Err(OpenError::Foreign(why)) => why,
        other => panic!("{other:?}"),
    };
    assert_eq!(
        refused(SharedFile::create("empty", 0).unwrap()),
        "it is too short"
    );
    let source = File::open(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/arena.rs")).unwrap();
    assert!(source.metadata().unwrap().len() >= 8_192);
    refused(SharedFile::from(source));
    let (reader, _writer) = std::io::pipe().unwrap();
    assert!(Arena::open(SharedFile::from_fd(reader.into())).is_err());
    let zeros = SharedFile::create("zeros", 32 * MIB).unwrap();
    assert_eq!(refused(zeros), "its first bytes are not ours");
}

#[test]
fn another_version_or_layout_is_refused_at_the_door() {
    let _alone = alone();
    match forged(8, &77_u32.to_le_bytes()) {
        Err(OpenError::Version { theirs: 77, ours }) => {
            assert_eq!(ours, phalanx_shm::LAYOUT_VERSION);
        }
        other => panic!("{other:?}"),
    }
    for (at, bytes, about) in [
        (12, [0xee; 8], "another kind of build"),
        (24, [0xee; 8], "never completed"),
        (32, [0; 8], "never completed"),
    ] {
        match forged(at, &bytes[..4]) {
            Err(OpenError::Foreign(why)) => assert!(why.contains(about), "{why}"),
            other => panic!("byte {at}: {other:?}"),
        }
    }
    // Cut short.
    let arena = Arena::create(32 * MIB).unwrap();
    let file = arena.region().file().unwrap();
    let copy = SharedFile::from_fd(file.as_fd().try_clone_to_owned().unwrap());
    copy.resize(16 * MIB).unwrap();
    assert!(matches!(opened(file), Err(OpenError::Foreign(_))));
}

#[test]
fn wild_references_find_nothing() {
    let _alone = alone();
    let _dog = watchdog(Duration::from_secs(60));
    let arena = Arena::create(64 * MIB).unwrap();
    let block = arena.alloc(100, Kind::Bytes).unwrap();
    let large = arena.alloc(200_000, Kind::Bytes).unwrap();
    let real = [block.to_bits(), large.to_bits()];
    for bit in 0..64 {
        for bits in real
            .map(|bits| bits ^ 1 << bit)
            .into_iter()
            .chain([1 << bit, !(1 << bit)])
        {
            let Some(wild) = BlockRef::from_bits(bits) else {
                continue;
            };
            assert_eq!(arena.kind_of(wild), None, "{bits:#x}");
            assert_eq!(arena.holder_of(wild), None);
            assert!(!arena.free(wild) && !arena.seize(wild, 1) && !arena.rekind(wild, Kind::Task));
            assert!(arena.len_of(wild) <= 200_000);
            assert!(arena.capacity_of(wild) <= 300_000);
        }
    }
    assert_eq!(arena.usage().blocks, 2);
}
