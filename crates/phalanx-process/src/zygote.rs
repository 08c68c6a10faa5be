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
//! From its first request on the zygote keeps a *spare*: a child forked ahead, which waits for a request of its own. So a
//! start does not wait for a fork, nor for the page faults of a fresh process, and the zygote forks while the child runs.
//!
//! | a spare is | killed |
//! |---|---|
//! | forked: the kernel notes its id in the zygote's slot | zygote: the spare reads the end of its socket and ends; the requester finds the id in the sweep and collects it |
//! | waiting | spare: the zygote finds the socket broken and rings the requester's reaper, which collects it; a start that is faster has its id in the answer |
//! | its id was the answer; the note is cleared | either: the requester sees the spare's end |
//! | handed the request | as after a clone |
//!
//! It has no slot and touches nothing in the arena before it is handed a request.
//!
//! One request at a time is on the socket, under a lock of the requester's. The zygote holds nothing of a start: its death
//! costs those in flight, which are reported as such, and the next start makes a new one.
//!
//! A [`Zygote`] made with [`Zygote::fork`] is a fork of the calling process instead and carries a closure with all that it
//! captured.
#![expect(unsafe_code, reason = "fork and clone")]

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use phalanx_channel::Loan;
use phalanx_channel::codec::{self, CodecError};
use phalanx_shm::{Arena, BlockRef, Ticket};
use phalanx_sys::event::EventFd;
use phalanx_sys::pidfd::PidFd;
use phalanx_sys::process::Forked;
use phalanx_sys::{ids, process, signal, socket, stream, tie};
use phalanx_thread::panics;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::child::{Child, Parts};
use crate::entry::{self, Orders, REFUSED_CODE, Role};
use crate::error::StartError;
use crate::start::{self, StartHandle};
use crate::task::{Payload, TaskRef};
use crate::{crash, fork, reaper};

/// What the socket carries: slot, flags, start record.
const REQUEST: usize = 24;
/// What comes back: process id or error, the id of a spare that was found dead.
const ANSWER: usize = 16;
/// What the socket carries first, with a bell.
const GREETING: [u8; 1] = [1];
const QUIET_INTERRUPT: u64 = 1;

/// Returns the number at a place of a message, 0 behind its end.
fn field(message: &[u8], at: usize) -> u64 {
    let bytes = message.get(at..).and_then(<[u8]>::first_chunk);
    bytes.map_or(0, |bytes| u64::from_le_bytes(*bytes))
}

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
        && lock(connection).is_alive()
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
        greet(&ours)?;
        Ok(Self {
            child,
            socket: ours,
        })
    }

    /// Tells whether the zygote is there, also where its death has not been collected yet.
    fn is_alive(&self) -> bool {
        self.child.status().is_none() && socket::is_whole(&self.socket)
    }

    /// Asks for a process and returns its id.
    pub(crate) fn request(
        &self,
        place: Ticket,
        start: BlockRef,
        quiet: bool,
        tie: &tie::ChildEnd,
        stderr: Option<&OwnedFd>,
    ) -> Result<u32, StartError> {
        let mut message = [0_u8; REQUEST];
        message[..8].copy_from_slice(&u64::from(place.to_bits()).to_le_bytes());
        message[8..16].copy_from_slice(&(if quiet { QUIET_INTERRUPT } else { 0 }).to_le_bytes());
        message[16..].copy_from_slice(&start.to_bits().to_le_bytes());
        let mut fds = vec![tie.as_fd()];
        fds.extend(stderr.map(AsFd::as_fd));
        let gone = |error: io::Error| StartError::Zygote(error.to_string());
        socket::send_with_fds(&self.socket, &message, &fds).map_err(gone)?;
        let mut answer = [0_u8; ANSWER];
        match socket::recv_with_fds(&self.socket, &mut answer).map_err(gone)? {
            (ANSWER, _) => {}
            _ => return Err(StartError::Zygote("it closed its socket".to_owned())),
        }
        let dead = field(&answer, 8) as u32;
        if dead != 0 {
            Child::collect_spare(dead);
        }
        match field(&answer, 0).cast_signed() {
            pid if pid > 0 => Ok(pid as u32),
            error => Err(io::Error::from_raw_os_error(-error as i32).into()),
        }
    }
}

/// Hands a new zygote the bell of this process's reaper.
fn greet(socket: &OwnedFd) -> Result<(), StartError> {
    reaper::with_bell(|bell| socket::send_with_fds(socket, &GREETING, &[bell]))?
        .map_err(|error| StartError::Zygote(error.to_string()))
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
    let ticket = reaper::reserve(arena)?;
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
            ticket: ticket.to_bits(),
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
            reaper::give_back(ticket);
            return Err(error.into());
        }
    };
    let parts = match start {
        None => Parts {
            pid,
            ticket,
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
            ticket,
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
    let ticket = reaper::reserve(arena)?;
    let started = tie::tie_pair()
        .map_err(StartError::from)
        .and_then(|(parent_end, child_end)| {
            let stderr = parts.stderr_write.as_ref();
            let pid = lock(connection).request(
                ticket,
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
            reaper::give_back(ticket);
            return Err(error);
        }
    };
    Ok(Child::watch(Parts {
        pid,
        ticket,
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

/// As [`rehearse`], in a spare, which has no slot yet: without the arena.
fn rehearse_alone() {
    let Ok(task) = TaskRef::of(&rehearsed) else {
        return;
    };
    let mut out = Vec::new();
    let ran = panics::catch(|| {
        phalanx_sync::handle::collect(|| {
            let payload = entry::join_payload(&task, &[]).ok()?;
            let (task, from) = entry::split(&payload).ok()?;
            let called = task.resolve().ok()?;
            called
                .call(Payload::Borrowed(&payload[from..]), &mut out)
                .ok()
        })
    });
    drop(ran);
    entry::flush();
}

/// A request as it came.
struct Request {
    message: [u8; REQUEST],
    fds: Vec<OwnedFd>,
}

impl Request {
    fn receive(socket: &OwnedFd) -> Option<Self> {
        let mut message = [0_u8; REQUEST];
        match socket::recv_with_fds(socket, &mut message) {
            Ok((REQUEST, fds)) => Some(Self { message, fds }),
            _ => None,
        }
    }

    fn pass_on(&self, socket: &OwnedFd) -> io::Result<()> {
        let fds: Vec<_> = self.fds.iter().map(AsFd::as_fd).collect();
        socket::send_with_fds(socket, &self.message, &fds)
    }

    /// Runs what was asked for, in a process of its own.
    fn serve(mut self, arena: &'static Arena, closure: Option<entry::Closure<'_>>) -> ! {
        let stderr = (self.fds.len() > 1).then(|| self.fds.remove(1));
        let Some(tie) = self.fds.pop() else {
            process::exit_now(REFUSED_CODE)
        };
        let field = |at| field(&self.message, at);
        serve_one(
            arena,
            Ticket::from_bits(field(0) as u32),
            field(8),
            field(16),
            tie,
            stderr,
            closure,
        )
    }
}

/// A child forked ahead.
struct Spare {
    pid: u32,
    /// What it waits at. It ends when this is closed.
    socket: OwnedFd,
}

impl Spare {
    fn is_waiting(&self) -> bool {
        socket::is_whole(&self.socket)
    }
}

fn fork_sibling(arena: &'static Arena) -> io::Result<Forked> {
    // SAFETY: this process has one thread, and the zygote registers no at-fork handlers that the child needs: what
    // they would do is done by `become_child`. The note lies in the arena and is an atomic.
    unsafe { process::clone_parent(arena.note_of_spare()) }
}

/// What is the zygote's alone: a child closes it, for whoever listens at the other ends must see the zygote's death.
struct Own {
    requests: OwnedFd,
    /// On it are spares: one that is stopped cannot see that the zygote is gone. `None` without descriptors for it.
    line: Option<(tie::LineHolder, tie::LineEnd)>,
}

/// Forks a spare, and gives back what is the zygote's. Without room for it the next start forks, and tells of the error.
fn fork_ahead(
    arena: &'static Arena,
    own: Own,
    closure: Option<entry::Closure<'_>>,
) -> (Own, Option<Spare>) {
    let Ok((ours, theirs)) = socket::seqpacket_pair() else {
        return (own, None);
    };
    match fork_sibling(arena) {
        Ok(Forked::Child) => {
            let Own { requests, line } = own;
            drop((requests, ours));
            let tied = line.and_then(|(holder, end)| {
                drop(holder);
                end.arm().ok()
            });
            process::set_name("phalanx-spare");
            rehearse_alone();
            match Request::receive(&theirs) {
                Some(request) => {
                    // From here on it ends with whoever asked for it, and the zygote may end when it sees that.
                    drop(tied);
                    drop(theirs);
                    request.serve(arena, closure);
                }
                // The zygote is gone, perhaps with a request in its hands.
                None => process::exit_now(REFUSED_CODE),
            }
        }
        Ok(Forked::Parent(pid)) => (own, Some(Spare { pid, socket: ours })),
        Err(_) => (own, None),
    }
}

/// Waits for a request, and rings once if the spare dies before it comes.
fn next_request(
    socket: &OwnedFd,
    spare: Option<&Spare>,
    bell: Option<&EventFd>,
) -> Option<Request> {
    if let (Some(spare), Some(bell)) = (spare, bell)
        && comes_first(spare.socket.as_fd(), socket)
        // Its descriptors are closed a moment before it can be collected.
        && PidFd::open(spare.pid).map_or(true, |dead| comes_first(dead.as_fd(), socket))
    {
        bell.ring();
    }
    Request::receive(socket)
}

/// Blocks until one of the two has something to read or is broken; returns whether it is the first, and not the second.
fn comes_first(first: BorrowedFd<'_>, second: &OwnedFd) -> bool {
    loop {
        match stream::poll(&[second.as_fd(), first], None) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Ok(ready) => return !ready.contains(&0),
            Err(_) => return false,
        }
    }
}

/// Forks on demand until the other end of the socket is gone. One thread, and it never has another.
pub(crate) fn serve(arena: &'static Arena, socket: OwnedFd, closure: Option<Closure>) -> ! {
    process::set_name("phalanx-zygote");
    // Ctrl-C goes to the whole terminal group; the zygote ends with its parent.
    signal::ignore(signal::SIGINT);
    rehearse(arena);
    // Once for all that it forks.
    crash::prepare();
    phalanx_shm::mark_helper();
    let closure = closure.as_deref();
    let mut spare: Option<Spare> = None;
    // Without a descriptor for it, what dies here is collected with the next start.
    let bell = match socket::recv_with_fds(&socket, &mut [0; GREETING.len()]) {
        Ok((_, mut fds)) => fds.pop().map(EventFd::from_fd),
        Err(_) => None,
    };
    // Of spares that have a request and are perhaps on the line still.
    let mut handed: Vec<OwnedFd> = Vec::new();
    let mut own = Own {
        requests: socket,
        line: tie::line().ok(),
    };
    while let Some(request) = next_request(&own.requests, spare.as_ref(), bell.as_ref()) {
        let (mut ready, mut dead) = (None, 0);
        if let Some(spare) = spare.take() {
            if spare.is_waiting() {
                ready = Some(spare);
            } else if arena.claim_spare(phalanx_shm::current_slot(), spare.pid) {
                dead = spare.pid;
            }
        }
        let answer = match &ready {
            Some(spare) => i64::from(spare.pid),
            None => match fork_sibling(arena) {
                Ok(Forked::Child) => {
                    drop(own);
                    request.serve(arena, closure);
                }
                Ok(Forked::Parent(pid)) => i64::from(pid),
                Err(error) => -i64::from(error.raw_os_error().unwrap_or(11)),
            },
        };
        arena.forget_spare();
        let mut message = [0_u8; ANSWER];
        message[..8].copy_from_slice(&answer.to_le_bytes());
        message[8..].copy_from_slice(&u64::from(dead).to_le_bytes());
        // Before the request is passed on: the spare may take this core.
        let answered = socket::send_with_fds(&own.requests, &message, &[]);
        if let Some(spare) = ready {
            // Broken: it was killed just now, which the requester sees.
            let _ = request.pass_on(&spare.socket);
            handed.retain(|socket| socket::is_whole(socket));
            handed.push(spare.socket);
        }
        if answered.is_err() {
            break;
        }
        (own, spare) = fork_ahead(arena, own, closure);
    }
    for socket in handed {
        // It says nothing, so the only news is that its end is closed.
        while stream::poll(&[socket.as_fd()], None)
            .is_err_and(|error| error.kind() == io::ErrorKind::Interrupted)
        {}
    }
    process::exit_now(0)
}

fn serve_one(
    arena: &'static Arena,
    place: Ticket,
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
    fork::become_child(place, tie::ChildEnd::from_fd(tie));
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
        let parts = |pid, ticket, tie| Parts {
            pid,
            ticket,
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
                greet(&ours)?;
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
            let _ = connection.child.wait(phalanx_shm::Patience::FOREVER);
        }
    }
}
