//! The pains of other tools through the Rust face, where a row makes sense here; the numbers are those of `tests/pains`.
//!
//! | row | where else it is held |
//! |---|---|
//! | 10, a killed parent leaves no workers | `orphans.rs` |
//! | 23, memory short is an error | `limits.rs` |
//! | 13, 14, no name and no tracker | there is neither here; [`nothing_is_named`] looks |
//! | 12, a lazy map takes a window | [`a_lazy_map_takes_a_window_of_its_input`] |
//! | 18, 24, lambdas, semaphores | functions are named by the executable, and nothing needs a named semaphore |
//! | 16, 17, 26, speed | `benches`, and `tests/pains` with a bound |

use std::cell::Cell;
use std::rc::Rc;
use std::time::{Duration, Instant};

use phalanx::prelude::*;
use phalanx::{OwnerDied, Patience, PoolError, ProcessError, thread};
use phalanx_testkit::{alone, watchdog};

phalanx::test_entry!();

const LONG: Duration = Duration::from_secs(60);

fn die() {
    std::process::abort();
}

/// Ends itself as the kernel's killer would.
fn killed_at_three(number: u64) -> u64 {
    if number == 3 {
        phalanx_testkit::kill(std::process::id());
        std::thread::sleep(LONG);
    }
    number * number
}

fn nap(millis: u64) -> u64 {
    std::thread::sleep(Duration::from_millis(millis));
    millis
}

#[test]
fn p01_a_killed_worker_costs_its_task_only_and_is_reported() {
    let _alone = alone();
    let _dog = watchdog(Duration::from_secs(100));
    let pool = Pool::new(2).unwrap();
    let tasks: Vec<_> = (0..8)
        .map(|number| pool.apply_async(killed_at_three, number).unwrap())
        .collect();
    for (number, task) in (0..).zip(tasks) {
        match task.get_timeout(LONG) {
            Ok(value) => assert!(number != 3 && value == number * number),
            Err(PoolError::Died(death)) => {
                let text = death.to_string();
                assert!(
                    number == 3 && text.contains("SIGKILL") && text.contains("killed_at_three"),
                    "{text}"
                );
            }
            Err(error) => panic!("{error}"),
        }
    }
}

fn put_for_ever(queue: Queue<Vec<u8>>) {
    while queue.put(vec![7; 1_000_000]).is_ok() {}
}

#[test]
fn p02_a_killed_writer_does_not_wedge_the_queue() {
    let _alone = alone();
    let _dog = watchdog(Duration::from_secs(100));
    let queue = Queue::<Vec<u8>>::bounded(4).unwrap();
    for _ in 0..15 {
        let writer = Process::spawn(put_for_ever, queue.clone()).unwrap();
        assert_eq!(queue.get_timeout(LONG).unwrap().len(), 1_000_000);
        writer.kill().unwrap();
        assert!(writer.join().is_err());
        while let Ok(item) = queue.try_get() {
            assert!(
                item.len() == 1_000_000 && item.iter().all(|byte| *byte == 7),
                "a torn item"
            );
        }
        queue.put_timeout(b"after".to_vec(), LONG).unwrap();
        assert_eq!(queue.get_timeout(LONG).unwrap(), b"after");
    }
}

fn take_all_and_die(lock: Lock, rlock: RLock, seats: BoundedSemaphore) {
    let _held = (lock.lock(), rlock.lock(), seats.acquire());
    die();
}

#[test]
fn p03_a_dead_owners_locks_are_free_and_the_next_is_told() {
    let _alone = alone();
    let _dog = watchdog(Duration::from_secs(100));
    let (lock, rlock) = (Lock::new().unwrap(), RLock::new().unwrap());
    let seats = BoundedSemaphore::new(1).unwrap();
    let args = (lock.clone(), rlock.clone(), seats.clone());
    assert!(
        Process::spawn(take_all_and_die, args)
            .unwrap()
            .join()
            .is_err()
    );
    assert!(
        lock.lock().map_err(OwnerDied::into_guard).is_err(),
        "the next owner is told"
    );
    assert!(lock.lock().is_ok(), "once");
    assert!(rlock.lock().map_err(OwnerDied::into_guard).is_err());
    assert!(seats.acquire_timeout(LONG).is_some());
}

fn wait_for_ever(event: Event, condition: Condition, lock: Lock, there: Event) {
    if event.is_set() {
        return;
    }
    let guard = lock.lock().unwrap_or_else(OwnerDied::into_guard);
    there.set();
    let _ = condition.wait(guard);
}

#[test]
fn p04_a_dead_waiter_holds_up_nobody() {
    let _alone = alone();
    let _dog = watchdog(Duration::from_secs(100));
    let (event, there) = (Event::new().unwrap(), Event::new().unwrap());
    let (condition, lock) = (Condition::new().unwrap(), Lock::new().unwrap());
    let args = (
        event.clone(),
        condition.clone(),
        lock.clone(),
        there.clone(),
    );
    let waiter = Process::spawn(wait_for_ever, args).unwrap();
    assert!(there.wait_timeout(LONG));
    // It has let go of the lock, so it waits.
    drop(lock.lock().unwrap_or_else(OwnerDied::into_guard));
    waiter.kill().unwrap();
    assert!(waiter.join().is_err());
    condition.notify_all();
    event.set();
    let barrier = Barrier::new(2).unwrap();
    assert!(barrier.wait_timeout(Duration::from_millis(50)).is_err());
}

fn panic_with(what: String) -> u64 {
    panic!("{what}")
}

fn leave(code: i32) -> u64 {
    std::process::exit(code)
}

#[test]
fn p05_a_panic_and_an_exit_in_a_task_are_its_errors() {
    let _alone = alone();
    let _dog = watchdog(Duration::from_secs(100));
    let pool = Pool::new(1).unwrap();
    match pool.apply(panic_with, "out of luck".to_owned()) {
        Err(PoolError::Panicked(report)) => assert_eq!(report.message, "out of luck"),
        other => panic!("{other:?}"),
    }
    match pool.apply(leave, 3) {
        Err(PoolError::Died(death)) => assert!(death.to_string().contains('3'), "{death}"),
        other => panic!("{other:?}"),
    }
    assert_eq!(pool.apply(nap, 1).unwrap(), 1);
}

fn fail() -> Result<u64, String> {
    Err("no table".to_owned())
}

#[test]
fn p06_a_bad_initializer_breaks_the_pool_once() {
    let _alone = alone();
    let _dog = watchdog(Duration::from_secs(100));
    let built = Pool::builder().workers(2).try_initializer(fail, ()).build();
    let text = match built {
        Err(error) => error.to_string(),
        Ok(pool) => pool.map(nap, [1, 2]).unwrap_err().to_string(),
    };
    assert!(text.contains("no table"), "{text}");
}

fn fill_and_end(queue: Queue<Vec<u8>>) {
    for _ in 0..70 {
        queue.put(vec![1; 100_000]).unwrap();
    }
}

#[test]
fn p07_a_process_ends_with_a_full_queue_and_what_it_put_is_there() {
    let _alone = alone();
    let _dog = watchdog(Duration::from_secs(100));
    let queue = Queue::<Vec<u8>>::new().unwrap();
    // Joined before anybody reads.
    Process::spawn(fill_and_end, queue.clone())
        .unwrap()
        .join()
        .unwrap();
    let items: Vec<_> = std::iter::from_fn(|| queue.try_get().ok()).collect();
    assert_eq!(items.len(), 70);
}

#[test]
fn p08_processes_start_while_threads_hold_locks() {
    let _alone = alone();
    let _dog = watchdog(Duration::from_secs(100));
    static BUSY: std::sync::Mutex<u64> = std::sync::Mutex::new(0);
    fn use_it(number: u64) -> u64 {
        *BUSY.lock().unwrap() + number
    }
    let over = Event::new().unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !over.is_set() {
                let guard = BUSY.lock().unwrap();
                std::thread::sleep(Duration::from_millis(2));
                drop(guard);
            }
        });
        let pool = Pool::new(2).unwrap();
        assert_eq!(
            pool.map(use_it, 0..50).unwrap(),
            (0..50).collect::<Vec<_>>()
        );
        over.set();
    });
}

#[test]
fn p09_a_deadline_and_a_cancel_end_one_task() {
    let _alone = alone();
    let _dog = watchdog(Duration::from_secs(100));
    let pool = Pool::new(2).unwrap();
    let limit = TaskOptions::new().timeout(Duration::from_millis(100));
    let tasks: Vec<_> = [1, 3_600_000, 2]
        .map(|millis| pool.apply_with(limit, nap, millis).unwrap())
        .into_iter()
        .collect();
    let ends: Vec<_> = tasks
        .into_iter()
        .map(|task| task.get_timeout(LONG))
        .collect();
    assert!(
        matches!(ends[1], Err(PoolError::TimedOut { .. })),
        "{ends:?}"
    );
    assert!(matches!((&ends[0], &ends[2]), (Ok(1), Ok(2))), "{ends:?}");
    let running = pool.apply_async(nap, 3_600_000).unwrap();
    std::thread::sleep(Duration::from_millis(50));
    assert!(running.cancel());
    assert!(matches!(
        running.get_timeout(LONG),
        Err(PoolError::Cancelled)
    ));
    assert_eq!(pool.apply(nap, 1).unwrap(), 1);
}

#[test]
fn p11_workers_are_replaced_after_some_tasks() {
    let _alone = alone();
    let _dog = watchdog(Duration::from_secs(100));
    let pool = Pool::builder()
        .workers(1)
        .max_tasks_per_child(2)
        .build()
        .unwrap();
    let tasks: Vec<_> = (0..10)
        .map(|_| pool.apply_async(std::process::id, ()).unwrap())
        .collect();
    let mut pids: Vec<_> = tasks
        .into_iter()
        .map(|task| task.get_timeout(LONG).unwrap())
        .collect();
    pids.dedup();
    assert_eq!(pids.len(), 5, "{pids:?}");
}

#[test]
fn p12_a_lazy_map_takes_a_window_of_its_input() {
    let _alone = alone();
    let _dog = watchdog(Duration::from_secs(100));
    let pool = Pool::new(2).unwrap();
    let pulled = Rc::new(Cell::new(0));
    let counting = Rc::clone(&pulled);
    let endless = (0..).inspect(move |_| counting.set(counting.get() + 1));
    let mut results = pool.imap(nap, endless.map(|_: u64| 0));
    for _ in 0..5 {
        assert_eq!(results.next().unwrap().unwrap(), 0);
    }
    drop(results);
    assert!(pulled.get() < 10_000, "{} pulled for 5", pulled.get());
}

#[test]
fn p14_nothing_is_named() {
    let _alone = alone();
    let _dog = watchdog(Duration::from_secs(100));
    let _objects = (
        Lock::new().unwrap(),
        Queue::<u8>::new().unwrap(),
        SharedSlice::<u64>::zeroed(100_000).unwrap(),
    );
    let ours = |name: &std::ffi::OsStr| name.to_string_lossy().contains("phalanx");
    let named = std::fs::read_dir("/dev/shm")
        .into_iter()
        .flatten()
        .flatten();
    assert_eq!(named.filter(|entry| ours(&entry.file_name())).count(), 0);
}

#[test]
fn p15_a_crash_is_reported_with_process_signal_and_task() {
    let _alone = alone();
    let _dog = watchdog(Duration::from_secs(100));
    let process = Process::builder().name("crasher").spawn(die, ()).unwrap();
    let pid = process.pid().to_string();
    match process.join() {
        Err(ProcessError::Died(death)) => {
            let text = death.to_string();
            assert!(
                text.contains(&pid) && text.contains("SIGABRT") && text.contains("die"),
                "{text}"
            );
        }
        other => panic!("{other:?}"),
    }
}

fn add_under(lock: Lock, total: Shared<u64>, queue: Queue<u64>) -> u64 {
    let _guard = lock.lock();
    total.with(|total| *total += 1);
    queue.put(total.get()).unwrap();
    total.get()
}

#[test]
fn p19_locks_and_queues_are_arguments() {
    let _alone = alone();
    let _dog = watchdog(Duration::from_secs(100));
    let pool = Pool::new(2).unwrap();
    let (lock, total, queue) = (
        Lock::new().unwrap(),
        Shared::new(0).unwrap(),
        Queue::new().unwrap(),
    );
    let args = || (lock.clone(), total.clone(), queue.clone());
    let tasks: Vec<_> = (0..20)
        .map(|_| pool.apply_async(add_under, args()).unwrap())
        .collect();
    let mut values: Vec<_> = tasks
        .into_iter()
        .map(|task| task.get_timeout(LONG).unwrap())
        .collect();
    values.sort_unstable();
    assert_eq!(values, (1..=20).collect::<Vec<_>>());
    assert_eq!(queue.len(), 20);
}

fn nested(number: u64) -> u64 {
    let pool = Pool::new(2).unwrap();
    pool.map(nap, [number, number]).unwrap().into_iter().sum()
}

#[test]
fn p20_a_pool_in_a_pool() {
    let _alone = alone();
    let _dog = watchdog(Duration::from_secs(100));
    let pool = Pool::new(2).unwrap();
    assert_eq!(pool.map(nested, 1..4).unwrap(), [2, 4, 6]);
}

#[test]
fn p22_a_pool_that_is_dropped_at_work_ends() {
    let _alone = alone();
    let _dog = watchdog(Duration::from_secs(100));
    let pool = Pool::new(2).unwrap();
    let pids = pool.worker_pids();
    let task = pool.apply_async(nap, 3_600_000).unwrap();
    drop(pool);
    assert!(matches!(task.get_timeout(LONG), Err(PoolError::Terminated)));
    let patience = Instant::now() + LONG;
    while pids
        .iter()
        .any(|pid| std::fs::exists(format!("/proc/{pid}")).unwrap())
    {
        assert!(Instant::now() < patience, "a worker is left");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn p28_progress_is_there_to_be_read() {
    let _alone = alone();
    let _dog = watchdog(Duration::from_secs(100));
    let pool = Pool::new(2).unwrap();
    let many = pool.map_async(nap, [1; 40]).unwrap();
    while many.pending() == 40 {
        std::thread::yield_now();
    }
    assert!(many.pending() < 40);
    assert_eq!(many.get().unwrap().len(), 40);
    let tasks = || -> u64 { pool.stats().workers.iter().map(|worker| worker.tasks).sum() };
    // A run is counted a moment after its result is there.
    while tasks() < 40 {
        std::thread::yield_now();
    }
    assert_eq!(tasks(), 40);
}

#[test]
fn p30_more_than_two_gigabytes_in_one_message() {
    let _alone = alone();
    let _dog = watchdog(Duration::from_secs(300));
    const HALF: usize = 1_150_000_000;
    let queue = Queue::<Vec<u8>>::new().unwrap();
    let half = vec![9; HALF];
    queue.raw().put(&[&half, &half], Patience::FOREVER).unwrap();
    drop(half);
    // Where it lies: it is not copied out.
    let whole = queue.raw().get(Patience::FOREVER).unwrap();
    assert!(whole.len() == 2 * HALF && whole[2 * HALF - 1] == 9);
}

#[test]
fn p27_a_time_out_says_who_holds_the_lock() {
    let _alone = alone();
    let _dog = watchdog(Duration::from_secs(100));
    let lock = Lock::named("ledger").unwrap();
    let guard = lock.lock().unwrap();
    let other = lock.clone();
    let waiting = thread::Thread::spawn(move || {
        let short = Duration::from_millis(20);
        other.lock_timeout(short).map(drop).unwrap_err().to_string()
    });
    let text = waiting.unwrap().join().unwrap();
    assert!(text.contains(&std::process::id().to_string()), "{text}");
    drop(guard);
}

// Row 25: a pool of 64 workers where handles are waited for by 64 at most.
#[cfg(windows)]
#[test]
fn p25_a_pool_of_more_than_sixty_one_workers() {
    let _alone = alone();
    let _dog = watchdog(Duration::from_secs(300));
    let pool = Pool::new(64).unwrap();
    assert_eq!(pool.worker_pids().len(), 64);
    assert_eq!(pool.map(nap, [1; 128]).unwrap().len(), 128);
}
