//! What the system says of other processes, for reports and for the detective.

use std::fs;
use std::io;

fn numbers(folder: &str) -> io::Result<Vec<u32>> {
    let mut numbers: Vec<u32> = fs::read_dir(folder)?
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .collect();
    numbers.sort_unstable();
    Ok(numbers)
}

/// Returns the ids of a process's threads, the main thread's (which is the process's) among them.
///
/// # Errors
///
/// When there is no such process, or it is somebody else's.
pub fn threads(pid: u32) -> io::Result<Vec<u32>> {
    numbers(&format!("/proc/{pid}/task"))
}

/// Returns the ids of a process's children that have not been collected.
///
/// # Errors
///
/// When there is no such process, or the system does not say.
pub fn children(pid: u32) -> io::Result<Vec<u32>> {
    let mut children = Vec::new();
    for thread in threads(pid)? {
        let text = fs::read_to_string(format!("/proc/{pid}/task/{thread}/children"))?;
        children.extend(
            text.split_whitespace()
                .filter_map(|id| id.parse::<u32>().ok()),
        );
    }
    Ok(children)
}

/// Returns the signals for which a process has handlers: bit n − 1 for signal n.
///
/// # Errors
///
/// When there is no such process, or the system does not say.
pub fn caught_signals(pid: u32) -> io::Result<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    status
        .lines()
        .find_map(|line| u64::from_str_radix(line.strip_prefix("SigCgt:")?.trim(), 16).ok())
        .ok_or_else(|| io::Error::other("the system does not say which signals are caught"))
}

/// Returns `true` if a process has mapped an anonymous memory file of this name.
///
/// # Errors
///
/// When there is no such process, or it is somebody else's.
pub fn maps_memory(pid: u32, name: &str) -> io::Result<bool> {
    let maps = fs::read_to_string(format!("/proc/{pid}/maps"))?;
    let wanted = format!("/memfd:{name} (deleted)");
    Ok(maps.lines().any(|line| line.ends_with(&wanted)))
}

/// Opens the anonymous memory file of this name that another process has open.
///
/// # Errors
///
/// When there is no such process, it is somebody else's, or it has no such file.
pub fn open_memory(pid: u32, name: &str) -> io::Result<std::os::fd::OwnedFd> {
    let wanted = format!("/memfd:{name} (deleted)");
    for fd in numbers(&format!("/proc/{pid}/fd"))? {
        let path = format!("/proc/{pid}/fd/{fd}");
        if fs::read_link(&path).is_ok_and(|target| target.as_os_str() == wanted.as_str()) {
            let file = fs::OpenOptions::new().read(true).write(true).open(path)?;
            return Ok(file.into());
        }
    }
    Err(io::Error::new(
        io::ErrorKind::NotFound,
        format!("process {pid} has no memory file called {name}"),
    ))
}

/// Returns the name that the kernel knows a thread by, and its state's letter (`S` sleeps, `R` runs).
///
/// # Errors
///
/// When there is no such thread.
pub fn thread_state(pid: u32, tid: u32) -> io::Result<(String, char)> {
    let stat = fs::read_to_string(format!("/proc/{pid}/task/{tid}/stat"))?;
    // The name stands in parentheses and may hold some itself.
    let parsed = stat.find('(').zip(stat.rfind(')')).and_then(|(from, to)| {
        let state = stat.get(to + 1..)?.trim_start().chars().next()?;
        Some((stat.get(from + 1..to)?.to_owned(), state))
    });
    parsed.ok_or_else(|| io::Error::other("the system's description of a thread cannot be read"))
}

/// Returns a process's command line, its parts separated by blanks; empty if it is gone.
#[must_use]
pub fn command_line(pid: u32) -> String {
    let bytes = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes);
    text.trim_end_matches('\0').replace('\0', " ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_is_described() {
        if cfg!(miri) {
            return;
        }
        let (pid, tid) = (super::super::ids::pid(), super::super::ids::tid());
        assert!(threads(pid).unwrap().contains(&tid));
        assert!(!command_line(pid).is_empty());
        let (name, state) = thread_state(pid, tid).unwrap();
        assert!(!name.is_empty() && state == 'R', "{name} {state}");
        // The harness's own: it hears of an overflown stack.
        let segv = 1 << (11 - 1);
        assert_eq!(caught_signals(pid).unwrap() & segv, segv);
        assert!(threads(u32::MAX).is_err());
    }

    #[test]
    fn a_memory_file_is_found_by_its_name() {
        if cfg!(miri) {
            return;
        }
        let pid = super::super::ids::pid();
        assert!(!maps_memory(pid, "phalanx-others").unwrap());
        assert!(open_memory(pid, "phalanx-others").is_err());
        let file = super::super::map::SharedFile::create("phalanx-others", 4096).unwrap();
        let mapping = super::super::map::Mapping::new(&file, 4096).unwrap();
        assert!(maps_memory(pid, "phalanx-others").unwrap());
        assert!(open_memory(pid, "phalanx-others").is_ok());
        drop(mapping);
    }

    #[test]
    fn a_child_is_listed() {
        if cfg!(miri) {
            return;
        }
        let mut child = std::process::Command::new("sleep")
            .arg("100")
            .spawn()
            .unwrap();
        let listed = children(super::super::ids::pid()).unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(listed.contains(&child.id()));
    }
}
