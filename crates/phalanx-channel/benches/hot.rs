//! Hot paths of the queue while nobody waits: put and get by one thread, so that no time is lost to another.

use std::hint::black_box;
use std::time::Duration;

use criterion::{Criterion, Throughput};
use phalanx_channel::{Bounds, INLINE_MOST, Queue, RawQueue, pipe};
use phalanx_shm::{Patience, session};

fn main() {
    let mut criterion = Criterion::default()
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(1))
        .configure_from_args();
    typed(&mut criterion);
    bytes(&mut criterion);
    ends(&mut criterion);
    criterion.final_summary();
}

fn typed(criterion: &mut Criterion) {
    let made = "an arena can be made here";
    let kinds = [
        ("unbounded", Queue::<u64>::new().expect(made)),
        ("bounded", Queue::bounded(64).expect(made)),
        ("joinable", Queue::joinable().expect(made)),
    ];
    for (kind, queue) in &kinds {
        criterion.bench_function(&format!("queue of u64, {kind}: put + get"), |bencher| {
            bencher.iter(|| {
                queue.put(black_box(1)).expect("it is open");
                let value = queue.get().expect("it is open");
                if *kind == "joinable" {
                    queue.task_done().expect("one was taken");
                }
                value
            });
        });
    }
}

/// Small ones through the ring, the first that is not, and larger ones through blocks.
fn bytes(criterion: &mut Criterion) {
    let arena = session().expect("an arena can be made here");
    let queue = RawQueue::new(arena, Bounds::default()).expect("the arena has room");
    let mut group = criterion.benchmark_group("queue of bytes: put + get in place");
    for size in [64, 1 << 10, INLINE_MOST + 1, 64 << 10, 1 << 20] {
        let payload = vec![7_u8; size];
        let mut buffer = Vec::new();
        group.throughput(Throughput::Bytes(size as u64));
        group.bench_function(format!("{size} B"), |bencher| {
            bencher.iter(|| {
                let put = queue.put(&[black_box(&payload)], Patience::FOREVER);
                put.expect("it is open");
                queue
                    .get_into(&mut buffer, Patience::FOREVER)
                    .expect("it is open")
            });
        });
    }
    group.finish();
}

fn ends(criterion: &mut Criterion) {
    let (here, there) = pipe::<u64, u64>().expect("an arena can be made here");
    criterion.bench_function("pipe of u64: send + recv", |bencher| {
        bencher.iter(|| {
            here.send(black_box(1)).expect("it is open");
            there.recv().expect("it is open")
        });
    });
}
