//! Who is running.

/// Returns the id of this process.
#[must_use]
pub fn pid() -> u32 {
    std::process::id()
}

/// Returns the kernel's id of this thread.
#[must_use]
pub fn tid() -> u32 {
    rustix::thread::gettid()
        .as_raw_nonzero()
        .get()
        .unsigned_abs()
}

/// Returns the number of CPUs this process may run on, at least 1.
#[must_use]
pub fn cpus() -> usize {
    std::thread::available_parallelism().map_or(1, std::num::NonZero::get)
}

/// Returns 64 random bits from the kernel.
#[must_use]
pub fn random_u64() -> u64 {
    let mut bytes = [0_u8; 8];
    match rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty()) {
        Ok(8) => u64::from_ne_bytes(bytes),
        // Only an identity is made of it, never a secret.
        _ => super::clock::now_ns() ^ (u64::from(pid()) << 32),
    }
}

/// Ends this process at once by SIGKILL: no destructor, no flush, nothing.
pub fn kill_self() -> ! {
    loop {
        // A process may always signal itself; the loop is for the type.
        let _ =
            rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
    }
}

/// Stops this process by SIGSTOP; returns when it is continued.
pub fn stop_self() {
    let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::STOP);
}
