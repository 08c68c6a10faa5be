//! Signals by name.

use std::io;

use rustix::process::Signal;

/// Ask to end.
pub const SIGTERM: i32 = libc::SIGTERM;
/// End at once.
pub const SIGKILL: i32 = libc::SIGKILL;
/// Ctrl-C.
pub const SIGINT: i32 = libc::SIGINT;
/// Abort.
pub const SIGABRT: i32 = libc::SIGABRT;

/// Memory that is not there.
pub const SIGSEGV: i32 = libc::SIGSEGV;
/// Memory that cannot be had.
pub const SIGBUS: i32 = libc::SIGBUS;
/// Arithmetic without a result.
pub const SIGFPE: i32 = libc::SIGFPE;
/// An instruction that there is not.
pub const SIGILL: i32 = libc::SIGILL;

/// The first without a meaning of its own.
pub const SIGUSR1: i32 = libc::SIGUSR1;
/// The second.
pub const SIGUSR2: i32 = libc::SIGUSR2;
/// Stops the process until SIGCONT; cannot be refused.
pub const SIGSTOP: i32 = libc::SIGSTOP;
/// The terminal is gone.
pub const SIGHUP: i32 = libc::SIGHUP;

const NAMES: [(i32, &str); 31] = [
    (libc::SIGHUP, "SIGHUP"),
    (libc::SIGINT, "SIGINT"),
    (libc::SIGQUIT, "SIGQUIT"),
    (libc::SIGILL, "SIGILL"),
    (libc::SIGTRAP, "SIGTRAP"),
    (libc::SIGABRT, "SIGABRT"),
    (libc::SIGBUS, "SIGBUS"),
    (libc::SIGFPE, "SIGFPE"),
    (libc::SIGKILL, "SIGKILL"),
    (libc::SIGUSR1, "SIGUSR1"),
    (libc::SIGSEGV, "SIGSEGV"),
    (libc::SIGUSR2, "SIGUSR2"),
    (libc::SIGPIPE, "SIGPIPE"),
    (libc::SIGALRM, "SIGALRM"),
    (libc::SIGTERM, "SIGTERM"),
    (libc::SIGSTKFLT, "SIGSTKFLT"),
    (libc::SIGCHLD, "SIGCHLD"),
    (libc::SIGCONT, "SIGCONT"),
    (libc::SIGSTOP, "SIGSTOP"),
    (libc::SIGTSTP, "SIGTSTP"),
    (libc::SIGTTIN, "SIGTTIN"),
    (libc::SIGTTOU, "SIGTTOU"),
    (libc::SIGURG, "SIGURG"),
    (libc::SIGXCPU, "SIGXCPU"),
    (libc::SIGXFSZ, "SIGXFSZ"),
    (libc::SIGVTALRM, "SIGVTALRM"),
    (libc::SIGPROF, "SIGPROF"),
    (libc::SIGWINCH, "SIGWINCH"),
    (libc::SIGIO, "SIGIO"),
    (libc::SIGPWR, "SIGPWR"),
    (libc::SIGSYS, "SIGSYS"),
];

/// Keeps all signals from the calling thread, for good: others of the process get them.
#[expect(unsafe_code, reason = "pthread_sigmask(3)")]
pub fn block_all() {
    let mut all = std::mem::MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: initialises the set at the place given.
    unsafe { libc::sigfillset(all.as_mut_ptr()) };
    // SAFETY: an initialised set; the old mask is not asked for.
    unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, all.as_ptr(), std::ptr::null_mut()) };
}

/// Returns the name of a signal: `"SIGKILL"`; one without a name is `"signal 40"`.
#[must_use]
pub fn name(signal: i32) -> std::borrow::Cow<'static, str> {
    match NAMES.iter().find(|(number, _)| *number == signal) {
        Some((_, name)) => (*name).into(),
        None => format!("signal {signal}").into(),
    }
}

/// Returns the number of a signal's name, with or without `SIG`.
#[must_use]
pub fn parse(name: &str) -> Option<i32> {
    let bare = name.strip_prefix("SIG").unwrap_or(name);
    NAMES
        .iter()
        .find(|(_, known)| known.strip_prefix("SIG") == Some(bare))
        .map(|(number, _)| *number)
}

pub(crate) fn from_raw(signal: i32) -> io::Result<Signal> {
    Signal::from_named_raw(signal).ok_or_else(|| {
        io::Error::new(
            io::ErrorKind::InvalidInput,
            format!("there is no signal {signal}"),
        )
    })
}

/// Ignores a signal in this process (inherited by forked children, kept over exec).
#[expect(unsafe_code, reason = "signal(2)")]
pub fn ignore(signal: i32) {
    // SAFETY: SIG_IGN installs no handler.
    let _ = unsafe { libc::signal(signal, libc::SIG_IGN) };
}

/// Gives a signal its default effect back.
#[expect(unsafe_code, reason = "signal(2)")]
pub fn restore(signal: i32) {
    // SAFETY: SIG_DFL installs no handler.
    let _ = unsafe { libc::signal(signal, libc::SIG_DFL) };
}
