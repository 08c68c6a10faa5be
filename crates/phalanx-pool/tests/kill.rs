//! Deaths of workers: at every named point of the pool's protocol, and at random under load.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use phalanx_pool::{Pool, PoolError, TaskOptions};
use phalanx_prim::points;
use phalanx_process::Process;
use phalanx_shm::session;
use phalanx_sync::{Lock, OwnerDied, Shared, SharedSlice};
use phalanx_testkit::{Level, alone, kill, watchdog};

phalanx_process::test_entry!();

const POINTS: [&str; 13] = [
    "pool.seated",
    "pool.claimed",
    "pool.ran",
    "pool.result-stored",
    "pool.result-written",
    "pool.done",
    "pool.told",
    "queue.get.claimed",
    "queue.get.noted",
    "queue.get.committed",
    "queue.get.unlocked",
    "queue.put.committed",
    "arena.allocated",
];

fn arm(point: usize, nth: u32) {
    points::arm(POINTS[point], nth);
}

/// A result that does not fit behind the task's record now and then.
fn work(number: u64) -> Vec<u64> {
    vec![
        number;
        if number.is_multiple_of(5) {
            2000
        } else {
            1 + number as usize % 7
        }
    ]
}

fn blocks() -> usize {
    session().unwrap().usage().blocks
}

/// A pool that has done something: what stays for good (this process's table of holds, its zygote) is there.
fn warm_up() {
    let pool = Pool::new(1).unwrap();
    pool.apply(work, 1).unwrap();
    drop(pool);
    // Other threads let go of the last of it.
    let mut before = Level::now(blocks());
    loop {
        std::thread::sleep(Duration::from_millis(50));
        let now = Level::now(blocks());
        if now == before {
            return;
        }
        before = now;
    }
}

#[test]
fn workers_die_at_every_point_and_no_task_is_lost() {
    let _alone = alone();
    let _dog = watchdog(Duration::from_secs(300));
    warm_up();
    let mut restarts = 0;
    for (point, named) in POINTS.iter().enumerate() {
        for nth in [1, 4] {
            let level = Level::settled(blocks);
            let pool = Pool::builder().workers(1).retries(3).build().unwrap();
            // The worker that runs this dies at that point: in this task already, or in a later one.
            let _ = pool
                .apply_with(TaskOptions::new(), arm, (point, nth))
                .unwrap()
                .get();
            let mut numbers = Vec::new();
            for (number, result) in pool.imap_unordered(work, 0..40_u64).numbered() {
                assert_eq!(result.unwrap(), work(number), "{named} {nth}");
                numbers.push(number);
            }
            numbers.sort_unstable();
            assert_eq!(numbers, (0..40).collect::<Vec<_>>(), "{named} {nth}");
            assert_eq!(
                pool.map(work, 0..20_u64).unwrap(),
                (0..20).map(work).collect::<Vec<_>>()
            );
            restarts += pool.stats().restarts;
            pool.close();
            pool.join_timeout(Duration::from_secs(60)).unwrap();
            drop(pool);
            level.assert_back_with(blocks);
        }
    }
    assert!(
        restarts >= 20,
        "only {restarts} workers died: are the points still passed?"
    );
}

#[test]
fn random_kills_under_load_lose_nothing() {
    let _alone = alone();
    let _dog = watchdog(Duration::from_secs(300));
    warm_up();
    let level = Level::settled(blocks);
    let pool = Pool::builder()
        .workers(3)
        .threads_per_worker(2)
        .retries(u32::MAX)
        .build()
        .unwrap();
    /// Also when the test fails: the scope waits for its killer.
    struct Stop<'a>(&'a AtomicBool);
    impl Drop for Stop<'_> {
        fn drop(&mut self) {
            self.0.store(true, Ordering::Relaxed);
        }
    }
    let stop = AtomicBool::new(false);
    let tasks = 120_000_u64;
    // However slow the machine is: between two kills something gets done, or the test would never end.
    let results = AtomicU64::new(0);
    let kills = std::thread::scope(|scope| {
        let stopping = Stop(&stop);
        let killer = scope.spawn(|| {
            let (mut kills, mut dice, mut before) = (0, 1_u64, 0);
            while !stop.load(Ordering::Relaxed) {
                dice = dice
                    .wrapping_mul(6_364_136_223_846_793_005)
                    .wrapping_add(1_442_695_040_888_963_407);
                std::thread::sleep(Duration::from_micros(500 + dice % 3000));
                let now = results.load(Ordering::Relaxed);
                let pids = pool.worker_pids();
                if !pids.is_empty() && now >= before + 100 {
                    before = now;
                    kill(pids[(dice >> 33) as usize % pids.len()]);
                    kills += 1;
                }
            }
            kills
        });
        let mut seen = vec![0_u8; tasks as usize];
        for (number, result) in pool.imap_unordered(work, 0..tasks).numbered() {
            assert_eq!(result.unwrap(), work(number));
            seen[number as usize] += 1;
            results.fetch_add(1, Ordering::Relaxed);
        }
        drop(stopping);
        assert!(
            seen.iter().all(|times| *times == 1),
            "a result is missing or came twice"
        );
        killer.join().unwrap()
    });
    println!(
        "kill table: Pool of 3 x 2: {kills} kills, {tasks} tasks, 0 lost, 0 twice, {} restarts",
        pool.stats().restarts
    );
    assert!(kills >= 100, "only {kills} kills");
    pool.close();
    pool.join_timeout(Duration::from_secs(60)).unwrap();
    drop(pool);
    level.assert_back_with(blocks);
}

#[test]
fn without_retries_a_kill_is_an_error_of_its_task_alone() {
    let _alone = alone();
    let _dog = watchdog(Duration::from_secs(120));
    fn slow(number: u64) -> u64 {
        std::thread::sleep(Duration::from_millis(3));
        number
    }
    let pool = Pool::new(2).unwrap();
    let handles: Vec<_> = (0..200)
        .map(|number| pool.apply_async(slow, number).unwrap())
        .collect();
    for _ in 0..10 {
        std::thread::sleep(Duration::from_millis(20));
        if let Some(pid) = pool.worker_pids().first() {
            kill(*pid);
        }
    }
    let mut died = 0;
    for (number, handle) in handles.into_iter().enumerate() {
        match handle.get() {
            Ok(value) => assert_eq!(value, number as u64),
            Err(PoolError::Died(report)) => {
                assert!(report.to_string().contains("SIGKILL"), "{report}");
                died += 1;
            }
            Err(error) => panic!("{error}"),
        }
    }
    assert!(died <= 10, "{died} tasks died of 10 kills");
}

/// Moves amounts between two accounts under a lock, and repairs what a dead owner left.
fn transfer(lock: Lock, accounts: SharedSlice<i64>, rounds: Shared<u64>) {
    loop {
        let guard = lock.lock();
        let _guard = guard.unwrap_or_else(|died| {
            let guard = died.into_guard();
            accounts.with(|accounts| accounts[1] = 1000 - accounts[0]);
            guard
        });
        accounts.with(|accounts| {
            assert_eq!(accounts[0] + accounts[1], 1000, "two were inside at once");
            accounts[0] -= 1;
        });
        accounts.with(|accounts| accounts[1] += 1);
        rounds.with(|rounds| *rounds += 1);
    }
}

#[test]
fn lock_owners_are_killed_at_random() {
    let _alone = alone();
    let _dog = watchdog(Duration::from_secs(300));
    warm_up();
    let level = Level::settled(blocks);
    {
        let (lock, accounts) = (
            Lock::new().unwrap(),
            SharedSlice::from_slice(&[1000, 0]).unwrap(),
        );
        let rounds = Shared::new(0_u64).unwrap();
        let start = || {
            let args = (lock.clone(), accounts.clone(), rounds.clone());
            Process::spawn(transfer, args).unwrap()
        };
        let mut members: Vec<_> = (0..3).map(|_| start()).collect();
        let mut deaths_told = 0;
        for kills in 0..300_usize {
            std::thread::sleep(Duration::from_micros(300 + (kills as u64 * 7919) % 2500));
            let victim = members.remove(kills % 3);
            victim.kill().unwrap();
            let error = victim.join().unwrap_err().to_string();
            assert!(error.contains("SIGKILL"), "{error}");
            members.push(start());
            // Nobody is kept out for good.
            match lock.lock_timeout(Duration::from_secs(30)) {
                Ok(_) => {}
                Err(phalanx_sync::LockError::OwnerDied(died)) => {
                    let _guard = OwnerDied::into_guard(died);
                    accounts.with(|accounts| accounts[1] = 1000 - accounts[0]);
                    deaths_told += 1;
                }
                Err(error) => panic!("{error}"),
            }
        }
        println!(
            "kill table: Lock: 300 kills, {} rounds, {deaths_told} deaths told here, 0 entered twice",
            rounds.get()
        );
        assert!(rounds.get() > 300);
        for member in members {
            member.kill().unwrap();
            let _ = member.join();
        }
        drop(lock.lock());
    }
    level.assert_back_with(blocks);
}
