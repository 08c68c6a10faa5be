//! Hot paths of the locks while nobody waits, in one process, in both scopes.

use std::hint::black_box;
use std::time::Duration;

use criterion::Criterion;
use phalanx_sync::{Condition, Event, Home, Lock, RLock, Semaphore, Shared};

fn main() {
    let mut criterion = Criterion::default()
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(1))
        .configure_from_args();
    let made = "an arena can be made here";
    lock(&mut criterion, "private", &Lock::local());
    lock(&mut criterion, "shared", &Lock::new().expect(made));
    rlock(&mut criterion, "private", &RLock::local());
    rlock(&mut criterion, "shared", &RLock::new().expect(made));
    semaphore(&mut criterion, "private", &Semaphore::local(1));
    semaphore(&mut criterion, "shared", &Semaphore::new(1).expect(made));
    event(&mut criterion, "private", &Event::local());
    event(&mut criterion, "shared", &Event::new().expect(made));
    condition(&mut criterion, "private", &Condition::local());
    condition(&mut criterion, "shared", &Condition::new().expect(made));
    value(&mut criterion);
    criterion.final_summary();
}

fn lock<S: Home>(criterion: &mut Criterion, scope: &str, lock: &Lock<S>) {
    criterion.bench_function(&format!("lock, {scope}: lock + drop"), |bencher| {
        bencher.iter(|| drop(black_box(lock).lock()));
    });
}

fn rlock<S: Home>(criterion: &mut Criterion, scope: &str, lock: &RLock<S>) {
    criterion.bench_function(&format!("rlock, {scope}: lock + drop"), |bencher| {
        bencher.iter(|| drop(black_box(lock).lock()));
    });
    let outer = lock.lock();
    criterion.bench_function(&format!("rlock, {scope}: lock again + drop"), |bencher| {
        bencher.iter(|| drop(black_box(lock).lock()));
    });
    drop(outer);
}

fn semaphore<S: Home>(criterion: &mut Criterion, scope: &str, semaphore: &Semaphore<S>) {
    criterion.bench_function(&format!("semaphore, {scope}: acquire + drop"), |bencher| {
        bencher.iter(|| drop(black_box(semaphore).acquire()));
    });
}

fn event<S: Home>(criterion: &mut Criterion, scope: &str, event: &Event<S>) {
    criterion.bench_function(&format!("event, {scope}: set + wait + clear"), |bencher| {
        bencher.iter(|| {
            event.set();
            black_box(event).wait();
            event.clear();
        });
    });
}

fn condition<S: Home>(criterion: &mut Criterion, scope: &str, condition: &Condition<S>) {
    criterion.bench_function(&format!("condition, {scope}: notify nobody"), |bencher| {
        bencher.iter(|| black_box(condition).notify_one());
    });
}

fn value(criterion: &mut Criterion) {
    let number = Shared::new(0_u64).expect("an arena can be made here");
    criterion.bench_function("shared value: lock + add + drop", |bencher| {
        bencher.iter(|| {
            let mut guard = black_box(&number).lock().expect("nobody died");
            *guard += 1;
        });
    });
}
