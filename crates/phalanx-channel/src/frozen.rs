//! This process's tables at a fork: nobody is in the middle of changing one, so that the child never finds it locked by a
//! thread that it does not have.

use std::any::Any;

use phalanx_prim::{AtomicBool, Ordering};
use phalanx_sys::process::{OverForks, lock_over_forks};

use crate::{exposed, reactor};

struct Tables;

impl OverForks for Tables {
    fn lock() -> Box<dyn Any> {
        Box::new((reactor::freeze(), exposed::freeze()))
    }
}

/// Has every fork from now on find the tables whole. Called by whoever is about to use one, when there is an arena: their
/// locks are taken before those of the arena.
pub(crate) fn install() {
    // Not a `Once`: the child of a fork beside its first use would wait for a thread that it does not have.
    static DONE: AtomicBool = AtomicBool::new(false);
    if !DONE.load(Ordering::Acquire) {
        lock_over_forks::<Tables>();
        DONE.store(true, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use phalanx_prim::{AtomicBool, Ordering};
    use std::time::Duration;

    use phalanx_shm::session;
    use phalanx_testkit::{in_child, watchdog};

    use crate::doorbell::{Bell, Doorbell};
    use crate::exposed::{self, Exposed};
    use crate::message::Loan;
    use crate::raw::{Bounds, RawQueue};

    const ROUNDS: usize = 100;

    fn expose() {
        let loan = Loan::new(session().unwrap(), 300_000, &[]).unwrap();
        drop(Exposed::new(loan.into_message().keep().unwrap().unwrap()));
    }

    fn hang_a_bell() {
        let queue = RawQueue::new(session().unwrap(), Bounds::default()).unwrap();
        drop(Doorbell::new(&queue, Bell::Readable).unwrap());
    }

    #[test]
    fn a_child_of_a_fork_beside_another_thread_finds_the_tables_free() {
        // Not beside tests that wait for their last handle to go: the child has copies of all.
        let _alone = phalanx_testkit::alone();
        let _dog = watchdog(Duration::from_secs(300));
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            for busy in [expose, hang_a_bell] {
                let stop = &stop;
                scope.spawn(move || {
                    while !stop.load(Ordering::Relaxed) {
                        busy();
                    }
                });
            }
            let stuck = (0..ROUNDS).find(|_| {
                let child = in_child(|| {
                    exposed::after_fork_in_child();
                    expose();
                    hang_a_bell();
                });
                !child.dies_within(Duration::from_secs(30)) || !child.wait().is_success()
            });
            stop.store(true, Ordering::Relaxed);
            assert_eq!(stuck, None, "the child of this fork is stuck or failed");
        });
    }
}
