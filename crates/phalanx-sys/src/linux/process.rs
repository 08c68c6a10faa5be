//! Processes: made by spawn, fork or clone, and named by when they started.
#![expect(unsafe_code, reason = "fork, clone and posix_spawn")]

use std::any::{Any, TypeId};
use std::cell::RefCell;
use std::ffi::{CString, OsStr, OsString};
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::ptr::NonNull;

/// Returns when a process started, in clock ticks since boot: with its pid, a name for good.
///
/// # Errors
///
/// When there is no such process.
pub fn start_time(pid: u32) -> io::Result<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The name in parentheses may hold anything, parentheses too.
    let field = stat
        .rsplit_once(')')
        .and_then(|(_, rest)| rest.split_whitespace().nth(19));
    field
        .and_then(|ticks| ticks.parse().ok())
        .ok_or_else(|| io::ErrorKind::InvalidData.into())
}

/// Returns now on the clock that counts since boot, in nanoseconds: the clock by which the kernel notes starts.
#[must_use]
pub fn since_boot() -> u64 {
    let clock = if cfg!(miri) {
        // The nearest that Miri has.
        rustix::time::ClockId::Monotonic
    } else {
        rustix::time::ClockId::Boottime
    };
    let now = rustix::time::clock_gettime(clock);
    (now.tv_sec as u64)
        .saturating_mul(1_000_000_000)
        .saturating_add(now.tv_nsec as u64)
}

/// Returns `true` if the process that has this id now was there at `moment` of [`since_boot`]; one that was given the id of
/// a dead one later was not.
///
/// # Errors
///
/// When there is no such process.
pub fn was_there(pid: u32, moment: u64) -> io::Result<bool> {
    const TICK_NS: u64 = 10_000_000;
    Ok(start_time(pid)?.saturating_mul(TICK_NS) <= moment.saturating_add(TICK_NS))
}

/// The two returns of a fork.
#[must_use]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Forked {
    /// In the parent, with the child's id.
    Parent(u32),
    /// In the child.
    Child,
}

fn forked(answer: libc::c_long) -> io::Result<Forked> {
    match answer {
        0 => Ok(Forked::Child),
        pid if pid > 0 => Ok(Forked::Parent(pid as u32)),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Forks: `fork(3)` with its at-fork handlers.
///
/// # Errors
///
/// When the system has no room for another process.
///
/// # Safety
///
/// The child has only the calling thread. It uses nothing that another thread of the parent may have held at that moment
/// (the allocator and the standard streams of libc are safe), as long as it does not exec.
pub unsafe fn fork() -> io::Result<Forked> {
    // SAFETY: the caller's promise.
    forked(libc::c_long::from(unsafe { libc::fork() }))
}

/// Forks a sibling: a child whose parent is *this process's parent*, which gets its exit status and SIGCHLD.
///
/// The kernel writes the child's id to `note` before this process can be killed: whoever reads it then knows of the child.
///
/// # Errors
///
/// When the system has no room for another process, or this one is the init of its namespace.
///
/// # Safety
///
/// This process has one thread, and nothing registered with `pthread_atfork` needs to run. What the C library keeps about
/// its thread (the cached thread id, the list of robust mutexes) is set right in the child. `note` is valid for a write and
/// accessed by atomics only.
pub unsafe fn clone_parent(note: NonNull<u32>) -> io::Result<Forked> {
    let mut tid_address: *mut libc::c_int = std::ptr::null_mut();
    // SAFETY: the call writes one pointer to the place given. Without it (a kernel built without it) the pointer stays
    // null, and the library's cached id stays the parent's, which only error-checking mutexes and pthread_kill look at.
    unsafe {
        libc::prctl(
            libc::PR_GET_TID_ADDRESS,
            std::ptr::from_mut(&mut tid_address),
        )
    };
    let mut robust: *mut libc::c_void = std::ptr::null_mut();
    let mut robust_len: libc::size_t = 0;
    // SAFETY: the call writes a pointer and a size to the places given.
    unsafe {
        libc::syscall(
            libc::SYS_get_robust_list,
            0,
            std::ptr::from_mut(&mut robust),
            std::ptr::from_mut(&mut robust_len),
        )
    };
    let mut flags = libc::CLONE_PARENT | libc::CLONE_PARENT_SETTID | libc::SIGCHLD;
    if !tid_address.is_null() {
        flags |= libc::CLONE_CHILD_SETTID | libc::CLONE_CHILD_CLEARTID;
    }
    let none: usize = 0;
    let note = note.as_ptr();
    // SAFETY: without CLONE_VM the child has a copy of this memory and goes on on the copied stack (a null stack pointer);
    // the note may be written (the caller's promise); the tid address is the one the library registered for this thread.
    // The argument order differs between machines.
    #[cfg(target_arch = "x86_64")]
    let answer = unsafe { libc::syscall(libc::SYS_clone, flags, none, note, tid_address, none) };
    // SAFETY: as above.
    #[cfg(target_arch = "aarch64")]
    let answer = unsafe { libc::syscall(libc::SYS_clone, flags, none, note, none, tid_address) };
    let forked = forked(answer)?;
    if forked == Forked::Child && !robust.is_null() {
        // SAFETY: the head the library registered in the parent lies at the same address in the child.
        unsafe { libc::syscall(libc::SYS_set_robust_list, robust, robust_len) };
    }
    Ok(forked)
}

/// Registers functions to run around every `fork(3)` of this process: before it and after it in the parent, and in the
/// child. For good.
pub fn at_fork(prepare: extern "C" fn(), parent: extern "C" fn(), child: extern "C" fn()) {
    unsafe extern "C" {
        fn pthread_atfork(
            prepare: extern "C" fn(),
            parent: extern "C" fn(),
            child: extern "C" fn(),
        ) -> libc::c_int;
    }
    if cfg!(miri) {
        // Miri does not know the call, and nobody forks there.
        return;
    }
    // SAFETY: three functions that live as long as the program. Out of memory is the only failure; the child then finds
    // out at first use, by its pid.
    let _ = unsafe { pthread_atfork(prepare, parent, child) };
}

/// Tables of this process that a fork must find whole, so that the child never has one locked by a thread that it does not
/// have.
pub trait OverForks {
    /// Takes their locks, in the order in which they are taken elsewhere, and returns the guards.
    fn lock() -> Box<dyn Any>;
}

/// The guards of one kind of tables; `None` if they are held already.
type OverFork = (TypeId, Option<Box<dyn Any>>);

thread_local! {
    static OVER_FORK: RefCell<Vec<OverFork>> = const { RefCell::new(Vec::new()) };
}

/// Has every fork from now on done with these locks held by the forking thread. For good. What is registered later is locked
/// earlier. A second registration changes nothing, so that nobody needs to wait for another thread's: the child of a fork would
/// wait for one that it does not have.
pub fn lock_over_forks<L: OverForks + 'static>() {
    extern "C" fn before<L: OverForks + 'static>() {
        let this = TypeId::of::<L>();
        let is_held = OVER_FORK.with_borrow(|held| held.iter().any(|(one, _)| *one == this));
        let locks = (!is_held).then(L::lock);
        OVER_FORK.with_borrow_mut(|held| held.push((this, locks)));
    }
    extern "C" fn after() {
        // One for each `before`: in the end all are free, in whichever order.
        drop(OVER_FORK.with_borrow_mut(Vec::pop));
    }
    at_fork(before::<L>, after, after);
}

/// Ends the process at once: no destructors, no exit handlers, no flushing.
pub fn exit_now(code: i32) -> ! {
    // SAFETY: never returns; runs nothing of ours.
    unsafe { libc::_exit(code) }
}

/// Sends a signal to a process. One that does not exist is an error here: prefer a pidfd.
///
/// # Errors
///
/// When there is no such process or this one may not signal it.
pub fn signal(pid: u32, signal: i32) -> io::Result<()> {
    let target =
        rustix::process::Pid::from_raw(pid.cast_signed()).ok_or(io::ErrorKind::InvalidInput)?;
    Ok(rustix::process::kill_process(
        target,
        super::signal::from_raw(signal)?,
    )?)
}

/// Sends a signal to every process of a group. An empty group is not an error.
///
/// # Errors
///
/// When this process may not signal them.
pub fn signal_group(group: u32, signal: i32) -> io::Result<()> {
    let target =
        rustix::process::Pid::from_raw(group.cast_signed()).ok_or(io::ErrorKind::InvalidInput)?;
    match rustix::process::kill_process_group(target, super::signal::from_raw(signal)?) {
        Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Returns `true` while there is a process of this id that is no zombie.
#[must_use]
pub fn is_running(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"));
    // The name in parentheses may hold anything, parentheses too.
    let state = stat.as_deref().ok().and_then(|stat| {
        let (_, rest) = stat.rsplit_once(')')?;
        rest.trim_start().chars().next()
    });
    !matches!(state, None | Some('Z' | 'X'))
}

/// Blocks until a child has ended and collects it; one that is no child, or was collected, is not waited for.
pub fn collect(pid: u32) {
    let Some(child) = rustix::process::Pid::from_raw(pid.cast_signed()) else {
        return;
    };
    while let Err(rustix::io::Errno::INTR) =
        rustix::process::waitpid(Some(child), rustix::process::WaitOptions::empty())
    {}
}

/// Names the calling thread (in a process with one: the process), as `ps` and `top` show it. At most 15 bytes count.
pub fn set_name(name: &str) {
    let short: Vec<u8> = name.bytes().filter(|byte| *byte != 0).take(15).collect();
    if let Ok(name) = CString::new(short) {
        let _ = rustix::thread::set_name(&name);
    }
}

/// Returns the number of threads of this process.
#[must_use]
pub fn thread_count() -> usize {
    std::fs::read_dir("/proc/self/task").map_or(1, Iterator::count)
}

/// Returns `true` while this process has a thread of this id, as the kernel counts.
#[must_use]
pub fn has_thread(tid: u32) -> bool {
    std::fs::exists(format!("/proc/self/task/{tid}")).unwrap_or(false)
}

/// Starts a program by `posix_spawn`: fast from a parent of any size, since nothing of it is copied.
#[derive(Debug)]
pub struct Spawn {
    program: OsString,
    args: Vec<OsString>,
    env: Vec<(OsString, Option<OsString>)>,
    fds: Vec<(RawFd, RawFd)>,
    group: bool,
}

impl Spawn {
    /// Starts this very executable, even if its file has been replaced or removed.
    #[must_use]
    pub fn this_program() -> Self {
        Self::program("/proc/self/exe")
    }

    /// Starts the executable at this path.
    #[must_use]
    pub fn program(path: impl Into<OsString>) -> Self {
        Self {
            program: path.into(),
            args: Vec::new(),
            env: Vec::new(),
            fds: Vec::new(),
            group: false,
        }
    }

    /// Adds an argument; the first is what the program sees as its own name.
    #[must_use]
    pub fn arg(mut self, arg: impl Into<OsString>) -> Self {
        self.args.push(arg.into());
        self
    }

    /// Sets a variable of the environment, which is otherwise this process's.
    #[must_use]
    pub fn env(mut self, key: impl Into<OsString>, value: impl Into<OsString>) -> Self {
        self.env.push((key.into(), Some(value.into())));
        self
    }

    /// Removes a variable from the environment.
    #[must_use]
    pub fn env_remove(mut self, key: impl Into<OsString>) -> Self {
        self.env.push((key.into(), None));
        self
    }

    /// Lets the program have a descriptor under the same number.
    #[must_use]
    pub fn inherit(self, fd: BorrowedFd<'_>) -> Self {
        let number = fd.as_raw_fd();
        self.map_fd(fd, number)
    }

    /// Lets the program have a descriptor under another number (2 for its stderr). The caller keeps it open until
    /// [`start`](Self::start).
    #[must_use]
    pub fn map_fd(mut self, fd: BorrowedFd<'_>, number: RawFd) -> Self {
        self.fds.push((fd.as_raw_fd(), number));
        self
    }

    /// Puts the program into a process group of its own.
    #[must_use]
    pub fn new_group(mut self) -> Self {
        self.group = true;
        self
    }

    fn environment(&self) -> Vec<CString> {
        let mut env: Vec<(OsString, OsString)> = std::env::vars_os().collect();
        for (key, value) in &self.env {
            env.retain(|(known, _)| known != key);
            if let Some(value) = value {
                env.push((key.clone(), value.clone()));
            }
        }
        let joined = env.into_iter().map(|(key, value)| {
            let mut line = key.into_vec();
            line.push(b'=');
            line.extend(value.into_vec());
            line
        });
        joined.filter_map(|line| CString::new(line).ok()).collect()
    }

    /// Starts the program and returns its process id. Its signal mask is empty.
    ///
    /// # Errors
    ///
    /// When the file is missing or no program, or the system has no room for another process.
    pub fn start(&self) -> io::Result<u32> {
        let c_string = |text: &OsStr| {
            CString::new(text.as_bytes()).map_err(|_| {
                io::Error::new(
                    io::ErrorKind::InvalidInput,
                    "a zero byte in a path or argument",
                )
            })
        };
        let program = c_string(&self.program)?;
        let mut args = Vec::new();
        for arg in &self.args {
            args.push(c_string(arg)?);
        }
        if args.is_empty() {
            args.push(program.clone());
        }
        let env = self.environment();
        let pointers = |strings: &[CString]| {
            let mut all: Vec<*mut libc::c_char> =
                strings.iter().map(|s| s.as_ptr().cast_mut()).collect();
            all.push(std::ptr::null_mut());
            all
        };
        let (argv, envp) = (pointers(&args), pointers(&env));
        let mut actions = Actions::new()?;
        for (from, to) in &self.fds {
            actions.dup2(*from, *to)?;
        }
        let mut attributes = Attributes::new()?;
        attributes.empty_mask(self.group)?;
        let mut pid: libc::pid_t = 0;
        // SAFETY: all strings and arrays are null-terminated and live until after the call.
        let error = unsafe {
            libc::posix_spawn(
                &raw mut pid,
                program.as_ptr(),
                &raw const actions.0,
                &raw const attributes.0,
                argv.as_ptr(),
                envp.as_ptr(),
            )
        };
        check(error)?;
        Ok(pid as u32)
    }
}

fn check(error: libc::c_int) -> io::Result<()> {
    if error == 0 {
        Ok(())
    } else {
        Err(io::Error::from_raw_os_error(error))
    }
}

struct Actions(libc::posix_spawn_file_actions_t);

impl Actions {
    fn new() -> io::Result<Self> {
        let mut actions = MaybeUninit::uninit();
        // SAFETY: initialises the value at the place given.
        check(unsafe { libc::posix_spawn_file_actions_init(actions.as_mut_ptr()) })?;
        // SAFETY: initialised just now.
        Ok(Self(unsafe { actions.assume_init() }))
    }

    fn dup2(&mut self, from: RawFd, to: RawFd) -> io::Result<()> {
        // SAFETY: an initialised list. A descriptor mapped to its own number only loses its close-on-exec flag.
        check(unsafe { libc::posix_spawn_file_actions_adddup2(&raw mut self.0, from, to) })
    }
}

impl Drop for Actions {
    fn drop(&mut self) {
        // SAFETY: initialised in `new`, not used afterwards.
        unsafe { libc::posix_spawn_file_actions_destroy(&raw mut self.0) };
    }
}

struct Attributes(libc::posix_spawnattr_t);

impl Attributes {
    fn new() -> io::Result<Self> {
        let mut attributes = MaybeUninit::uninit();
        // SAFETY: initialises the value at the place given.
        check(unsafe { libc::posix_spawnattr_init(attributes.as_mut_ptr()) })?;
        // SAFETY: initialised just now.
        Ok(Self(unsafe { attributes.assume_init() }))
    }

    fn empty_mask(&mut self, group: bool) -> io::Result<()> {
        let mut mask = MaybeUninit::uninit();
        // SAFETY: initialises the set at the place given.
        unsafe { libc::sigemptyset(mask.as_mut_ptr()) };
        // SAFETY: both values are initialised.
        check(unsafe { libc::posix_spawnattr_setsigmask(&raw mut self.0, mask.as_ptr()) })?;
        let mut flags = libc::POSIX_SPAWN_SETSIGMASK;
        if group {
            flags |= libc::POSIX_SPAWN_SETPGROUP;
            // SAFETY: initialised; 0 asks for a group of the child's own.
            check(unsafe { libc::posix_spawnattr_setpgroup(&raw mut self.0, 0) })?;
        }
        // SAFETY: initialised; the flags name what was set above.
        check(unsafe { libc::posix_spawnattr_setflags(&raw mut self.0, flags as libc::c_short) })
    }
}

impl Drop for Attributes {
    fn drop(&mut self) {
        // SAFETY: initialised in `new`, not used afterwards.
        unsafe { libc::posix_spawnattr_destroy(&raw mut self.0) };
    }
}
