//! What users get told: each mistake and each misfortune is a variant with a sentence that says what to do.

use std::sync::Arc;
use std::sync::mpsc;
use std::time::Duration;

use phalanx::thread::{JoinError as ThreadJoinError, Thread};
use phalanx::{
    Barrier, BoundedSemaphore, BuildError, CreateError, Event, Fork, GetError, JoinPoolError, Lock,
    LockError, MemoryVerdict, Pool, PoolError, Process, ProcessError, PutErrorKind, Queue,
    Semaphore, Shared, SharedMemory, SharedSlice, SimpleQueue, StartError, SubmitError, TaskError,
    TaskOptions, ThreadPool, ThreadTaskError, pipe,
};
use phalanx_testkit::watchdog;
use serde::{Deserialize, Serialize};

phalanx::test_entry!();

/// Asserts that an error's text has these parts.
#[track_caller]
fn says(error: &dyn std::error::Error, parts: &[&str]) {
    let text = error.to_string();
    for part in parts {
        assert!(text.contains(part), "`{text}` does not say `{part}`");
    }
    assert!(!text.ends_with('.') && text.len() > 15, "{text}");
}

fn double(x: u64) -> u64 {
    2 * x
}

fn nothing() {}

fn dog() -> phalanx_testkit::Watchdog {
    watchdog(Duration::from_secs(120))
}

#[test]
fn submitting_after_close() {
    let _dog = dog();
    let pool = Pool::new(1).unwrap();
    says(
        &pool.join().unwrap_err(),
        &["call close() or terminate() before join()"],
    );
    pool.close();
    let error = pool.apply_async(double, 1).unwrap_err();
    assert!(matches!(error, SubmitError::Closed));
    says(&error, &["the pool is closed", "submit before close()"]);
    let error = pool.map(double, [1, 2]).unwrap_err();
    assert!(matches!(error, PoolError::Submit(SubmitError::Closed)));
    let failed = pool.imap(double, [1]).next().unwrap().unwrap_err();
    assert!(matches!(failed, PoolError::Submit(SubmitError::Closed)));
    pool.join().unwrap();

    let pool = ThreadPool::new(1).unwrap();
    says(
        &pool.join().unwrap_err(),
        &["call close() or terminate() before join()"],
    );
    pool.close();
    let error = pool.apply(|| 1).unwrap_err();
    assert!(matches!(error, ThreadTaskError::Closed));
    says(&error, &["the pool is closed", "submit before close()"]);
}

#[test]
#[expect(unsafe_code, reason = "fork")]
fn joining_oneself_and_what_is_not_ones_own() {
    let _dog = dog();
    let (sender, receiver) = mpsc::channel::<Arc<Thread<()>>>();
    let thread = Thread::spawn(move || {
        let me = receiver.recv().unwrap();
        let error = me.join().unwrap_err();
        assert!(matches!(error, ThreadJoinError::Current));
        says(&error, &["a thread cannot join itself", "another thread"]);
    });
    let thread = Arc::new(thread.unwrap());
    sender.send(Arc::clone(&thread)).unwrap();
    thread.join().unwrap();

    // A pool's own task would wait for its own end.
    let pool = Arc::new(ThreadPool::new(1).unwrap());
    let same = Arc::clone(&pool);
    let error = pool.apply(move || {
        same.close();
        same.join()
    });
    let error = error.unwrap().unwrap_err();
    assert_eq!(error, JoinPoolError::Current);
    says(&error, &["a task of the pool", "outside"]);
    pool.join().unwrap();

    // A forked child has copies of its parent's handles.
    let process = Process::spawn(double, 4).unwrap();
    // SAFETY: the child asks one handle, which takes no lock, and exits.
    match unsafe { phalanx::fork() }.unwrap() {
        Fork::Child => {
            let refused = matches!(process.wait(None), Err(ProcessError::NotAChild(_)));
            phalanx_sys::process::exit_now(i32::from(!refused));
        }
        Fork::Parent(child) => assert_eq!(child.join().unwrap(), phalanx::ExitStatus::Exited(0)),
    }
    let pid = process.pid();
    assert_eq!(process.join().unwrap(), 8);
    let error = process.join().unwrap_err();
    assert!(matches!(error, ProcessError::Taken(_)));
    says(&error, &[&pid.to_string(), "taken already"]);
    says(
        &ProcessError::Current,
        &["a process cannot join itself", "started it"],
    );
    says(
        &ProcessError::NotAChild(5),
        &["process 5", "only that one can join it"],
    );
}

fn refused<T: std::fmt::Debug>(made: Result<T, CreateError>, parts: &[&str]) {
    let error = made.unwrap_err();
    says(&error, parts);
}

#[test]
fn absurd_sizes_and_numbers() {
    let _dog = dog();
    refused(Queue::<u8>::bounded(0), &["0", "nothing would ever fit"]);
    refused(
        Queue::<u8>::builder().bytes(0).build::<u8>(),
        &["0", "nothing would ever fit"],
    );
    refused(Barrier::new(0), &["0", "at least one party"]);
    assert!(Barrier::local(0).is_err());
    refused(Semaphore::new(u32::MAX), &["4294967295", "2,147,483,647"]);
    refused(
        BoundedSemaphore::new(u32::MAX),
        &["4294967295", "2,147,483,647"],
    );
    refused(SharedSlice::<u64>::zeroed(usize::MAX), &["bytes"]);
    refused(SharedSlice::<u64>::zeroed(usize::MAX / 8), &["bytes"]);
    refused(SharedSlice::<u64>::zeroed(1 << 50), &["bytes"]);
    refused(SharedMemory::new(usize::MAX), &["bytes"]);
    let name = format!("phalanx-test-{}", std::process::id());
    for len in [0, usize::MAX] {
        assert!(SharedMemory::create(&name, len).is_err());
        assert!(
            SharedMemory::attach(&name).is_err(),
            "it was made all the same"
        );
    }
    let memory = SharedMemory::new(10).unwrap();
    says(
        &memory.write_at(8, &[1; 3]).unwrap_err(),
        &["3 bytes at 8", "10 bytes"],
    );
    says(
        &memory.read_at(usize::MAX, &mut [0; 3]).unwrap_err(),
        &["10 bytes"],
    );
    // Bounds nobody will reach are none.
    let queue = Queue::<u8>::bounded(u64::MAX).unwrap();
    queue.put(1).unwrap();
    let queue = Queue::<u8>::builder()
        .bytes(u64::MAX)
        .build::<u8>()
        .unwrap();
    queue.put(1).unwrap();
    let small = Queue::<Vec<u8>>::builder()
        .bytes(100)
        .build::<Vec<u8>>()
        .unwrap();
    let error = small.put(vec![0; 200]).unwrap_err();
    assert!(matches!(
        error.kind,
        PutErrorKind::TooLarge { most: 100, .. }
    ));
    says(
        &error,
        &[
            "at most 100 bytes",
            "make the queue larger or the item smaller",
        ],
    );
    assert_eq!(error.value.len(), 200);

    let error = Pool::new(0).unwrap_err();
    assert!(matches!(error, BuildError::Invalid(_)));
    says(&error, &["0 workers", "at least 1"]);
    says(&Pool::new(usize::MAX).unwrap_err(), &["use fewer"]);
    says(
        &Pool::builder().threads_per_worker(0).build().unwrap_err(),
        &["0 threads", "at least 1"],
    );
    says(
        &Pool::builder().max_tasks_per_child(0).build().unwrap_err(),
        &["at least 1"],
    );
    says(
        &ThreadPool::new(0).unwrap_err(),
        &["0 threads", "at least 1"],
    );
    let seats = BoundedSemaphore::new(1).unwrap();
    says(
        &seats.release().unwrap_err(),
        &["1 already", "release once per acquisition"],
    );
    assert!(Semaphore::new(5).unwrap().release_many(u32::MAX).is_err());
}

#[test]
fn absurd_time_outs() {
    let _dog = dog();
    for timeout in [Duration::MAX, Duration::from_secs(u64::MAX / 1_000_000_000)] {
        let lock = Lock::new().unwrap();
        drop(lock.lock_timeout(timeout).unwrap());
        let queue = Queue::bounded(1).unwrap();
        queue.put_timeout(5, timeout).unwrap();
        assert_eq!(queue.get_timeout(timeout).unwrap(), 5);
        let event = Event::new().unwrap();
        event.set();
        assert!(event.wait_timeout(timeout));
        assert!(
            Semaphore::new(1)
                .unwrap()
                .acquire_timeout(timeout)
                .is_some()
        );
        assert_eq!(Barrier::new(1).unwrap().wait_timeout(timeout).unwrap(), 0);
        assert_eq!(
            Process::spawn(double, 3)
                .unwrap()
                .join_timeout(timeout)
                .unwrap(),
            6
        );
        let pool = Pool::new(1).unwrap();
        let options = TaskOptions::new().timeout(timeout);
        let task = pool.apply_with(options, double, 4).unwrap();
        assert_eq!(task.get_timeout(timeout).unwrap(), 8);
        assert_eq!(
            Thread::spawn(|| 1).unwrap().join_timeout(timeout).unwrap(),
            1
        );
        pool.close();
        pool.join_timeout(timeout).unwrap();
    }
    // No time at all is a look, and the error names who is in the way.
    let lock = Lock::new().unwrap();
    let guard = lock.lock().unwrap();
    std::thread::scope(|scope| {
        let other = scope.spawn(|| match lock.lock_timeout(Duration::ZERO) {
            Err(error @ LockError::TimedOut { owner: Some(_) }) => error.to_string(),
            other => panic!("{other:?}"),
        });
        let text = other.join().unwrap();
        assert!(
            text.contains(&format!("process {}", std::process::id())),
            "{text}"
        );
    });
    drop(guard);
    let queue = Queue::<u8>::new().unwrap();
    assert!(matches!(
        queue.get_timeout(Duration::ZERO),
        Err(GetError::Empty)
    ));
    let error = Process::spawn(nap, ()).unwrap();
    let late = error.join_timeout(Duration::ZERO).unwrap_err();
    says(&late, &[&error.pid().to_string(), "still runs"]);
    error.join().unwrap();
}

fn nap() {
    std::thread::sleep(Duration::from_millis(100));
}

fn close_it(queue: Queue<String>) {
    queue.close();
}

fn take_and_go(end: phalanx::Connection<(), String>) {
    drop(end);
}

#[test]
fn closed_on_the_other_side_gives_the_message_back() {
    let _dog = dog();
    let queue = Queue::<String>::new().unwrap();
    Process::spawn(close_it, queue.clone())
        .unwrap()
        .join()
        .unwrap();
    let error = queue.put("mine".to_owned()).unwrap_err();
    assert!(matches!(error.kind, PutErrorKind::Closed(_)));
    says(&error, &["takes no more items"]);
    assert_eq!(error.value, "mine");
    let error = queue.get().unwrap_err();
    assert!(matches!(error, GetError::Closed(_)));
    says(&error, &["nothing more will come"]);
    let simple = SimpleQueue::new().unwrap();
    simple.close();
    assert_eq!(simple.put(7).unwrap_err().value, 7);

    let (ours, theirs) = pipe::<String, ()>().unwrap();
    Process::spawn(take_and_go, theirs).unwrap().join().unwrap();
    let error = ours.send("mine".to_owned()).unwrap_err();
    assert!(matches!(error.kind, PutErrorKind::Closed(_)));
    assert_eq!(error.value, "mine");
    says(&ours.recv().unwrap_err(), &["nothing more will come"]);
}

/// Refuses to be written.
#[derive(Debug, Deserialize)]
struct Stubborn;

impl Serialize for Stubborn {
    fn serialize<S: serde::Serializer>(&self, _: S) -> Result<S::Ok, S::Error> {
        Err(serde::ser::Error::custom("a socket cannot travel"))
    }
}

fn take_stubborn(_: Stubborn) {}

fn give_stubborn() -> Stubborn {
    Stubborn
}

/// Written as one thing, read as another.
#[derive(Debug)]
struct Changeling;

impl Serialize for Changeling {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u8(200)
    }
}

impl<'de> Deserialize<'de> for Changeling {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer).map(|_| Self)
    }
}

fn take_changeling(_: Changeling) {}

#[test]
fn what_does_not_serialize() {
    let _dog = dog();
    let error = Process::spawn(take_stubborn, Stubborn).unwrap_err();
    assert!(matches!(error, StartError::Codec(_)));
    says(&error, &["serialize", "Stubborn"]);
    let pool = Pool::new(1).unwrap();
    let error = pool.apply_async(take_stubborn, Stubborn).unwrap_err();
    assert!(matches!(error, SubmitError::Codec(_)));
    says(&error, &["serialize", "Stubborn"]);
    let queue = Queue::<Stubborn>::new().unwrap();
    let error = queue.put(Stubborn).unwrap_err();
    assert!(matches!(error.kind, PutErrorKind::Codec(_)));
    says(&error, &["serialize"]);

    let error = Process::spawn(give_stubborn, ())
        .unwrap()
        .join()
        .unwrap_err();
    assert!(
        matches!(error, ProcessError::Task(TaskError::Result { .. })),
        "{error}"
    );
    says(&error, &["give_stubborn", "the result", "serialize"]);
    let error = pool.apply(give_stubborn, ()).unwrap_err();
    assert!(
        matches!(error, PoolError::Task(TaskError::Result { .. })),
        "{error}"
    );

    let error = Process::spawn(take_changeling, Changeling)
        .unwrap()
        .join()
        .unwrap_err();
    assert!(
        matches!(error, ProcessError::Task(TaskError::Arguments { .. })),
        "{error}"
    );
    says(&error, &["take_changeling", "deserialize"]);
    let error = pool.apply(take_changeling, Changeling).unwrap_err();
    assert!(
        matches!(error, PoolError::Task(TaskError::Arguments { .. })),
        "{error}"
    );
    says(&error, &["take_changeling", "deserialize"]);
    assert_eq!(pool.apply(double, 5).unwrap(), 10, "the pool goes on");

    let captured = 5_u64;
    let error = Process::spawn(move |x: u64| x + captured, 1).unwrap_err();
    assert!(matches!(error, StartError::Task(TaskError::Captures(_))));
    says(
        &error,
        &["captures values", "pass them as arguments", "Zygote::fork"],
    );
}

fn die_loudly(words: String) -> u64 {
    eprintln!("last words: {words}");
    std::process::abort()
}

#[inline(never)]
fn strike_here(how: &str) -> u64 {
    match how {
        "null" => {
            let nowhere = std::hint::black_box(std::ptr::without_provenance::<u64>(8));
            #[expect(unsafe_code, reason = "it shall crash")]
            // SAFETY: none: the test is about what happens then.
            let read = unsafe { nowhere.read_volatile() };
            read
        }
        "overflow" => deeper(0),
        "abort" => std::process::abort(),
        signal => {
            let signal = phalanx_sys::signal::parse(signal).unwrap();
            phalanx_sys::process::signal(std::process::id(), signal).unwrap();
            // Any thread may be the one that is struck.
            loop {
                std::thread::sleep(Duration::from_secs(60));
            }
        }
    }
}

fn deeper(depth: u64) -> u64 {
    let room = std::hint::black_box([depth; 512]);
    if room[8] == u64::MAX {
        0
    } else {
        deeper(depth + 1) + room[9]
    }
}

fn strike(how: String) -> u64 {
    strike_here(&how) + 1
}

#[test]
fn a_fatal_signal_comes_with_a_stack() {
    let _dog = dog();
    let pool = Pool::builder()
        .workers(1)
        .threads_per_worker(2)
        .build()
        .unwrap();
    let ends = [
        ("null", "SIGSEGV", "strike_here"),
        ("overflow", "SIGABRT", "deeper"),
        ("abort", "SIGABRT", "strike_here"),
        ("SIGILL", "SIGILL", ""),
        ("SIGFPE", "SIGFPE", ""),
    ];
    for (how, ended, place) in ends {
        let Err(PoolError::Died(report)) = pool.apply(strike, how.to_owned()) else {
            panic!("{how}: no report")
        };
        let text = report.to_string();
        says(
            &PoolError::Died(report),
            &[ended, "it was here", place, "errors.rs"],
        );
        assert!(!text.contains("phalanx_process::"), "{text}");
        for method in [phalanx::StartMethod::Zygote, phalanx::StartMethod::Spawn] {
            let process = Process::builder()
                .start_method(method)
                .spawn(strike, how.to_owned());
            let error = process.unwrap().join().unwrap_err();
            says(&error, &[ended, "it was here", place]);
        }
    }
    let Err(PoolError::Died(report)) = pool.apply(strike, "SIGKILL".to_owned()) else {
        panic!("no report")
    };
    assert!(report.task.ends_with("strike"), "{report}");
    assert!(report.death.stack.is_empty(), "{report}");
}

fn eat(megabytes: usize) -> usize {
    let all: Vec<Vec<u8>> = (0..megabytes).map(|_| vec![1; 1 << 20]).collect();
    all.len()
}

#[test]
fn a_worker_that_died() {
    let _dog = dog();
    let pool = Pool::builder().workers(1).name("Kitchen").build().unwrap();
    let Err(PoolError::Died(report)) = pool.apply(die_loudly, "no salt".to_owned()) else {
        panic!("no report")
    };
    assert_ne!(report.death.pid, std::process::id());
    assert!(report.task.ends_with("die_loudly"));
    let pid = report.death.pid.to_string();
    says(
        &PoolError::Died(report),
        &[
            &pid,
            "Kitchen-0",
            "SIGABRT",
            "die_loudly",
            "bytes: \"",
            "no salt\"",
            "last words: no salt",
        ],
    );

    let process = Process::builder()
        .name("cook")
        .capture_stderr()
        .spawn(die_loudly, "salt".to_owned());
    let process = process.unwrap();
    let error = process.join().unwrap_err();
    let pid = process.pid().to_string();
    says(
        &error,
        &[&pid, "cook", "SIGABRT", "die_loudly", "last words: salt"],
    );

    let pool = Pool::builder()
        .workers(1)
        .memory_limit(64 << 20)
        .build()
        .unwrap();
    let Err(PoolError::Died(report)) = pool.apply(eat, 1000) else {
        panic!("no report")
    };
    assert_eq!(report.death.memory, MemoryVerdict::OwnLimit(64 << 20));
    says(
        &PoolError::Died(report),
        &["memory limit of 67108864 bytes"],
    );
}

fn no_database(_: u32) -> Result<(), String> {
    Err("no database".to_owned())
}

fn panics() {
    panic!("no kitchen")
}

#[test]
fn an_initializer_that_fails() {
    let _dog = dog();
    let pool = Pool::builder()
        .workers(2)
        .try_initializer(no_database, 1)
        .build()
        .unwrap();
    let error = pool.apply(double, 1).unwrap_err();
    assert!(
        matches!(
            error,
            PoolError::Broken(_) | PoolError::Submit(SubmitError::Broken(_))
        ),
        "{error}"
    );
    says(
        &error,
        &["the pool is broken", "initializer failed", "no database"],
    );
    let pool = Pool::builder()
        .workers(1)
        .initializer(panics, ())
        .build()
        .unwrap();
    let error = pool.apply(double, 1).unwrap_err();
    says(
        &error,
        &["the pool is broken", "initializer failed", "no kitchen"],
    );
}

fn nest(workers: usize) -> String {
    match Pool::new(workers) {
        Ok(_) => String::new(),
        Err(error @ BuildError::Budget { .. }) => error.to_string(),
        Err(error) => panic!("{error}"),
    }
}

#[test]
fn a_nested_pool_beyond_the_budget() {
    let _dog = dog();
    let pool = Pool::new(1).unwrap();
    let text = pool.apply(nest, 1000).unwrap();
    for part in [
        "1000 workers",
        "budget",
        "use fewer workers",
        "PHALANX_PROCESS_BUDGET",
    ] {
        assert!(text.contains(part), "{text}");
    }
    assert_eq!(pool.apply(nest, 2).unwrap(), "");
}

#[test]
fn another_program_and_unknown_functions() {
    let _dog = dog();
    let error = Process::builder()
        .executable("/no/such/program")
        .spawn(double, 1)
        .unwrap_err();
    assert!(matches!(error, StartError::Io(_)));
    says(&error, &["cannot start a process"]);
    let error = Process::builder()
        .executable("/bin/false")
        .spawn(double, 1)
        .unwrap()
        .join()
        .unwrap_err();
    says(&error, &["exited with code 1", "double"]);
    let mismatch = TaskError::BuildMismatch {
        name: "f".to_owned(),
        theirs: "01".to_owned(),
        ours: "02".to_owned(),
    };
    says(
        &mismatch,
        &[
            "another build",
            "run the same executable",
            "#[phalanx::task]",
        ],
    );
    says(
        &TaskError::Unregistered("f".to_owned()),
        &["no task `f`", "#[phalanx::task]", "link its crate"],
    );
    says(&StartError::NoEntry, &["#[phalanx::main]", "test_entry!"]);
    Process::spawn(nothing, ()).unwrap().join().unwrap();
    let total = Shared::new(1_u32).unwrap();
    assert_eq!(total.get(), 1);
}

#[phalanx::task]
fn known_by_name(x: u64) -> u64 {
    x + 1
}

#[phalanx::task]
fn gone_in_the_other(x: u64) -> u64 {
    x + 2
}

fn replace(bytes: &mut [u8], what: &[u8], with: &[u8]) -> usize {
    assert_eq!(what.len(), with.len());
    let places: Vec<usize> = bytes
        .windows(what.len())
        .enumerate()
        .filter_map(|(at, window)| (window == what).then_some(at))
        .collect();
    for at in &places {
        bytes[*at..*at + with.len()].copy_from_slice(with);
    }
    places.len()
}

#[test]
fn a_binary_that_does_not_match() {
    use std::os::unix::fs::PermissionsExt;

    struct Removed(std::path::PathBuf);
    impl Drop for Removed {
        fn drop(&mut self) {
            let _ = std::fs::remove_file(&self.0);
        }
    }

    let _dog = dog();
    // This program with another build id, and without one of its tasks: what another version of it would be.
    let mut bytes = std::fs::read("/proc/self/exe").unwrap();
    let id = *phalanx_sys::image::image().build_id();
    if replace(&mut bytes, &id, &[7; 20]) == 0 {
        println!(
            "skipped: this linker writes no build id, so no other build can be made of this one"
        );
        return;
    }
    assert!(replace(&mut bytes, b"gone_in_the_other", b"here_in_the_other") > 0);
    let other = Removed(std::env::temp_dir().join(format!("phalanx-other-{}", std::process::id())));
    std::fs::write(&other.0, bytes).unwrap();
    std::fs::set_permissions(&other.0, PermissionsExt::from_mode(0o755)).unwrap();

    let there = || Process::builder().executable(&other.0);
    let error = there().spawn(double, 1).unwrap().join().unwrap_err();
    assert!(
        matches!(error, ProcessError::Task(TaskError::BuildMismatch { .. })),
        "{error}"
    );
    says(
        &error,
        &[
            "double",
            "another build",
            "run the same executable",
            "#[phalanx::task]",
        ],
    );
    assert_eq!(there().spawn(known_by_name, 1).unwrap().join().unwrap(), 2);
    let error = there()
        .spawn(gone_in_the_other, 1)
        .unwrap()
        .join()
        .unwrap_err();
    assert!(
        matches!(error, ProcessError::Task(TaskError::Unregistered(_))),
        "{error}"
    );
    says(
        &error,
        &["no task", "gone_in_the_other", "#[phalanx::task]"],
    );
    assert_eq!(
        Process::spawn(gone_in_the_other, 1)
            .unwrap()
            .join()
            .unwrap(),
        3
    );
}
