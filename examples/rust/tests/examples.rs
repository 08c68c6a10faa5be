//! Runs every small example as a user would, and looks for what it promises to show.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// Runs an example and returns what it printed; one that takes minutes is killed and fails.
fn run(program: &str, args: &[&str]) -> String {
    let mut child = Command::new(program)
        .args(args)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the example was built");
    let deadline = Instant::now() + Duration::from_secs(120);
    while child.try_wait().expect("it is our child").is_none() {
        if Instant::now() > deadline {
            let _ = child.kill();
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    let output = child.wait_with_output().expect("its output is small");
    let (shown, said) = (
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
    );
    assert!(
        output.status.success(),
        "{}: {shown}\n{said}",
        output.status
    );
    shown.into_owned()
}

macro_rules! example {
    ($name:ident, [$($arg:literal),*], [$($promise:literal),+ $(,)?]) => {
        #[test]
        fn $name() {
            let shown = run(env!(concat!("CARGO_BIN_EXE_", stringify!($name))), &[$($arg),*]);
            for promise in [$($promise),+] {
                assert!(shown.contains(promise), "no {promise:?} in:\n{shown}");
            }
        }
    };
}

example!(
    deadlock,
    [],
    [
        "gives up: 2 parties, in a circle",
        "got news",
        "thread gives up",
        "the task gives up: 2 parties"
    ]
);
example!(
    deadlock_kinds,
    [],
    [
        "lock: gives up as one of 2",
        "\nevent: gives up",
        "event without an error: panics",
        "\ncondition: gives up",
        "condition without an error: panics",
        "\nsemaphore: gives up",
        "\nbarrier: gives up",
        "join of a thread: gives up",
        "task of a pool of threads: gives up",
        "lazy map in a pool of threads: gives up",
        "shared event: gives up",
        "shared condition: gives up",
        "shared semaphore: gives up",
        "shared barrier: gives up",
        "empty queue: gives up",
        "full queue: gives up",
        "join of a queue: gives up",
        "pipe: gives up",
        "wait for several, which has no error: panics",
        "result of a process: gives up as one of 2",
        "join of a process: gives up as one of 2",
        "task of a pool: gives up"
    ]
);
example!(
    dining_philosophers,
    [],
    ["Hypatia ate 20 times", "deadlocks were ended"]
);
example!(fork, [], ["at-fork hook", "parent: it exited with code 7"]);
example!(
    process,
    [],
    [
        "says 42",
        "divide by zero",
        "SIGABRT",
        "my last words",
        "still runs",
        "SIGTERM"
    ]
);
example!(
    start_methods,
    [],
    [
        "Zygote: 42",
        "Spawn: 42",
        "Fork: 4950",
        "a zygote with a closure: 42"
    ]
);
example!(
    pool,
    [],
    [
        "apply: 144",
        "[1024, 81]",
        "state: Some(81)",
        "callback: Ok(25)",
        "[1, 4, 9, 16, 25]",
        "332833500"
    ]
);
example!(
    failing_tasks,
    [],
    [
        "I do not like",
        "about to crash",
        "time-out of 100ms",
        "memory",
        "retried: 3",
        "was cancelled",
        "[0, 1, 2, 3, 4]"
    ]
);
example!(
    queue,
    [],
    ["\"a0\", \"a1\"", "HELLO", "SIGKILL", "their sum is 55"]
);
example!(
    locks,
    [],
    [
        "4000",
        "the process that held the lock died",
        "told once: true",
        "[0, 1, 2]",
        "never more than 2"
    ]
);
example!(
    shared_data,
    [],
    ["666666166", "counted to 1500", "reads \"hello\""]
);
example!(
    commands,
    [],
    ["exit code 3", "oh no", "apple", "a time-out"]
);
example!(
    coroutines,
    [],
    [
        "a process: 9",
        "16 25",
        "[0, 1, 4, 9]",
        "from the queue: three",
        "given up in time: true"
    ]
);
example!(
    http_server,
    ["--requests", "100"],
    ["95 requests answered, 5 workers crashed on purpose"]
);
example!(
    threads,
    [],
    [
        "I am MainThread, 1 thread",
        "the first is Thread-1",
        "hello you from greeter",
        "\"waiting\"",
        "still runs",
        "no luck",
        "[0, 3, 6, 9, 12]"
    ]
);
