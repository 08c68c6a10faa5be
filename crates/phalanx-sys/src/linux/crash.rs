//! Fatal signals: who wants to know where they struck is called, once, and then the signal takes its course.
//!
//! What was there before (the system's default, the standard library's look for an overflown stack, the program's own
//! handler) is put back before the handler returns, so that it meets the same signal: a fault happens again, and what
//! somebody sent is sent again. The process ends as it would have.
#![expect(unsafe_code, reason = "sigaction(2), sigaltstack(2)")]

use std::ffi::{c_int, c_void};
use std::mem::MaybeUninit;
use std::ptr;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

const SIGNALS: [c_int; 5] = [
    libc::SIGSEGV,
    libc::SIGBUS,
    libc::SIGILL,
    libc::SIGFPE,
    libc::SIGABRT,
];

/// Bytes for a handler that walks the stack.
const STACK: usize = 64 << 10;

type Hook = fn(i32, usize);

static HOOK: OnceLock<Hook> = OnceLock::new();
static BEFORE: [OnceLock<libc::sigaction>; SIGNALS.len()] =
    [const { OnceLock::new() }; SIGNALS.len()];
static STRUCK: AtomicBool = AtomicBool::new(false);

/// Has `hook` called when SIGSEGV, SIGBUS, SIGILL, SIGFPE or SIGABRT strikes for the first time: with the signal, and the
/// address of the instruction. From the second call on it does nothing. Children that are forked inherit it.
///
/// The hook runs in a signal handler on the thread that was struck: it must not allocate or take a lock.
pub fn on_fatal_signal(hook: fn(i32, usize)) {
    if HOOK.set(hook).is_err() {
        return;
    }
    for (signal, before) in SIGNALS.iter().zip(&BEFORE) {
        let mut old = MaybeUninit::<libc::sigaction>::uninit();
        // SAFETY: asks for what is there, into a place for it.
        let asked = unsafe { libc::sigaction(*signal, ptr::null(), old.as_mut_ptr()) };
        if asked != 0 {
            continue;
        }
        // SAFETY: written by the call that succeeded.
        let old = unsafe { old.assume_init() };
        if old.sa_sigaction == libc::SIG_IGN || before.set(old).is_err() {
            continue;
        }
        let mut new = old;
        new.sa_sigaction = struck as *const () as usize;
        new.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
        // SAFETY: a whole action; the handler has the signature that the flags say, and does what a handler may.
        unsafe { libc::sigaction(*signal, &raw const new, ptr::null_mut()) };
    }
}

/// Gives the calling thread a stack for handlers that is large enough for one that walks the thread's. It is kept for good:
/// call it in threads that live as long as the process.
pub fn roomy_stack() {
    // Not zeroed: pages that nobody crashes on are never touched.
    let room = Box::leak(Box::<[u8]>::new_uninit_slice(STACK));
    let stack = libc::stack_t {
        ss_sp: room.as_mut_ptr().cast(),
        ss_flags: 0,
        ss_size: STACK,
    };
    // SAFETY: memory that is nobody else's and is never freed; refused by the kernel if the thread is on such a stack now.
    unsafe { libc::sigaltstack(&raw const stack, ptr::null_mut()) };
}

extern "C" fn struck(signal: c_int, info: *mut libc::siginfo_t, context: *mut c_void) {
    // SAFETY: the kernel passes a valid description.
    let was_sent = unsafe { (*info).si_code } <= 0;
    let at = SIGNALS.iter().position(|one| *one == signal);
    let before = at.and_then(|at| BEFORE[at].get());
    // A handler may let the process live that was only sent a signal.
    let is_end = !was_sent || before.is_none_or(|before| before.sa_sigaction == libc::SIG_DFL);
    if is_end
        && !STRUCK.swap(true, Ordering::Relaxed)
        && let Some(hook) = HOOK.get()
    {
        hook(signal, instruction(context));
    }
    if let Some(before) = before {
        // SAFETY: what was there before; sigaction is safe in a handler.
        unsafe { libc::sigaction(signal, before, ptr::null_mut()) };
    }
    if was_sent {
        // Sent by somebody: it would not come again by itself. It waits until this handler has returned.
        // SAFETY: raise is safe in a handler.
        unsafe { libc::raise(signal) };
    }
}

/// Returns the address of the instruction that was struck.
fn instruction(context: *mut c_void) -> usize {
    let context = context.cast::<libc::ucontext_t>();
    // SAFETY: the kernel passes a valid context to a handler with SA_SIGINFO.
    let machine = unsafe { &(*context).uc_mcontext };
    #[cfg(target_arch = "x86_64")]
    let at = machine.gregs[libc::REG_RIP as usize] as usize;
    #[cfg(target_arch = "aarch64")]
    let at = machine.pc as usize;
    at
}
