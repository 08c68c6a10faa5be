//! Programs that wait for themselves, each found, and one of the parties made to fail so that the rest goes on.
//!
//! `deadlock threads` (two locks, two threads), `processes` (the same in two processes), `queue` (a queue and a lock), `join`
//! (two threads that join each other), `pool` (a task that waits for a task of its own full pool). Without an argument: all.

use std::sync::{Arc, OnceLock};

use phalanx::prelude::*;
use phalanx::thread::Thread;
use phalanx::watch::{self, Action, recover};
use phalanx::{GetError, Local, OwnerDied};

fn tell(who: &str, done: Result<(), watch::Deadlock>) {
    match done {
        Ok(()) => println!("{who} has both"),
        Err(found) => println!(
            "{who} gives up: {} parties, {}",
            found.parties.len(),
            if found.circle {
                "in a circle"
            } else {
                "none can help"
            }
        ),
    }
}

fn threads() -> phalanx::Result<()> {
    let accounts: Arc<Lock<Local>> = Arc::new(Lock::local_named("accounts"));
    let ledger: Arc<Lock<Local>> = Arc::new(Lock::local_named("ledger"));
    let met = Arc::new(Barrier::local(2)?);
    let other = {
        let (accounts, ledger, met) = (accounts.clone(), ledger.clone(), met.clone());
        Thread::spawn(move || {
            recover(|| {
                let _ledger = ledger.lock().unwrap_or_else(OwnerDied::into_guard);
                let _ = met.wait();
                let _accounts = accounts.lock().unwrap_or_else(OwnerDied::into_guard);
            })
        })?
    };
    let done = recover(|| {
        let _accounts = accounts.lock().unwrap_or_else(OwnerDied::into_guard);
        let _ = met.wait();
        let _ledger = ledger.lock().unwrap_or_else(OwnerDied::into_guard);
    });
    tell("the main thread", done);
    if let Ok(done) = other.join() {
        tell("the other thread", done);
    }
    Ok(())
}

fn cross(first: Lock, second: Lock, met: Barrier, name: String) {
    let done = recover(|| {
        let _first = first.lock().unwrap_or_else(OwnerDied::into_guard);
        let _ = met.wait();
        let _second = second.lock().unwrap_or_else(OwnerDied::into_guard);
    });
    tell(&name, done);
}

fn processes() -> phalanx::Result<()> {
    let (accounts, ledger) = (Lock::named("accounts")?, Lock::named("ledger")?);
    let met = Barrier::new(2)?;
    let arguments = (
        ledger.clone(),
        accounts.clone(),
        met.clone(),
        "the other process".to_owned(),
    );
    let other = Process::spawn(cross, arguments)?;
    cross(accounts, ledger, met, "the main process".to_owned());
    other.join()?;
    Ok(())
}

fn put_under(lock: Lock, news: Queue<String>) {
    let done = recover(|| {
        let _held = lock.lock().unwrap_or_else(OwnerDied::into_guard);
    });
    if let Err(found) = done {
        println!(
            "the other does without the lock: {} parties",
            found.parties.len()
        );
    }
    let _ = news.put("news".to_owned());
}

fn queue() -> phalanx::Result<()> {
    let (lock, news) = (Lock::named("lock")?, Queue::<String>::new()?);
    let held = lock.lock().unwrap_or_else(OwnerDied::into_guard);
    let other = Process::spawn(put_under, (lock.clone(), news.clone()))?;
    // The other needs the lock to put, and we keep it until it has.
    match news.get() {
        Err(GetError::Deadlock(_)) => {
            println!("the main process lets go of the lock");
            drop(held);
            println!("got {}", news.get()?);
        }
        got => println!("got {}", got?),
    }
    other.join()?;
    Ok(())
}

fn join() -> phalanx::Result<()> {
    let first: Arc<OnceLock<Thread<()>>> = Arc::default();
    let begun = Arc::new(Event::local());
    let second = {
        let (first, begun) = (first.clone(), begun.clone());
        Thread::spawn(move || {
            begun.wait();
            let done = first.wait().join();
            println!(
                "the second thread {}",
                if done.is_err() { "gives up" } else { "goes on" }
            );
        })?
    };
    let _ = first.set(Thread::spawn(move || {
        begun.set();
        let done = second.join();
        println!(
            "the first thread {}",
            if done.is_err() { "gives up" } else { "goes on" }
        );
    })?);
    let _ = first.wait().join();
    Ok(())
}

fn pool() -> phalanx::Result<()> {
    let pool = Arc::new(ThreadPool::new(1)?);
    let inner = pool.clone();
    // The only thread is busy with this.
    let outer = move || inner.apply(|| 42);
    match pool.apply(outer)? {
        Ok(number) => println!("the task says {number}"),
        Err(error) => match watch::deadlock_in(&error) {
            Some(found) => println!("the task gives up: {} parties", found.parties.len()),
            None => println!("the task fails: {error}"),
        },
    }
    Ok(())
}

#[phalanx::main]
fn main() -> phalanx::Result<()> {
    if let Err(error) = watch::enable(Action::Raise) {
        eprintln!("{error}");
        return Ok(());
    }
    type Kind = (&'static str, fn() -> phalanx::Result<()>);
    let kinds: [Kind; 5] = [
        ("threads", threads),
        ("processes", processes),
        ("queue", queue),
        ("join", join),
        ("pool", pool),
    ];
    let wanted = std::env::args().nth(1);
    for (name, kind) in kinds {
        if wanted.as_deref().is_none_or(|wanted| wanted == name) {
            println!("{name}:");
            kind()?;
        }
    }
    Ok(())
}
