//! What these tests share.
#![allow(dead_code, reason = "each test program uses a part of it")]

use std::fs;
use std::process;
use std::sync::mpsc::{self, Sender};
use std::thread;
use std::time::Duration;

/// Ends the test program with a message unless it is dropped in time: a hang is a failure.
pub(crate) struct Watchdog(Option<Sender<()>>);

impl Watchdog {
    /// Gives the test a minute.
    pub(crate) fn new() -> Self {
        let (alive, dropped) = mpsc::channel();
        let name = thread::current().name().unwrap_or("test").to_owned();
        thread::spawn(move || {
            if let Err(mpsc::RecvTimeoutError::Timeout) =
                dropped.recv_timeout(Duration::from_secs(60))
            {
                eprintln!("watchdog: {name} hangs");
                process::exit(101);
            }
        });
        Self(Some(alive))
    }
}

impl Drop for Watchdog {
    fn drop(&mut self) {
        self.0.take();
    }
}

/// Returns the state letter of a process and its parent; `None` if there is no such process.
pub(crate) fn state(pid: u32) -> Option<(char, u32)> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name before may hold anything, also parentheses.
    let mut fields = stat[stat.rfind(')')? + 1..].split_whitespace();
    let state = fields.next()?.chars().next()?;
    Some((state, fields.next()?.parse().ok()?))
}

/// Returns `true` if the process is there and not only waiting to be taken away.
pub(crate) fn runs(pid: u32) -> bool {
    state(pid).is_some_and(|(state, _)| !matches!(state, 'Z' | 'X'))
}

/// Blocks until the process no longer runs; the watchdog bounds it.
pub(crate) fn wait_gone(pid: u32) {
    while runs(pid) {
        thread::sleep(Duration::from_millis(5));
    }
}

/// Returns this process's children, zombies included.
pub(crate) fn children() -> Vec<u32> {
    let pids = fs::read_dir("/proc").unwrap().flatten();
    let pids = pids.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    pids.filter(|pid| state(*pid).is_some_and(|(_, parent)| parent == process::id()))
        .collect()
}

/// Returns the numbers in a text, one per line: what `echo $!` gave.
pub(crate) fn pids(text: &[u8]) -> Vec<u32> {
    let text = String::from_utf8_lossy(text);
    text.split_whitespace()
        .map(|pid| pid.parse().unwrap())
        .collect()
}
