//! The pool: results, failures, ends.

use std::sync::mpsc;
use std::time::Duration;

use phalanx_pool::{
    BuildError, JoinPoolError, Pool, PoolError, SubmitError, TaskOptions, current_worker,
    worker_state,
};
use phalanx_sync::{Event, Semaphore, Shared};

phalanx_process::test_entry!();

fn square(x: u64) -> u64 {
    x * x
}

fn add(a: u64, b: u64) -> u64 {
    a + b
}

fn echo(bytes: Vec<u8>) -> Vec<u8> {
    bytes
}

fn pid() -> u32 {
    std::process::id()
}

fn boom(x: u64) -> u64 {
    if x % 10 == 3 { panic!("boom {x}") } else { x }
}

fn abort_on(x: u64) -> u64 {
    if x == 7 {
        eprintln!("about to abort on {x}");
        std::process::abort();
    }
    x
}

fn sleep(ms: u64) -> u64 {
    std::thread::sleep(Duration::from_millis(ms));
    ms
}

fn hang(started: Event) {
    started.set();
    loop {
        std::thread::sleep(Duration::from_secs(60));
    }
}

/// Dies in the first `deaths` runs of all.
fn flaky(runs: Shared<u32>, deaths: u32) -> u32 {
    let run = runs.with(|runs| {
        *runs += 1;
        *runs
    });
    if run <= deaths {
        std::process::abort();
    }
    run
}

fn with_timeout(pool: &Pool, ms: u64) -> Result<u64, PoolError> {
    pool.apply_with(
        TaskOptions::new().timeout(Duration::from_millis(ms)),
        sleep,
        600_000,
    )
    .unwrap()
    .get()
}

#[test]
fn values_come_back_by_every_call() {
    let pool = Pool::new(3).unwrap();
    assert_eq!(pool.apply(square, 9).unwrap(), 81);
    assert_eq!(pool.apply(add, (2, 3)).unwrap(), 5);
    assert_eq!(
        pool.map(square, 0..500).unwrap(),
        (0..500).map(square).collect::<Vec<_>>()
    );
    assert_eq!(pool.starmap(add, [(1, 2), (3, 4)]).unwrap(), [3, 7]);
    let mut handles: Vec<_> = (0..200)
        .map(|x| pool.apply_async(square, x).unwrap())
        .collect();
    for (x, handle) in handles.drain(..).enumerate() {
        assert_eq!(handle.get().unwrap(), square(x as u64));
    }
    let lazy: Vec<u64> = pool.imap(square, 0..300).map(Result::unwrap).collect();
    assert_eq!(lazy, (0..300).map(square).collect::<Vec<_>>());
    let mut any: Vec<u64> = pool
        .imap_unordered(square, 0..300)
        .map(Result::unwrap)
        .collect();
    any.sort_unstable();
    assert_eq!(any, (0..300).map(square).collect::<Vec<_>>());
    for (number, value) in pool.imap_unordered(square, 0..50).numbered() {
        assert_eq!(value.unwrap(), square(number));
    }
    for size in [0, 100, 3000, 100_000, 5_000_000] {
        let bytes: Vec<u8> = (0..size).map(|i| i as u8).collect();
        assert!(
            pool.apply(echo, bytes.clone()).unwrap() == bytes,
            "{size} bytes"
        );
    }
    pool.close();
    pool.join().unwrap();
}

#[test]
fn workers_are_processes_times_threads() {
    let pool = Pool::builder()
        .workers(2)
        .threads_per_worker(3)
        .build()
        .unwrap();
    assert_eq!(pool.parallelism(), 6);
    // Six tasks that wait for each other run only if all six run at once.
    let barrier = phalanx_sync::Barrier::new(6).unwrap();
    let meet = |barrier: phalanx_sync::Barrier| {
        barrier.wait_timeout(Duration::from_secs(60)).unwrap();
        (std::process::id(), current_worker().unwrap().thread)
    };
    let mut who = pool.map(meet, vec![barrier; 6]).unwrap();
    who.sort_unstable();
    who.dedup();
    assert_eq!(who.len(), 6);
    let mut pids: Vec<u32> = who.iter().map(|(pid, _)| *pid).collect();
    pids.dedup();
    assert_eq!(pids.len(), 2);
}

#[test]
fn a_panic_costs_its_task_alone() {
    let pool = Pool::new(2).unwrap();
    for (x, result) in pool.imap(boom, 0..20).enumerate() {
        match result {
            Err(PoolError::Panicked(report)) => {
                assert_eq!(x % 10, 3);
                assert_eq!(report.message, format!("boom {x}"));
                assert!(report.backtrace.contains("boom"));
            }
            other => assert_eq!(other.unwrap(), x as u64),
        }
    }
    assert!(matches!(pool.map(boom, 0..20), Err(PoolError::Panicked(_))));
}

#[test]
fn a_death_costs_its_task_alone_and_is_reported() {
    let pool = Pool::new(2).unwrap();
    let results: Vec<_> = pool.imap(abort_on, 0..30).collect();
    for (x, result) in results.into_iter().enumerate() {
        if x == 7 {
            let Err(PoolError::Died(report)) = result else {
                panic!("no report: {result:?}")
            };
            let text = report.to_string();
            assert!(
                text.contains("SIGABRT") && text.contains("abort_on"),
                "{text}"
            );
            assert!(text.contains("about to abort on 7"), "{text}");
        } else {
            assert_eq!(result.unwrap(), x as u64);
        }
    }
    assert!(pool.stats().restarts >= 1);
}

#[test]
fn retries_outlive_deaths() {
    let pool = Pool::new(2).unwrap();
    let runs = Shared::new(0_u32).unwrap();
    let options = TaskOptions::new().retries(3);
    assert_eq!(
        pool.apply_with(options, flaky, (runs.clone(), 3))
            .unwrap()
            .get()
            .unwrap(),
        4
    );
    runs.set(0);
    let error = pool
        .apply_with(TaskOptions::new().retries(1), flaky, (runs.clone(), 9))
        .unwrap()
        .get()
        .unwrap_err();
    let PoolError::Died(report) = error else {
        panic!("{error}")
    };
    assert_eq!((report.attempts, runs.get()), (2, 2));
}

#[test]
fn deadlines_kill_and_the_pool_goes_on() {
    let pool = Pool::new(1).unwrap();
    for _ in 0..3 {
        let error = with_timeout(&pool, 30).unwrap_err();
        assert!(
            matches!(&error, PoolError::TimedOut { task, .. } if task.contains("sleep")),
            "{error}"
        );
        assert_eq!(pool.apply(square, 5).unwrap(), 25);
    }
    let pool = Pool::builder()
        .workers(2)
        .task_timeout(Duration::from_millis(40))
        .retries(1)
        .build()
        .unwrap();
    let error = pool.apply(sleep, 600_000).unwrap_err();
    assert!(
        matches!(error, PoolError::TimedOut { attempts: 2, .. }),
        "{error}"
    );
}

#[test]
fn waiting_and_running_tasks_can_be_cancelled() {
    let pool = Pool::new(1).unwrap();
    let started = Event::new().unwrap();
    let running = pool.apply_async(hang, started.clone()).unwrap();
    let waiting = pool.apply_async(square, 4).unwrap();
    assert!(started.wait_timeout(Duration::from_secs(30)));
    assert!(waiting.cancel());
    assert!(matches!(waiting.get(), Err(PoolError::Cancelled)));
    assert!(matches!(
        running.get_timeout(Duration::from_millis(10)),
        Err(PoolError::NotDone(_))
    ));
    assert!(running.cancel());
    assert!(matches!(running.get(), Err(PoolError::Cancelled)));
    let done = pool.apply_async(square, 4).unwrap();
    done.wait();
    assert!(!done.cancel());
    assert_eq!(done.get().unwrap(), 16);
}

#[test]
fn workers_are_replaced_after_their_tasks() {
    let pool = Pool::builder()
        .workers(1)
        .max_tasks_per_child(5)
        .build()
        .unwrap();
    let mut pids: Vec<u32> = (0..25).map(|_| pool.apply(pid, ()).unwrap()).collect();
    pids.dedup();
    assert_eq!(pids.len(), 5);
    let pool = Pool::builder()
        .workers(2)
        .threads_per_worker(2)
        .max_tasks_per_child(10)
        .build()
        .unwrap();
    assert_eq!(pool.map(square, 0..400).unwrap().len(), 400);
}

#[test]
fn the_initializer_runs_once_per_worker_and_its_state_is_there() {
    fn make(name: String, runs: Semaphore) -> (String, u32) {
        runs.release().unwrap();
        (name, std::process::id())
    }
    fn look() -> (String, bool) {
        let (name, pid) = worker_state::<(String, u32)>().unwrap();
        (name.clone(), *pid == std::process::id())
    }
    let runs = Semaphore::new(0).unwrap();
    let pool = Pool::builder()
        .workers(2)
        .initializer(make, ("state".to_owned(), runs.clone()))
        .build()
        .unwrap();
    for _ in 0..20 {
        assert_eq!(pool.apply(look, ()).unwrap(), ("state".to_owned(), true));
    }
    assert!(runs.value() <= 2);
    assert!(
        worker_state::<(String, u32)>().is_none(),
        "not in this process"
    );
}

fn sleep_if_first(begun: Event) {
    if !begun.is_set() {
        begun.set();
        sleep_for_ever();
    }
}

fn sleep_for_ever() {
    loop {
        std::thread::sleep(Duration::from_secs(60));
    }
}

#[test]
fn a_worker_that_is_not_ready_in_time_is_replaced() {
    let _dog = phalanx_testkit::watchdog(Duration::from_secs(100));
    let begun = Event::new().unwrap();
    let pool = Pool::builder()
        .workers(1)
        .start_timeout(Duration::from_millis(500))
        .initializer(sleep_if_first, begun)
        .build()
        .unwrap();
    assert_eq!(pool.apply(square, 5).unwrap(), 25);
    assert_eq!(pool.stats().restarts, 1);
}

#[test]
fn a_pool_whose_workers_never_get_ready_breaks_and_says_why() {
    let _dog = phalanx_testkit::watchdog(Duration::from_secs(100));
    let pool = Pool::builder()
        .workers(2)
        .start_timeout(Duration::from_millis(200))
        .initializer(sleep_for_ever, ())
        .build()
        .unwrap();
    let Err(PoolError::Broken(reason)) = pool.apply(square, 5) else {
        panic!("it is not broken")
    };
    assert!(
        reason.contains("not ready after 200ms") && reason.contains("initializer"),
        "{reason}"
    );
}

#[test]
fn a_pool_whose_workers_hang_at_their_start_can_be_ended() {
    let _dog = phalanx_testkit::watchdog(Duration::from_secs(100));
    let pool = Pool::builder()
        .workers(2)
        .initializer(sleep_for_ever, ())
        .build()
        .unwrap();
    let task = pool.apply_async(square, 5).unwrap();
    let late = task.get_timeout(Duration::from_millis(100));
    assert!(matches!(late, Err(PoolError::NotDone(_))), "{late:?}");
    pool.terminate();
    pool.join().unwrap();
    assert!(matches!(task.get(), Err(PoolError::Terminated)));
}

#[test]
fn an_initializer_that_fails_breaks_the_pool() {
    fn panics() {
        panic!("no database");
    }
    fn fails(name: String) -> Result<(), String> {
        Err(format!("no {name}"))
    }
    fn exits() {
        std::process::exit(3);
    }
    let pools = [
        (
            Pool::builder()
                .workers(2)
                .initializer(panics, ())
                .build()
                .unwrap(),
            "no database",
        ),
        (
            Pool::builder()
                .workers(2)
                .try_initializer(fails, "network".to_owned())
                .build()
                .unwrap(),
            "no network",
        ),
        (
            Pool::builder()
                .workers(2)
                .initializer(exits, ())
                .build()
                .unwrap(),
            "exited with code 3",
        ),
    ];
    for (pool, reason) in pools {
        let error = pool.apply(square, 1).unwrap_err().to_string();
        assert!(error.contains(reason), "{error}");
        let error = (0..1000)
            .find_map(|_| {
                std::thread::sleep(Duration::from_millis(5));
                pool.apply_async(square, 1).err()
            })
            .expect("a broken pool refuses");
        assert!(
            matches!(&error, SubmitError::Broken(text) if text.contains(reason)),
            "{error}"
        );
    }
}

#[test]
fn close_finishes_what_was_submitted() {
    let pool = Pool::new(2).unwrap();
    assert_eq!(pool.join(), Err(JoinPoolError::NotClosed));
    let handles: Vec<_> = (0..50)
        .map(|_| pool.apply_async(sleep, 2).unwrap())
        .collect();
    pool.close();
    assert!(matches!(
        pool.apply_async(square, 1),
        Err(SubmitError::Closed)
    ));
    pool.join().unwrap();
    assert!(
        handles
            .iter()
            .all(|handle| handle.is_successful() == Some(true))
    );
    assert!(pool.worker_pids().is_empty());
}

#[test]
fn terminate_and_drop_end_at_once() {
    let pool = Pool::new(2).unwrap();
    let handles: Vec<_> = (0..20)
        .map(|_| pool.apply_async(sleep, 600_000).unwrap())
        .collect();
    let pids = pool.worker_pids();
    pool.terminate();
    pool.join().unwrap();
    for handle in handles {
        assert!(matches!(handle.get(), Err(PoolError::Terminated)));
    }
    for pid in pids {
        assert!(
            std::fs::metadata(format!("/proc/{pid}")).is_err(),
            "worker {pid} is still there"
        );
    }
    let pool = Pool::new(2).unwrap();
    let handle = pool.apply_async(sleep, 600_000).unwrap();
    drop(pool);
    assert!(matches!(handle.get(), Err(PoolError::Terminated)));
}

#[test]
fn senseless_numbers_are_refused() {
    let error = |builder: phalanx_pool::PoolBuilder| builder.build().unwrap_err().to_string();
    assert!(error(Pool::builder().workers(0)).contains("at least 1"));
    assert!(error(Pool::builder().threads_per_worker(0)).contains("at least 1"));
    assert!(error(Pool::builder().workers(usize::MAX)).contains("use fewer"));
    assert!(error(Pool::builder().max_tasks_per_child(0)).contains("at least 1"));
    let pool = Pool::new(1).unwrap();
    let captured = 5_u64;
    assert!(matches!(
        pool.apply_async(move |x: u64| x + captured, 1),
        Err(SubmitError::Task(_))
    ));
    assert_eq!(
        pool.apply_with(TaskOptions::new().timeout(Duration::MAX), square, 3)
            .unwrap()
            .get()
            .unwrap(),
        9
    );
}

#[test]
fn callbacks_get_the_result() {
    let pool = Pool::new(2).unwrap();
    let (sender, receiver) = mpsc::channel();
    for x in 0..50 {
        let sender = sender.clone();
        pool.apply_async(boom, x).unwrap().then(move |result| {
            sender
                .send((x, result.map_err(|error| error.to_string())))
                .unwrap();
        });
    }
    for _ in 0..50 {
        let (x, result) = receiver.recv_timeout(Duration::from_secs(60)).unwrap();
        assert_eq!(result.is_err(), x % 10 == 3);
    }
}

#[test]
fn results_are_futures_and_streams() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()
        .unwrap();
    let pool = Pool::new(2).unwrap();
    runtime.block_on(async {
        assert_eq!(pool.apply_async(square, 5).unwrap().await.unwrap(), 25);
        assert_eq!(
            pool.map_async(square, 0..100).unwrap().await.unwrap().len(),
            100
        );
        let slow = pool.apply_async(sleep, 600_000).unwrap();
        assert!(
            tokio::time::timeout(Duration::from_millis(20), slow)
                .await
                .is_err()
        );
        let mut sum = 0;
        let mut stream = std::pin::pin!(pool.imap_unordered(square, 0..200));
        while let Some(value) =
            std::future::poll_fn(|cx| futures_core::Stream::poll_next(stream.as_mut(), cx)).await
        {
            sum += value.unwrap();
        }
        assert_eq!(sum, (0..200).map(square).sum::<u64>());
    });
}

#[test]
fn results_are_awaited_without_a_runtime() {
    struct Unpark(std::thread::Thread);
    impl std::task::Wake for Unpark {
        fn wake(self: std::sync::Arc<Self>) {
            self.0.unpark();
        }
    }
    fn block_on<F: Future>(future: F) -> F::Output {
        let waker = std::sync::Arc::new(Unpark(std::thread::current())).into();
        let mut context = std::task::Context::from_waker(&waker);
        let mut future = std::pin::pin!(future);
        loop {
            match future.as_mut().poll(&mut context) {
                std::task::Poll::Ready(output) => return output,
                std::task::Poll::Pending => std::thread::park(),
            }
        }
    }
    let pool = Pool::new(2).unwrap();
    block_on(async {
        assert_eq!(pool.apply_async(square, 5).unwrap().await.unwrap(), 25);
        let error = pool.apply_async(boom, 3).unwrap().await.unwrap_err();
        assert!(matches!(error, PoolError::Panicked(_)), "{error}");
        let all = pool.map_async(square, 0..100).unwrap().await.unwrap();
        assert_eq!(all, (0..100).map(square).collect::<Vec<_>>());
        let mut stream = std::pin::pin!(pool.imap(square, 0..100));
        let mut count = 0;
        while let Some(value) =
            std::future::poll_fn(|cx| futures_core::Stream::poll_next(stream.as_mut(), cx)).await
        {
            assert_eq!(value.unwrap(), square(count));
            count += 1;
        }
        assert_eq!(count, 100);
    });
}

#[test]
fn a_progress_bar_counts_what_was_taken() {
    let pool = Pool::new(2).unwrap();
    let mut squares = pool.imap(square, 0..30).progress().message("squaring");
    assert_eq!(squares.bar().length(), Some(30));
    for x in 0..30 {
        assert_eq!(squares.next().unwrap().unwrap(), square(x));
        assert_eq!(squares.bar().position(), x + 1);
    }
    assert!(squares.next().is_none() && squares.bar().is_finished());
    // One that is dropped half-way, and one without an end.
    let mut endless = pool.imap_unordered(square, 0..).progress();
    assert!(endless.next().unwrap().is_ok());
}

#[test]
fn a_lazy_map_takes_items_only_in_its_window() {
    let pool = Pool::new(2).unwrap();
    let taken = std::cell::Cell::new(0);
    let items = (0_u64..).inspect(|_| taken.set(taken.get() + 1));
    let mut lazy = pool.imap(square, items).window(10);
    for x in 0..100 {
        assert_eq!(lazy.next().unwrap().unwrap(), square(x));
        assert!(
            taken.get() <= x + 11,
            "{} items taken after {x} results",
            taken.get()
        );
    }
}

#[test]
fn pools_nest_within_a_budget() {
    fn inner(workers: usize) -> Result<Vec<u64>, String> {
        let pool = Pool::new(workers).map_err(|error| match error {
            BuildError::Budget { .. } => "budget".to_owned(),
            error => error.to_string(),
        })?;
        pool.map(square, 0..10).map_err(|error| error.to_string())
    }
    let pool = Pool::new(1).unwrap();
    assert_eq!(
        pool.apply(inner, 2).unwrap().unwrap(),
        (0..10).map(square).collect::<Vec<_>>()
    );
    assert_eq!(pool.apply(inner, 1000).unwrap(), Err("budget".to_owned()));
}

#[test]
fn a_memory_limit_ends_the_task_that_exceeds_it() {
    fn eat(megabytes: usize) -> usize {
        let all: Vec<Vec<u8>> = (0..megabytes).map(|_| vec![1; 1 << 20]).collect();
        all.len()
    }
    let pool = Pool::builder()
        .workers(1)
        .memory_limit(64 << 20)
        .build()
        .unwrap();
    assert_eq!(pool.apply(eat, 8).unwrap(), 8);
    let error = pool.apply(eat, 1000).unwrap_err().to_string();
    assert!(error.contains("memory"), "{error}");
    assert_eq!(pool.apply(eat, 8).unwrap(), 8);
}
