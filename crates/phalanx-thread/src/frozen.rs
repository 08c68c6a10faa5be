//! The lists of threads at a fork: nobody is in the middle of changing one, so that the child never finds it locked by a
//! thread that it does not have.

use std::any::Any;

use phalanx_prim::{AtomicBool, Ordering};
use phalanx_sys::process::{OverForks, lock_over_forks};

use crate::{registry, thread};

struct Lists;

impl OverForks for Lists {
    fn lock() -> Box<dyn Any> {
        Box::new((thread::freeze(), registry::freeze()))
    }
}

/// Has every fork from now on find the lists whole.
pub(crate) fn install() {
    // Not a `Once`: the child of a fork beside its first use would wait for a thread that it does not have.
    static DONE: AtomicBool = AtomicBool::new(false);
    if !DONE.load(Ordering::Acquire) {
        lock_over_forks::<Lists>();
        DONE.store(true, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use phalanx_prim::{AtomicBool, Ordering};
    use std::time::Duration;

    use phalanx_testkit::{in_child, watchdog};

    use crate::{Thread, enumerate};

    const ROUNDS: usize = 200;

    #[test]
    fn a_child_of_a_fork_beside_starting_threads_finds_the_lists_free() {
        let _dog = watchdog(Duration::from_secs(300));
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    Thread::spawn(|| ()).unwrap().join().unwrap();
                }
            });
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    let _ = enumerate();
                }
            });
            let stuck = (0..ROUNDS).find(|_| {
                let child = in_child(|| {
                    assert_eq!(enumerate().len(), 1);
                    Thread::spawn(|| ()).unwrap().join().unwrap();
                });
                !child.dies_within(Duration::from_secs(30)) || !child.wait().is_success()
            });
            stop.store(true, Ordering::Relaxed);
            assert_eq!(stuck, None, "the child of this fork is stuck or failed");
        });
    }
}
