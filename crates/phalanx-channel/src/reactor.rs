//! Wakers for coroutines: one thread of this process sleeps on the gates that futures wait at.
//!
//! A future that finds its object not ready announces itself at the gate, looks again, and leaves its waker here. The
//! thread is started by the first future, and again in a forked child. It waits on up to 127 gates (futex_waitv); beyond
//! that a second one starts.
//!
//! Futures at one gate share one announcement. A new one is made *after* the last (see [`Gate::prepare_after`]): had the gate
//! been notified in between, the earlier futures are woken at once.

use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::thread::JoinHandle;

use phalanx_prim::{MAX_WORDS, WaitedAny, wait_any};
use phalanx_prim::{Ordering, Word};
use phalanx_shm::{Held, Interest, Shared, mark_helper};
use phalanx_sync::{Gate, Key};

struct Entry {
    gate: &'static Gate<Shared>,
    key: Key,
    wakers: Vec<Waker>,
    // Keeps the gate's object alive while the thread sleeps on it.
    _held: Held,
}

struct Reactor {
    bell: Arc<Word>,
    entries: Vec<Entry>,
    thread: Option<JoinHandle<()>>,
    /// Has no thread for now, and gets none.
    paused: bool,
}

/// Each with the process whose thread runs it. A forked child must not lock its parent's: their threads may have held them.
type Owned = (u32, Arc<Mutex<Reactor>>);

static REACTORS: Mutex<Vec<Owned>> = Mutex::new(Vec::new());

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Keeps the list whole while the process forks.
pub(crate) fn freeze() -> impl Sized + 'static {
    lock(&REACTORS)
}

fn start() -> Arc<Mutex<Reactor>> {
    Arc::new(Mutex::new(Reactor {
        bell: Arc::new(Word::new(0)),
        entries: Vec::new(),
        thread: None,
        paused: false,
    }))
}

/// Sees to it that a reactor has its thread.
fn ensure_thread(reactor: &Arc<Mutex<Reactor>>) {
    let mut locked = lock(reactor);
    if locked.thread.is_none() && !locked.paused {
        let for_thread = Arc::clone(reactor);
        let thread = std::thread::Builder::new()
            .name("phalanx-reactor".to_owned())
            .spawn(move || run(&for_thread))
            .expect("the system has a thread for the wakers of coroutines");
        locked.thread = Some(thread);
    }
}

fn ours() -> Vec<Arc<Mutex<Reactor>>> {
    let me = phalanx_sys::ids::pid();
    let reactors = lock(&REACTORS);
    let mine = reactors.iter().filter(|(owner, _)| *owner == me);
    mine.map(|(_, reactor)| Arc::clone(reactor)).collect()
}

/// Ends this process's threads that wait for wakers, so that a fork finds it with one thread less. Wakers stay, and are called
/// after [`resume`] at the latest.
pub fn pause() {
    for reactor in ours() {
        let mut locked = lock(&reactor);
        locked.paused = true;
        let thread = locked.thread.take();
        ring(&locked.bell);
        drop(locked);
        // It calls wakers without any lock of ours, and ends after those it is at.
        let _ = thread.map(JoinHandle::join);
    }
}

/// Starts what [`pause`] ended, where somebody waits.
pub fn resume() {
    for reactor in ours() {
        let mut locked = lock(&reactor);
        locked.paused = false;
        let waited = !locked.entries.is_empty();
        drop(locked);
        if waited {
            ensure_thread(&reactor);
        }
    }
}

fn ring(bell: &Word) {
    bell.fetch_add(1, Ordering::Release);
    bell.wake(1, phalanx_prim::Scope::Shared);
}

fn run(reactor: &Mutex<Reactor>) {
    let bell = Arc::clone(&lock(reactor).bell);
    mark_helper();
    loop {
        let rung = bell.load(Ordering::Acquire);
        if lock(reactor).paused {
            return;
        }
        let waits: Vec<_> = lock(reactor)
            .entries
            .iter()
            .map(|entry| (entry.gate, entry.key))
            .collect();
        // The bell is private and the gates are shared; a shared wait serves both.
        let mut words = vec![(&**bell, rung)];
        words.extend(
            waits
                .iter()
                .map(|(gate, key)| (&**gate.word(), key.expected())),
        );
        if let WaitedAny::Unsupported = wait_any(&words, None, phalanx_prim::Scope::Shared) {
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        let mut fired = Vec::new();
        lock(reactor).entries.retain_mut(|entry| {
            let changed = entry.gate.word().load(Ordering::Acquire) != entry.key.expected();
            if changed {
                fired.append(&mut entry.wakers);
            }
            !changed
        });
        fired.into_iter().for_each(Waker::wake);
    }
}

/// Leaves a waker at a gate. The caller looks at its object again afterwards.
pub(crate) fn register(gate: &'static Gate<Shared>, held: &Held, waker: &Waker) {
    crate::frozen::install();
    let mut reactors = lock(&REACTORS);
    let me = phalanx_sys::ids::pid();
    // A forked child has none of its parent's threads. What they referred to is the parent's: its holds end with this process.
    reactors
        .extract_if(.., |(owner, _)| *owner != me)
        .for_each(std::mem::forget);
    let same = |entry: &Entry| std::ptr::eq(entry.gate, gate);
    let has_it = |(_, reactor): &&Owned| lock(reactor).entries.iter().any(same);
    let has_room = |(_, reactor): &&Owned| lock(reactor).entries.len() < MAX_WORDS - 1;
    let found = reactors
        .iter()
        .find(has_it)
        .or_else(|| reactors.iter().find(has_room))
        .map(|(_, reactor)| Arc::clone(reactor));
    let shared = found.unwrap_or_else(|| {
        let reactor = start();
        reactors.push((me, Arc::clone(&reactor)));
        reactor
    });
    drop(reactors);
    let mut reactor = lock(&shared);
    let mut missed = Vec::new();
    match reactor.entries.iter_mut().find(|entry| same(entry)) {
        Some(entry) => {
            let (key, undisturbed) = gate.prepare_after(Some(entry.key));
            if !undisturbed {
                missed.append(&mut entry.wakers);
            }
            entry.key = key;
            if !entry.wakers.iter().any(|known| known.will_wake(waker)) {
                entry.wakers.push(waker.clone());
            }
        }
        None => {
            let key = gate.prepare();
            reactor.entries.push(Entry {
                gate,
                key,
                wakers: vec![waker.clone()],
                _held: held.clone(),
            });
        }
    }
    let bell = Arc::clone(&reactor.bell);
    drop(reactor);
    ensure_thread(&shared);
    ring(&bell);
    missed.into_iter().for_each(Waker::wake);
}

/// Takes a waker back that was left at a gate and has not been called. It is known by its data: that of an `Arc`.
pub(crate) fn forget(gate: &'static Gate<Shared>, waker: &Waker) {
    let mut removed = Vec::new();
    for shared in ours() {
        let mut reactor = lock(&shared);
        let before = reactor.entries.len();
        for entry in &mut reactor.entries {
            if std::ptr::eq(entry.gate, gate) {
                // Two vtables may be one: what tells these wakers apart is what they wake.
                let same = |known: &mut Waker| known.data() == waker.data();
                removed.extend(entry.wakers.extract_if(.., same).map(Removed::Waker));
            }
        }
        let empty = |entry: &mut Entry| entry.wakers.is_empty();
        let empty = reactor.entries.extract_if(.., empty);
        removed.extend(empty.map(Removed::Entry));
        if reactor.entries.len() != before {
            // Its thread sleeps on the gate still.
            ring(&reactor.bell);
        }
    }
    // Without our locks: the last hold on an object may go with it.
    drop(removed);
}

enum Removed {
    Waker(#[expect(dead_code, reason = "held to be dropped")] Waker),
    Entry(#[expect(dead_code, reason = "held to be dropped")] Entry),
}

/// A future that looks, and sleeps at a gate between looks. Made by the objects' own methods.
///
/// Dropped before it is ready, it passes a wake that was meant for it on to the next.
#[must_use = "a future does nothing until it is awaited"]
pub struct Ready<'a, T> {
    gate: &'static Gate<Shared>,
    held: &'a Held,
    look: Box<dyn FnMut() -> Option<T> + Send + 'a>,
    interest: Option<Interest>,
}

impl<'a, T> Ready<'a, T> {
    /// Makes one of a gate of the object that is held, and a look that must not block.
    pub fn new(
        gate: &'static Gate<Shared>,
        held: &'a Held,
        look: impl FnMut() -> Option<T> + Send + 'a,
    ) -> Self {
        Self {
            gate,
            held,
            look: Box::new(look),
            interest: None,
        }
    }
}

impl<T> Ready<'_, T> {
    /// Drops it without passing a wake on: for the only one who waits at its gate.
    pub fn detach(mut self) {
        self.interest = None;
    }
}

impl<T> Future for Ready<'_, T> {
    type Output = T;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<T> {
        let this = &mut *self;
        if let Some(answer) = (this.look)() {
            this.interest = None;
            return Poll::Ready(answer);
        }
        if this.interest.is_none() {
            this.interest = Some(Interest::of(this.gate.word()));
        }
        register(this.gate, this.held, cx.waker());
        match (this.look)() {
            Some(answer) => {
                this.interest = None;
                Poll::Ready(answer)
            }
            None => Poll::Pending,
        }
    }
}

impl<T> Drop for Ready<'_, T> {
    fn drop(&mut self) {
        if self.interest.is_some() {
            self.gate.notify(1);
        }
    }
}

impl<T> std::fmt::Debug for Ready<'_, T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Ready")
    }
}
