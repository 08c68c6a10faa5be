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

#[test]
fn the_whole_api_of_the_pool_is_there() {
    let pool = ThreadPool::new(3).unwrap();
    assert_eq!(
        pool.starmap(|a: u64, b: u64, c: u64| a * b + c, [(1, 2, 3), (4, 5, 6)])
            .unwrap(),
        [5, 26]
    );
    let map = pool.map_async(|x: u64| x + 1, 0..100).unwrap();
    assert!(map.wait_timeout(Duration::from_secs(60)) && map.is_done() && map.pending() == 0);
    assert_eq!(map.get().unwrap(), (1..101).collect::<Vec<_>>());
    let mut any: Vec<u64> = pool
        .imap_unordered(|x: u64| x * 2, 0..500)
        .map(Result::unwrap)
        .collect();
    any.sort_unstable();
    assert_eq!(any, (0..500).map(|x| x * 2).collect::<Vec<_>>());
    for (number, value) in pool.imap_unordered(|x: u64| x + 7, 0..50).numbered() {
        assert_eq!(value.unwrap(), number + 7);
    }
    let sum = pool
        .imap(|x: u64| x, 0..10)
        .progress()
        .message("adding")
        .sum::<Result<u64, _>>();
    assert_eq!(sum.unwrap(), 45);
    // One that fails in a lazy map stands in its place, and the others go on.
    let results: Vec<bool> = pool
        .imap(|x: u64| assert!(x != 3), 0..6)
        .map(|result| result.is_ok())
        .collect();
    assert_eq!(results, [true, true, true, false, true, true]);
    let error = pool
        .map(|x: u64| assert!(x != 3, "no {x}"), 0..6)
        .unwrap_err();
    assert!(error.to_string().contains("no 3"), "{error}");
}

#[test]
fn unordered_results_come_as_they_are_done_in_a_window() {
    let pool = ThreadPool::new(2).unwrap();
    let (release, held) = mpsc::channel::<()>();
    let held = Arc::new(std::sync::Mutex::new(held));
    let taken = std::cell::Cell::new(0);
    let items = (0_u64..20).inspect(|_| taken.set(taken.get() + 1));
    let wait_on_first = move |x: u64| {
        if x == 0 {
            let _ = held.lock().unwrap().recv();
        }
        x
    };
    let mut lazy = pool.imap_unordered(wait_on_first, items).window(4);
    let first: Vec<u64> = (0..10).map(|_| lazy.next().unwrap().unwrap()).collect();
    assert!(
        !first.contains(&0) && taken.get() <= 14,
        "{first:?}, {} taken",
        taken.get()
    );
    release.send(()).unwrap();
    assert!(lazy.any(|value| value.unwrap() == 0));
}

#[test]
fn callbacks_run_also_for_tasks_that_fail_or_are_done() {
    let pool = ThreadPool::new(2).unwrap();
    let (sender, receiver) = mpsc::channel();
    for x in 0..50_u64 {
        let sender = sender.clone();
        let task = pool.apply_async(move || {
            assert!(x % 10 != 3, "bad {x}");
            x
        });
        task.unwrap()
            .then(move |result| sender.send((x, result.is_err())).unwrap());
    }
    for _ in 0..50 {
        let (x, failed) = receiver.recv_timeout(Duration::from_secs(60)).unwrap();
        assert_eq!(failed, x % 10 == 3);
    }
    let task = pool.apply_async(|| 1).unwrap();
    assert!(task.wait_timeout(Duration::from_secs(60)));
    task.then(|_| panic!("costs nothing else"));
    assert_eq!(pool.apply(|| 2).unwrap(), 2);
}

#[test]
fn maps_are_futures_and_streams_on_tokio_and_bare() {
    async fn all(pool: &ThreadPool) -> u64 {
        let mut sum: u64 = pool
            .map_async(|x: u64| x, 0..100)
            .unwrap()
            .await
            .unwrap()
            .iter()
            .sum();
        let mut ordered = std::pin::pin!(pool.imap(|x: u64| x, 0..100));
        let mut any = std::pin::pin!(pool.imap_unordered(|x: u64| x, 0..100));
        while let Some(value) =
            std::future::poll_fn(|cx| futures_core::Stream::poll_next(ordered.as_mut(), cx)).await
        {
            sum += value.unwrap();
        }
        while let Some(value) =
            std::future::poll_fn(|cx| futures_core::Stream::poll_next(any.as_mut(), cx)).await
        {
            sum += value.unwrap();
        }
        sum
    }
    struct Unpark(std::thread::Thread);
    impl std::task::Wake for Unpark {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }
    let pool = ThreadPool::new(2).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .unwrap();
    assert_eq!(runtime.block_on(all(&pool)), 3 * 4950);
    let waker = Arc::new(Unpark(std::thread::current())).into();
    let mut context = std::task::Context::from_waker(&waker);
    let mut future = std::pin::pin!(all(&pool));
    let sum = loop {
        match future.as_mut().poll(&mut context) {
            std::task::Poll::Ready(sum) => break sum,
            std::task::Poll::Pending => std::thread::park(),
        }
    };
    assert_eq!(sum, 3 * 4950);
}

#[test]
fn a_failing_initializer_and_a_join_from_inside_are_errors() {
    let pool = ThreadPool::builder()
        .threads(2)
        .initializer(|| -> u8 { panic!("no state") })
        .build()
        .unwrap();
    let error = match pool.apply_async(|| 1) {
        Ok(task) => task.get().unwrap_err(),
        Err(error) => error,
    };
    assert!(matches!(error, ThreadTaskError::Broken(_)), "{error}");
    assert!(error.to_string().contains("no state"), "{error}");

    let pool = Arc::new(ThreadPool::new(1).unwrap());
    let same = Arc::clone(&pool);
    let task = pool.apply_async(move || {
        same.close();
        // Its last handle may go here, too.
        same.join()
    });
    drop(pool);
    assert_eq!(task.unwrap().get().unwrap(), Err(JoinPoolError::Current));
}
