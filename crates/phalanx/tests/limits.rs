//! When there is little: of memory, addresses, file size. And when there is much: processes, locks, bytes.

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use phalanx::{
    Lock, MemoryVerdict, Pool, PoolError, Process, ProcessError, PutErrorKind, Queue, SharedSlice,
    pipe,
};
use phalanx_sys::limits;
use phalanx_testkit::{Level, alone, watchdog};

phalanx::test_entry!();

const CASE: &str = "PHALANX_TEST_CASE";
const MIB: usize = 1 << 20;

fn blocks() -> usize {
    phalanx_shm::session().unwrap().usage().blocks
}

fn add(a: u64, b: u64) -> u64 {
    a + b
}

/// The programs of this file: what is limited must be so before the first use of anything.
#[test]
fn started_with_little() {
    let Ok(case) = std::env::var(CASE) else {
        // Not started by the tests below: nothing to do.
        return;
    };
    let _dog = watchdog(Duration::from_secs(120));
    let (case, size) = case.split_once(':').unwrap();
    match case {
        "control group" | "small arena" => {}
        "killer" => {
            meet_the_killer();
            println!("said: {case} passed");
            return;
        }
        "addresses" => limits::limit_address_space(2 << 30).unwrap(),
        "file size" => limits::limit_file_size(128 << 20).unwrap(),
        other => panic!("no such case: {other}"),
    }
    fill_and_use_again(size.parse().unwrap());
    println!("said: {case} passed");
}

fn eat() -> usize {
    let mut eaten = Vec::new();
    loop {
        eaten.push(std::hint::black_box(vec![1_u8; MIB]));
    }
}

/// Has workers eat more than the control group has, and reads what is said of them.
fn meet_the_killer() {
    let pool = Pool::new(1).unwrap();
    for _ in 0..2 {
        let Err(PoolError::Died(report)) = pool.apply(eat, ()) else {
            panic!("nothing was killed")
        };
        assert_eq!(report.death.memory, MemoryVerdict::OomKiller, "{report}");
        let text = report.to_string();
        for word in ["eat", "SIGKILL", "out-of-memory killer", "fewer processes"] {
            assert!(text.contains(word), "{text}");
        }
    }
    let victim = Process::builder().spawn(nap, ()).unwrap();
    phalanx_sys::process::signal(victim.pid(), phalanx_sys::signal::SIGTERM).unwrap();
    let Err(ProcessError::Died(death)) = victim.join() else {
        panic!("it lives")
    };
    assert_eq!(death.memory, MemoryVerdict::NoSign, "{death}");
    assert!(death.to_string().contains("somebody ended it"), "{death}");
}

fn nap() {
    std::thread::sleep(Duration::from_secs(100));
}

/// Fills a queue until memory is short, and finds it usable.
fn fill_and_use_again(size: usize) {
    let queue = Queue::<Vec<u8>>::new().unwrap();
    let shared = SharedSlice::<u64>::zeroed(10).unwrap();
    // What this program takes for itself afterwards counts against a control group's limit too.
    let ballast = std::hint::black_box(vec![1_u8; 32 * MIB]);
    let mut count = 0;
    let error = loop {
        match queue.put(vec![count as u8; size]) {
            Ok(()) => count += 1,
            Err(error) => break error,
        }
    };
    assert!(matches!(error.kind, PutErrorKind::Alloc(_)), "{error}");
    assert_eq!(error.value.len(), size, "the item comes back");
    let text = error.to_string();
    println!("said: after {count} items of {size} bytes: {text}");
    assert!(
        text.matches(|c: char| c.is_ascii_digit()).count() > 4,
        "no numbers: {text}"
    );
    drop((error, ballast));
    // Nothing that was there is harmed, and each place that becomes free can be used again.
    shared.with(|shared| shared[9] = 5);
    for round in 0..count {
        let item = queue.get().unwrap();
        assert!(
            item.len() == size && item.iter().all(|byte| *byte == round as u8),
            "item {round}"
        );
        drop(item);
        if round % 4 == 3 {
            queue.put(vec![9; size]).unwrap();
        }
    }
    while let Ok(item) = queue.try_get() {
        assert_eq!(item, vec![9; size]);
    }
    assert_eq!(shared.with(|shared| shared[9]), 5);
}

/// Runs a case with items of several sizes, each in a program of its own.
fn start(case: &str, arena: &str, wrap: Option<&PathBuf>) -> Vec<String> {
    [3_000, 200_000, 5 * MIB]
        .iter()
        .map(|size| start_one(case, *size, arena, wrap))
        .collect()
}

fn start_one(case: &str, size: usize, arena: &str, wrap: Option<&PathBuf>) -> String {
    let exe = std::env::current_exe().unwrap();
    let mut command = match wrap {
        None => Command::new(&exe),
        Some(group) => {
            let mut command = Command::new("/bin/sh");
            let line = r#"echo $$ > "$0/cgroup.procs" && exec "$@""#;
            command.args(["-c", line]).arg(group).arg(&exe);
            command
        }
    };
    let output = command
        .args([
            "--exact",
            "started_with_little",
            "--nocapture",
            "--test-threads=1",
        ])
        .env(CASE, format!("{case}:{size}"))
        .env("PHALANX_ARENA_BYTES", arena)
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success(),
        "{case}: {}\n{text}\n{errors}",
        output.status
    );
    assert!(
        text.contains(&format!("said: {case} passed")),
        "{case} did nothing: {text}"
    );
    text.lines()
        .filter(|line| line.starts_with("said: "))
        .for_each(|line| println!("{line}"));
    text
}

#[test]
fn a_small_arena_gives_an_error_with_the_numbers() {
    let _alone = alone();
    let _dog = watchdog(Duration::from_secs(200));
    for text in start("small arena", "100000000", None) {
        assert!(
            text.contains("100663296") && text.contains("PHALANX_ARENA_BYTES"),
            "{text}"
        );
    }
}

#[test]
fn limits_on_addresses_and_file_size_give_an_error_with_the_numbers() {
    let _alone = alone();
    let _dog = watchdog(Duration::from_secs(200));
    for case in ["addresses", "file size"] {
        for text in start(case, "274877906944", None) {
            assert!(text.contains("has no room for"), "{text}");
        }
    }
}

/// A control group of this process's own with a memory limit; `None` where this user may not make one.
fn memory_group(limit: usize) -> Option<PathBuf> {
    let mine = fs::read_to_string("/proc/self/cgroup").ok()?;
    let place = mine.lines().find_map(|line| {
        let (_, rest) = line.split_once(':')?;
        let (controllers, path) = rest.split_once(':')?;
        let name = path.trim_start_matches('/');
        if controllers.split(',').any(|one| one == "memory") {
            Some((
                PathBuf::from("/sys/fs/cgroup/memory").join(name),
                "memory.limit_in_bytes",
            ))
        } else if controllers.is_empty() {
            Some((PathBuf::from("/sys/fs/cgroup").join(name), "memory.max"))
        } else {
            None
        }
    });
    let (place, file) = place?;
    let group = place.join(format!("phalanx-test-{}-{limit}", std::process::id()));
    fs::create_dir(&group).ok()?;
    if fs::write(group.join(file), limit.to_string()).is_err() {
        let _ = fs::remove_dir(&group);
        return None;
    }
    Some(group)
}

/// Runs programs in a control group with this much memory, and removes it; nothing if this user may not make one.
fn in_memory_group<R>(limit: usize, run: impl FnOnce(&PathBuf) -> R) -> Option<R> {
    let Some(group) = memory_group(limit) else {
        println!("skipped: this user may make no control group with a memory limit");
        return None;
    };
    let run = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| run(&group)));
    // The kernel lets go of the group once its last process is collected.
    for _ in 0..100 {
        if fs::remove_dir(&group).is_ok() {
            break;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    assert!(!group.exists(), "the group stays behind");
    Some(run.unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
}

#[test]
fn a_control_groups_limit_gives_an_error_with_the_numbers() {
    let _alone = alone();
    let _dog = watchdog(Duration::from_secs(200));
    let run = |group: &PathBuf| start("control group", "274877906944", Some(group));
    for text in in_memory_group(96 * MIB, run).unwrap_or_default() {
        assert!(text.contains("out of shared memory"), "{text}");
    }
}

#[test]
fn the_out_of_memory_killer_is_named() {
    let _alone = alone();
    let _dog = watchdog(Duration::from_secs(200));
    in_memory_group(128 * MIB, |group| {
        start_one("killer", 0, "274877906944", Some(group))
    });
}

fn slots_used() -> usize {
    phalanx_shm::session().unwrap().processes().len()
}

#[test]
fn ten_thousand_processes_leave_nothing() {
    let _alone = alone();
    let count = 10_000;
    let _dog = watchdog(Duration::from_secs(300));
    assert_eq!(Process::spawn(add, (1, 2)).unwrap().join().unwrap(), 3);
    let level = Level::settled(blocks);
    let slots = slots_used();
    let mut running = std::collections::VecDeque::new();
    for number in 0..count {
        running.push_back((number, Process::spawn(add, (number, 1)).unwrap()));
        if running.len() == 20 {
            let (number, process) = running.pop_front().unwrap();
            assert_eq!(process.join().unwrap(), number + 1);
        }
    }
    for (number, process) in running {
        assert_eq!(process.join().unwrap(), number + 1);
    }
    level.assert_back_with(blocks);
    assert_eq!(slots_used(), slots, "slots are not given back");
    println!("{count} processes started and joined; nothing left");
}

fn resident() -> u64 {
    phalanx_shm::session().unwrap().usage().committed
}

#[test]
fn a_hundred_thousand_locks_are_small_and_have_no_descriptors() {
    let _alone = alone();
    let _dog = watchdog(Duration::from_secs(200));
    drop(Lock::new().unwrap());
    let level = Level::settled(blocks);
    let (before, own) = (resident(), limits::resident(std::process::id()).unwrap());
    let locks: Vec<Lock> = (0..100_000).map(|_| Lock::new().unwrap()).collect();
    let shared = resident() - before;
    let own = limits::resident(std::process::id())
        .unwrap()
        .saturating_sub(own);
    println!("100,000 locks: {shared} bytes shared, {own} resident in all");
    assert!(shared <= 16 << 20, "{shared} bytes for 100,000 locks");
    assert_eq!(Level::now(level.blocks), level, "a lock has a descriptor");
    drop(locks[77_777].lock());
    drop(locks);
    // The tables of what this process holds grew, and stay for the next.
    let tables = 100_000 / 500;
    assert!(
        blocks() <= level.blocks + tables,
        "{} blocks, {} before",
        blocks(),
        level.blocks
    );
}

const LARGE: usize = 2_500_000_000;

/// A large message, and what its sender and receiver need beside it.
fn enough_memory() -> bool {
    let available = limits::available_memory().available;
    let enough = available > 4 * LARGE as u64;
    if !enough {
        println!(
            "skipped: {available} bytes of memory are available, 10 GB are needed for a message of 2.5 GB"
        );
    }
    enough
}

/// Bytes that serialize in one piece, not one by one.
#[derive(Debug)]
struct Bytes(Vec<u8>);

impl serde::Serialize for Bytes {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(&self.0)
    }
}

impl<'de> serde::Deserialize<'de> for Bytes {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl serde::de::Visitor<'_> for Visitor {
            type Value = Bytes;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("bytes")
            }

            fn visit_bytes<E>(self, bytes: &[u8]) -> Result<Bytes, E> {
                Ok(Bytes(bytes.to_vec()))
            }
        }
        deserializer.deserialize_bytes(Visitor)
    }
}

fn pattern() -> Bytes {
    let mut bytes = vec![7_u8; LARGE];
    for at in (0..LARGE).step_by(1 << 20) {
        bytes[at] = (at >> 20) as u8;
    }
    bytes[LARGE - 1] = 99;
    Bytes(bytes)
}

fn check(bytes: &Bytes) -> bool {
    let bytes = &bytes.0;
    bytes.len() == LARGE
        && bytes[LARGE - 1] == 99
        && (0..LARGE - 1)
            .step_by(1 << 20)
            .all(|at| bytes[at] == (at >> 20) as u8)
        && bytes[1..1 << 20].iter().all(|byte| *byte == 7)
}

fn check_argument(bytes: Bytes) -> bool {
    check(&bytes)
}

fn check_queue(queue: Queue<Bytes>) -> bool {
    check(&queue.get().unwrap())
}

fn check_pipe(end: phalanx::Connection<bool, Bytes>) {
    let bytes = end.recv().unwrap();
    end.send(check(&bytes)).unwrap();
}

#[test]
fn a_message_of_gigabytes_arrives_by_queue_pipe_and_argument() {
    let _alone = alone();
    let _dog = watchdog(Duration::from_secs(400));
    if !enough_memory() {
        return;
    }
    let bytes = pattern();
    let queue = Queue::new().unwrap();
    queue.put(bytes).unwrap();
    let receiver = Process::spawn(check_queue, queue).unwrap();
    assert!(receiver.join().unwrap());

    let (ours, theirs) = pipe::<Bytes, bool>().unwrap();
    let receiver = Process::spawn(check_pipe, theirs).unwrap();
    ours.send(pattern()).unwrap();
    assert!(ours.recv().unwrap());
    receiver.join().unwrap();

    let bytes = pattern();
    assert!(
        Process::spawn(check_argument, bytes)
            .unwrap()
            .join()
            .unwrap()
    );
}
