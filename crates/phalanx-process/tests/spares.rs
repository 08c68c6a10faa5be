//! The zygote's spare: whoever of the two is killed, nothing is lost but a start at worst, and nothing is left.

use std::time::{Duration, Instant};

use phalanx_prim::global::{AtomicBool, Ordering};
use phalanx_process::Process;
use phalanx_sys::signal;
use phalanx_testkit::{Level, alone, watchdog};

phalanx_process::test_entry!();

const ZYGOTE: &str = "phalanx-zygote";
const SPARE: &str = "phalanx-spare";

fn add(a: u64, b: u64) -> u64 {
    a + b
}

fn sum() -> u64 {
    Process::spawn(add, (1, 2)).unwrap().join().unwrap()
}

/// Returns the children of this process with this name, zombies included.
fn named(name: &str) -> Vec<u32> {
    let me = std::process::id().to_string();
    let all = std::fs::read_dir("/proc").unwrap().flatten();
    let pids = all.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    pids.filter(|pid| {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        let Some((_, behind)) = stat.rsplit_once(')') else {
            return false;
        };
        behind.split_whitespace().nth(1) == Some(&me) && threads_of(*pid).any(|of| of == name)
    })
    .collect()
}

/// Returns the names of a process's threads: under the test harness the zygote is not the first.
fn threads_of(pid: u32) -> impl Iterator<Item = String> {
    let all = std::fs::read_dir(format!("/proc/{pid}/task"));
    let names = all.into_iter().flatten().flatten();
    names.filter_map(|entry| {
        let name = std::fs::read_to_string(entry.path().join("comm")).ok()?;
        Some(name.trim_end().to_owned())
    })
}

/// Blocks until there is one such child and returns it.
fn the(name: &str) -> u32 {
    the_next(name, 0)
}

/// Blocks until there is one such child, which is not `last`, and returns it.
fn the_next(name: &str, last: u32) -> u32 {
    let patience = Instant::now() + Duration::from_secs(30);
    loop {
        match named(name)[..] {
            [one] if one != last => return one,
            ref all => assert!(Instant::now() < patience, "{name}: {all:?}"),
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn kill(pid: u32) {
    // It may be gone: a zygote that ends takes its spare along.
    let _ = phalanx_sys::process::signal(pid, signal::SIGKILL);
}

fn blocks() -> usize {
    phalanx_shm::session().unwrap().usage().blocks
}

#[test]
fn a_killed_spare_is_replaced_and_collected() {
    let _alone = alone();
    let _dog = watchdog(Duration::from_secs(100));
    assert_eq!(sum(), 3);
    the(ZYGOTE);
    let level = Level::settled(blocks);
    for _ in 0..5 {
        let spare = the(SPARE);
        kill(spare);
        // Its end of the socket closes a moment later.
        std::thread::sleep(Duration::from_millis(20));
        assert_eq!(sum(), 3);
        the_next(SPARE, spare);
    }
    level.assert_back_with(blocks);
}

#[test]
fn a_spare_that_is_killed_while_nothing_starts_is_collected() {
    let _alone = alone();
    let _dog = watchdog(Duration::from_secs(100));
    assert_eq!(sum(), 3);
    let zygote = the(ZYGOTE);
    for _ in 0..3 {
        let spare = the(SPARE);
        kill(spare);
        while !named(SPARE).is_empty() {
            std::thread::sleep(Duration::from_millis(1));
        }
        assert_eq!(sum(), 3);
        the_next(SPARE, spare);
    }
    assert_eq!(the(ZYGOTE), zygote);
}

/// A spare that is stopped cannot look whether the zygote is there.
#[test]
fn a_killed_zygote_takes_its_spare_along() {
    let _alone = alone();
    let _dog = watchdog(Duration::from_secs(100));
    for stopped in [false, true] {
        assert_eq!(sum(), 3);
        let (zygote, spare) = (the(ZYGOTE), the(SPARE));
        let level = Level::settled(blocks);
        if stopped {
            // It has its name a moment before it has rehearsed; then it waits.
            std::thread::sleep(Duration::from_millis(50));
            phalanx_sys::process::signal(spare, signal::SIGSTOP).unwrap();
        }
        kill(zygote);
        let patience = Instant::now() + Duration::from_secs(30);
        while !named(ZYGOTE).is_empty() || named(SPARE).contains(&spare) {
            if Instant::now() > patience {
                kill(spare);
                panic!("something is left; the spare was stopped: {stopped}");
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        assert_eq!(sum(), 3);
        the_next(ZYGOTE, zygote);
        level.assert_back_with(blocks);
    }
}

#[test]
fn starts_go_on_while_both_are_killed_at_random() {
    const STARTS: u32 = 300;
    let _alone = alone();
    let _dog = watchdog(Duration::from_secs(200));
    assert_eq!(sum(), 3);
    the(SPARE);
    let level = Level::settled(blocks);
    let done = AtomicBool::new(false);
    let (mut went, mut kills) = (0, 0);
    std::thread::scope(|scope| {
        let killer = scope.spawn(|| {
            let mut dice = 1_u64;
            let mut kills = 0;
            while !done.load(Ordering::Relaxed) {
                dice = dice
                    .wrapping_mul(6_364_136_223_846_793_005)
                    .wrapping_add(1_442_695_040_888_963_407);
                std::thread::sleep(Duration::from_micros(300 + (dice >> 33) % 5000));
                let name = if dice >> 40 & 3 == 0 { ZYGOTE } else { SPARE };
                for pid in named(name) {
                    kill(pid);
                    kills += 1;
                }
            }
            kills
        });
        for _ in 0..STARTS {
            // Lost with the zygote that had the request, or killed as it began: told, not hung, not wrong.
            if let Ok(process) = Process::spawn(add, (1, 2))
                && let Ok(sum) = process.join()
            {
                assert_eq!(sum, 3);
                went += 1;
            }
        }
        done.store(true, Ordering::Relaxed);
        kills = killer.join().unwrap();
    });
    println!("kill table: zygote and spare: {kills} kills, {went} of {STARTS} starts went well");
    assert!(kills > 0 && went > 0);
    // The last kill may still be under way, and take the next request with it.
    let last = || Process::spawn(add, (1, 2)).ok()?.join().ok();
    assert!((0..10).any(|_| last() == Some(3)));
    assert_eq!(sum(), 3);
    the(ZYGOTE);
    the(SPARE);
    level.assert_back_with(blocks);
}
