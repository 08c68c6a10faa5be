//! Locks as the machine gives them: a bare futex lock, and the C library's mutexes.
#![expect(
    unsafe_code,
    reason = "pthread mutexes and raw futex words in shared memory"
)]

use std::io;
use std::mem::MaybeUninit;
use std::ptr;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use crate::sys::Map;

/// Anything that lets one at a time in.
pub trait Locked {
    /// Runs `inside` while the lock is held.
    fn locked<R>(&self, inside: impl FnOnce() -> R) -> R;
}

/// A C library mutex in memory shared with children.
#[derive(Debug)]
pub struct Pthread {
    map: Map,
}

impl Pthread {
    /// Makes a mutex: for this process or shared, robust or not.
    ///
    /// # Errors
    /// The C library's.
    pub fn new(shared: bool, robust: bool) -> io::Result<Self> {
        let made = Self {
            map: Map::new(4096)?,
        };
        init(made.address(), shared, robust)?;
        Ok(made)
    }

    fn address(&self) -> *mut libc::pthread_mutex_t {
        self.map
            .at(0, size_of::<libc::pthread_mutex_t>())
            .as_ptr()
            .cast()
    }
}

impl Locked for Pthread {
    fn locked<R>(&self, inside: impl FnOnce() -> R) -> R {
        // SAFETY: the mutex was initialised in `new` and stays where it is.
        let got = unsafe { libc::pthread_mutex_lock(self.address()) };
        assert_eq!(got, 0, "pthread_mutex_lock");
        let result = inside();
        // SAFETY: as above, and this thread holds it.
        unsafe { libc::pthread_mutex_unlock(self.address()) };
        result
    }
}

/// Many shared, robust C library mutexes side by side.
#[derive(Debug)]
pub struct Pthreads {
    map: Map,
    count: usize,
}

impl Pthreads {
    /// Makes `count` of them.
    ///
    /// # Errors
    /// The C library's.
    pub fn new(count: usize) -> io::Result<Self> {
        let each = size_of::<libc::pthread_mutex_t>();
        let map = Map::new(count * each)?;
        for index in 0..count {
            init(map.at(index * each, each).as_ptr().cast(), true, true)?;
        }
        Ok(Self { map, count })
    }

    /// Takes and releases each once.
    pub fn use_all(&self) {
        let each = size_of::<libc::pthread_mutex_t>();
        for index in 0..self.count {
            let mutex = self.map.at(index * each, each).as_ptr().cast();
            // SAFETY: initialised in `new`, inside the mapping.
            unsafe { libc::pthread_mutex_lock(mutex) };
            // SAFETY: as above, and this thread holds it.
            unsafe { libc::pthread_mutex_unlock(mutex) };
        }
    }
}

fn init(mutex: *mut libc::pthread_mutex_t, shared: bool, robust: bool) -> io::Result<()> {
    let mut attributes = MaybeUninit::uninit();
    // SAFETY: initialises the attributes it is given room for.
    unsafe { libc::pthread_mutexattr_init(attributes.as_mut_ptr()) };
    if shared {
        // SAFETY: the attributes were initialised above.
        unsafe {
            libc::pthread_mutexattr_setpshared(
                attributes.as_mut_ptr(),
                libc::PTHREAD_PROCESS_SHARED,
            )
        };
    }
    if robust {
        // SAFETY: the attributes were initialised above.
        unsafe {
            libc::pthread_mutexattr_setrobust(attributes.as_mut_ptr(), libc::PTHREAD_MUTEX_ROBUST)
        };
    }
    // SAFETY: `mutex` has room for a mutex and nobody uses it yet; the attributes were initialised above.
    match unsafe { libc::pthread_mutex_init(mutex, attributes.as_ptr()) } {
        0 => Ok(()),
        error => Err(io::Error::from_raw_os_error(error)),
    }
}

/// The three-state futex lock: 0 free, 1 held, 2 held and somebody may sleep. Nobody knows who holds it.
#[derive(Debug)]
pub struct Futex {
    map: Map,
}

impl Futex {
    /// Makes one in memory shared with children.
    ///
    /// # Errors
    /// The kernel's.
    pub fn new() -> io::Result<Self> {
        Ok(Self {
            map: Map::new(4096)?,
        })
    }

    fn word(&self) -> &AtomicU32 {
        &self.map.line(0).word
    }

    #[cold]
    fn lock_contended(&self) {
        let word = self.word();
        for _ in 0..100 {
            if word.load(Ordering::Relaxed) == 0
                && word
                    .compare_exchange(0, 1, Ordering::Acquire, Ordering::Relaxed)
                    .is_ok()
            {
                return;
            }
            std::hint::spin_loop();
        }
        while word.swap(2, Ordering::Acquire) != 0 {
            // SAFETY: the word is borrowed for the call; no time-out.
            unsafe {
                libc::syscall(
                    libc::SYS_futex,
                    word.as_ptr(),
                    libc::FUTEX_WAIT,
                    2,
                    ptr::null::<libc::timespec>(),
                )
            };
        }
    }
}

impl Locked for Futex {
    fn locked<R>(&self, inside: impl FnOnce() -> R) -> R {
        let word = self.word();
        if word
            .compare_exchange(0, 1, Ordering::Acquire, Ordering::Relaxed)
            .is_err()
        {
            self.lock_contended();
        }
        let result = inside();
        if word.swap(0, Ordering::Release) == 2 {
            // SAFETY: the word is borrowed for the call, which does not write to it.
            unsafe { libc::syscall(libc::SYS_futex, word.as_ptr(), libc::FUTEX_WAKE, 1) };
        }
        result
    }
}

impl Locked for std::sync::Mutex<()> {
    fn locked<R>(&self, inside: impl FnOnce() -> R) -> R {
        let _guard = self.lock();
        inside()
    }
}

impl Locked for parking_lot::Mutex<()> {
    fn locked<R>(&self, inside: impl FnOnce() -> R) -> R {
        let _guard = self.lock();
        inside()
    }
}

/// A number in memory shared with children. Its increment is for the holder of a lock: load and store, so that a lock that lets two in is found out.
#[derive(Debug)]
pub struct Guarded {
    map: Map,
}

// SAFETY: everything in it is an atomic.
unsafe impl Sync for Guarded {}

impl Guarded {
    /// Makes one, 0, in memory shared with children.
    ///
    /// # Errors
    /// The kernel's.
    pub fn new() -> io::Result<Self> {
        Ok(Self {
            map: Map::new(4096)?,
        })
    }

    fn number(&self) -> &AtomicU64 {
        &self.map.line(0).wide
    }

    /// Adds 1, in two steps.
    pub fn add_one(&self) {
        let now = self.number().load(Ordering::Relaxed);
        self.number().store(now + 1, Ordering::Relaxed);
    }

    /// Replaces the number.
    pub fn set(&self, value: u64) {
        self.number().store(value, Ordering::SeqCst);
    }

    /// Returns the number.
    pub fn get(&self) -> u64 {
        self.number().load(Ordering::SeqCst)
    }
}
