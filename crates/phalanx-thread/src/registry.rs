//! Which threads there are.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use phalanx_prim::global::{AtomicU64, Ordering};

/// What is known of a thread.
#[derive(Debug)]
pub(crate) struct Entry {
    number: u64,
    name: Mutex<String>,
    native_id: u32,
    daemon: bool,
    main: bool,
}

/// A thread that runs, or the calling one.
#[derive(Clone, Debug)]
pub struct ThreadInfo(Arc<Entry>);

impl PartialEq for ThreadInfo {
    fn eq(&self, other: &Self) -> bool {
        self.0.number == other.0.number
    }
}

impl Eq for ThreadInfo {}

impl ThreadInfo {
    /// Returns its name: `MainThread`, `Thread-1`, …, `Dummy-1`, … for threads that others started.
    #[must_use]
    pub fn name(&self) -> String {
        lock(&self.0.name).clone()
    }

    /// Gives it another name.
    pub fn set_name(&self, name: &str) {
        name.clone_into(&mut lock(&self.0.name));
    }

    /// Returns its number in this process, which no other thread of it ever has.
    #[must_use]
    pub fn ident(&self) -> u64 {
        self.0.number
    }

    /// Returns the kernel's id of it.
    #[must_use]
    pub fn native_id(&self) -> u32 {
        self.0.native_id
    }

    /// Returns `true` if [`join_all`](crate::join_all) does not wait for it.
    #[must_use]
    pub fn is_daemon(&self) -> bool {
        self.0.daemon
    }

    /// Returns `true` for the main thread.
    #[must_use]
    pub fn is_main(&self) -> bool {
        self.0.main
    }
}

#[derive(Default)]
struct Registry {
    // Whose threads these are: a forked child has none of its parent's.
    pid: u32,
    running: BTreeMap<u64, Arc<Entry>>,
}

static REGISTRY: Mutex<Registry> = Mutex::new(Registry {
    pid: 0,
    running: BTreeMap::new(),
});
static NEXT: AtomicU64 = AtomicU64::new(1);
static NAMED: AtomicU64 = AtomicU64::new(1);
static DUMMIES: AtomicU64 = AtomicU64::new(1);

thread_local! {
    static CURRENT: RefCell<Option<(u32, Leaving)>> = const { RefCell::new(None) };
}

/// Takes the thread out of the registry when it ends.
struct Leaving(Arc<Entry>);

impl Drop for Leaving {
    fn drop(&mut self) {
        leave(self.0.number);
    }
}

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Keeps the registry whole while the process forks.
pub(crate) fn freeze() -> impl Sized + 'static {
    lock(&REGISTRY)
}

fn registry() -> MutexGuard<'static, Registry> {
    crate::frozen::install();
    let mut registry = lock(&REGISTRY);
    let pid = phalanx_sys::ids::pid();
    if registry.pid != pid {
        registry.pid = pid;
        registry.running.clear();
    }
    registry
}

pub(crate) fn next_name() -> String {
    format!("Thread-{}", NAMED.fetch_add(1, Ordering::Relaxed))
}

/// Enters the calling thread. Its end takes it out again, at the latest.
pub(crate) fn enter(name: String, daemon: bool, main: bool) -> Arc<Entry> {
    let entry = Arc::new(Entry {
        number: NEXT.fetch_add(1, Ordering::Relaxed),
        name: Mutex::new(name),
        native_id: phalanx_sys::ids::tid(),
        daemon,
        main,
    });
    registry().running.insert(entry.number, Arc::clone(&entry));
    let leaving = Leaving(Arc::clone(&entry));
    // Past the thread's end nobody asks for its name any more.
    let before =
        CURRENT.try_with(|current| current.replace(Some((phalanx_sys::ids::pid(), leaving))));
    drop(before);
    entry
}

pub(crate) fn leave(number: u64) {
    registry().running.remove(&number);
}

/// Returns the calling thread. One that neither this crate nor the program's start made gets a `Dummy` name.
///
/// ```
/// use phalanx_thread::{Builder, current};
///
/// let thread = Builder::new().name("reader").spawn(|| current().name())?;
/// assert_eq!(thread.join()?, "reader");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[must_use]
pub fn current() -> ThreadInfo {
    let pid = phalanx_sys::ids::pid();
    let known = CURRENT.try_with(|current| {
        let current = current.borrow();
        current
            .as_ref()
            .filter(|(of, _)| *of == pid)
            .map(|(_, leaving)| Arc::clone(&leaving.0))
    });
    if let Ok(Some(entry)) = known {
        return ThreadInfo(entry);
    }
    // The kernel gives a process's first thread the process's id; in a forked child that is the one that forked.
    let main = phalanx_sys::ids::tid() == pid;
    let name = if main {
        "MainThread".to_owned()
    } else {
        let own = std::thread::current().name().map(str::to_owned);
        own.unwrap_or_else(|| format!("Dummy-{}", DUMMIES.fetch_add(1, Ordering::Relaxed)))
    };
    ThreadInfo(enter(name, !main, main))
}

/// Returns the main thread of this process.
///
/// ```
/// assert!(phalanx_thread::main_thread().is_main());
/// ```
#[must_use]
pub fn main_thread() -> ThreadInfo {
    let known = registry()
        .running
        .values()
        .find(|entry| entry.main)
        .cloned();
    known.map(ThreadInfo).unwrap_or_else(|| {
        let here = current();
        if here.is_main() {
            return here;
        }
        // It never asked who it is.
        let entry = Arc::new(Entry {
            number: NEXT.fetch_add(1, Ordering::Relaxed),
            name: Mutex::new("MainThread".to_owned()),
            native_id: phalanx_sys::ids::pid(),
            daemon: false,
            main: true,
        });
        registry().running.insert(entry.number, Arc::clone(&entry));
        ThreadInfo(entry)
    })
}

/// Returns the threads that run: the main thread, those of this crate, and others that asked for [`current`].
///
/// ```
/// use phalanx_thread::{Builder, enumerate};
///
/// let (sender, receiver) = std::sync::mpsc::channel::<()>();
/// let thread = Builder::new().name("waiter").spawn(move || receiver.recv().is_err())?;
/// assert!(enumerate().iter().any(|thread| thread.name() == "waiter"));
/// drop(sender);
/// assert!(thread.join()?);
/// assert!(!enumerate().iter().any(|thread| thread.name() == "waiter"));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[must_use]
pub fn enumerate() -> Vec<ThreadInfo> {
    let _main = main_thread();
    registry()
        .running
        .values()
        .cloned()
        .map(ThreadInfo)
        .collect()
}

/// Returns how many threads [`enumerate`] would.
///
/// ```
/// assert_eq!(phalanx_thread::active_count(), phalanx_thread::enumerate().len());
/// ```
#[must_use]
pub fn active_count() -> usize {
    enumerate().len()
}
