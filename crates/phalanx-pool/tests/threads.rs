//! The pool of threads.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, mpsc};
use std::time::Duration;

use phalanx_pool::{JoinPoolError, ThreadPool, ThreadTaskError, with_thread_state};

#[test]
fn closures_run_and_values_come_back() {
    let pool = ThreadPool::new(3).unwrap();
    let factor = 7;
    assert_eq!(pool.apply(move || factor * 6).unwrap(), 42);
    assert_eq!(
        pool.map(move |x: u64| x * factor, 0..100).unwrap(),
        (0..100).map(|x| x * 7).collect::<Vec<_>>()
    );
    let lazy: Vec<u64> = pool
        .imap(|x: u64| x + 1, 0..100)
        .map(Result::unwrap)
        .collect();
    assert_eq!(lazy, (1..101).collect::<Vec<_>>());
}

#[test]
fn panics_are_reported_and_retried() {
    let pool = ThreadPool::builder().threads(1).retries(2).build().unwrap();
    let runs = Arc::new(AtomicU32::new(0));
    let counted = Arc::clone(&runs);
    let value = pool.apply(move || {
        let run = counted.fetch_add(1, Ordering::Relaxed);
        assert!(run >= 2, "run {run}");
        run
    });
    assert_eq!(value.unwrap(), 2);
    let Err(ThreadTaskError::Panicked(report)) = pool.apply(|| -> u8 { panic!("always") }) else {
        panic!("no panic")
    };
    assert_eq!(report.message, "always");
}

#[test]
fn ends_are_orderly() {
    let pool = ThreadPool::new(1).unwrap();
    assert_eq!(pool.join(), Err(JoinPoolError::NotClosed));
    let (sender, receiver) = mpsc::channel::<()>();
    let running = pool.apply_async(move || receiver.recv().is_err()).unwrap();
    let (cancelled, waiting) = (
        pool.apply_async(|| 1).unwrap(),
        pool.apply_async(|| 2).unwrap(),
    );
    assert!(cancelled.cancel());
    assert!(matches!(cancelled.get(), Err(ThreadTaskError::Cancelled)));
    assert!(matches!(
        running.get_timeout(Duration::from_millis(5)),
        Err(ThreadTaskError::NotDone(_))
    ));
    pool.terminate();
    assert!(matches!(waiting.get(), Err(ThreadTaskError::Terminated)));
    assert!(matches!(
        pool.apply_async(|| 3),
        Err(ThreadTaskError::Closed)
    ));
    assert_eq!(
        pool.join_timeout(Duration::from_millis(5)),
        Err(JoinPoolError::TimedOut)
    );
    drop(sender);
    assert!(running.get().unwrap());
    pool.join().unwrap();
    assert!(ThreadPool::new(0).is_err());
}

#[test]
fn each_thread_has_its_state_and_results_are_futures() {
    let made = Arc::new(AtomicU32::new(0));
    let counted = Arc::clone(&made);
    let pool = ThreadPool::builder()
        .threads(2)
        .initializer(move || counted.fetch_add(1, Ordering::Relaxed))
        .build()
        .unwrap();
    for _ in 0..10 {
        assert!(
            pool.apply(|| with_thread_state(|state: &mut u32| *state))
                .unwrap()
                .unwrap()
                < 2
        );
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .unwrap();
    assert_eq!(
        runtime.block_on(pool.apply_async(|| 5).unwrap()).unwrap(),
        5
    );
    assert!(made.load(Ordering::Relaxed) <= 2);
}
