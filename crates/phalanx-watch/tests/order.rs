//! Locks taken in different orders are told before anybody waits for anybody; and orders that cannot end in a deadlock are
//! not.
#![cfg(not(miri))]

use std::time::Duration;

use phalanx_sync::{Condition, Event, Lock, Patience, RLock};
use phalanx_testkit::{Watchdog, in_child, watchdog};
use phalanx_watch::{Inversion, enable_lock_order, inversions};

const LIMIT: Duration = Duration::from_secs(100);

/// Runs each in a thread of its own, one after the other: nobody ever waits.
fn in_turn<'env>(bodies: &mut [Box<dyn FnMut() + Send + 'env>]) {
    for body in bodies {
        std::thread::scope(|scope| {
            std::thread::Builder::new()
                .name("one".to_owned())
                .spawn_scoped(scope, body)
                .unwrap();
        });
    }
}

macro_rules! in_turn {
    ($($body:expr),* $(,)?) => {
        in_turn(&mut [$(Box::new($body) as Box<dyn FnMut() + Send>),*])
    };
}

/// Takes locks, each inside of the one before.
macro_rules! nested {
    ($($lock:ident),+) => {
        || { $(let _taken = $lock.lock().unwrap();)+ }
    };
}

/// Has the order of locks noted, in a test that ends.
fn noted() -> Watchdog {
    let dog = watchdog(LIMIT);
    enable_lock_order().unwrap();
    dog
}

/// What was found of locks whose names begin so: each test has names of its own.
fn found(about: &str) -> Vec<Inversion> {
    let begins = format!("\"{about}");
    let mut found = inversions();
    found.retain(|one| {
        one.steps
            .iter()
            .all(|step| step.holds.name.starts_with(&begins))
    });
    found
}

#[test]
fn two_threads_in_two_orders_one_after_the_other() {
    let _dog = noted();
    let (a, b) = (Lock::local_named("two a"), RLock::local_named("two b"));
    let mut places = [0; 4];
    let [first, second, third, fourth] = &mut places;
    in_turn!(
        || {
            *first = line!() + 1;
            let _a = a.lock().unwrap();
            *second = line!() + 1;
            let _b = b.lock().unwrap();
        },
        || {
            *third = line!() + 1;
            let _b = b.lock().unwrap();
            *fourth = line!() + 1;
            let _a = a.lock().unwrap();
        },
    );
    let found = found("two");
    assert_eq!(found.len(), 1, "{found:?}");
    let text = found[0].to_string();
    assert!(
        text.starts_with("2 locks are taken in different orders"),
        "{text}"
    );
    for part in [
        format!("has Lock \"two a\" (taken at tests/order.rs:{})", places[0]),
        format!("and takes RLock \"two b\" at tests/order.rs:{}", places[1]),
        format!(
            "has RLock \"two b\" (taken at tests/order.rs:{})",
            places[2]
        ),
        format!("and takes Lock \"two a\" at tests/order.rs:{}", places[3]),
        format!("process {}, thread \"one\"", std::process::id()),
    ] {
        let part = part.replace("tests/", "phalanx-watch/tests/");
        assert!(text.contains(&part), "{part}\n{text}");
    }
    assert_eq!(Inversion::from_json(&found[0].to_json()).unwrap(), found[0]);
}

#[test]
fn it_is_told_once() {
    let _dog = noted();
    let (a, b) = (
        Lock::named("once a").unwrap(),
        Lock::named("once b").unwrap(),
    );
    for _ in 0..3 {
        in_turn!(nested!(a, b), nested!(b, a), nested!(b, a),);
    }
    assert_eq!(found("once").len(), 1);
}

#[test]
fn a_circle_of_three_in_both_scopes() {
    let _dog = noted();
    let (a, b, c) = (
        Lock::local_named("three a"),
        Lock::named("three b").unwrap(),
        RLock::named("three c").unwrap(),
    );
    in_turn!(nested!(a, b), nested!(b, c),);
    assert_eq!(found("three"), []);
    in_turn!(|| {
        let _c = c.lock().unwrap();
        let _a = a.lock_with(Patience::or_deadlock()).unwrap();
    });
    let found = found("three");
    assert_eq!(found.len(), 1, "{found:?}");
    assert_eq!(found[0].steps.len(), 3);
    for (i, step) in found[0].steps.iter().enumerate() {
        assert_eq!(step.takes.name, found[0].steps[(i + 1) % 3].holds.name);
    }
}

#[test]
fn two_processes_in_two_orders() {
    let _dog = noted();
    let (a, b) = (Lock::named("far a").unwrap(), Lock::named("far b").unwrap());
    let child = in_child(nested!(a, b));
    let there = child.pid();
    // What it did is known when it is gone.
    assert!(child.wait().is_success());
    assert_eq!(found("far"), []);
    {
        let _b = b.lock().unwrap();
        let _a = a.lock().unwrap();
    }
    let found = found("far");
    assert_eq!(found.len(), 1, "{found:?}");
    let mut pids: Vec<u32> = found[0].steps.iter().map(|step| step.pid).collect();
    pids.sort_unstable();
    let mut expected = vec![std::process::id(), there];
    expected.sort_unstable();
    assert_eq!(pids, expected);
}

#[test]
fn a_child_that_finds_it_tells_its_parent() {
    let _dog = noted();
    let (a, b) = (
        Lock::named("told a").unwrap(),
        Lock::named("told b").unwrap(),
    );
    {
        let _b = b.lock().unwrap();
        let _a = a.lock().unwrap();
    }
    let child = in_child(nested!(a, b));
    assert!(child.wait().is_success());
    assert_eq!(found("told").len(), 1);
}

#[test]
fn a_wait_at_a_condition_takes_its_lock_again() {
    let _dog = noted();
    let (a, b) = (Lock::local_named("wait a"), Lock::local_named("wait b"));
    let condition = Condition::local();
    let soon = Duration::from_millis(1);
    // Nothing is held while it waits: no order of b and a.
    in_turn!(
        || {
            let guard = a.lock().unwrap();
            let _ = condition.wait_timeout(guard, soon).unwrap();
        },
        nested!(a, b),
    );
    assert_eq!(found("wait"), []);
    // It has b while it takes a again, though it took a first.
    in_turn!(|| {
        let guard = a.lock().unwrap();
        let _b = b.lock().unwrap();
        let _ = condition.wait_timeout(guard, soon).unwrap();
    });
    assert_eq!(found("wait").len(), 1);
}

#[test]
fn a_lock_in_common_around_both_is_a_gate() {
    let _dog = noted();
    let (gate, a, b) = (
        Lock::named("gate gate").unwrap(),
        Lock::local_named("gate a"),
        Lock::local_named("gate b"),
    );
    in_turn!(nested!(gate, a, b), nested!(gate, b, a),);
    assert_eq!(found("gate"), []);
    // Without it for once, they can meet.
    in_turn!(nested!(b, a));
    assert_eq!(found("gate").len(), 1);
}

#[test]
fn one_thread_does_not_meet_itself() {
    let _dog = noted();
    let (a, b) = (Lock::local_named("self a"), RLock::local_named("self b"));
    let mut both = || {
        {
            let _a = a.lock().unwrap();
            let _b = b.lock().unwrap();
        }
        let _b = b.lock().unwrap();
        let _a = a.lock().unwrap();
    };
    in_turn!(&mut both);
    assert_eq!(found("self"), []);
    // A second one that does the same meets the first.
    in_turn!(&mut both);
    assert_eq!(found("self").len(), 1);
}

#[test]
fn a_recursive_lock_taken_again_is_no_step() {
    let _dog = noted();
    let (a, b) = (
        RLock::named("again a").unwrap(),
        RLock::local_named("again b"),
    );
    in_turn!(
        || {
            let _a = a.lock().unwrap();
            let _b = b.lock().unwrap();
            let _again = a.lock().unwrap();
        },
        || {
            let _a = a.lock().unwrap();
            let _b = b.lock().unwrap();
            let _again = a.lock_with(Patience::FOREVER).unwrap();
        },
    );
    assert_eq!(found("again"), []);
}

#[test]
fn who_tries_or_has_a_deadline_never_waits_for_ever() {
    let _dog = noted();
    let (a, b) = (Lock::local_named("try a"), Lock::named("try b").unwrap());
    in_turn!(nested!(a, b), || {
        let _b = b.lock().unwrap();
        drop(a.try_lock().unwrap());
        drop(a.lock_timeout(LIMIT).unwrap());
    },);
    assert_eq!(found("try"), []);
    // But it can be waited for, however it had its lock.
    in_turn!(|| {
        let _b = b.try_lock().unwrap();
        let _a = a.lock().unwrap();
    });
    assert_eq!(found("try").len(), 1);
}

#[test]
fn a_lock_that_is_gone_is_not_taken_for_one_in_its_place() {
    let _dog = noted();
    let (a, c) = (Lock::named("gone a").unwrap(), Lock::local_named("gone c"));
    for round in 0..4 {
        // The next one lies where the last one lay.
        let shared = Lock::named("gone b").unwrap();
        let private = Box::new(Lock::local_named("gone b"));
        let mut there = || {
            let _a = a.lock().unwrap();
            let _b = shared.lock().unwrap();
            let _b = private.lock().unwrap();
        };
        let mut back = || {
            {
                let _b = shared.lock().unwrap();
                let _a = a.lock().unwrap();
            }
            let _b = private.lock().unwrap();
            let _a = a.lock().unwrap();
        };
        if round % 2 == 0 {
            in_turn!(&mut there);
        } else {
            in_turn!(&mut back);
        }
    }
    assert_eq!(found("gone"), []);
    // Nor is a circle closed by way of one that is gone.
    {
        let middle = Lock::local_named("gone middle");
        in_turn!(nested!(a, middle), nested!(middle, c),);
    }
    in_turn!(nested!(c, a));
    assert_eq!(found("gone"), []);
}

#[test]
fn hand_over_hand_along_a_list_is_one_order() {
    let _dog = noted();
    let list: Vec<_> = (0..20)
        .map(|i| Lock::local_named(&format!("hand {i}")))
        .collect();
    let mut walk = || {
        let mut last = list[0].lock().unwrap();
        for next in &list[1..] {
            let had = next.lock().unwrap();
            drop(std::mem::replace(&mut last, had));
        }
    };
    in_turn!(&mut walk);
    in_turn!(&mut walk);
    assert_eq!(found("hand"), []);
}

#[test]
fn a_private_lock_of_a_forked_child_is_another() {
    let _dog = noted();
    let (a, b) = (Lock::local_named("fork a"), Lock::local_named("fork b"));
    {
        let _a = a.lock().unwrap();
        let _b = b.lock().unwrap();
    }
    let child = in_child(nested!(b, a));
    assert!(child.wait().is_success());
    assert_eq!(found("fork"), []);
}

#[test]
fn a_child_that_dies_with_both_leaves_its_order() {
    let _dog = noted();
    let (a, b) = (
        Lock::named("dead a").unwrap(),
        Lock::named("dead b").unwrap(),
    );
    let there = Event::new().unwrap();
    let child = in_child(|| {
        let _a = a.lock().unwrap();
        let _b = b.lock().unwrap();
        there.set();
        std::thread::sleep(LIMIT);
    });
    there.wait();
    child.kill();
    child.wait();
    {
        let _b = b.lock().unwrap_or_else(|died| died.into_guard());
        let _a = a.lock().unwrap_or_else(|died| died.into_guard());
    }
    assert_eq!(found("dead").len(), 1);
}
