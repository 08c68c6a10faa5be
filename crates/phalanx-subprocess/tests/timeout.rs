//! Time is up: who is killed, and what is told.

mod common;

use std::time::Duration;

use common::{Watchdog, pids, runs, wait_gone};
use phalanx_subprocess::{Command, Error, Redirect, TimeoutExpired, run};

const SOON: Duration = Duration::from_millis(300);

fn late(command: Command) -> TimeoutExpired {
    match command.timeout(SOON).run() {
        Err(Error::TimeoutExpired(late)) => late,
        other => panic!("{other:?}"),
    }
}

#[test]
fn children_of_the_command_are_killed_with_it() {
    let _watchdog = Watchdog::new();
    let late = late(
        Command::shell("sleep 1000 & echo $!; sleep 1000 & echo $!; echo why >&2; wait")
            .capture_output(),
    );
    let started = pids(&late.stdout);
    assert_eq!(started.len(), 2);
    for pid in started {
        wait_gone(pid);
    }
    assert!(!late.output_held_open);
    let said = late.to_string();
    assert!(
        said.contains("did not end within 300ms and was killed; its last words: why"),
        "{said}"
    );
    assert!(said.contains(&format!("(pid {})", late.pid)), "{said}");
}

#[test]
fn a_command_that_ignores_requests_to_end_is_killed() {
    let _watchdog = Watchdog::new();
    let late = late(Command::shell(
        "trap '' TERM INT HUP; while :; do sleep 0.01; done",
    ));
    assert!(!runs(late.pid));
}

#[test]
fn a_grandchild_outside_the_group_cannot_prolong_the_call() {
    let _watchdog = Watchdog::new();
    let late = late(Command::shell("setsid sleep 1000 & echo $!").capture_output());
    let escaped = pids(&late.stdout);
    assert!(late.output_held_open);
    assert!(
        late.to_string().contains("still held its output open"),
        "{late}"
    );
    // It left the group on purpose, and is not ours to kill; it is the test's, though.
    assert!(runs(escaped[0]));
    run(["kill", "-KILL", &escaped[0].to_string()]).unwrap();
    wait_gone(escaped[0]);
}

#[test]
fn a_command_that_never_stops_writing_is_stopped() {
    let _watchdog = Watchdog::new();
    let late = late(Command::shell("while :; do echo y; done").stdout(Redirect::Pipe));
    assert!(late.stdout.starts_with(b"y\ny\n"));
    wait_gone(late.pid);
}

#[test]
fn a_command_that_never_reads_its_input_is_stopped() {
    let _watchdog = Watchdog::new();
    let late = late(Command::new("sleep").arg("1000").input(vec![0; 1 << 20]));
    wait_gone(late.pid);
}

#[test]
fn without_a_group_only_the_command_is_killed() {
    let _watchdog = Watchdog::new();
    let late = late(
        Command::shell("sleep 1000 >/dev/null 2>&1 & echo $!; wait")
            .own_group(false)
            .capture_output(),
    );
    wait_gone(late.pid);
    let left = pids(&late.stdout)[0];
    assert!(runs(left));
    run(["kill", "-KILL", &left.to_string()]).unwrap();
    wait_gone(left);
}

#[test]
fn zero_time_is_none() {
    let _watchdog = Watchdog::new();
    let command = Command::new("sleep").arg("1000").timeout(Duration::ZERO);
    let Err(Error::TimeoutExpired(late)) = command.run() else {
        panic!("it ran")
    };
    wait_gone(late.pid);
}

#[test]
fn what_runs_on_in_the_background_is_let_be_after_success() {
    let _watchdog = Watchdog::new();
    let line = "sleep 1000 >/dev/null 2>&1 & echo $!";
    let done = Command::shell(line)
        .capture_output()
        .timeout(Duration::from_secs(50))
        .run()
        .unwrap();
    let left = pids(&done.stdout)[0];
    assert!(runs(left));
    run(["kill", "-KILL", &left.to_string()]).unwrap();
    wait_gone(left);
}
