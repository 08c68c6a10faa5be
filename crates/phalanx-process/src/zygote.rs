//! The zygote: a small process that forks others on demand, so that starting one costs a fork of something small,
//! whatever this process's size.
//!
//! It is this program, started again: one thread, nothing of the user's has run. Its children are clones with
//! `CLONE_PARENT`, so *this* process is their parent: it gets their exit status, watches and sweeps them. The zygote is
//! told what to do over a socket and answers with a process id; when it dies, the answer is an error, and the next start
//! makes a new one.
//!
//! | step of a start | killed after it |
//! |---|---|
//! | reserve a slot, make a tie and a record | requester: its sweep takes the slot back, the record's hold ends |
//! | send slot, record, descriptors | zygote: the requester reads the end of the socket, takes the slot back, reports it |
//! | clone, answer with the process id | requester: the child's tie is broken, and it ends |
//! | the child fills its slot | child: the requester has its pidfd, and sweeps it |
//!
//! One request at a time is on the socket, under a lock of the requester's. The zygote holds nothing of a start: its death
//! costs those in flight, which are reported as such, and the next start makes a new one.
//!
//! A [`Zygote`] made with [`Zygote::fork`] is a fork of the calling process instead and carries a closure with all that it
//! captured.
#![expect(unsafe_code, reason = "fork and clone")]

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use phalanx_channel::Loan;
use phalanx_channel::codec::{self, CodecError};
use phalanx_shm::{Arena, BlockRef};
use phalanx_sys::process::Forked;
use phalanx_sys::{ids, process, signal, socket, tie};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::child::{Child, Parts};
use crate::entry::{self, Orders, REFUSED_CODE, Role};
use crate::error::StartError;
use crate::fork;
use crate::start::{self, StartHandle};
use crate::task::{Payload, TaskRef};

/// What the socket carries: slot, flags, start record.
const REQUEST: usize = 24;
const QUIET_INTERRUPT: u64 = 1;

/// This process's connection to a zygote.
#[derive(Debug)]
pub(crate) struct Connection {
    child: Arc<Child>,
    socket: OwnedFd,
}

/// With the process it belongs to: a forked child must not lock its parent's, which a thread of the parent may have held.
type Owned = (u32, Arc<Mutex<Connection>>);

static ZYGOTE: Mutex<Option<Owned>> = Mutex::new(None);

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Keeps the connection whole while the process forks.
pub(crate) fn freeze() -> impl Sized + 'static {
    ZYGOTE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Returns this process's zygote, started if there is none (or the last one died).
pub(crate) fn shared() -> Result<Arc<Mutex<Connection>>, StartError> {
    let mut current = lock(&ZYGOTE);
    let me = ids::pid();
    if let Some((owner, connection)) = current.as_ref()
        && *owner == me
        && lock(connection).child.status().is_none()
    {
        return Ok(Arc::clone(connection));
    }
    *current = None;
    let connection = Arc::new(Mutex::new(Connection::start()?));
    *current = Some((me, Arc::clone(&connection)));
    Ok(connection)
}

impl Connection {
    fn start() -> Result<Self, StartError> {
        let (ours, theirs) = socket::seqpacket_pair()?;
        let child = entry_spawn(
            Role::Zygote,
            None,
            "zygote",
            &[&theirs],
            Some(theirs.as_raw_fd()),
        )?;
        Ok(Self {
            child,
            socket: ours,
        })
    }

    /// Asks for a process and returns its id.
    pub(crate) fn request(
        &self,
        slot: u16,
        start: BlockRef,
        quiet: bool,
        tie: &tie::ChildEnd,
        stderr: Option<&OwnedFd>,
    ) -> Result<u32, StartError> {
        let mut message = [0_u8; REQUEST];
        message[..8].copy_from_slice(&u64::from(slot).to_le_bytes());
        message[8..16].copy_from_slice(&(if quiet { QUIET_INTERRUPT } else { 0 }).to_le_bytes());
        message[16..].copy_from_slice(&start.to_bits().to_le_bytes());
        let mut fds = vec![tie.as_fd()];
        fds.extend(stderr.map(AsFd::as_fd));
        let gone = |error: io::Error| StartError::Zygote(error.to_string());
        socket::send_with_fds(&self.socket, &message, &fds).map_err(gone)?;
        let mut answer = [0_u8; 8];
        match socket::recv_with_fds(&self.socket, &mut answer).map_err(gone)? {
            (8, _) => {}
            _ => return Err(StartError::Zygote("it closed its socket".to_owned())),
        }
        match i64::from_le_bytes(answer) {
            pid if pid > 0 => Ok(pid as u32),
            error => Err(io::Error::from_raw_os_error(-error as i32).into()),
        }
    }
}

/// Starts this program again in a role.
pub(crate) fn entry_spawn(
    role: Role,
    start: Option<(StartHandle, Extras)>,
    name: &str,
    extra: &[&OwnedFd],
    socket_number: Option<i32>,
) -> Result<Arc<Child>, StartError> {
    if !entry::has_entered() || entry::was_meant_to_enter() {
        return Err(StartError::NoEntry);
    }
    let arena = phalanx_shm::session()?;
    start::install();
    let slot = arena.reserve_slot()?;
    let spawned = (|| {
        let (parent_end, child_end) = tie::tie_pair()?;
        let file = arena
            .region()
            .file()
            .ok_or_else(|| io::Error::other("the arena is not shared"))?;
        let orders = Orders {
            role,
            arena: file.as_raw_fd(),
            tie: child_end.as_fd().as_raw_fd(),
            socket: socket_number.unwrap_or(-1),
            slot,
            start: start
                .as_ref()
                .map_or(0, |(start, _)| start.block().to_bits()),
            identity: arena.identity(),
        };
        let mut command = match start
            .as_ref()
            .and_then(|(_, parts)| parts.executable.clone())
        {
            Some(path) => process::Spawn::program(path),
            None => process::Spawn::this_program(),
        };
        command = command.arg(crate::registry::own_name());
        for arg in crate::registry::entry_args() {
            command = command.arg(arg);
        }
        command = command
            .env(entry::VARIABLE, orders.to_line())
            .inherit(file.as_fd())
            .inherit(child_end.as_fd());
        for fd in extra {
            command = command.inherit(fd.as_fd());
        }
        let stderr = start
            .as_ref()
            .and_then(|(_, parts)| parts.stderr_write.as_ref());
        if let Some(stderr) = stderr {
            command = command.map_fd(stderr.as_fd(), 2);
        }
        if start.as_ref().is_some_and(|(_, parts)| parts.new_group) {
            command = command.new_group();
        }
        let pid = command.start()?;
        Ok::<_, io::Error>((pid, parent_end))
    })();
    let (pid, tie) = match spawned {
        Ok(spawned) => spawned,
        Err(error) => {
            arena.unreserve_slot(slot);
            return Err(error.into());
        }
    };
    let parts = match start {
        None => Parts {
            pid,
            slot,
            name: name.to_owned(),
            daemon: true,
            start: None,
            task: String::new(),
            memory_limit: None,
            stderr: None,
            tie: Some(tie),
        },
        Some((start, parts)) => Parts {
            pid,
            slot,
            name: name.to_owned(),
            daemon: parts.daemon,
            start: Some(start),
            task: parts.task,
            memory_limit: parts.memory_limit,
            stderr: parts.stderr_read,
            tie: Some(tie),
        },
    };
    Ok(Child::watch(parts)?)
}

/// What a start needs beside its record.
#[derive(Debug)]
pub(crate) struct Extras {
    pub(crate) daemon: bool,
    pub(crate) task: String,
    pub(crate) memory_limit: Option<u64>,
    pub(crate) stderr_read: Option<File>,
    pub(crate) stderr_write: Option<OwnedFd>,
    pub(crate) executable: Option<std::path::PathBuf>,
    pub(crate) new_group: bool,
    pub(crate) quiet_interrupt: bool,
}

/// Starts a process through a zygote.
pub(crate) fn spawn_through(
    connection: &Mutex<Connection>,
    start: StartHandle,
    name: &str,
    parts: Extras,
) -> Result<Arc<Child>, StartError> {
    let arena = phalanx_shm::session()?;
    let slot = arena.reserve_slot()?;
    let started = tie::tie_pair()
        .map_err(StartError::from)
        .and_then(|(parent_end, child_end)| {
            let stderr = parts.stderr_write.as_ref();
            let pid = lock(connection).request(
                slot,
                start.block(),
                parts.quiet_interrupt,
                &child_end,
                stderr,
            )?;
            Ok((pid, parent_end))
        });
    let (pid, tie) = match started {
        Ok(started) => started,
        Err(error) => {
            arena.unreserve_slot(slot);
            return Err(error);
        }
    };
    Ok(Child::watch(Parts {
        pid,
        slot,
        name: name.to_owned(),
        daemon: parts.daemon,
        start: Some(start),
        task: parts.task,
        memory_limit: parts.memory_limit,
        stderr: parts.stderr_read,
        tie: Some(tie),
    })?)
}

type Closure = Box<dyn Fn(Payload<'_>, &mut Vec<u8>) -> Result<(), CodecError>>;

fn rehearsed((): ()) {}

/// Runs an empty task in the zygote itself, so that its children inherit what the first one costs: symbols the loader looks
/// up late, thread-local destructors, the executable's build id, the first pages of the heap.
fn rehearse(arena: &'static Arena) {
    let start = (|| {
        let task = TaskRef::of(&rehearsed).ok()?;
        let payload = entry::join_payload(&task, &[]).ok()?;
        let mut loan = Loan::new(arena, payload.len(), &[]).ok()?;
        loan.copy_from_slice(&payload);
        StartHandle::new(arena, loan, None).ok()
    })();
    // Without memory for it the children pay themselves.
    if let Some(start) = start {
        entry::run(arena, &start, None);
        drop(start.take_result());
    }
    entry::flush();
}

/// Forks on demand until the other end of the socket is gone. One thread, and it never has another.
pub(crate) fn serve(arena: &'static Arena, socket: OwnedFd, closure: Option<Closure>) -> ! {
    process::set_name("phalanx-zygote");
    // Ctrl-C goes to the whole terminal group; the zygote ends with its parent.
    signal::ignore(signal::SIGINT);
    rehearse(arena);
    loop {
        let mut message = [0_u8; REQUEST];
        let mut fds = match socket::recv_with_fds(&socket, &mut message) {
            Ok((REQUEST, fds)) => fds,
            _ => process::exit_now(0),
        };
        let field =
            |at: usize| u64::from_le_bytes(message[at..at + 8].try_into().unwrap_or([0; 8]));
        let stderr = (fds.len() > 1).then(|| fds.remove(1));
        let Some(tie) = fds.pop() else {
            process::exit_now(REFUSED_CODE)
        };
        // SAFETY: this process has one thread, and the zygote registers no at-fork handlers that the child needs: what
        // they would do is done by `become_child`.
        let answer = match unsafe { process::clone_parent() } {
            Ok(Forked::Child) => {
                drop(socket);
                serve_one(
                    arena,
                    field(0) as u16,
                    field(8),
                    field(16),
                    tie,
                    stderr,
                    closure.as_deref(),
                );
            }
            Ok(Forked::Parent(pid)) => i64::from(pid),
            Err(error) => -i64::from(error.raw_os_error().unwrap_or(11)),
        };
        if socket::send_with_fds(&socket, &answer.to_le_bytes(), &[]).is_err() {
            process::exit_now(0);
        }
    }
}

fn serve_one(
    arena: &'static Arena,
    slot: u16,
    flags: u64,
    start: u64,
    tie: OwnedFd,
    stderr: Option<OwnedFd>,
    closure: Option<entry::Closure<'_>>,
) -> ! {
    if flags & QUIET_INTERRUPT == 0 {
        signal::restore(signal::SIGINT);
    }
    if let Some(stderr) = stderr {
        let _ = socket::replace_stderr(stderr);
    }
    fork::become_child(slot, tie::ChildEnd::from_fd(tie));
    process::set_name("phalanx-worker");
    let Some(block) = BlockRef::from_bits(start) else {
        process::exit_now(REFUSED_CODE)
    };
    match closure {
        None => entry::run_and_exit(arena, block),
        Some(closure) => {
            let Ok(held) = arena.hold(block) else {
                process::exit_now(REFUSED_CODE)
            };
            let code = entry::run(arena, &StartHandle::from_held(held), Some(closure));
            entry::flush();
            process::exit_now(code)
        }
    }
}

/// A zygote of one's own that carries a closure: a fork of this process as it was when the zygote was made.
///
/// Each [`spawn`](crate::Builder::spawn_in) from it is a fork of that state, as fast as it is small, and calls the closure
/// with its own argument. Dropping it ends the zygote; processes made from it run on.
///
/// ```
/// use phalanx_process::{Process, Zygote};
///
/// # #[phalanx_macros::main(crate = phalanx_process)]
/// fn main() -> Result<(), Box<dyn std::error::Error>> {
///     let table: Vec<u64> = (0..1000).map(|x| x * x).collect();
///     // SAFETY: the closure only reads what it captured.
///     let zygote = unsafe { Zygote::fork(move |index: usize| table[index]) }?;
///     let process = Process::builder().spawn_in(&zygote, 30)?;
///     assert_eq!(process.join()?, 900);
///     Ok(())
/// }
/// ```
#[derive(Debug)]
pub struct Zygote<A, R> {
    connection: Arc<Mutex<Connection>>,
    owner: u32,
    pid: u32,
    types: std::marker::PhantomData<fn(A) -> R>,
}

impl<A: Serialize + DeserializeOwned, R: Serialize + DeserializeOwned> Zygote<A, R> {
    /// Forks a zygote that carries `closure` and everything it captured.
    ///
    /// # Errors
    ///
    /// [`StartError`] when the system has no room for another process.
    ///
    /// # Safety
    ///
    /// As for [`fork`](crate::fork()): the closure uses nothing that another thread of this process may hold now.
    pub unsafe fn fork(closure: impl Fn(A) -> R + 'static) -> Result<Self, StartError> {
        let (ours, theirs) = socket::seqpacket_pair()?;
        let arena = phalanx_shm::session()?;
        let parts = |pid, slot, tie| Parts {
            pid,
            slot,
            name: "zygote".to_owned(),
            daemon: true,
            start: None,
            task: String::new(),
            memory_limit: None,
            stderr: None,
            tie: Some(tie),
        };
        // SAFETY: the caller's promise.
        match unsafe { fork::fork_with(parts) }? {
            None => {
                drop(ours);
                serve(
                    arena,
                    theirs,
                    Some(Box::new(move |args: Payload<'_>, out: &mut Vec<u8>| {
                        let decoded = codec::decode(&args)?;
                        drop(args);
                        codec::encode(&closure(decoded), out)
                    })),
                )
            }
            Some(child) => {
                let pid = child.pid;
                let connection = Connection {
                    child,
                    socket: ours,
                };
                Ok(Self {
                    connection: Arc::new(Mutex::new(connection)),
                    owner: ids::pid(),
                    pid,
                    types: std::marker::PhantomData,
                })
            }
        }
    }

    /// Returns the zygote's process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Returns the connection, in the process that made the zygote.
    pub(crate) fn connection(&self) -> Result<&Mutex<Connection>, StartError> {
        if self.owner == ids::pid() {
            Ok(&self.connection)
        } else {
            Err(StartError::Zygote(format!(
                "it is process {}'s, make one in this process",
                self.owner
            )))
        }
    }
}

impl<A, R> Drop for Zygote<A, R> {
    fn drop(&mut self) {
        // A forked child's copy may be locked for good.
        if self.owner == ids::pid() {
            let connection = lock(&self.connection);
            let _ = connection.child.signal(signal::SIGKILL);
            let _ = connection.child.wait(None, false);
        }
    }
}
