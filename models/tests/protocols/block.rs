//! Blocks: the compare-exchange of a head is the allocation and the freeing; a death leaves no block behind.

use phalanx_models::{LONG, USUAL, explore, fails, spawn};
use phalanx_prim::model::{Fault, die_at};
use phalanx_shm::modelled::{process, vanish};
use phalanx_shm::{Arena, BlockRef, Kind, TRANSIT};

/// Two threads take and free blocks of one class, of which one block is free.
fn takes() -> impl Fn(&'static Arena) + Send + Sync {
    |arena| {
        let warm = arena.alloc(4000, Kind::Bytes).unwrap();
        assert!(arena.free(warm));
        let play = |slot: u16| {
            phalanx_prim::model::be(slot);
            let block = arena.alloc(4000, Kind::Bytes).unwrap();
            assert_eq!(
                arena.holder_of(block),
                Some(slot),
                "somebody else has it too"
            );
            block
        };
        let other = spawn(move || play(2));
        let mine = play(1);
        let theirs = other.join().unwrap();
        assert_ne!(mine.offset(), theirs.offset(), "one block for two");
        assert!(arena.free(mine) && arena.free(theirs));
        assert_eq!(arena.usage().blocks, 0);
    }
}

#[test]
fn no_block_is_given_to_two() {
    explore(LONG, takes());
}

#[test]
fn fails_when_two_are_given_one() {
    fails(Fault::TornExchange, USUAL, takes());
}

/// One block, freed by two.
fn frees() -> impl Fn(&'static Arena) + Send + Sync {
    |arena| {
        let block = arena.alloc(100, Kind::Bytes).unwrap();
        let other = spawn(move || arena.free(block));
        let mine = arena.free(block);
        let theirs = other.join().unwrap();
        assert!(
            mine != theirs,
            "freed by {}",
            u8::from(mine) + u8::from(theirs)
        );
        assert!(!arena.free(block), "a stale reference frees nothing");
    }
}

#[test]
fn a_block_is_freed_once() {
    explore(USUAL, frees());
}

#[test]
fn fails_when_a_block_is_freed_twice() {
    fails(Fault::TornExchange, USUAL, frees());
}

/// A block handed over while a third one takes it: one of them has it in the end, and the word says who.
#[test]
fn a_block_has_one_holder() {
    explore(USUAL, |arena| {
        let block = arena.alloc(100, Kind::Bytes).unwrap();
        let other = spawn(move || arena.rehold(block, 1, TRANSIT));
        let freed = arena.free(block);
        let given = other.join().unwrap();
        // Whoever frees it after it was given frees it all the same; but not on an old view of the word.
        assert!(freed || given);
        assert_eq!(arena.holder_of(block), (!freed).then_some(TRANSIT));
    });
}

/// Process 2 dies at a step of taking or freeing a block; meanwhile process 3 works on the same class.
fn dies_at(point: &'static str, sweep: bool) -> impl Fn(&'static Arena) + Send + Sync {
    move |arena| {
        let work = |arena: &'static Arena| -> BlockRef {
            let first = arena.alloc(2000, Kind::Bytes).unwrap();
            assert!(arena.free(first));
            arena.alloc(2000, Kind::Bytes).unwrap()
        };
        let other = spawn(move || {
            let life = || {
                die_at(point, 1);
                let block = work(arena);
                assert!(arena.free(block));
            };
            if sweep {
                process(2, 1, life);
            } else {
                phalanx_prim::model::be(2);
                let _ = phalanx_prim::model::living(life);
                vanish(2);
                phalanx_prim::model::be(1);
            }
        });
        phalanx_prim::model::be(3);
        let mine = work(arena);
        assert_eq!(arena.holder_of(mine), Some(3));
        assert!(arena.free(mine));
        phalanx_prim::model::be(1);
        other.join().unwrap();
        assert_eq!(arena.usage().blocks, 0, "a leak after a death at {point}");
        // The hints were repaired: the whole span can be had again.
        let all: Vec<_> = (0..7)
            .map(|_| arena.alloc(2000, Kind::Bytes).unwrap())
            .collect();
        let mut offsets: Vec<_> = all.iter().map(|block| block.offset()).collect();
        offsets.sort_unstable();
        offsets.dedup();
        assert_eq!(offsets.len(), all.len());
    }
}

#[cfg(phalanx_shuttle)]
#[test]
fn a_death_while_allocating_leaves_nothing_behind() {
    for point in [
        "arena.allocated",
        "arena.carving",
        "arena.carved",
        "arena.hint-popped",
        "arena.bit-cleared",
        "arena.freed",
    ] {
        explore(LONG, dies_at(point, true));
    }
}

#[test]
fn fails_when_nobody_sweeps() {
    let effort = phalanx_models::Effort {
        preemptions: 1,
        ..LONG
    };
    fails(Fault::None, effort, dies_at("arena.allocated", false));
}
