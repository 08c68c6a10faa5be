//! Processes: start methods, results, ends.

use std::time::{Duration, Instant};

use phalanx_process::{
    ExitStatus, Fork, Process, ProcessError, StartError, StartMethod, TaskError, Zygote,
    active_children, fork,
};
use phalanx_sync::{Event, Lock, Shared};

phalanx_process::test_entry!();

const METHODS: [StartMethod; 2] = [StartMethod::Zygote, StartMethod::Spawn];

fn add(a: u64, b: u64) -> u64 {
    a + b
}

fn pid() -> u32 {
    std::process::id()
}

fn boom(what: String) -> u32 {
    panic!("boom: {what}")
}

fn exit(code: i32) {
    eprintln!("leaving with {code}");
    std::process::exit(code)
}

fn sleep_forever(started: Event) {
    started.set();
    loop {
        std::thread::sleep(Duration::from_secs(60));
    }
}

fn grow(total: Shared<u64>, rounds: u64) {
    for _ in 0..rounds {
        *total.lock().unwrap() += 1;
    }
}

fn die_with_lock(lock: Lock) {
    let _guard = lock.lock().unwrap();
    std::process::abort();
}

fn eat(megabytes: usize) -> usize {
    let mut all = Vec::new();
    for _ in 0..megabytes {
        all.push(vec![1_u8; 1 << 20]);
    }
    all.len()
}

fn start_sleeper(started: Event) -> u32 {
    let sleeper = Process::builder()
        .daemon()
        .spawn(sleep_forever, started)
        .unwrap();
    sleeper.pid()
}

fn deep(depth: u32) -> u32 {
    if depth == 0 {
        0
    } else {
        1 + Process::spawn(deep, depth - 1).unwrap().join().unwrap()
    }
}

fn gone(pid: u32) -> bool {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        let dead = stat.is_empty()
            || stat
                .rsplit(')')
                .next()
                .is_some_and(|rest| rest.trim_start().starts_with('Z'));
        if dead || Instant::now() > deadline {
            return dead;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn results_come_back_typed_by_every_method() {
    for method in METHODS {
        let process = Process::builder()
            .start_method(method)
            .spawn(add, (40, 2))
            .unwrap();
        assert_eq!(process.join().unwrap(), 42, "{method:?}");
        assert_eq!(process.exit_status(), Some(ExitStatus::Exited(0)));
        assert!(!process.is_alive());
        assert!(matches!(process.join(), Err(ProcessError::Taken(_))));
    }
    let other = Process::spawn(pid, ()).unwrap();
    assert_eq!(other.join().unwrap(), other.pid());
    assert_ne!(other.pid(), std::process::id());
}

#[test]
fn a_panic_comes_back_with_message_place_and_stack() {
    for method in METHODS {
        let process = Process::builder()
            .start_method(method)
            .spawn(boom, "fuse".to_owned())
            .unwrap();
        let Err(ProcessError::Panicked(report)) = process.join() else {
            panic!("no panic came back")
        };
        assert_eq!(report.message, "boom: fuse");
        assert!(
            report
                .location
                .as_deref()
                .unwrap_or("")
                .contains("process.rs"),
            "{report:?}"
        );
        assert!(report.backtrace.contains("boom"), "{}", report.backtrace);
        assert_eq!(process.exit_code(), Some(101));
    }
}

#[test]
fn a_death_names_pid_signal_task_and_last_words() {
    let process = Process::builder()
        .name("leaver")
        .capture_stderr()
        .spawn(exit, 7)
        .unwrap();
    let Err(ProcessError::Died(death)) = process.join() else {
        panic!("no death")
    };
    assert_eq!(
        (death.pid, death.exit),
        (process.pid(), ExitStatus::Exited(7))
    );
    assert!(death.task.ends_with("exit"), "{death:?}");
    assert!(death.stderr.contains("leaving with 7"), "{death:?}");

    let started = Event::new().unwrap();
    let process = Process::spawn(sleep_forever, started.clone()).unwrap();
    assert!(started.wait_timeout(Duration::from_secs(20)));
    assert!(matches!(
        process.join_timeout(Duration::from_millis(10)),
        Err(ProcessError::TimedOut { .. })
    ));
    assert!(process.is_alive());
    process.kill().unwrap();
    let error = process.join().unwrap_err();
    assert!(error.to_string().contains("SIGKILL"), "{error}");
    assert_eq!(process.exit_code(), Some(-9));

    let started = Event::new().unwrap();
    let process = Process::spawn(sleep_forever, started.clone()).unwrap();
    assert!(started.wait_timeout(Duration::from_secs(20)));
    process.terminate().unwrap();
    assert!(process.join().unwrap_err().to_string().contains("SIGTERM"));
}

#[test]
fn handles_travel_and_locks_survive_their_owner() {
    let total = Shared::new(0_u64).unwrap();
    let processes: Vec<_> = (0..4)
        .map(|_| Process::spawn(grow, (total.clone(), 1000)).unwrap())
        .collect();
    for process in processes {
        process.join().unwrap();
    }
    assert_eq!(total.get(), 4000);

    let lock = Lock::new().unwrap();
    let process = Process::spawn(die_with_lock, lock.clone()).unwrap();
    let error = process.join().unwrap_err();
    assert!(error.to_string().contains("SIGABRT"), "{error}");
    let died = lock.lock().expect_err("the owner died");
    drop(died.into_guard());
    assert!(lock.lock().is_ok(), "told once");
}

#[test]
fn a_memory_limit_is_reported_as_such() {
    let process = Process::builder()
        .memory_limit(64 << 20)
        .capture_stderr()
        .spawn(eat, 512)
        .unwrap();
    let error = process.join().unwrap_err();
    assert!(error.to_string().contains("memory"), "{error}");
    assert_eq!(
        Process::builder()
            .memory_limit(64 << 20)
            .spawn(eat, 8)
            .unwrap()
            .join()
            .unwrap(),
        8
    );
}

#[test]
fn errors_name_what_is_wrong() {
    let captured = 5_u64;
    let error = Process::spawn(move |x: u64| x + captured, 1).unwrap_err();
    assert!(
        matches!(error, StartError::Task(TaskError::Captures(_))),
        "{error}"
    );
    let error = Process::builder()
        .executable("/bin/false")
        .spawn(add, (1, 2))
        .unwrap()
        .join()
        .unwrap_err();
    assert!(error.to_string().contains("exited with code 1"), "{error}");
    let error = Process::builder()
        .executable("/no/such/program")
        .spawn(add, (1, 2))
        .unwrap_err();
    assert!(matches!(error, StartError::Io(_)), "{error}");
}

#[test]
fn children_and_grandchildren_end_with_their_parent() {
    let started = Event::new().unwrap();
    let process = Process::spawn(start_sleeper, started.clone()).unwrap();
    let sleeper = process.join().unwrap();
    assert!(
        gone(sleeper),
        "a daemon outlived the process that started it"
    );
    assert_eq!(Process::spawn(deep, 3).unwrap().join().unwrap(), 3);
}

fn start_and_wait(started: Event, pids: phalanx_sync::SharedSlice<u32>) {
    let sleepers: Vec<_> = METHODS
        .into_iter()
        .map(|method| {
            Process::builder()
                .start_method(method)
                .spawn(sleep_forever, Event::new().unwrap())
                .unwrap()
        })
        .collect();
    pids.with(|pids| pids[0] = sleepers[0].pid());
    pids.with(|pids| pids[1] = sleepers[1].pid());
    sleep_forever(started);
}

#[test]
fn a_killed_parent_leaves_nobody_behind() {
    let started = Event::new().unwrap();
    let pids = phalanx_sync::SharedSlice::<u32>::zeroed(2).unwrap();
    let process = Process::spawn(start_and_wait, (started.clone(), pids.clone())).unwrap();
    assert!(started.wait_timeout(Duration::from_secs(30)));
    process.kill().unwrap();
    process.join().unwrap_err();
    for pid in pids.with(|pids| pids.to_vec()) {
        assert!(pid != 0 && gone(pid), "process {pid} outlived its parent");
    }
}

#[test]
#[expect(unsafe_code, reason = "fork")]
fn fork_returns_twice_and_closures_run_in_forks() {
    // SAFETY: the child only exits.
    match unsafe { fork() }.unwrap() {
        Fork::Child => phalanx_sys::process::exit_now(9),
        Fork::Parent(child) => assert_eq!(child.join().unwrap(), ExitStatus::Exited(9)),
    }
    let captured = String::from("with me");
    // SAFETY: the closure allocates, and glibc's allocator has its own at-fork handlers.
    let process = unsafe { Process::builder().fork(|| captured.len()) }.unwrap();
    assert_eq!(process.join().unwrap(), 7);
    // SAFETY: as above.
    let process = unsafe { Process::builder().fork(|| -> u32 { panic!("in the fork") }) }.unwrap();
    assert!(
        process
            .join()
            .unwrap_err()
            .to_string()
            .contains("in the fork")
    );
}

#[test]
#[expect(unsafe_code, reason = "fork")]
fn a_zygote_carries_a_closure() {
    let table: Vec<u32> = (0..1000).collect();
    // SAFETY: the closure only reads.
    let zygote = unsafe { Zygote::fork(move |index: usize| table[index]) }.unwrap();
    for index in [0, 10, 999] {
        let process = Process::builder().spawn_in(&zygote, index).unwrap();
        assert_eq!(process.join().unwrap(), index as u32);
    }
    let process = Process::builder().spawn_in(&zygote, 1000).unwrap();
    assert!(
        process
            .join()
            .unwrap_err()
            .to_string()
            .contains("out of bounds")
    );
}

#[test]
fn results_are_futures() {
    fn block_on<F: Future + Unpin>(mut future: F) -> F::Output {
        struct Unpark(std::thread::Thread);
        impl std::task::Wake for Unpark {
            fn wake(self: std::sync::Arc<Self>) {
                self.0.unpark();
            }
        }
        let waker = std::sync::Arc::new(Unpark(std::thread::current())).into();
        let mut context = std::task::Context::from_waker(&waker);
        loop {
            match std::pin::Pin::new(&mut future).poll(&mut context) {
                std::task::Poll::Ready(output) => return output,
                std::task::Poll::Pending => std::thread::park(),
            }
        }
    }
    assert_eq!(block_on(Process::spawn(add, (2, 3)).unwrap()).unwrap(), 5);
}

#[test]
fn active_children_are_those_that_run() {
    let started = Event::new().unwrap();
    let process = Process::builder()
        .name("shown")
        .spawn(sleep_forever, started.clone())
        .unwrap();
    assert!(
        active_children()
            .iter()
            .any(|child| child.pid == process.pid() && child.name == "shown")
    );
    process.kill().unwrap();
    let _ = process.join();
    assert!(
        !active_children()
            .iter()
            .any(|child| child.pid == process.pid())
    );
}

#[test]
fn many_processes_leave_nothing() {
    let arena = phalanx_shm::session().unwrap();
    Process::spawn(add, (1, 1)).unwrap().join().unwrap();
    let before = arena.usage().blocks;
    for round in 0..300 {
        assert_eq!(
            Process::spawn(add, (round, 1)).unwrap().join().unwrap(),
            round + 1
        );
    }
    // Other tests of this program use the arena at the same time; 300 leaks would show.
    assert!(
        arena.usage().blocks < before + 150,
        "{} blocks before, {} after",
        before,
        arena.usage().blocks
    );
}
