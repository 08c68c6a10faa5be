//! The system refuses a fork: whoever asked is told, and nobody ends of it.

use std::io::ErrorKind;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::time::Duration;

use phalanx_process::{Process, StartError};
use phalanx_sys::{limits, signal};
use phalanx_testkit::watchdog;

phalanx_process::test_entry!();

const CASE: &str = "PHALANX_TEST_CASE";
const NOBODY: u32 = 65_534;

fn parent() -> u32 {
    phalanx_process::parent_pid().unwrap()
}

/// Returns the children of this process of this name that are no zombies.
fn named(name: &str) -> Vec<u32> {
    let me = std::process::id().to_string();
    let all = std::fs::read_dir("/proc").unwrap().flatten();
    let pids = all.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    pids.filter(|pid| {
        let read = |what| std::fs::read_to_string(format!("/proc/{pid}/{what}")).unwrap_or_default();
        let stat = read("stat");
        let mut behind = stat.rsplit_once(')').map_or("", |(_, rest)| rest).split_whitespace();
        let state = behind.next();
        let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
        state != Some("Z")
            && behind.next() == Some(&me)
            // Under the test harness the zygote is not the first of its threads.
            && tasks.filter_map(|task| std::fs::read_to_string(task.path().join("comm")).ok()).any(|of| of.trim_end() == name)
    })
    .collect()
}

fn the(name: &str) -> u32 {
    loop {
        if let [one] = named(name)[..] {
            return one;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// The program of the test below, as a user whom limits bind.
#[test]
fn as_somebody() {
    if std::env::var_os(CASE).is_none() {
        // Not started by the test below: nothing to do.
        return;
    }
    let _dog = watchdog(Duration::from_secs(100));
    let me = std::process::id();
    let start = || Process::spawn(parent, ());
    assert_eq!(start().unwrap().join().unwrap(), me);
    let (zygote, spare) = (the("phalanx-zygote"), the("phalanx-spare"));
    limits::limit_processes_of(zygote, Some(1)).unwrap();
    phalanx_sys::process::signal(spare, signal::SIGKILL).unwrap();
    while !named("phalanx-spare").is_empty() {
        std::thread::sleep(Duration::from_millis(1));
    }
    for _ in 0..3 {
        match start() {
            Err(StartError::Io(error)) if error.kind() == ErrorKind::WouldBlock => {}
            other => panic!("{other:?}"),
        }
    }
    limits::limit_processes_of(zygote, None).unwrap();
    assert_eq!(start().unwrap().join().unwrap(), me);
    the("phalanx-spare");
    assert_eq!(the("phalanx-zygote"), zygote, "it ended");
    println!("said: passed");
}

#[test]
fn a_zygote_that_may_not_fork_says_so_and_lives_on() {
    let _dog = watchdog(Duration::from_secs(120));
    let exe = std::env::current_exe().unwrap();
    // The limit does not bind root, and another user may not reach this program where it lies.
    let copy = std::env::temp_dir().join(format!("phalanx-refused-{}", std::process::id()));
    let is_root = std::fs::metadata("/proc/self").unwrap().uid() == 0;
    let mut command = if is_root {
        std::fs::copy(&exe, &copy).unwrap();
        std::fs::set_permissions(&copy, std::fs::Permissions::from_mode(0o755)).unwrap();
        let mut command = Command::new(&copy);
        command.uid(NOBODY).gid(NOBODY).current_dir("/");
        command
    } else {
        Command::new(&exe)
    };
    let done = command
        .args(["as_somebody", "--exact", "--nocapture"])
        .env(CASE, "limits")
        .output();
    if is_root {
        std::fs::remove_file(&copy).unwrap();
    }
    let done = done.unwrap();
    let said = String::from_utf8_lossy(&done.stdout);
    assert!(
        done.status.success() && said.contains("said: passed"),
        "{said}{}",
        String::from_utf8_lossy(&done.stderr)
    );
}
