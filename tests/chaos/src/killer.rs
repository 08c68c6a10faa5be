//! Sends signals to random members of the tree. What it decides depends on the seed alone; whom it meets, on the moment.

use std::collections::BTreeMap;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use phalanx_testkit::Bytes;
use rustix::process::{Pid, Signal, kill_process};

use crate::world::stat_of;

const FAULTS: [(Signal, &str, u64); 5] = [
    (Signal::KILL, "SIGKILL", 45),
    (Signal::STOP, "SIGSTOP", 20),
    (Signal::SEGV, "SIGSEGV", 10),
    (Signal::TERM, "SIGTERM", 10),
    (Signal::INT, "SIGINT", 15),
];

/// Returns the processes of this session but this one, zombies not counted.
pub(crate) fn family() -> Vec<u32> {
    let me = std::process::id();
    let Ok(all) = std::fs::read_dir("/proc") else {
        return Vec::new();
    };
    let pids = all
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let mut pids: Vec<u32> = pids
        .filter(|pid| {
            *pid != me
                && stat_of(*pid)
                    .is_some_and(|stat| stat.session == me && !matches!(stat.state, 'Z' | 'X'))
        })
        .collect();
    pids.sort_unstable();
    pids
}

fn send(pid: u32, signal: Signal) -> bool {
    Pid::from_raw(pid.cast_signed()).is_some_and(|pid| kill_process(pid, signal).is_ok())
}

/// Between 0 and 1.
fn share(dice: &mut Bytes) -> f64 {
    (dice.number() % 1_000_000) as f64 / 1e6
}

/// Runs until `over` is closed; returns how many of which signal were sent.
pub(crate) fn run(seed: u64, pause: f64, over: &Receiver<()>) -> BTreeMap<String, u64> {
    let mut dice = Bytes::new(seed.wrapping_add(1));
    let mut sent = BTreeMap::new();
    let mut stopped: Vec<(Instant, u32)> = Vec::new();
    let wake = |stopped: &mut Vec<(Instant, u32)>, now: Option<Instant>| {
        stopped.retain(|(due, pid)| {
            let wait = now.is_some_and(|now| *due > now);
            if !wait {
                send(*pid, Signal::CONT);
            }
            wait
        });
    };
    loop {
        let wait = Duration::from_secs_f64((0.2 + 1.6 * share(&mut dice)) * pause);
        let mut at = dice.number() % 100;
        let fault = FAULTS.iter().find(|(_, _, weight)| {
            let here = at < *weight;
            at = at.saturating_sub(*weight);
            here
        });
        let (whom, rest) = (share(&mut dice), 0.01 + 0.29 * share(&mut dice));
        if over.recv_timeout(wait) != Err(RecvTimeoutError::Timeout) {
            break;
        }
        wake(&mut stopped, Some(Instant::now()));
        let members = family();
        let victim = members.get((whom * members.len() as f64) as usize);
        if let (Some((signal, name, _)), Some(pid)) = (fault, victim)
            && send(*pid, *signal)
        {
            *sent.entry((*name).to_owned()).or_insert(0) += 1;
            if *signal == Signal::STOP {
                stopped.push((Instant::now() + Duration::from_secs_f64(rest), *pid));
            }
        }
    }
    wake(&mut stopped, None);
    sent
}
