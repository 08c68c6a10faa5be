//! What processes weigh: their proportional share of memory, as the kernel counts it.

use std::io;

use crate::Result;

/// Returns the proportional set size of a process in KiB: what is its own, and its share of what it shares.
///
/// # Errors
/// If the process is gone or not ours to look at.
pub fn pss_kib(pid: u32) -> io::Result<u64> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?;
    field(&text, "Pss:").ok_or_else(|| io::Error::other("smaps_rollup tells no Pss"))
}

/// Returns the proportional set sizes of several processes, added up.
///
/// # Errors
/// If one of them is gone.
pub fn pss_kib_of(pids: &[u32]) -> io::Result<u64> {
    pids.iter().map(|pid| pss_kib(*pid)).sum()
}

/// Returns how many descriptors this process holds.
///
/// # Errors
/// The kernel's.
pub fn descriptors() -> io::Result<usize> {
    // The listing itself holds one.
    Ok(std::fs::read_dir("/proc/self/fd")?.count() - 1)
}

/// Returns the process ids of all living processes below this one.
///
/// # Errors
/// The kernel's.
pub fn descendants() -> Result<Vec<u32>> {
    let mut all = Vec::new();
    for entry in std::fs::read_dir("/proc")?.flatten() {
        let Some(pid) = entry
            .file_name()
            .to_str()
            .and_then(|name| name.parse().ok())
        else {
            continue;
        };
        if let Some(parent) = parent_of(pid) {
            all.push((pid, parent));
        }
    }
    let mut found = vec![std::process::id()];
    let mut next = 0;
    while next < found.len() {
        let parent = found[next];
        found.extend(
            all.iter()
                .filter(|(_, of)| *of == parent)
                .map(|(pid, _)| pid),
        );
        next += 1;
    }
    Ok(found.split_off(1))
}

fn parent_of(pid: u32) -> Option<u32> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name before it is in parentheses and may contain anything.
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    let state = fields.next()?;
    let parent = fields.next()?.parse().ok()?;
    (state != "Z").then_some(parent)
}

fn field(text: &str, name: &str) -> Option<u64> {
    text.lines()
        .find_map(|line| line.strip_prefix(name))?
        .split_whitespace()
        .next()?
        .parse()
        .ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_weighs_something() {
        assert!(pss_kib(std::process::id()).expect("our own is readable") > 0);
        assert!(descriptors().expect("our own are readable") >= 3);
    }

    #[test]
    fn a_child_is_found_below_us() {
        let child = crate::sys::Forked::start(&[], || {
            loop {
                std::thread::sleep(std::time::Duration::from_secs(1));
            }
        })
        .expect("fork");
        assert!(descendants().expect("proc").contains(&child.pid()));
    }
}
