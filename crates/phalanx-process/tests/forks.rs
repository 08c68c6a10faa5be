//! Forks in the middle of what other threads do: the child finds nothing locked.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use phalanx_process::{Process, StartMethod, after_fork, before_fork};
use phalanx_testkit::{alone, in_child, watchdog};

phalanx_process::test_entry!();

const ROUNDS: usize = 60;
/// A child that waits for a lock of a thread that it does not have waits for ever.
const PATIENCE: Duration = Duration::from_secs(30);

fn nothing() {}

/// Runs `busy` over and over in another thread, and `child` in forks meanwhile.
fn fork_beside(busy: impl Fn() + Sync, child: impl Fn()) {
    struct Stop<'a>(&'a AtomicBool);
    impl Drop for Stop<'_> {
        fn drop(&mut self) {
            self.0.store(true, Ordering::Relaxed);
        }
    }
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let _stop = Stop(&stop);
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                busy();
            }
        });
        for round in 0..ROUNDS {
            let forked = in_child(&child);
            assert!(
                forked.dies_within(PATIENCE),
                "the child of fork {round} is stuck"
            );
            assert!(
                forked.wait().is_success(),
                "the child of fork {round} failed"
            );
        }
    });
}

#[test]
fn a_child_of_a_fork_beside_a_pause_can_pause() {
    let _alone = alone();
    let _dog = watchdog(Duration::from_secs(300));
    // It has a reaper, whose end a pause waits for.
    Process::spawn(nothing, ()).unwrap().join().unwrap();
    let pause = || {
        before_fork(true);
        after_fork(false);
    };
    fork_beside(pause, pause);
}

#[test]
fn a_child_of_a_fork_beside_a_start_can_start_processes() {
    let _alone = alone();
    let _dog = watchdog(Duration::from_secs(300));
    let start = || {
        let process = Process::builder()
            .start_method(StartMethod::Zygote)
            .spawn(nothing, ())
            .unwrap();
        process.join().unwrap();
    };
    start();
    fork_beside(start, start);
}

#[test]
fn a_child_of_a_fork_can_look_at_its_siblings() {
    let _alone = alone();
    let _dog = watchdog(Duration::from_secs(300));
    let sibling = Process::builder()
        .spawn(std::thread::sleep, Duration::from_secs(600))
        .unwrap();
    fork_beside(
        || {
            let _ = sibling.is_alive();
        },
        || {
            let _ = sibling.is_alive();
        },
    );
    sibling.kill().unwrap();
    assert!(sibling.join().is_err());
}
