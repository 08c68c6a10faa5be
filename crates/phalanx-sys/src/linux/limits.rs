//! How much memory there is, and how much this process may use.

use std::fs;
use std::io;
use std::path::PathBuf;

use rustix::process::{Resource, Rlimit};

/// Memory of the machine and of this process's control group, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Memory {
    /// Of the machine.
    pub total: u64,
    /// What can be had without swapping: of the machine, or of the control group if that is less.
    pub available: u64,
    /// The control group's limit, if it has one.
    pub limit: Option<u64>,
}

/// Returns how much memory is there. Reads a few small files: tens of microseconds.
#[must_use]
pub fn available_memory() -> Memory {
    let info = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let field = |key: &str| {
        let line = info.lines().find_map(|line| line.strip_prefix(key))?;
        line.split_whitespace()
            .next()?
            .parse::<u64>()
            .ok()
            .map(|kib| kib * 1024)
    };
    // A machine that does not say is taken to have enough: the reservation itself is the judge then.
    let total = field("MemTotal:").unwrap_or(u64::MAX);
    let mut memory = Memory {
        total,
        available: field("MemAvailable:").unwrap_or(u64::MAX),
        limit: None,
    };
    for group in control_groups() {
        let number = |file: &str| {
            fs::read_to_string(group.join(file))
                .ok()?
                .trim()
                .parse::<u64>()
                .ok()
        };
        let limit = number("memory.max").or_else(|| number("memory.limit_in_bytes"));
        let used = number("memory.current").or_else(|| number("memory.usage_in_bytes"));
        if let (Some(limit), Some(used)) = (limit, used)
            && limit < total
        {
            memory.limit = Some(memory.limit.map_or(limit, |least| least.min(limit)));
            // Clean file pages of the group are given up before anybody is refused.
            let cached = cached_file_bytes(&group);
            memory.available = memory
                .available
                .min(limit.saturating_sub(used).saturating_add(cached));
        }
    }
    memory
}

fn cached_file_bytes(group: &std::path::Path) -> u64 {
    let stat = fs::read_to_string(group.join("memory.stat")).unwrap_or_default();
    stat.lines()
        .filter_map(|line| {
            line.strip_prefix("inactive_file ")?
                .trim()
                .parse::<u64>()
                .ok()
        })
        .sum()
}

/// The directories of this process's memory control group and its ancestors.
fn control_groups() -> Vec<PathBuf> {
    let mine = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let mut groups = Vec::new();
    for line in mine.lines() {
        let mut parts = line.splitn(3, ':');
        let (Some(_), Some(controllers), Some(path)) = (parts.next(), parts.next(), parts.next())
        else {
            continue;
        };
        let root = match controllers {
            "" => "/sys/fs/cgroup",
            list if list.split(',').any(|name| name == "memory") => "/sys/fs/cgroup/memory",
            _ => continue,
        };
        let mut group = PathBuf::from(format!("{root}{}", path.trim_end_matches('/')));
        while group.starts_with(root) {
            groups.push(group.clone());
            if !group.pop() {
                break;
            }
        }
    }
    groups
}

/// Returns how often the out-of-memory killer ended a process of this control group (of version 2: or one below it), or of
/// the machine if the group does not count; `None` if nobody does.
#[must_use]
pub fn oom_kills() -> Option<u64> {
    let groups = control_groups();
    let counted = groups.iter().find_map(|group| {
        let events = fs::read_to_string(group.join("memory.events"))
            .or_else(|_| fs::read_to_string(group.join("memory.oom_control")))
            .ok()?;
        oom_kills_in(&events)
    });
    counted.or_else(|| oom_kills_in(&fs::read_to_string("/proc/vmstat").ok()?))
}

/// Finds the count in any of the files that have it.
fn oom_kills_in(text: &str) -> Option<u64> {
    text.lines()
        .find_map(|line| line.strip_prefix("oom_kill ")?.trim().parse().ok())
}

/// Limits the private memory that this process may have to what it has now plus `bytes`: an allocation beyond fails
/// (in Rust: the process aborts). Inherited by children.
///
/// # Errors
///
/// When the hard limit is lower.
pub fn limit_private_memory(bytes: u64) -> io::Result<()> {
    let used = status_field(super::ids::pid(), "VmData:")?;
    let limit = Some(used.saturating_add(bytes));
    let maximum = rustix::process::getrlimit(Resource::Data).maximum;
    Ok(rustix::process::setrlimit(
        Resource::Data,
        Rlimit {
            current: limit,
            maximum,
        },
    )?)
}

/// Limits the size of files that this process may write (`RLIMIT_FSIZE`); shared memory is a file. Inherited by children.
///
/// # Errors
///
/// When the hard limit is lower.
pub fn limit_file_size(bytes: u64) -> io::Result<()> {
    limit(Resource::Fsize, bytes)
}

/// Limits the address space of this process (`RLIMIT_AS`), mapped or reserved. Inherited by children.
///
/// # Errors
///
/// When the hard limit is lower.
pub fn limit_address_space(bytes: u64) -> io::Result<()> {
    limit(Resource::As, bytes)
}

fn limit(resource: Resource, bytes: u64) -> io::Result<()> {
    let maximum = rustix::process::getrlimit(resource).maximum;
    Ok(rustix::process::setrlimit(
        resource,
        Rlimit {
            current: Some(bytes),
            maximum,
        },
    )?)
}

/// Limits how many processes of its user there may be when the process `pid` forks, which has this process's limits so far;
/// `None` for as many as this process may have.
///
/// # Errors
///
/// When there is no such process, or it is somebody else's.
pub fn limit_processes_of(pid: u32, most: Option<u64>) -> io::Result<()> {
    let pid = rustix::process::Pid::from_raw(pid.cast_signed());
    let own = rustix::process::getrlimit(Resource::Nproc);
    let limit = Rlimit {
        current: most.or(own.current),
        maximum: own.maximum,
    };
    rustix::process::prlimit(pid, Resource::Nproc, limit)?;
    Ok(())
}

/// Returns the resident memory of a process in bytes.
///
/// # Errors
///
/// When the process does not exist.
pub fn resident(pid: u32) -> io::Result<u64> {
    status_field(pid, "VmRSS:")
}

fn status_field(pid: u32, key: &str) -> io::Result<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix(key));
    // A zombie has no memory and no line.
    let kib = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
    Ok(kib.unwrap_or(0) * 1024)
}
