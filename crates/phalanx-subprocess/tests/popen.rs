//! A command that runs beside us.

mod common;

use std::io::{BufRead, BufReader, Read, Write};
use std::thread;
use std::time::Duration;

use common::{Watchdog, runs, state, wait_gone};
use phalanx_subprocess::{Command, Popen, Redirect, Signal, run};

fn sleeper() -> Command {
    Command::new("sleep").arg("1000")
}

/// Returns the first line a command writes.
fn line(process: &mut Popen) -> String {
    let mut line = String::new();
    BufReader::new(process.stdout.as_mut().unwrap())
        .read_line(&mut line)
        .unwrap();
    line.trim().to_owned()
}

#[test]
fn it_is_watched_without_blocking() {
    let _watchdog = Watchdog::new();
    let mut process = Command::new("cat").stdin(Redirect::Pipe).spawn().unwrap();
    assert!(process.poll().unwrap().is_none());
    assert!(
        process
            .wait_timeout(Duration::from_millis(30))
            .unwrap()
            .is_none()
    );
    drop(process.stdin.take());
    assert!(
        process
            .wait_timeout(Duration::from_secs(50))
            .unwrap()
            .unwrap()
            .success()
    );
    // And again, long after: the answer stays.
    assert!(process.poll().unwrap().unwrap().success());
    assert!(process.wait().unwrap().success());
    // One that has ended cannot be hit, whoever has its number now.
    process.kill().unwrap();
}

#[test]
fn signals_reach_it() {
    let _watchdog = Watchdog::new();
    let mut process = sleeper().spawn().unwrap();
    process.terminate().unwrap();
    assert_eq!(
        std::os::unix::process::ExitStatusExt::signal(&process.wait().unwrap()),
        Some(15)
    );

    let trap = "trap 'exit 9' USR1; echo ready; while :; do sleep 0.01; done";
    let mut process = Command::shell(trap).stdout(Redirect::Pipe).spawn().unwrap();
    assert_eq!(line(&mut process), "ready");
    process.send_signal(Signal::USR1).unwrap();
    assert_eq!(process.wait().unwrap().code(), Some(9));
}

#[test]
fn signals_reach_the_group() {
    let _watchdog = Watchdog::new();
    let command = Command::shell("sleep 1000 & echo $!; wait")
        .stdout(Redirect::Pipe)
        .own_group(true);
    let mut process = command.spawn().unwrap();
    let grandchild = line(&mut process).parse().unwrap();
    process.kill().unwrap();
    process.wait().unwrap();
    wait_gone(grandchild);
}

#[test]
fn a_dropped_one_is_killed_and_taken_away() {
    let _watchdog = Watchdog::new();
    let process = sleeper().spawn().unwrap();
    let pid = process.pid();
    drop(process);
    assert_eq!(state(pid), None);
}

#[test]
fn a_detached_one_runs_on_and_leaves_no_zombie() {
    let _watchdog = Watchdog::new();
    let pid = sleeper().own_group(true).spawn().unwrap().detach();
    thread::sleep(Duration::from_millis(50));
    assert!(runs(pid));
    run(["kill", "-KILL", &pid.to_string()]).unwrap();
    while state(pid).is_some() {
        thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn it_is_spoken_with_by_hand_or_all_at_once() {
    let _watchdog = Watchdog::new();
    let mut process = Command::new("cat")
        .stdin(Redirect::Pipe)
        .stdout(Redirect::Pipe)
        .spawn()
        .unwrap();
    writeln!(process.stdin.as_mut().unwrap(), "hello").unwrap();
    assert_eq!(line(&mut process), "hello");
    drop(process.stdin.take());
    let mut rest = String::new();
    process
        .stdout
        .take()
        .unwrap()
        .read_to_string(&mut rest)
        .unwrap();
    assert!(process.wait().unwrap().success() && rest.is_empty());

    let process = Command::new("cat")
        .input("all at once")
        .stdout(Redirect::Pipe)
        .spawn()
        .unwrap();
    assert_eq!(process.args(), ["cat"]);
    let done = process.communicate(Some(Duration::from_secs(50))).unwrap();
    assert_eq!(done.stdout, b"all at once");
}

#[test]
fn what_was_written_before_it_ended_is_not_lost() {
    let _watchdog = Watchdog::new();
    let mut process = Command::shell("echo early; exit 2")
        .stdout(Redirect::Pipe)
        .spawn()
        .unwrap();
    assert_eq!(process.wait().unwrap().code(), Some(2));
    let done = process.communicate(None).unwrap();
    assert_eq!(
        (done.stdout_text(), done.returncode()),
        ("early\n".into(), 2)
    );
}
