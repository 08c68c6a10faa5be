//! Circles of locks, in both scopes, over threads and processes: each is found, and one of its parties set free.
#![cfg(not(miri))]

use std::sync::Barrier as ThreadBarrier;
use std::sync::mpsc;
use std::time::Duration;

use phalanx_sync::{Barrier, Condition, Event, Lock, RLock};
use phalanx_testkit::{in_child, watchdog};
use phalanx_watch::{Action, Deadlock, Options, enable_with, recover};

const LIMIT: Duration = Duration::from_secs(100);

fn watch() {
    enable_with(Options::new(Action::Raise).every(Duration::from_millis(20))).unwrap();
}

/// Takes the locks of each pair in order, meeting in between; returns what each thread found.
macro_rules! crossed {
    ($first:expr, $second:expr) => {{
        let (first, second) = ($first, $second);
        let met = ThreadBarrier::new(2);
        std::thread::scope(|scope| {
            let one = scope.spawn(|| {
                recover(|| {
                    let _a = first.lock().unwrap();
                    met.wait();
                    let _b = second.lock().unwrap();
                })
            });
            let other = scope.spawn(|| {
                recover(|| {
                    let _b = second.lock().unwrap();
                    met.wait();
                    let _a = first.lock().unwrap();
                })
            });
            [one.join().unwrap(), other.join().unwrap()]
        })
    }};
}

/// A place in this file, as reports have it.
#[expect(clippy::ptr_arg, reason = "called with what an option holds")]
fn is_here(place: &String) -> bool {
    place.contains("tests/circles.rs:")
}

fn the_one(found: [Result<(), Deadlock>; 2]) -> Deadlock {
    let mut found: Vec<_> = found.into_iter().filter_map(Result::err).collect();
    assert_eq!(found.len(), 1, "one fails, the other goes on: {found:?}");
    found.remove(0)
}

#[test]
fn two_threads_cross_over_private_locks() {
    let _dog = watchdog(LIMIT);
    watch();
    let found = the_one(crossed!(
        &Lock::local_named("accounts"),
        &Lock::local_named("ledger")
    ));
    assert!(found.circle);
    assert_eq!(found.parties.len(), 2);
    let mut waited: Vec<_> = found
        .parties
        .iter()
        .map(|party| party.waits_for.to_string())
        .collect();
    waited.sort();
    assert_eq!(waited, ["Lock \"accounts\"", "Lock \"ledger\""]);
    for (i, party) in found.parties.iter().enumerate() {
        assert_eq!(party.pid, std::process::id());
        assert_eq!(party.needs, Some(1 - i));
        assert_eq!(party.holds.len(), 1, "{found}");
        assert!(party.stack.contains("two_threads_cross"), "{found}");
        assert!(party.place.as_ref().is_some_and(is_here), "{found}");
        assert!(
            party.holds[0].place.as_ref().is_some_and(is_here),
            "{found}"
        );
    }
    let text = found.to_string();
    assert!(
        text.contains("(taken at phalanx-watch/tests/circles.rs:"),
        "{text}"
    );
    assert_eq!(Deadlock::from_json(&found.to_json()).unwrap(), found);
    assert!(found.to_dot().contains("p0 -> p1"));
    assert!(found.to_svg().contains("accounts"));
}

#[test]
fn two_threads_cross_over_shared_locks() {
    let _dog = watchdog(LIMIT);
    watch();
    let (first, second) = (Lock::named("one").unwrap(), RLock::named("other").unwrap());
    let found = the_one(crossed!(&first, &second));
    let text = found.to_string();
    assert!(
        text.contains("2 threads wait for each other in a circle"),
        "{text}"
    );
    assert!(
        text.contains("holds Lock \"one\"") && text.contains("holds RLock \"other\""),
        "{text}"
    );
}

#[test]
fn a_thread_takes_its_own_lock_twice() {
    let _dog = watchdog(LIMIT);
    watch();
    let lock = Lock::local_named("twice");
    let found = recover(|| {
        let _once = lock.lock().unwrap();
        let _twice = lock.lock().unwrap();
    });
    let found = found.unwrap_err();
    assert_eq!((found.parties.len(), found.circle), (1, true));
    assert!(found.to_string().contains("waits for itself"), "{found}");
    assert!(!lock.is_locked(), "its guard was dropped on the way");
}

#[test]
fn a_thread_of_each_of_two_processes() {
    let _dog = watchdog(LIMIT);
    watch();
    let (a, b) = (Lock::named("a").unwrap(), Lock::named("b").unwrap());
    let met = Barrier::new(2).unwrap();
    let child = in_child(|| {
        let done = recover(|| {
            let _b = b.lock().unwrap();
            met.wait().unwrap();
            // The parent has waited for a while: this is the youngest.
            std::thread::sleep(Duration::from_millis(200));
            let _a = a.lock().unwrap();
        });
        let found = done.unwrap_err();
        assert_eq!(found.parties.len(), 2);
        assert_ne!(found.parties[0].pid, found.parties[1].pid);
    });
    let _a = a.lock().unwrap();
    met.wait().unwrap();
    let _b = b.lock().unwrap();
    assert!(child.wait().is_success());
}

#[test]
fn where_a_lock_was_taken_is_read_from_another_process() {
    let _dog = watchdog(LIMIT);
    watch();
    let (lock, rlock) = (Lock::named("far").unwrap(), RLock::named("again").unwrap());
    let (there, over) = (Event::new().unwrap(), Event::new().unwrap());
    let child = in_child(|| {
        let (_once, _twice) = (rlock.lock().unwrap(), rlock.lock().unwrap());
        let _far = lock.lock().unwrap();
        there.set();
        over.wait();
    });
    there.wait();
    // It may not be asleep yet.
    let held = loop {
        let dump = phalanx_watch::dump(std::process::id()).unwrap();
        let process = dump.processes.iter().find(|one| one.pid == child.pid());
        let thread = &process.unwrap().threads[0];
        if thread.waits_for.is_some() {
            assert!(thread.place.as_ref().is_some_and(is_here), "{dump}");
            assert!(thread.stack.contains("where_a_lock_was_taken"), "{dump}");
            break thread.holds.clone();
        }
        std::thread::yield_now();
    };
    assert_eq!(held.len(), 2, "{held:?}");
    assert!(
        held.iter()
            .all(|thing| thing.place.as_ref().is_some_and(is_here)),
        "{held:?}"
    );
    assert_ne!(held[0].place, held[1].place);
    over.set();
    assert!(child.wait().is_success());
}

#[test]
fn a_condition_lets_the_place_go_and_has_it_again() {
    let _dog = watchdog(LIMIT);
    watch();
    // A wait of its own lets the thread note places if it did not before.
    let (lock, condition) = (Lock::local(), Condition::local());
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let guard = lock.lock().unwrap();
            let place = phalanx_sync::held_here()[0].place;
            let (guard, _) = condition
                .wait_timeout(guard, Duration::from_millis(5))
                .unwrap();
            assert_eq!(phalanx_sync::held_here()[0].place, place);
            drop(guard);
            assert!(phalanx_sync::held_here().is_empty());
            assert!(lock.try_lock().is_ok() && !lock.is_locked());
        });
    });
}

#[test]
fn a_private_lock_is_part_of_a_circle_over_two_processes() {
    let _dog = watchdog(LIMIT);
    watch();
    let (a, b) = (Lock::named("a").unwrap(), Lock::named("b").unwrap());
    let met = Barrier::new(2).unwrap();
    // Child: has b, wants a. Parent: one thread has a and wants the private lock, whose owner wants b.
    let child = in_child(|| {
        let _b = b.lock().unwrap();
        met.wait().unwrap();
        let _a = a.lock().unwrap();
    });
    let inner = Lock::local_named("inner");
    let (has_inner, wait_for_inner) = mpsc::channel();
    let found = std::thread::scope(|scope| {
        let (inner, a, b, met) = (&inner, &a, &b, &met);
        let other = scope.spawn(move || {
            recover(|| {
                let _inner = inner.lock().unwrap();
                has_inner.send(()).unwrap();
                std::thread::sleep(Duration::from_millis(300));
                let _b = b.lock().unwrap();
            })
        });
        wait_for_inner.recv().unwrap();
        let _a = a.lock().unwrap();
        met.wait().unwrap();
        let _inner = inner.lock().unwrap();
        other.join().unwrap()
    });
    let found = found.unwrap_err();
    assert_eq!(found.parties.len(), 3, "{found}");
    assert!(found.to_string().contains("Lock \"inner\""), "{found}");
    assert!(child.wait().is_success());
}

#[test]
fn an_owner_that_sleeps_elsewhere_is_not_accused() {
    let _dog = watchdog(LIMIT);
    watch();
    let (a, b) = (Lock::local(), Lock::named("b").unwrap());
    let found = std::thread::scope(|scope| {
        let (locked, wait) = mpsc::channel();
        let (a, b) = (&a, &b);
        let owner = scope.spawn(move || {
            let (_a, _b) = (a.lock().unwrap(), b.lock().unwrap());
            locked.send(()).unwrap();
            std::thread::sleep(Duration::from_millis(600));
        });
        wait.recv().unwrap();
        let waiters = [
            scope.spawn(|| recover(|| drop(a.lock().unwrap()))),
            scope.spawn(|| recover(|| drop(b.lock().unwrap()))),
        ];
        owner.join().unwrap();
        waiters.map(|waiter| waiter.join().unwrap())
    });
    assert_eq!(found, [Ok(()), Ok(())]);
}

#[test]
fn a_wait_with_a_deadline_is_left_to_the_clock() {
    let _dog = watchdog(LIMIT);
    watch();
    let (a, b) = (Lock::local(), Lock::local());
    let met = ThreadBarrier::new(2);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let _a = a.lock().unwrap();
            met.wait();
            assert!(b.lock_timeout(Duration::from_millis(500)).is_err());
        });
        let _b = b.lock().unwrap();
        met.wait();
        let _a = a.lock().unwrap();
    });
}
