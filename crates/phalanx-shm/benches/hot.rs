//! Hot paths of the arena and of the raw lock, in one process.

use std::hint::black_box;
use std::time::Duration;

use criterion::{Criterion, Throughput};
use phalanx_shm::{Arena, Brief, Kind, Local, Patience, RawLock, Shared, session};

fn main() {
    let arena = session().expect("an arena can be made here");
    let mut criterion = Criterion::default()
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(1))
        .configure_from_args();
    blocks(&mut criterion, arena);
    holds(&mut criterion, arena);
    locks(&mut criterion);
    criterion.final_summary();
}

/// A block from the free ones of its size, and back: each size class has its own way to be found.
fn blocks(criterion: &mut Criterion, arena: &'static Arena) {
    let mut group = criterion.benchmark_group("arena: alloc + free");
    for size in [64, 1 << 10, 16 << 10, 1 << 20, 64 << 20] {
        group.throughput(Throughput::Elements(1));
        group.bench_function(format!("{size} B"), |bencher| {
            bencher.iter(|| {
                let block = arena.alloc(black_box(size), Kind::Bytes);
                arena.free(block.expect("the arena has room"))
            });
        });
    }
    group.finish();

    // Not the last one again and again: as many as a busy pool has.
    criterion.bench_function("arena: 64 blocks of 256 B, freed in order", |bencher| {
        let mut blocks = Vec::with_capacity(64);
        bencher.iter(|| {
            for _ in 0..64 {
                let block = arena.alloc(black_box(256), Kind::Bytes);
                blocks.push(block.expect("the arena has room"));
            }
            for block in blocks.drain(..) {
                arena.free(block);
            }
        });
    });
}

fn holds(criterion: &mut Criterion, arena: &'static Arena) {
    let block = arena.alloc(64, Kind::Bytes).expect("the arena has room");
    let held = arena.publish(block).expect("the arena has room");
    criterion.bench_function("hold: clone + drop", |bencher| {
        bencher.iter(|| black_box(&held).clone());
    });
    drop(held);
}

fn locks(criterion: &mut Criterion) {
    let private = RawLock::<Local>::new();
    criterion.bench_function("raw lock, private: lock + unlock", |bencher| {
        bencher.iter(|| {
            let _ = black_box(&private).lock(Patience::FOREVER);
            private.unlock();
        });
    });
    let shared = RawLock::<Shared>::new();
    criterion.bench_function("raw lock, shared: lock + unlock", |bencher| {
        bencher.iter(|| {
            let _ = black_box(&shared).lock(Patience::FOREVER);
            shared.unlock();
        });
    });
    let word = phalanx_prim::Word::new(0);
    criterion.bench_function("brief note: made + ended", |bencher| {
        bencher.iter(|| Brief::of(black_box(&word)));
    });
}
