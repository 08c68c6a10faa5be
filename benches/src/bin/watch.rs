//! What it costs to be watched for deadlocks: a lock and its release with nobody else there, and two threads at one lock,
//! beside crates that watch the locks of one process.

use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use phalanx::watch::{self, Action};
use phalanx_benches::lock::Locked;
use phalanx_benches::{Contestant, Entry, Group, Options, Result, Role, program, run};

const STD: &str = "std::sync::Mutex, unwatched";

fn main() -> ExitCode {
    program(table)
}

fn table(options: &Options) -> Result {
    let title = "Watched locks: lock + unlock, nobody else";
    if options.wants(title) {
        run(Group::new(title, STD, alone()), options)?;
    }
    let title = "Watched locks: lock + unlock beside another thread that does the same";
    if options.wants(title) {
        run(Group::new(title, STD, beside()), options)?;
    }
    Ok(())
}

/// A lock of tracing-mutex, which refuses an order of locking that could end in a circle.
struct Traced(tracing_mutex::stdsync::tracing::Mutex<()>);

impl Locked for Traced {
    fn locked<R>(&self, inside: impl FnOnce() -> R) -> R {
        let _guard = self.0.lock();
        inside()
    }
}

/// A lock of no_deadlocks, which looks for a circle at each locking.
struct Checked(no_deadlocks::Mutex<()>);

impl Locked for Checked {
    fn locked<R>(&self, inside: impl FnOnce() -> R) -> R {
        let _guard = self.0.lock();
        inside()
    }
}

fn entries(make: impl Fn(Role, &'static str, Kind, Option<Action>) -> Entry) -> Vec<Entry> {
    let report = Some(Action::Report);
    vec![
        make(Role::InProcess, STD, Kind::Std, None),
        make(
            Role::Peer,
            "parking_lot::Mutex, deadlock_detection",
            Kind::ParkingLot,
            None,
        ),
        make(Role::Peer, "tracing_mutex::Mutex", Kind::Traced, None),
        make(Role::Peer, "no_deadlocks::Mutex", Kind::Checked, None),
        make(Role::Phalanx, "Lock (private), off", Kind::Private, None),
        make(
            Role::Phalanx,
            "Lock (private), watched",
            Kind::Private,
            report,
        ),
        make(Role::Phalanx, "Lock (shared), off", Kind::Shared, None),
        make(
            Role::Phalanx,
            "Lock (shared), watched",
            Kind::Shared,
            report,
        ),
    ]
}

#[derive(Clone, Copy)]
enum Kind {
    Std,
    ParkingLot,
    Traced,
    Checked,
    Private,
    Shared,
}

/// Makes the contestant for a kind of lock, by one of two ways to use it.
macro_rules! contestant {
    ($kind:expr, $with:ident, $watch:expr) => {
        match $kind {
            Kind::Std => boxed($with(std::sync::Mutex::new(()), $watch)),
            Kind::ParkingLot => boxed($with(parking_lot::Mutex::new(()), $watch)),
            Kind::Traced => boxed($with(
                Traced(tracing_mutex::stdsync::tracing::Mutex::new(())),
                $watch,
            )),
            Kind::Checked => boxed($with(Checked(no_deadlocks::Mutex::new(())), $watch)),
            Kind::Private => boxed($with(phalanx::Lock::local(), $watch)),
            Kind::Shared => boxed($with(phalanx::Lock::new()?, $watch)),
        }
    };
}

struct Boxed(Box<dyn Contestant>);

impl Contestant for Boxed {
    fn run(&mut self, count: u64) -> Result<std::time::Duration> {
        self.0.run(count)
    }
}

fn boxed(contestant: impl Contestant + 'static) -> Result<Boxed> {
    Ok(Boxed(Box::new(contestant)))
}

fn alone() -> Vec<Entry> {
    entries(|role, name, kind, watch| {
        Entry::new(role, name, || contestant!(kind, uncontended, watch))
    })
}

fn beside() -> Vec<Entry> {
    entries(|role, name, kind, watch| {
        Entry::new(role, name, || contestant!(kind, contended, watch))
    })
}

/// Watches while `f` runs, if asked to.
fn watched<T>(action: Option<Action>, f: impl FnOnce() -> T) -> Result<T> {
    match action {
        Some(action) => watch::enable(action)?,
        None => watch::disable(),
    }
    let done = f();
    watch::disable();
    Ok(done)
}

fn uncontended(lock: impl Locked, action: Option<Action>) -> impl Contestant {
    move |count| {
        watched(action, || {
            let lock = std::hint::black_box(&lock);
            let began = Instant::now();
            for _ in 0..count {
                lock.locked(|| std::hint::black_box(()));
            }
            began.elapsed()
        })
    }
}

fn contended(lock: impl Locked + Send + Sync + 'static, action: Option<Action>) -> impl Contestant {
    let lock = Arc::new(lock);
    move |count| {
        let stop = Arc::new(AtomicBool::new(false));
        let other = {
            let (lock, stop) = (Arc::clone(&lock), Arc::clone(&stop));
            std::thread::spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    lock.locked(|| std::hint::black_box(()));
                }
            })
        };
        let time = watched(action, || {
            let began = Instant::now();
            for _ in 0..count {
                lock.locked(|| std::hint::black_box(()));
            }
            began.elapsed()
        });
        stop.store(true, Ordering::Relaxed);
        other.join().map_err(|_| "the other thread panicked")?;
        time
    }
}
