//! How a process of this program becomes a worker: what its parent says in the environment, and what it does first.
//!
//! A parent that starts this program again puts one line into the environment: the format's version, the role, the numbers
//! of the inherited descriptors (arena, tie), the process slot and the start record. [`enter`] takes it out again, so that
//! programs the worker starts do not see it, joins the arena, ties its life to the parent's and runs the role. It is called
//! before anything of the user's runs, by `#[phalanx::main]`.
#![expect(
    unsafe_code,
    reason = "descriptors inherited by number; the environment before there are threads"
)]

use phalanx_prim::global::{AtomicBool, Ordering};
use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::time::Duration;

use phalanx_channel::codec::{self, CodecError};
use phalanx_channel::{Loan, Message};
use phalanx_shm::{Arena, BlockRef, Ticket};
use phalanx_sys::{ids, limits, process, tie};

use crate::registry::AtEnter;
use crate::start::{PANIC, REFUSED, StartHandle, VALUE};
use crate::task::{Payload, TaskError, TaskRef};
use crate::{crash, reaper, start, zygote};
use phalanx_thread::panics;

/// The variable that makes a process of this program a worker.
pub(crate) const VARIABLE: &str = "PHALANX_CHILD";
const FORMAT: &str = "1";
/// The exit code of a worker that could not join its parent's tree; the reason is on its stderr.
pub const REFUSED_CODE: i32 = 86;
/// The exit code of a worker whose function panicked, as a panicking `main` has it.
pub const PANICKED_CODE: i32 = 101;

static ENTERED: AtomicBool = AtomicBool::new(false);

/// Returns `true` if this program can start itself as a worker.
#[must_use]
pub fn has_entered() -> bool {
    ENTERED.load(Ordering::Relaxed) || crate::registry::has_test_entry()
}

/// Returns `true` in a process that was started as a worker and went on as something else: it never called [`enter`]. If it
/// started processes in turn, they would do the same without an end.
pub(crate) fn was_meant_to_enter() -> bool {
    std::env::var_os(VARIABLE).is_some()
}

/// What a new process is to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    /// Run one start record and end.
    Start,
    /// Fork others on demand.
    Zygote,
}

/// What a parent tells a child.
pub(crate) struct Orders {
    pub(crate) role: Role,
    pub(crate) arena: RawFd,
    pub(crate) tie: RawFd,
    /// The request socket of a zygote, -1 for others.
    pub(crate) socket: RawFd,
    /// Its place in the table of processes.
    pub(crate) ticket: u32,
    pub(crate) start: u64,
    pub(crate) identity: u64,
}

impl Orders {
    pub(crate) fn to_line(&self) -> String {
        let role = match self.role {
            Role::Start => "start",
            Role::Zygote => "zygote",
        };
        let Self {
            arena,
            tie,
            socket,
            ticket,
            start,
            identity,
            ..
        } = self;
        format!("{FORMAT};{role};{arena};{tie};{socket};{ticket};{start};{identity}")
    }

    pub(crate) fn parse(line: &str) -> Result<Self, String> {
        let parts: Vec<&str> = line.split(';').collect();
        if parts.first() != Some(&FORMAT) {
            return Err(format!(
                "its parent speaks version {:?} of the start protocol, this program {FORMAT:?}; build both from the same version",
                parts.first().unwrap_or(&"")
            ));
        }
        let [_, role, arena, tie, socket, slot, start, identity] = parts[..] else {
            return Err(format!(
                "{VARIABLE} has {} fields instead of 8",
                parts.len()
            ));
        };
        let role = match role {
            "start" => Role::Start,
            "zygote" => Role::Zygote,
            other => return Err(format!("{VARIABLE} names an unknown role {other:?}")),
        };
        fn number<T: std::str::FromStr>(name: &str, text: &str) -> Result<T, String> {
            text.parse()
                .map_err(|_| format!("{VARIABLE}: {name} is {text:?}, not a number"))
        }
        Ok(Self {
            role,
            arena: number("the arena's descriptor", arena)?,
            tie: number("the tie's descriptor", tie)?,
            socket: number("the socket's descriptor", socket)?,
            ticket: number("the slot", slot)?,
            start: number("the start record", start)?,
            identity: number("the arena's identity", identity)?,
        })
    }
}

/// Turns this process into a worker if its parent started it as one, and does not return then. Otherwise returns at once.
///
/// Called by `#[phalanx::main]` before the user's `main`; a program without that macro calls it first thing in `main`.
pub fn enter() {
    ENTERED.store(true, Ordering::Relaxed);
    for AtEnter(call) in inventory::iter::<AtEnter> {
        call();
    }
    let Ok(line) = std::env::var(VARIABLE) else {
        return;
    };
    // SAFETY: the first thing `main` does: no other thread reads the environment.
    unsafe { std::env::remove_var(VARIABLE) };
    let orders = match Orders::parse(&line) {
        Ok(orders) => orders,
        Err(reason) => refuse(&reason),
    };
    let arena = match join(&orders) {
        Ok(arena) => arena,
        Err(reason) => refuse(&reason),
    };
    match orders.role {
        Role::Start => match BlockRef::from_bits(orders.start) {
            Some(block) => run_and_exit(arena, block),
            None => refuse("its parent named no start record"),
        },
        Role::Zygote => {
            // SAFETY: the parent's orders name it, and this is the only place that takes it.
            let socket = unsafe { take_fd(orders.socket) };
            match socket {
                Some(socket) => zygote::serve(arena, socket, None),
                None => refuse("its parent named no request socket"),
            }
        }
    }
}

fn refuse(reason: &str) -> ! {
    eprintln!("phalanx: this process cannot be a worker: {reason}");
    process::exit_now(REFUSED_CODE)
}

/// Takes over an inherited descriptor, `None` if there is none of this number.
///
/// # Safety
///
/// Nothing else in this process owns the descriptor.
unsafe fn take_fd(number: RawFd) -> Option<OwnedFd> {
    // SAFETY: a borrow for one call that only asks whether the number is open.
    let open = number > 2 && std::fs::symlink_metadata(format!("/proc/self/fd/{number}")).is_ok();
    // SAFETY: open (checked), and nobody else's (the caller's promise).
    open.then(|| unsafe { OwnedFd::from_raw_fd(number) })
}

fn join(orders: &Orders) -> Result<&'static Arena, String> {
    // SAFETY: the parent's orders name both, and this is the only place that takes them.
    let tie = unsafe { take_fd(orders.tie) };
    // SAFETY: as above.
    let arena = unsafe { take_fd(orders.arena) };
    let (Some(tie), Some(arena)) = (tie, arena) else {
        return Err("it did not inherit its parent's descriptors".to_owned());
    };
    close_on_exec(&tie);
    close_on_exec(&arena);
    tie::ChildEnd::from_fd(tie)
        .arm()
        .map_err(|error| error.to_string())?;
    let arena = phalanx_shm::adopt(arena, Ticket::from_bits(orders.ticket))
        .map_err(|error| error.to_string())?;
    if arena.identity() != orders.identity {
        return Err("the arena it inherited is not the one its parent meant".to_owned());
    }
    start::install();
    Ok(arena)
}

/// Inherited descriptors are not for the programs this process starts.
fn close_on_exec(fd: &OwnedFd) {
    let _ = phalanx_sys::socket::set_cloexec(fd);
}

/// Runs the start record and ends this process.
pub(crate) fn run_and_exit(arena: &'static Arena, block: BlockRef) -> ! {
    let held = match arena.hold(block) {
        Ok(held) => held,
        // The parent dropped it, or died, before we could start: nobody wants the result.
        Err(error) => refuse(&error.to_string()),
    };
    let code = run(arena, &StartHandle::from_held(held), None);
    leave(code)
}

/// Runs a closure as the start record's task and ends this process, a fresh fork.
pub(crate) fn run_closure_and_exit<R: serde::Serialize>(
    block: BlockRef,
    closure: impl FnOnce() -> R,
) -> ! {
    let Ok(arena) = phalanx_shm::session() else {
        process::exit_now(REFUSED_CODE)
    };
    let Ok(held) = arena.hold(block) else {
        process::exit_now(REFUSED_CODE)
    };
    // Called once: `run` calls its closure once.
    let once = std::cell::Cell::new(Some(closure));
    let call = |_: Payload<'_>, out: &mut Vec<u8>| match once.take() {
        Some(closure) => codec::encode(&closure(), out),
        None => Ok(()),
    };
    let code = run(arena, &StartHandle::from_held(held), Some(&call));
    leave(code)
}

/// A function that a zygote carries.
pub(crate) type Closure<'a> = &'a dyn Fn(Payload<'_>, &mut Vec<u8>) -> Result<(), CodecError>;

/// Runs the start record's task (or `closure` on its arguments) and returns the exit code.
pub(crate) fn run(arena: &'static Arena, start: &StartHandle, closure: Option<Closure<'_>>) -> i32 {
    let limit = start
        .view()
        .memory_limit
        .load(phalanx_prim::Ordering::Relaxed);
    if limit != 0
        && let Err(error) = limits::limit_private_memory(limit)
    {
        eprintln!("phalanx: cannot limit memory to {limit} bytes more: {error}");
        return REFUSED_CODE;
    }
    crash::note_in(start.view());
    let Some(args) = start.take_args() else {
        eprintln!("phalanx: a start record without arguments");
        return REFUSED_CODE;
    };
    let mut out = Vec::new();
    let ((ran, handles), report) = {
        let run = || phalanx_sync::handle::collect(|| call(args, &mut out, closure));
        match panics::catch(run) {
            Ok(done) => (done, None),
            Err(report) => ((Ok(()), Vec::new()), Some(report)),
        }
    };
    let (outcome, payload, handles, code) = match (ran, report) {
        (_, Some(report)) => (PANIC, to_bytes(&report), Vec::new(), PANICKED_CODE),
        (Ok(()), None) => (VALUE, out, handles, 0),
        (Err(error), None) => (REFUSED, to_bytes(&error), Vec::new(), REFUSED_CODE),
    };
    match Loan::new(arena, payload.len(), &handles) {
        Ok(mut loan) => {
            loan.copy_from_slice(&payload);
            start.finish(outcome, Some(loan));
            code
        }
        Err(error) => {
            eprintln!(
                "phalanx: the result of {} bytes cannot be handed over: {error}",
                payload.len()
            );
            REFUSED_CODE
        }
    }
}

fn to_bytes<T: serde::Serialize>(value: &T) -> Vec<u8> {
    let mut bytes = Vec::new();
    // Reports are plain strings and numbers: they always serialize.
    let _ = codec::encode(value, &mut bytes);
    bytes
}

fn call(args: Message, out: &mut Vec<u8>, closure: Option<Closure<'_>>) -> Result<(), TaskError> {
    if let Some(closure) = closure {
        return closure(Payload::Owned(args, 0), out)
            .map_err(|error| TaskError::from_codec("the zygote's closure", &error));
    }
    let (task, from) = split(&args)?;
    task.resolve()?
        .call(Payload::Owned(args, from), out)
        .map_err(|error| TaskError::from_codec(task.name(), &error))
}

/// Puts a task and its serialized arguments into one payload.
pub(crate) fn join_payload(task: &TaskRef, args: &[u8]) -> Result<Vec<u8>, CodecError> {
    let mut payload = vec![0; 4];
    codec::encode(task, &mut payload)?;
    let len = (payload.len() - 4) as u32;
    payload[..4].copy_from_slice(&len.to_le_bytes());
    payload.extend_from_slice(args);
    Ok(payload)
}

/// Returns the task, and where its arguments begin.
pub(crate) fn split(payload: &[u8]) -> Result<(TaskRef, usize), TaskError> {
    let broken = || TaskError::Broken("a start record without a task".to_owned());
    let (len, rest) = payload.split_first_chunk::<4>().ok_or_else(broken)?;
    let (task, args) = rest
        .split_at_checked(u32::from_le_bytes(*len) as usize)
        .ok_or_else(broken)?;
    let task = codec::decode(task).map_err(|error| TaskError::Broken(error.to_string()))?;
    Ok((task, payload.len() - args.len()))
}

/// Ends this process in order: joins its children that are no daemons, ends the daemons, flushes stdout, exits.
///
/// Called by `#[phalanx::main]` after the user's `main` (which then returns as it would have), and at the end of a worker.
pub fn leave_children() {
    for child in reaper::children() {
        if !child.is_daemon() {
            let _ = child.wait(phalanx_shm::Patience::FOREVER);
        }
    }
    for child in reaper::children() {
        child.end_within(Duration::from_millis(500));
    }
}

fn leave(code: i32) -> ! {
    leave_children();
    flush();
    process::exit_now(code)
}

pub(crate) fn flush() {
    use std::io::Write;
    let _ = std::io::stdout().flush();
    let _ = std::io::stderr().flush();
}

/// Returns the process id of this process's parent in the tree, `None` for the root. When the parent has died that is the
/// ancestor who has adopted this process.
///
/// ```
/// use phalanx_process::{Process, parent_pid};
///
/// fn parent() -> Option<u32> {
///     parent_pid()
/// }
///
/// # #[phalanx_macros::main(crate = phalanx_process)]
/// fn main() -> Result<(), Box<dyn std::error::Error>> {
///     assert_eq!(parent_pid(), None);
///     assert_eq!(Process::spawn(parent, ())?.join()?, Some(std::process::id()));
///     Ok(())
/// }
/// ```
#[must_use]
pub fn parent_pid() -> Option<u32> {
    let arena = phalanx_shm::session_if_any()?;
    let me = arena.process(phalanx_shm::current_slot());
    let parent = (me.parent != 0).then(|| arena.process(me.parent).pid)?;
    (parent != 0 && parent != ids::pid()).then_some(parent)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn orders() -> Orders {
        Orders {
            role: Role::Start,
            arena: 5,
            tie: 6,
            socket: -1,
            ticket: 7,
            start: 8,
            identity: 9,
        }
    }

    #[test]
    fn orders_come_back_as_they_were() {
        let back = Orders::parse(&orders().to_line()).unwrap();
        assert_eq!(
            (back.role, back.arena, back.tie, back.socket),
            (Role::Start, 5, 6, -1)
        );
        assert_eq!((back.ticket, back.start, back.identity), (7, 8, 9));
    }

    #[test]
    fn orders_are_parsed_from_any_text() {
        let line = orders().to_line();
        let mut bytes = phalanx_testkit::Bytes::new(7);
        for _ in 0..20_000 {
            let mangled = bytes.mangled(line.as_bytes());
            // Refused with a reason, or numbers: nothing else.
            if let Err(reason) = Orders::parse(&String::from_utf8_lossy(&mangled)) {
                assert!(!reason.is_empty());
            }
        }
    }

    #[test]
    fn a_payload_of_any_bytes_is_a_task_or_an_error() {
        fn twice(n: u32) -> u32 {
            2 * n
        }
        let whole = join_payload(&TaskRef::of(&twice).unwrap(), &[5]).unwrap();
        assert_eq!(split(&whole).unwrap().1, whole.len() - 1);
        let mut bytes = phalanx_testkit::Bytes::new(8);
        for _ in 0..20_000 {
            let mangled = bytes.mangled(&whole);
            if let Ok((task, from)) = split(&mangled) {
                assert!(from <= mangled.len());
                // What it names is this program's code, or refused.
                let _ = task.resolve();
            }
        }
    }

    #[test]
    fn broken_orders_are_refused_with_the_reason() {
        for (line, reason) in [
            ("2;start;5;6;-1;7;8;9", "version"),
            ("1;start;5", "3 fields"),
            ("1;king;5;6;-1;7;8;9", "role"),
            ("1;start;x;6;-1;7;8;9", "arena"),
            ("1;start;5;6;-1;-7;8;9", "slot"),
        ] {
            let error = Orders::parse(line).err().unwrap_or_default();
            assert!(error.contains(reason), "{line}: {error}");
        }
    }
}
