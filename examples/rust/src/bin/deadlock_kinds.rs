//! Every kind of wait that can fail when it could never end: the main thread has a lock that the other party wants, and
//! waits for something itself.
//!
//! Without an argument all kinds; `threads` or `processes` for those of which the other party is one.

use std::sync::Arc;
use std::time::Duration;

use phalanx::prelude::*;
use phalanx::thread::Thread;
use phalanx::watch::{self, Action};
use phalanx::{LockError, OwnerDied, Patience, Result};

/// Makes the wait, which is to fail, and tells how it did.
fn give_up<T>(kind: &str, wait: impl FnOnce() -> Result<T>) {
    // The other waits already: we are the youngest.
    std::thread::sleep(Duration::from_millis(300));
    match watch::recover(wait) {
        Ok(Ok(_)) => println!("{kind}: goes on"),
        Ok(Err(error)) => match watch::deadlock_in(&error) {
            Some(found) => println!("{kind}: gives up as one of {}", found.parties.len()),
            None => println!("{kind}: {error}"),
        },
        Err(found) => println!("{kind}: panics as one of {}", found.parties.len()),
    }
}

/// As [`give_up`], while another thread waits for a lock that this one has.
fn beside_a_thread<T>(kind: &str, wait: impl FnOnce() -> Result<T>) -> Result<()> {
    let (lock, begun) = (Lock::local_named("ours"), Event::local());
    let held = lock.lock().unwrap_or_else(OwnerDied::into_guard);
    let other = {
        let (lock, begun) = (lock.clone(), begun.clone());
        Thread::spawn(move || {
            begun.set();
            let _free = lock.lock().unwrap_or_else(OwnerDied::into_guard);
        })?
    };
    begun.wait();
    give_up(kind, wait);
    drop(held);
    Ok(other.join()?)
}

fn threads() -> Result<()> {
    let (lock, rlock) = (Lock::local(), RLock::local());
    let has_both = Arc::new(Event::local());
    let (first, second) = (Lock::local_named("first"), Lock::local_named("second"));
    let held = first.lock().unwrap_or_else(OwnerDied::into_guard);
    let other = {
        let (first, second, has) = (first.clone(), second.clone(), has_both.clone());
        Thread::spawn(move || {
            let _second = second.lock().unwrap_or_else(OwnerDied::into_guard);
            has.set();
            let _first = first.lock().unwrap_or_else(OwnerDied::into_guard);
        })?
    };
    has_both.wait();
    give_up("lock", || match second.lock_with(Patience::or_deadlock()) {
        Err(error @ LockError::Deadlock(_)) => Err(error.into()),
        _ => Ok(()),
    });
    drop(held);
    other.join()?;

    let _mine = rlock.lock();
    beside_a_thread("event", || {
        Ok(Event::local().wait_with(Patience::or_deadlock())?)
    })?;
    beside_a_thread("event without an error", || {
        Event::local().wait();
        Ok(())
    })?;
    beside_a_thread("condition", || {
        let guard = lock.lock()?;
        Ok(Condition::local()
            .wait_with(&guard, Patience::or_deadlock())
            .0?)
    })?;
    beside_a_thread("condition without an error", || {
        let _guard = Condition::local().wait(lock.lock()?)?;
        Ok(())
    })?;
    beside_a_thread("semaphore", || {
        let semaphore = Semaphore::local(0);
        let _permit = semaphore.acquire_with(Patience::or_deadlock())?;
        Ok(())
    })?;
    beside_a_thread("barrier", || Ok(Barrier::local(2)?.wait()?))?;
    beside_a_thread("join of a thread", || {
        let stuck = Thread::spawn(|| Event::local().wait_with(Patience::or_deadlock()))?;
        std::thread::sleep(Duration::from_millis(50));
        Ok(stuck.join()?)
    })?;

    let pool = ThreadPool::new(2)?;
    beside_a_thread("task of a pool of threads", || {
        Ok(pool.apply(|| Semaphore::local(0).acquire_raw(Patience::FOREVER))?)
    })?;
    beside_a_thread("lazy map in a pool of threads", || {
        let stuck = |_| Semaphore::local(0).acquire_raw(Patience::FOREVER);
        Ok(pool.imap_unordered(stuck, 0..1).next().transpose()?)
    })?;
    // Its threads are stuck for good.
    std::mem::forget(pool);
    Ok(())
}

fn take(lock: Lock, begun: Event) {
    begun.set();
    let _free = lock.lock().unwrap_or_else(OwnerDied::into_guard);
}

/// As [`give_up`], while a process waits for a lock that this one has.
fn beside_a_process<T>(kind: &str, wait: impl FnOnce(&Process<()>) -> Result<T>) -> Result<()> {
    let (lock, begun) = (Lock::named("ours")?, Event::new()?);
    let held = lock.lock().unwrap_or_else(OwnerDied::into_guard);
    let other = Process::spawn(take, (lock.clone(), begun.clone()))?;
    begun.wait();
    give_up(kind, || wait(&other));
    drop(held);
    if kind != "result of a process" && kind != "join of a process" {
        other.join()?;
    }
    Ok(())
}

fn processes() -> Result<()> {
    beside_a_process("shared event", |_| {
        Ok(Event::new()?.wait_with(Patience::or_deadlock())?)
    })?;
    beside_a_process("shared condition", |_| {
        let lock = Lock::new()?;
        let guard = lock.lock()?;
        Ok(Condition::new()?
            .wait_with(&guard, Patience::or_deadlock())
            .0?)
    })?;
    beside_a_process("shared semaphore", |_| {
        let semaphore = Semaphore::new(0)?;
        let _permit = semaphore.acquire_with(Patience::or_deadlock())?;
        Ok(())
    })?;
    beside_a_process("shared barrier", |_| Ok(Barrier::new(2)?.wait()?))?;
    beside_a_process("empty queue", |_| Ok(Queue::<u8>::new()?.get()?))?;
    beside_a_process("full queue", |_| {
        let full = Queue::bounded(1)?;
        full.put(1)?;
        Ok(full.put(2)?)
    })?;
    beside_a_process("join of a queue", |_| {
        let queue = Queue::joinable()?;
        queue.put(1)?;
        Ok(queue.join()?)
    })?;
    let (ours, _theirs) = pipe::<u8, u8>()?;
    beside_a_process("pipe", |_| Ok(ours.recv()?))?;
    beside_a_process("wait for several, which has no error", |_| {
        let (one, two) = (Queue::<u8>::new()?, Queue::<u8>::new()?);
        Ok(wait(&[&one, &two], None))
    })?;
    beside_a_process("result of a process", |process| Ok(process.result()?))?;
    beside_a_process("join of a process", |process| Ok(process.join()?))?;

    let (lock, begun) = (Lock::named("ours")?, Event::new()?);
    let held = lock.lock().unwrap_or_else(OwnerDied::into_guard);
    let pool = Pool::new(1)?;
    let task = pool.apply_async(take, (lock.clone(), begun.clone()))?;
    begun.wait();
    give_up("task of a pool", || Ok(task.get()?));
    drop(held);
    Ok(())
}

#[phalanx::main]
fn main() -> Result<()> {
    if let Err(error) = watch::enable(Action::Raise) {
        eprintln!("{error}");
        return Ok(());
    }
    let wanted = std::env::args().nth(1);
    if wanted.as_deref().is_none_or(|wanted| wanted == "threads") {
        threads()?;
    }
    if wanted.as_deref().is_none_or(|wanted| wanted == "processes") {
        processes()?;
    }
    Ok(())
}
