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

/// Returns what a sleeping thread waits for, if it is a call about a descriptor: `"read of descriptor 5 (pipe:[123])"`. `None` if it
/// is another call, if it runs, or if the system does not say.
#[must_use]
pub fn call_on_descriptor(pid: u32, tid: u32) -> Option<String> {
    let text = fs::read_to_string(format!("/proc/{pid}/task/{tid}/syscall")).ok()?;
    let mut parts = text.split_whitespace();
    let number: i64 = parts.next()?.parse().ok()?;
    let call = match number {
        _ if number == libc::SYS_read || number == libc::SYS_readv => "read",
        _ if number == libc::SYS_write || number == libc::SYS_writev => "write",
        _ if number == libc::SYS_recvfrom || number == libc::SYS_recvmsg => "receive",
        _ if number == libc::SYS_sendto || number == libc::SYS_sendmsg => "send",
        _ if number == libc::SYS_accept || number == libc::SYS_accept4 => "accept",
        _ if number == libc::SYS_connect => "connect",
        _ => return None,
    };
    let fd = u32::from_str_radix(parts.next()?.strip_prefix("0x")?, 16).ok()?;
    let target = fs::read_link(format!("/proc/{pid}/fd/{fd}")).ok()?;
    Some(format!("{call} of descriptor {fd} ({})", target.display()))
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
    fn a_thread_that_reads_a_pipe_is_seen_at_it() {
        if cfg!(miri) {
            return;
        }
        let (reader, writer) = io::pipe().unwrap();
        let (tell, told) = std::sync::mpsc::channel();
        let thread = std::thread::spawn(move || {
            tell.send(super::super::ids::tid()).unwrap();
            io::Read::read(&mut &reader, &mut [0]).unwrap()
        });
        let tid = told.recv().unwrap();
        // Where other processes may not be looked into, neither may this one's threads.
        let me = super::super::ids::pid();
        if fs::read_to_string(format!("/proc/{me}/task/{tid}/syscall")).is_ok() {
            let seen = loop {
                if let Some(seen) = call_on_descriptor(me, tid) {
                    break seen;
                }
                std::thread::yield_now();
            };
            assert!(seen.starts_with("read of descriptor "), "{seen}");
            assert!(seen.contains("(pipe:["), "{seen}");
        }
        drop(writer);
        assert_eq!(thread.join().unwrap(), 0);
        assert_eq!(call_on_descriptor(me, u32::MAX), None);
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
        // A thread of another test may end between two looks.
        let listed = loop {
            if let Ok(listed) = children(super::super::ids::pid()) {
                break listed;
            }
        };
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(listed.contains(&child.id()));
    }
}
