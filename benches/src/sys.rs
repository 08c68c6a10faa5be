//! The few system calls the limits are made of, each as thin as it can be.
#![expect(
    unsafe_code,
    reason = "the limits are raw system calls and raw shared memory: that is what makes them limits"
)]

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// One cache line of shared memory: a value, and whether somebody sleeps until it changes.
#[repr(C, align(64))]
#[derive(Debug)]
pub struct Line {
    /// What is published.
    pub word: AtomicU32,
    /// 1 while somebody sleeps, or is about to; the word they sleep on.
    asleep: AtomicU32,
    /// Room for a result.
    pub wide: AtomicU64,
}

impl Line {
    /// Publishes `value` and wakes the one who sleeps for it.
    pub fn publish(&self, value: u32) {
        // SeqCst, with the same in `wait_until`: either the sleeper sees the value, or we see the sleeper.
        self.word.store(value, Ordering::SeqCst);
        self.wake();
    }

    /// Returns `true` if somebody sleeps, or is about to.
    pub fn has_sleeper(&self) -> bool {
        self.asleep.load(Ordering::SeqCst) != 0
    }

    /// Wakes the sleeper, if there is one.
    pub fn wake(&self) {
        if self.has_sleeper() && self.asleep.swap(0, Ordering::SeqCst) != 0 {
            futex_wake(&self.asleep);
        }
    }

    /// Blocks until `ready` holds: looks for at most `spin`, then sleeps until woken through this line.
    pub fn wait_until(&self, spin: Duration, mut ready: impl FnMut() -> bool) {
        loop {
            if ready() {
                return;
            }
            if !spin.is_zero() {
                let began = Instant::now();
                while began.elapsed() < spin {
                    for _ in 0..8 {
                        if ready() {
                            return;
                        }
                        std::hint::spin_loop();
                    }
                }
            }
            self.asleep.store(1, Ordering::SeqCst);
            if ready() {
                self.asleep.store(0, Ordering::SeqCst);
                return;
            }
            futex_wait(&self.asleep, 1);
        }
    }

    /// Blocks until the word is `value`.
    pub fn wait_for(&self, value: u32, spin: Duration) {
        self.wait_until(spin, || self.word.load(Ordering::SeqCst) == value);
    }
}

fn futex_wait(word: &AtomicU32, expected: u32) {
    // SAFETY: the word is borrowed for the call; a null time-out means none. Every outcome (woken, changed,
    // interrupted) is answered by the caller's loop.
    unsafe {
        libc::syscall(
            libc::SYS_futex,
            word.as_ptr(),
            libc::FUTEX_WAIT,
            expected,
            ptr::null::<libc::timespec>(),
        )
    };
}

fn futex_wake(word: &AtomicU32) {
    // SAFETY: the word is borrowed for the call, which does not write to it.
    unsafe { libc::syscall(libc::SYS_futex, word.as_ptr(), libc::FUTEX_WAKE, 1) };
}

/// Memory shared with the children forked after it was made; begins as zeros.
#[derive(Debug)]
pub struct Map {
    base: NonNull<u8>,
    len: usize,
}

// SAFETY: the mapping is plain memory; what is in it is reached through atomics or under a ring's protocol.
unsafe impl Send for Map {}

impl Map {
    /// Maps `len` bytes, all pages present.
    ///
    /// # Errors
    /// The kernel's, if it has no memory to give.
    pub fn new(len: usize) -> io::Result<Self> {
        // SAFETY: a new anonymous mapping at an address the kernel chooses touches nothing that exists.
        let base = unsafe {
            libc::mmap(
                ptr::null_mut(),
                len,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED | libc::MAP_ANONYMOUS | libc::MAP_POPULATE,
                -1,
                0,
            )
        };
        if base == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let base = NonNull::new(base.cast()).ok_or_else(|| io::Error::other("mapped at zero"))?;
        Ok(Self { base, len })
    }

    /// Returns the address of byte `offset`.
    ///
    /// # Panics
    /// If `len` bytes from there are not inside the mapping.
    pub fn at(&self, offset: usize, len: usize) -> NonNull<u8> {
        assert!(offset.checked_add(len).is_some_and(|end| end <= self.len));
        // SAFETY: the offset was just checked to lie inside the mapping.
        unsafe { self.base.add(offset) }
    }

    /// Copies `bytes` to the beginning.
    pub fn fill(&mut self, bytes: &[u8]) {
        let to = self.at(0, bytes.len());
        // SAFETY: the mapping has room (asserted by `at`), and `bytes` cannot lie in it: nobody borrows from it.
        unsafe { ptr::copy_nonoverlapping(bytes.as_ptr(), to.as_ptr(), bytes.len()) };
    }

    /// Reads one word of each cache line of the first `len` bytes.
    pub fn read(&mut self, len: usize) -> u64 {
        let from = self.at(0, len);
        // SAFETY: inside the mapping (asserted by `at`), aligned to a page, and borrowed for us alone.
        unsafe { crate::ring::read_lines(from.as_ptr(), len) }
    }

    /// Returns the cache line `index`.
    pub fn line(&self, index: usize) -> &Line {
        let at = self.at(index * size_of::<Line>(), size_of::<Line>());
        // SAFETY: inside the mapping, which lives as long as `self`; pages are aligned to more than a line, every bit
        // pattern is a valid `Line`, and it is made of atomics only.
        unsafe { at.cast::<Line>().as_ref() }
    }
}

impl Drop for Map {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours and every borrow of it has ended.
        unsafe { libc::munmap(self.base.as_ptr().cast(), self.len) };
    }
}

/// Asks the kernel to end this process when the thread that started it is gone; ends it at once if `parent` already is.
pub fn end_with_parent(parent: u32) {
    // SAFETY: sets a flag of this process.
    unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
    if std::os::unix::process::parent_id() != parent {
        exit_now(1);
    }
}

/// Puts this process and its future children under the kernel's round-robin policy: they run before everything ordinary.
///
/// # Errors
/// The kernel's, mostly that it is not allowed.
pub fn go_first() -> io::Result<()> {
    let priority = libc::sched_param { sched_priority: 1 };
    // SAFETY: `priority` is borrowed for the call; 0 names this process.
    match unsafe { libc::sched_setscheduler(0, libc::SCHED_RR, &raw const priority) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Ends this process without running anything that its parent registered.
pub fn exit_now(code: i32) -> ! {
    // SAFETY: `_exit` has no preconditions.
    unsafe { libc::_exit(code) }
}

/// A child made by `fork()`; killed and reaped when dropped.
#[derive(Debug)]
pub struct Forked {
    pid: libc::pid_t,
}

impl Forked {
    /// Forks and runs `work` in the child, which holds only descriptors 0 to 2 and `keep`.
    ///
    /// # Errors
    /// The kernel's.
    pub fn start(keep: &[&OwnedFd], work: impl FnOnce()) -> io::Result<Self> {
        let parent = std::process::id();
        // SAFETY: the child runs `work`, which uses shared memory, system calls and at most the allocator (whose locks
        // libc resets in the child), and never returns from here.
        match unsafe { libc::fork() } {
            -1 => Err(io::Error::last_os_error()),
            0 => {
                end_with_parent(parent);
                close_all_but(keep);
                let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work));
                exit_now(if outcome.is_ok() { 0 } else { 101 })
            }
            pid => Ok(Self { pid }),
        }
    }

    /// Returns the child's process id.
    pub fn pid(&self) -> u32 {
        self.pid.unsigned_abs()
    }

    /// Blocks until the child has ended.
    ///
    /// # Errors
    /// If it did not end with code 0.
    pub fn join(self) -> io::Result<()> {
        let pid = self.pid;
        std::mem::forget(self);
        reap(pid)
    }
}

impl Drop for Forked {
    fn drop(&mut self) {
        // SAFETY: the child is not reaped yet, so the id is still its.
        unsafe { libc::kill(self.pid, libc::SIGKILL) };
        let _ = reap(self.pid);
    }
}

/// Blocks until the child `pid` has ended.
///
/// # Errors
/// If it did not end with code 0.
pub fn reap(pid: i32) -> io::Result<()> {
    let mut status = 0;
    loop {
        // SAFETY: `status` is borrowed for the call.
        let done = unsafe { libc::waitpid(pid, &raw mut status, 0) };
        if done == pid {
            break;
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
    if status == 0 {
        Ok(())
    } else {
        Err(io::Error::other(format!(
            "child {pid} ended with wait status {status:#x}"
        )))
    }
}

/// Closes what a fork inherited: a peer sees the end of its connection only once nobody else holds it.
fn close_all_but(keep: &[&OwnedFd]) {
    let mut kept: Vec<u32> = keep
        .iter()
        .map(|fd| fd.as_raw_fd().unsigned_abs())
        .collect();
    kept.sort_unstable();
    let mut first = 3;
    for fd in kept.into_iter().chain([u32::MAX]) {
        if fd > first {
            // SAFETY: nothing in this child uses the descriptors closed here.
            unsafe { libc::syscall(libc::SYS_close_range, first, fd - 1, 0) };
        }
        first = fd.wrapping_add(1);
    }
}

/// Makes a pipe; both ends close on exec.
///
/// # Errors
/// The kernel's.
pub fn pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    let mut ends = [0; 2];
    // SAFETY: `ends` has room for the two descriptors.
    if unsafe { libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: just opened, owned by nobody else.
    let reader = unsafe { OwnedFd::from_raw_fd(ends[0]) };
    // SAFETY: just opened, owned by nobody else.
    let writer = unsafe { OwnedFd::from_raw_fd(ends[1]) };
    Ok((reader, writer))
}

/// Reads exactly one u64, or `None` at the end of the stream.
///
/// # Errors
/// The kernel's.
pub fn read_u64(fd: &OwnedFd) -> io::Result<Option<u64>> {
    let mut bytes = [0; 8];
    // SAFETY: `bytes` has room for eight bytes.
    match unsafe { libc::read(fd.as_raw_fd(), bytes.as_mut_ptr().cast(), 8) } {
        8 => Ok(Some(u64::from_ne_bytes(bytes))),
        0 => Ok(None),
        n if n < 0 => Err(io::Error::last_os_error()),
        _ => Err(io::Error::other("half a number arrived")),
    }
}

/// Writes one u64; a number is never split in a pipe.
///
/// # Errors
/// The kernel's.
pub fn write_u64(fd: &OwnedFd, value: u64) -> io::Result<()> {
    let bytes = value.to_ne_bytes();
    // SAFETY: `bytes` holds eight bytes.
    if unsafe { libc::write(fd.as_raw_fd(), bytes.as_ptr().cast(), 8) } == 8 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Reads until `bytes` is full; `false` at the end of the stream.
///
/// # Errors
/// The kernel's.
pub fn read_exact(fd: &OwnedFd, bytes: &mut [u8]) -> io::Result<bool> {
    let mut done = 0;
    while done < bytes.len() {
        let rest = &mut bytes[done..];
        // SAFETY: `rest` has room for that many bytes.
        match unsafe { libc::read(fd.as_raw_fd(), rest.as_mut_ptr().cast(), rest.len()) } {
            0 => return Ok(false),
            n if n < 0 => return Err(io::Error::last_os_error()),
            n => done += n.unsigned_abs(),
        }
    }
    Ok(true)
}

/// Writes all of `bytes`.
///
/// # Errors
/// The kernel's.
pub fn write_all(fd: &OwnedFd, bytes: &[u8]) -> io::Result<()> {
    let mut done = 0;
    while done < bytes.len() {
        let rest = &bytes[done..];
        // SAFETY: `rest` holds that many bytes.
        match unsafe { libc::write(fd.as_raw_fd(), rest.as_ptr().cast(), rest.len()) } {
            n if n < 0 => return Err(io::Error::last_os_error()),
            n => done += n.unsigned_abs(),
        }
    }
    Ok(())
}

/// Makes the kernel reap this process's children by itself.
pub fn never_reap() {
    // SAFETY: replaces a disposition; no handler is involved.
    unsafe { libc::signal(libc::SIGCHLD, libc::SIG_IGN) };
}

/// Forks without any of libc's preparations, for a single-threaded process; `flags` may name another parent.
///
/// # Errors
/// The kernel's.
///
/// # Safety
/// This process has one thread; the child ends by [`exit_now`] and uses only shared memory and system calls.
pub unsafe fn bare_fork(flags: i32) -> io::Result<i32> {
    let flags = i64::from(flags | libc::SIGCHLD);
    // SAFETY: no new stack, no ids to store: like fork(). The rest is the caller's promise.
    let pid = unsafe { libc::syscall(libc::SYS_clone, flags, 0, 0, 0, 0) };
    if pid < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(i32::try_from(pid).expect("a process id fits"))
}

/// Starts this executable again with `posix_spawn`; `environment` is all it gets, `output` becomes its descriptor 3.
///
/// # Errors
/// The kernel's.
pub fn spawn_self(environment: &[&std::ffi::CStr], output: &OwnedFd) -> io::Result<i32> {
    let path = c"/proc/self/exe";
    let argv = [path.as_ptr().cast_mut(), ptr::null_mut()];
    let mut envp: Vec<*mut libc::c_char> =
        environment.iter().map(|e| e.as_ptr().cast_mut()).collect();
    envp.push(ptr::null_mut());
    let mut actions = std::mem::MaybeUninit::uninit();
    // SAFETY: initialises the list it is given room for.
    unsafe { libc::posix_spawn_file_actions_init(actions.as_mut_ptr()) };
    // SAFETY: the list was initialised above.
    unsafe {
        libc::posix_spawn_file_actions_adddup2(actions.as_mut_ptr(), output.as_raw_fd(), 3);
    };
    let mut pid = 0;
    // SAFETY: both lists end with null, and every string in them outlives the call; no attributes.
    let outcome = unsafe {
        libc::posix_spawn(
            &raw mut pid,
            path.as_ptr(),
            actions.as_ptr(),
            ptr::null(),
            argv.as_ptr(),
            envp.as_ptr(),
        )
    };
    // SAFETY: initialised above, not used again.
    unsafe { libc::posix_spawn_file_actions_destroy(actions.as_mut_ptr()) };
    if outcome == 0 {
        Ok(pid)
    } else {
        Err(io::Error::from_raw_os_error(outcome))
    }
}

/// Takes over descriptor 3, where [`spawn_self`] put the result's pipe.
pub fn result_pipe() -> OwnedFd {
    // SAFETY: called once, in a helper that `spawn_self` started with this descriptor open.
    unsafe { OwnedFd::from_raw_fd(3) }
}

/// Memory of the parent that is there for one measurement: `len` bytes in ordinary 4 KiB pages, all of them written.
#[derive(Debug)]
pub struct Ballast {
    map: Map,
}

impl Ballast {
    /// Maps and writes it.
    ///
    /// # Errors
    /// The kernel's.
    pub fn new(len: usize) -> io::Result<Self> {
        // SAFETY: a new anonymous mapping at an address the kernel chooses touches nothing that exists.
        let base = unsafe {
            libc::mmap(
                ptr::null_mut(),
                len,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
                -1,
                0,
            )
        };
        if base == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let base = NonNull::new(base.cast()).ok_or_else(|| io::Error::other("mapped at zero"))?;
        let map = Map { base, len };
        // SAFETY: advice on our own mapping.
        unsafe { libc::madvise(base.as_ptr().cast(), len, libc::MADV_NOHUGEPAGE) };
        for page in (0..len).step_by(4096) {
            // SAFETY: inside our own mapping, which nobody else knows.
            unsafe { map.at(page, 1).write_volatile(1) };
        }
        Ok(Self { map })
    }

    /// Returns how many bytes there are.
    pub fn bytes(&self) -> usize {
        self.map.len
    }
}

static WATCHED: AtomicU64 = AtomicU64::new(0);
static WATCHED_LEN: AtomicU64 = AtomicU64::new(0);

/// Ends the program with a message if `seconds` pass before the next call; 0 stops the watch. Helpers end with it.
pub fn watch(name: &'static str, seconds: u32) {
    extern "C" fn expired(_: libc::c_int) {
        let text = b"\nhangs, given up: ";
        // SAFETY: `write` may be called in a handler; the text is static.
        unsafe { libc::write(2, text.as_ptr().cast(), text.len()) };
        let at = WATCHED.load(Ordering::Relaxed) as *const libc::c_void;
        let len = usize::try_from(WATCHED_LEN.load(Ordering::Relaxed)).unwrap_or(0);
        // SAFETY: address and length of a static string.
        unsafe { libc::write(2, at, len) };
        // SAFETY: as above.
        unsafe { libc::write(2, b"\n".as_ptr().cast(), 1) };
        exit_now(3);
    }
    WATCHED_LEN.store(0, Ordering::Relaxed);
    WATCHED.store(name.as_ptr() as u64, Ordering::Relaxed);
    WATCHED_LEN.store(name.len() as u64, Ordering::Relaxed);
    let handler: extern "C" fn(libc::c_int) = expired;
    // SAFETY: the handler only writes and exits.
    unsafe { libc::signal(libc::SIGALRM, handler as libc::sighandler_t) };
    // SAFETY: sets this process's alarm clock.
    unsafe { libc::alarm(seconds) };
}
