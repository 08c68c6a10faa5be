//! Deaths inside the protocols: at every named point, and at random.
//!
//! A child of the tree does some work and dies at a point; its parent sweeps. Afterwards every block is back, the arena
//! serves every size, locks are free (their next owner is told), and nobody sleeps who was owed a wake.
#![expect(unsafe_code, reason = "a probe is placed in the arena")]

use std::time::Duration;

use phalanx_prim::{AtomicU64, Ordering, points};
use phalanx_shm::{
    Acquired, Arena, BlockRef, ExitRecord, Held, Kind, KindOps, OBJECT, Patience, Placed, RawLock,
    Shared, SlotState, adopt_forked, current_slot, register_kind, session,
};
use phalanx_testkit::{Child, Level, alone, in_child, watchdog};

const MAGIC: u64 = 0x70_726f_6265;

/// An object with a lock, and a block that it owns.
#[repr(C)]
struct Probe {
    magic: AtomicU64,
    owned: AtomicU64,
    pair: [AtomicU64; 2],
    lock: RawLock<Shared>,
}

// SAFETY: repr(C), atomics and a raw lock only, and the only type placed under its kind here.
unsafe impl Placed for Probe {
    const KIND: Kind = Kind::Barrier;
}

/// Destructions in this process: of a proper probe, and of something that was none.
static DESTROYED: AtomicU64 = AtomicU64::new(0);
static NONSENSE: AtomicU64 = AtomicU64::new(0);

fn recover(arena: &Arena, block: BlockRef, dead: u16, wake_all: bool) {
    let Ok(probe) = arena.view::<Probe>(block) else {
        return;
    };
    probe.lock.owner_died(dead);
    if wake_all {
        probe.lock.wake_all();
    }
}

fn destroy(arena: &Arena, block: BlockRef) {
    let probe = arena.view_held::<Probe>(block);
    if probe.magic.load(Ordering::Relaxed) != MAGIC {
        NONSENSE.fetch_add(1, Ordering::Relaxed);
        return;
    }
    DESTROYED.fetch_add(1, Ordering::Relaxed);
    if let Some(owned) = BlockRef::from_bits(probe.owned.load(Ordering::Relaxed)) {
        arena.free(owned);
    }
}

fn probe(arena: &'static Arena) -> Held {
    let owned = arena.alloc(300, Kind::Bytes).unwrap();
    let made = arena.emplace(Probe {
        magic: AtomicU64::new(MAGIC),
        owned: AtomicU64::new(owned.to_bits()),
        pair: [const { AtomicU64::new(0) }; 2],
        lock: RawLock::new(),
    });
    let block = made.unwrap();
    arena.rehold(owned, current_slot(), OBJECT);
    arena.publish(block).unwrap()
}

fn unpack(arena: &Arena, message: BlockRef) {
    arena.detach(message, 8);
}

fn start() -> &'static Arena {
    let ops = KindOps {
        recover: |_, _, _, _| {},
        destroy: unpack,
    };
    register_kind(Kind::Message, ops);
    register_kind(Kind::Barrier, KindOps { recover, destroy });
    let arena = session().unwrap();
    // This process's own hold table stays; it belongs to the level.
    drop(probe(arena));
    arena
}

/// Runs `work` in a process of the tree that dies at `point`; returns the slot, unswept.
fn dies_at(arena: &'static Arena, point: &'static str, nth: u32, work: impl FnOnce()) -> u16 {
    let slot = arena.reserve_slot().unwrap();
    let child = in_child(move || {
        adopt_forked(slot).unwrap();
        points::arm(point, nth);
        work();
    });
    let ended = child.wait();
    assert!(
        ended.is_killed(),
        "{point} was not passed {nth} times: {ended:?}"
    );
    slot
}

/// A child of the tree that runs `work`.
fn member(arena: &'static Arena, work: impl FnOnce()) -> (Child, u16) {
    let slot = arena.reserve_slot().unwrap();
    let child = in_child(move || {
        adopt_forked(slot).unwrap();
        work();
    });
    (child, slot)
}

fn sweep(arena: &Arena, slot: u16) -> usize {
    arena.record_exit(slot, ExitRecord::Signal(9));
    let swept = arena.sweep(slot);
    assert!(swept.orphans.is_empty());
    swept.reclaimed
}

const SIZES: [usize; 12] = [
    1,
    64,
    100,
    256,
    500,
    1000,
    2000,
    4000,
    8192,
    10_000,
    200_000,
    3 << 20,
];

fn fill(arena: &Arena, block: BlockRef, len: usize, byte: u8) {
    let at = arena.region().at(block.offset(), len);
    // SAFETY: the block was just allocated with this length and is this test's alone.
    unsafe { at.write_bytes(byte, len) };
}

fn holds(arena: &Arena, block: BlockRef, len: usize, byte: u8) -> bool {
    let at = arena.region().at(block.offset(), len);
    // SAFETY: the block is this test's alone and was filled.
    let bytes = unsafe { std::slice::from_raw_parts(at.as_ptr(), len) };
    bytes.iter().all(|one| *one == byte)
}

/// Two blocks of every size at once, each with its own content, none overlapping.
fn use_every_size(arena: &Arena) {
    let mut blocks = Vec::new();
    for (i, len) in SIZES.iter().chain(&SIZES).enumerate() {
        let block = arena.alloc(*len, Kind::Bytes).unwrap();
        assert_eq!(arena.holder_of(block), Some(current_slot()));
        fill(arena, block, *len, i as u8 + 1);
        blocks.push((block, *len, i as u8 + 1));
    }
    for (block, len, byte) in blocks {
        assert!(holds(arena, block, len, byte));
        assert!(arena.free(block));
    }
}

fn assert_whole(arena: &'static Arena, level: Level, about: &str) {
    let census = arena.census();
    assert_eq!(
        arena.usage().blocks,
        level.blocks,
        "blocks after {about}: {census:?}"
    );
    use_every_size(arena);
    let held = probe(arena);
    let lock = &held.view::<Probe>().lock;
    assert_eq!(lock.lock_forever(), Acquired::Clean);
    lock.unlock();
    drop(held);
    level.assert_back_with(|| arena.usage().blocks);
    assert_eq!(NONSENSE.load(Ordering::Relaxed), 0, "after {about}");
}

/// Allocation, use and freeing of every class, some of it given away.
fn churn(arena: &'static Arena) {
    let mut kept = Vec::new();
    for round in 0..4 {
        for len in SIZES {
            let block = arena.alloc(len, Kind::Bytes).unwrap();
            fill(arena, block, len.min(4096), round);
            kept.push(block);
        }
        for block in kept.drain(..).skip(usize::from(round)) {
            arena.free(block);
        }
    }
}

/// Fresh spans of small and large classes.
fn carve(arena: &'static Arena) {
    for len in [64, 512, 8192, 40_000] {
        for _ in 0..900 {
            arena.alloc(len, Kind::Bytes).unwrap();
        }
    }
}

fn objects(arena: &'static Arena) {
    let mut held = Vec::new();
    for _ in 0..6 {
        let one = probe(arena);
        held.push(one.clone());
        held.push(one);
    }
    // A hold in a message.
    let message = arena.alloc(64, Kind::Bytes).unwrap();
    fill(arena, message, 64, 0);
    arena.rekind(message, Kind::Message);
    arena.attach(message, 8, held[0].block()).unwrap();
    arena.detach(message, 8);
    arena.free(message);
}

#[test]
fn allocation_survives_a_death_at_every_point() {
    let _alone = alone();
    let _dog = watchdog(Duration::from_secs(120));
    let arena = start();
    let level = Level::now(arena.usage().blocks);
    for point in [
        "arena.allocated",
        "arena.hint-popped",
        "arena.bit-cleared",
        "arena.freed",
    ] {
        for nth in [1, 2, 3, 7] {
            let slot = dies_at(arena, point, nth, || churn(arena));
            sweep(arena, slot);
            assert_whole(arena, level, point);
        }
    }
    for nth in [1, 2, 5] {
        let slot = dies_at(arena, "arena.committed", nth, || {
            loop {
                arena.alloc(70_000, Kind::Bytes).unwrap();
            }
        });
        sweep(arena, slot);
        assert_whole(arena, level, "arena.committed");
    }
    for point in ["arena.carving", "arena.carved"] {
        for nth in [1, 2, 5, 9, 12] {
            let slot = dies_at(arena, point, nth, || carve(arena));
            sweep(arena, slot);
            assert_whole(arena, level, point);
        }
    }
}

#[test]
fn a_span_prepared_by_a_dead_process_belongs_to_its_next_user() {
    let _alone = alone();
    let _dog = watchdog(Duration::from_secs(60));
    let arena = start();
    let level = Level::now(arena.usage().blocks);
    for len in [8192, 40_000] {
        // The parent carves after the death and before the sweep, which must not take the block from it.
        let slot = dies_at(arena, "arena.carving", 1, || {
            loop {
                arena.alloc(len, Kind::Bytes).unwrap();
            }
        });
        let mut mine = Vec::new();
        for _ in 0..40 {
            mine.push(arena.alloc(len, Kind::Bytes).unwrap());
        }
        for block in &mine {
            assert_eq!(arena.holder_of(*block), Some(current_slot()), "{len} bytes");
        }
        sweep(arena, slot);
        for block in mine {
            assert!(arena.free(block), "the sweep took a block of the living");
        }
        assert_whole(arena, level, "a carver's death");
    }
}

#[test]
fn counts_survive_a_death_at_every_point() {
    let _alone = alone();
    let _dog = watchdog(Duration::from_secs(120));
    let arena = start();
    let level = Level::now(arena.usage().blocks);
    for point in [
        "registry.armed",
        "registry.counted",
        "registry.noted",
        "registry.disarmed",
        "registry.dropped",
        "registry.condemned",
        "object.condemned",
        "arena.allocated",
        "arena.placed",
        "lock.held",
    ] {
        for nth in 1..=6 {
            let slot = dies_at(arena, point, nth, || objects(arena));
            sweep(arena, slot);
            assert_whole(arena, level, &format!("{point} {nth}"));
        }
    }
    // The same with somebody else in between: the next owner of the registry repairs it before the sweep comes.
    for point in [
        "registry.armed",
        "registry.counted",
        "registry.noted",
        "registry.disarmed",
        "registry.dropped",
        "registry.condemned",
    ] {
        for nth in [1, 2, 3] {
            let slot = dies_at(arena, point, nth, || objects(arena));
            drop(probe(arena));
            sweep(arena, slot);
            assert_whole(arena, level, &format!("{point} {nth}, then a use"));
        }
    }
}

#[test]
fn objects_shared_with_the_dead_stay_with_the_living() {
    let _alone = alone();
    let _dog = watchdog(Duration::from_secs(60));
    let arena = start();
    let level = Level::now(arena.usage().blocks);
    for point in [
        "registry.armed",
        "registry.counted",
        "registry.noted",
        "registry.disarmed",
        "registry.dropped",
    ] {
        let held = probe(arena);
        let slot = dies_at(arena, point, 3, || {
            let more: Vec<_> = (0..4).map(|_| held.clone()).collect();
            drop(more);
        });
        sweep(arena, slot);
        assert_eq!(arena.holds_on(held.block()), 1, "after {point}");
        let view = arena.view::<Probe>(held.block()).unwrap();
        assert_eq!(view.magic.load(Ordering::Relaxed), MAGIC);
        drop(held);
        assert_whole(arena, level, point);
    }
}

#[test]
fn a_half_placed_object_is_not_torn_down() {
    let _alone = alone();
    let _dog = watchdog(Duration::from_secs(60));
    let arena = start();
    let level = Level::now(arena.usage().blocks);
    // Leave the magic number of a living probe in free blocks of its size: as the bytes of a victim would be.
    let victim = probe(arena);
    let owned = victim.view::<Probe>().owned.load(Ordering::Relaxed);
    let bait: Vec<_> = (0..400)
        .map(|_| {
            let block = arena.alloc(size_of::<Probe>(), Kind::Bytes).unwrap();
            let at = arena.region().at(block.offset(), 16).cast::<u64>();
            // SAFETY: the block is this test's alone, and has room for two words.
            unsafe { at.write(MAGIC) };
            // SAFETY: as above.
            let second = unsafe { at.add(1) };
            // SAFETY: as above.
            unsafe { second.write(owned) };
            block
        })
        .collect();
    for block in bait {
        arena.free(block);
    }
    for nth in 1..=2 {
        let slot = dies_at(arena, "arena.allocated", nth, || drop(probe(arena)));
        sweep(arena, slot);
        let owned = BlockRef::from_bits(owned).unwrap();
        assert!(arena.kind_of(owned).is_some(), "another's block was freed");
    }
    drop(victim);
    assert_whole(arena, level, "a death while placing");
}

#[test]
fn a_lock_held_at_death_is_handed_on_and_its_next_owner_told() {
    let _alone = alone();
    let _dog = watchdog(Duration::from_secs(60));
    let arena = start();
    let level = Level::now(arena.usage().blocks);
    let held = probe(arena);
    let view = held.view::<Probe>();
    let lock_and_change = || {
        let _ = view.lock.lock_forever();
        view.pair[0].fetch_add(1, Ordering::Relaxed);
        view.lock.unlock();
    };

    // After the sweep.
    let slot = dies_at(arena, "lock.held", 1, lock_and_change);
    assert!(view.lock.is_held_by(slot));
    sweep(arena, slot);
    assert!(!view.lock.is_locked());
    assert_eq!(view.lock.lock_forever(), Acquired::OwnerDied);
    view.lock.unlock();
    assert_eq!(view.lock.lock_forever(), Acquired::Clean, "told once");
    view.lock.unlock();

    // Before the sweep: whoever comes finds out by itself.
    let slot = dies_at(arena, "lock.held", 1, lock_and_change);
    assert_eq!(view.lock.try_lock(), Some(Acquired::OwnerDied));
    view.lock.unlock();
    sweep(arena, slot);
    let slot = dies_at(arena, "lock.held", 1, lock_and_change);
    assert_eq!(view.lock.lock_forever(), Acquired::OwnerDied);
    sweep(arena, slot);
    assert!(view.lock.is_mine(), "the sweep leaves the new owner alone");
    view.lock.unlock();

    // While somebody sleeps on it.
    let slot = arena.reserve_slot().unwrap();
    let child = in_child(|| {
        adopt_forked(slot).unwrap();
        points::arm_stop("lock.held", 1);
        lock_and_change();
    });
    assert!(child.wait_stopped());
    let sleeper = std::thread::spawn(move || {
        let acquired = view.lock.lock_forever();
        view.lock.unlock();
        acquired
    });
    while view.lock.word().load(Ordering::Relaxed) >> 31 == 0 {
        std::thread::sleep(Duration::from_millis(1));
    }
    child.kill();
    child.wait();
    sweep(arena, slot);
    assert_eq!(sleeper.join().unwrap(), Acquired::OwnerDied);
    drop(child);
    drop(held);
    assert_whole(arena, level, "deaths of a lock's owner");
}

/// A thread of this process that takes the lock, and returns once it had it.
fn queue_up(view: &'static Probe) -> std::thread::JoinHandle<Acquired> {
    std::thread::spawn(move || {
        let acquired = view.lock.lock_forever();
        view.lock.unlock();
        acquired
    })
}

#[test]
fn a_wake_owed_by_the_dead_is_paid_by_the_sweep() {
    let _alone = alone();
    let _dog = watchdog(Duration::from_secs(60));
    let arena = start();
    let level = Level::now(arena.usage().blocks);
    let held = probe(arena);
    let view = held.view::<Probe>();

    // An unlocker dies between freeing the lock and waking.
    let slot = arena.reserve_slot().unwrap();
    let child = in_child(|| {
        adopt_forked(slot).unwrap();
        let _ = view.lock.lock_forever();
        // Until somebody sleeps on it.
        while view.lock.word().load(Ordering::Relaxed) >> 31 == 0 {
            std::thread::sleep(Duration::from_millis(1));
        }
        std::thread::sleep(Duration::from_millis(20));
        points::arm("lock.unlocked", 1);
        view.lock.unlock();
    });
    while !view.lock.is_locked() {
        std::thread::sleep(Duration::from_millis(1));
    }
    let sleeper = queue_up(view);
    assert!(child.wait().is_killed());
    sweep(arena, slot);
    assert_eq!(sleeper.join().unwrap(), Acquired::Clean);
    drop(child);

    // A waiter dies with the wake it was given.
    assert_eq!(view.lock.lock_forever(), Acquired::Clean);
    let slot = arena.reserve_slot().unwrap();
    let child = in_child(|| {
        adopt_forked(slot).unwrap();
        points::arm("lock.woken", 1);
        let _ = view.lock.lock_forever();
    });
    while view.lock.word().load(Ordering::Relaxed) >> 31 == 0 {
        std::thread::sleep(Duration::from_millis(1));
    }
    child.wait_asleep();
    let sleeper = queue_up(view);
    std::thread::sleep(Duration::from_millis(20));
    view.lock.unlock();
    assert!(child.wait().is_killed(), "the first in the queue was woken");
    sweep(arena, slot);
    assert_eq!(sleeper.join().unwrap(), Acquired::Clean);
    drop(child);

    // A waiter that dies before it sleeps leaves nothing but a mark.
    assert_eq!(view.lock.lock_forever(), Acquired::Clean);
    let slot = dies_at(arena, "lock.sleep", 1, || {
        let _ = view.lock.lock_forever();
    });
    view.lock.unlock();
    sweep(arena, slot);
    assert_eq!(view.lock.lock_forever(), Acquired::Clean);
    view.lock.unlock();
    drop(held);
    assert_whole(arena, level, "deaths in debt");
}

#[test]
fn the_sweep_is_not_held_up_by_another_death() {
    let _alone = alone();
    let _dog = watchdog(Duration::from_secs(60));
    let arena = start();
    let level = Level::now(arena.usage().blocks);
    // One child has objects …
    let slot = arena.reserve_slot().unwrap();
    let dead = in_child(|| {
        adopt_forked(slot).unwrap();
        let _objects = probe(arena);
        points::arm_stop("arena.allocated", 1);
        churn(arena);
    });
    assert!(dead.wait_stopped());
    // … another stands still while it owns the registry …
    let owner = arena.reserve_slot().unwrap();
    let stuck = in_child(|| {
        adopt_forked(owner).unwrap();
        points::arm_stop("registry.counted", 1);
        drop(probe(arena));
    });
    assert!(stuck.wait_stopped());
    // … the first dies, and its sweep has to wait for the registry …
    dead.kill();
    dead.wait();
    let sweeper = std::thread::spawn(move || sweep(arena, slot));
    std::thread::sleep(Duration::from_millis(50));
    assert!(!sweeper.is_finished());
    // … then the owner dies, and nobody but the sweeper could sweep it.
    stuck.kill();
    stuck.wait();
    sweeper.join().unwrap();
    sweep(arena, owner);
    drop((stuck, dead));
    assert_whole(arena, level, "two deaths");
}

#[test]
fn a_sweeper_that_dies_is_replaced() {
    let _alone = alone();
    let _dog = watchdog(Duration::from_secs(120));
    let arena = start();
    let level = Level::now(arena.usage().blocks);
    for (point, nths) in [
        ("sweep.begun", [1, 1, 1]),
        ("registry.armed", [1, 2, 3]),
        ("registry.dropped", [1, 2, 3]),
        ("registry.condemned", [1, 2, 3]),
        ("object.condemned", [1, 2, 3]),
        ("arena.freed", [1, 3, 5]),
        ("sweep.dropped", [1, 1, 1]),
        ("sweep.reclaimed", [1, 1, 1]),
        ("sweep.repaired", [1, 1, 1]),
    ] {
        for nth in nths {
            let first = dies_at(arena, "object.condemned", 1, || {
                let keep: Vec<_> = (0..3).map(|_| probe(arena)).collect();
                for len in SIZES {
                    arena.alloc(len, Kind::Bytes).unwrap();
                }
                drop(probe(arena));
                drop(keep);
            });
            let second = dies_at(arena, point, nth, || {
                sweep(arena, first);
            });
            sweep(arena, second);
            assert_whole(arena, level, &format!("a sweeper's death at {point} {nth}"));
            assert!(arena.processes().iter().all(|p| p.slot == current_slot()));
        }
    }
}

#[test]
fn the_next_process_of_a_slot_has_other_tokens() {
    let _alone = alone();
    let _dog = watchdog(Duration::from_secs(60));
    let arena = start();
    let tokens = arena.alloc(8 * 200, Kind::Bytes).unwrap();
    fill(arena, tokens, 8 * 200, 0);
    let at = arena
        .region()
        .at(tokens.offset(), 8 * 200)
        .cast::<AtomicU64>();
    // SAFETY: 200 atomics fill the block, which is aligned to 64 bytes and zeroed.
    let seen = unsafe { std::slice::from_raw_parts(at.as_ptr(), 200) };
    for place in seen {
        let (child, slot) = member(arena, || {
            let lock = RawLock::<Shared>::new();
            let _ = lock.lock_forever();
            let owner = lock.owner().unwrap();
            let number = phalanx_shm::local_token() as u16;
            assert_eq!((owner.slot, owner.number()), (current_slot(), number));
            place.store(u64::from(phalanx_shm::shared_token()), Ordering::Release);
        });
        assert!(child.wait().is_success());
        sweep(arena, slot);
    }
    let mut all: Vec<u64> = seen
        .iter()
        .map(|token| token.load(Ordering::Acquire))
        .collect();
    arena.free(tokens);
    all.sort_unstable();
    all.dedup();
    assert_eq!(all.len(), 200, "a token came again");
    let mut slots: Vec<u64> = all.iter().map(|token| token >> 16).collect();
    slots.dedup();
    assert!(slots.len() < 50, "slots are not reused: nothing was tested");
}

#[test]
fn a_slot_is_never_swept_while_its_process_lives() {
    let _alone = alone();
    let _dog = watchdog(Duration::from_secs(60));
    let arena = start();
    let level = Level::now(arena.usage().blocks);
    let (reader, writer) = std::io::pipe().unwrap();
    let (child, slot) = member(arena, move || {
        let mut writer = writer;
        let block = arena.alloc(500, Kind::Bytes).unwrap();
        std::io::Write::write_all(&mut writer, &block.to_bits().to_le_bytes()).unwrap();
        std::thread::sleep(Duration::from_secs(60));
    });
    let mut bits = [0; 8];
    std::io::Read::read_exact(&mut { reader }, &mut bits).unwrap();
    let block = BlockRef::from_bits(u64::from_le_bytes(bits)).unwrap();
    assert_eq!(arena.sweep(slot).reclaimed, 0);
    assert_eq!(arena.holder_of(block), Some(slot));
    child.kill();
    child.wait();
    assert_eq!(sweep(arena, slot), 1);
    assert_eq!(arena.holder_of(block), None);
    // Once more: nobody is there.
    assert_eq!(arena.sweep(slot).reclaimed, 0);
    drop(child);
    assert_whole(arena, level, "a sweep too early");
}

#[test]
fn a_start_whose_parent_died_leaves_no_slot() {
    let _alone = alone();
    let _dog = watchdog(Duration::from_secs(60));
    let arena = start();
    let level = Level::now(arena.usage().blocks);
    let slot = dies_at(arena, "slot.reserved", 2, || {
        for _ in 0..3 {
            arena.reserve_slot().unwrap();
        }
    });
    sweep(arena, slot);
    assert_eq!(arena.processes().len(), 1, "{:?}", arena.processes());
    assert_whole(arena, level, "a death while starting");
}

/// A process of the tree that lives, and whose parent has died and is not swept: returns it and the parent's slot.
fn orphan(arena: &'static Arena) -> (Child, u16, u16) {
    let (parent, from) = member(arena, || {
        arena.reserve_slot().unwrap();
        asleep();
    });
    let state_of = |state| {
        let all = arena.processes();
        let found = all
            .iter()
            .find(|one| one.parent == from && one.state == state);
        found.map(|one| one.slot)
    };
    let slot = until(|| state_of(SlotState::Reserved));
    // A sibling in truth, so that it is not tied to the one who dies.
    let child = in_child(move || {
        adopt_forked(slot).unwrap();
        asleep();
    });
    until(|| state_of(SlotState::Live));
    parent.kill();
    parent.wait();
    (child, slot, from)
}

fn asleep() {
    loop {
        std::thread::sleep(Duration::from_secs(60));
    }
}

fn until<T>(mut there: impl FnMut() -> Option<T>) -> T {
    loop {
        if let Some(it) = there() {
            return it;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn end(arena: &Arena, child: Child, slot: u16) {
    child.kill();
    child.wait();
    drop(child);
    sweep(arena, slot);
}

#[test]
fn an_orphan_becomes_its_sweepers_and_not_the_next_process_of_the_slot() {
    let _alone = alone();
    let _dog = watchdog(Duration::from_secs(60));
    let arena = start();
    let level = Level::now(arena.usage().blocks);
    let (child, slot, from) = orphan(arena);
    let named = arena.sweep(from).orphans;
    assert_eq!(named.len(), 1, "{named:?}");
    assert_eq!((named[0].slot, named[0].parent), (slot, current_slot()));
    assert!(arena.is_watched(slot));
    let again = until(|| {
        let again = arena.reserve_slot().unwrap();
        (again == from || !arena.unreserve_slot(again)).then_some(again)
    });
    let next = in_child(move || adopt_forked(again).unwrap());
    assert!(next.wait().is_success());
    drop(next);
    sweep(arena, again);
    end(arena, child, slot);
    assert_whole(arena, level, "an orphan and its slot's next process");
}

#[test]
fn an_orphan_is_found_when_its_sweeper_dies_too() {
    let _alone = alone();
    let _dog = watchdog(Duration::from_secs(60));
    let arena = start();
    let level = Level::now(arena.usage().blocks);
    for point in ["sweep.begun", "sweep.repaired"] {
        let (child, slot, from) = orphan(arena);
        let sweeper = dies_at(arena, point, 1, || {
            arena.sweep(from);
        });
        let named = arena.sweep(sweeper).orphans;
        assert_eq!(named.len(), 1, "{point}: {named:?}");
        assert_eq!((named[0].slot, named[0].parent), (slot, current_slot()));
        end(arena, child, slot);
    }
    assert_whole(arena, level, "orphans of orphans");
}

#[test]
fn random_deaths_under_load_leak_nothing() {
    let _alone = alone();
    let _dog = watchdog(Duration::from_secs(300));
    let arena = start();
    let level = Level::now(arena.usage().blocks);
    let held = probe(arena);
    let view = held.view::<Probe>();
    let rounds = 80;
    let mut told = 0;
    for round in 0..rounds {
        let members: Vec<_> = (0..3_u64)
            .map(|which| {
                member(arena, move || {
                    let mut random = Random(round * 3 + which + 1);
                    loop {
                        load(arena, view, &mut random);
                    }
                })
            })
            .collect();
        let mut random = Random(0x1234_5678 + round);
        for (child, slot) in &members {
            std::thread::sleep(Duration::from_micros(random.below(3_000)));
            child.kill();
            child.wait();
            sweep(arena, *slot);
            // The survivors go on meanwhile; so does the parent.
            if view.lock.lock_forever() == Acquired::OwnerDied {
                told += 1;
                let one = view.pair[0].load(Ordering::Relaxed);
                view.pair[1].store(one, Ordering::Relaxed);
            }
            assert_eq!(
                view.pair[0].load(Ordering::Relaxed),
                view.pair[1].load(Ordering::Relaxed)
            );
            view.lock.unlock();
        }
        drop(members);
        assert_eq!(arena.holds_on(held.block()), 1, "round {round}");
        assert_eq!(
            arena.usage().blocks,
            level.blocks + 2,
            "round {round}: {:?}",
            arena.census()
        );
    }
    drop(held);
    eprintln!(
        "{} deaths, {told} of them in possession of the lock",
        rounds * 3
    );
    assert_whole(arena, level, "random deaths");
}

struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, end: u64) -> u64 {
        self.next().wrapping_mul(0x9e37_79b9_7f4a_7c15) % end
    }
}

fn load(arena: &'static Arena, shared: &Probe, random: &mut Random) {
    match random.below(4) {
        0 => {
            let len = SIZES[random.below(SIZES.len() as u64 - 1) as usize];
            let block = arena.alloc(len, Kind::Bytes).unwrap();
            arena.free(block);
        }
        1 => {
            let one = probe(arena);
            let two = one.clone();
            drop(one);
            drop(two);
        }
        2 => {
            if shared.lock.lock_forever() == Acquired::OwnerDied {
                let one = shared.pair[0].load(Ordering::Relaxed);
                shared.pair[1].store(one, Ordering::Relaxed);
            }
            shared.pair[0].fetch_add(1, Ordering::Relaxed);
            shared.pair[1].fetch_add(1, Ordering::Relaxed);
            shared.lock.unlock();
        }
        _ => {
            let patience = Patience::timeout(Duration::from_micros(random.below(200)));
            if let Ok(acquired) = shared.lock.lock(patience) {
                if acquired == Acquired::OwnerDied {
                    let one = shared.pair[0].load(Ordering::Relaxed);
                    shared.pair[1].store(one, Ordering::Relaxed);
                }
                shared.lock.unlock();
            }
        }
    }
}
