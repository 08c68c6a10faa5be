//! A command whose parent is killed.

mod common;

use std::io::{BufRead, BufReader};
use std::thread;
use std::time::Duration;

use common::{Watchdog, runs, wait_gone};
use phalanx_subprocess::{Command, Redirect, run};

const ROLE: &str = "PHALANX_TEST_PARENT";

/// Plays the parent when the tests below start this program again; else does nothing.
#[test]
fn parent() {
    let Ok(role) = std::env::var(ROLE) else {
        return;
    };
    let command = Command::shell("sleep 1000 & echo $$ $!; wait");
    let _process = match role.as_str() {
        "group" => command.own_group(true),
        "alone" => command.die_with_parent(true),
        "let go" => command.own_group(true).die_with_parent(false),
        other => panic!("no such role: {other}"),
    }
    .spawn()
    .unwrap();
    thread::sleep(Duration::from_secs(50));
}

/// Starts the parent, kills it once its command runs, and returns the command's id and its child's.
fn orphans(role: &str) -> (u32, u32) {
    let this = std::env::current_exe().unwrap();
    let mut parent = Command::new(this)
        .args(["--exact", "parent", "--nocapture"])
        .env(ROLE, role)
        .stdout(Redirect::Pipe)
        .spawn()
        .unwrap();
    let lines = BufReader::new(parent.stdout.take().unwrap()).lines();
    // The test harness writes as well.
    let pids = lines.map_while(Result::ok).find_map(|line| {
        let (command, child) = line.split_once(' ')?;
        Some((command.parse().ok()?, child.parse().ok()?))
    });
    let pids = pids.expect("the parent says what it started");
    // The parent ties the command a moment after its start; what it wrote may be sooner.
    thread::sleep(Duration::from_millis(200));
    assert!(runs(pids.0) && runs(pids.1));
    parent.kill().unwrap();
    parent.wait().unwrap();
    pids
}

fn end(pid: u32) {
    run(["kill", "-KILL", &pid.to_string()]).unwrap();
    wait_gone(pid);
}

#[test]
fn the_whole_group_dies_with_the_parent() {
    let _watchdog = Watchdog::new();
    let (command, child) = orphans("group");
    wait_gone(command);
    wait_gone(child);
}

#[test]
fn a_command_in_its_parents_group_dies_alone() {
    let _watchdog = Watchdog::new();
    let (command, child) = orphans("alone");
    wait_gone(command);
    assert!(runs(child));
    end(child);
}

#[test]
fn a_command_let_go_outlives_its_parent() {
    let _watchdog = Watchdog::new();
    let (command, child) = orphans("let go");
    thread::sleep(Duration::from_millis(100));
    assert!(runs(command) && runs(child));
    end(child);
    end(command);
}
