//! A descriptor that polls readable while a queue has items (or room): for whoever waits with poll, epoll or an event loop.
//!
//! | state | descriptor | who changes it |
//! |---|---|---|
//! | armed | not readable; the reactor watches the gate | the reactor, when the gate is notified: *rung* |
//! | rung | readable | [`settle`](Doorbell::settle), when it finds nothing to ring for: *armed* |
//!
//! A rung bell that another process was faster than stays rung until somebody settles it: after each take, and after each wait
//! that turned out futile. It costs nothing until it is made, and belongs to one process: a forked child makes its own.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Wake, Waker};

use phalanx_prim::{AtomicBool, Ordering};
use phalanx_shm::{Interest, Shared};
use phalanx_sync::Gate;
use phalanx_sys::event::EventFd;

use crate::raw::RawQueue;
use crate::reactor;

/// What a bell rings for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bell {
    /// There is an item, or none will come.
    Readable,
    /// There is room, or no item is taken any more.
    Writable,
}

#[derive(Debug)]
struct Clapper {
    event: EventFd,
    queue: RawQueue,
    bell: Bell,
    /// Nobody has the bell any more.
    gone: AtomicBool,
}

impl Clapper {
    fn gate(&self) -> &'static Gate<Shared> {
        match self.bell {
            Bell::Readable => self.queue.readable(),
            Bell::Writable => self.queue.writable(),
        }
    }

    fn is_due(&self) -> bool {
        match self.bell {
            Bell::Readable => self.queue.is_ready(),
            Bell::Writable => self.queue.has_room(),
        }
    }

    /// Has the reactor call at the next notification; rings if there is something to ring for already.
    fn arm(self: &Arc<Self>) {
        let waker = Waker::from(Arc::clone(self));
        reactor::register(self.gate(), self.queue.held(), &waker);
        if self.gone.load(Ordering::SeqCst) {
            reactor::forget(self.gate(), &waker);
        } else if self.is_due() {
            self.event.ring();
        }
    }
}

impl Wake for Clapper {
    fn wake(self: Arc<Self>) {
        if !self.is_due() {
            // Somebody was faster.
            self.arm();
            return;
        }
        self.event.ring();
        // The wake may have been meant for one who sleeps at the gate: we only tell, we do not take.
        self.gate().notify(1);
    }
}

/// See the module's head.
#[derive(Debug)]
pub struct Doorbell {
    clapper: Arc<Clapper>,
    owner: u32,
    /// While armed: if this process dies, the wake that it would have passed on is passed on by the sweep.
    armed: Mutex<Option<Interest>>,
}

impl Doorbell {
    /// Hangs a bell on a queue; it rings at once if there is something to ring for.
    ///
    /// # Errors
    ///
    /// When no descriptor is left.
    pub fn new(queue: &RawQueue, bell: Bell) -> io::Result<Self> {
        let doorbell = Self {
            clapper: Arc::new(Clapper {
                event: EventFd::new()?,
                queue: queue.clone(),
                bell,
                gone: AtomicBool::new(false),
            }),
            owner: phalanx_sys::ids::pid(),
            armed: Mutex::new(None),
        };
        doorbell.settle();
        Ok(doorbell)
    }

    /// Returns `false` in a forked child: the bell is its parent's.
    #[must_use]
    pub fn is_ours(&self) -> bool {
        self.owner == phalanx_sys::ids::pid()
    }

    /// Returns `true` if there is something to ring for.
    #[must_use]
    pub fn is_due(&self) -> bool {
        self.clapper.is_due()
    }

    /// Makes the descriptor say what is so.
    pub fn settle(&self) {
        let mut armed = self.armed.lock().unwrap_or_else(PoisonError::into_inner);
        if self.is_due() {
            self.clapper.event.ring();
            return;
        }
        self.clapper.event.clear();
        if armed.is_none() {
            *armed = Some(Interest::of(self.clapper.gate().word()));
        }
        self.clapper.arm();
    }
}

impl Drop for Doorbell {
    fn drop(&mut self) {
        if self.is_ours() {
            // The reactor would keep descriptor and queue until somebody notifies. The flag first: the clapper may be about to
            // arm itself again.
            self.clapper.gone.store(true, Ordering::SeqCst);
            reactor::forget(self.clapper.gate(), &Waker::from(Arc::clone(&self.clapper)));
        }
    }
}

impl AsFd for Doorbell {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.clapper.event.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use phalanx_prim::Deadline;
    use phalanx_shm::{Patience, session};

    use super::*;
    use crate::raw::Bounds;

    fn rings(bell: &Doorbell, millis: u64) -> bool {
        let deadline = Deadline::after(Duration::from_millis(millis));
        bell.clapper.event.wait(Some(deadline))
    }

    #[test]
    #[cfg_attr(miri, ignore = "Miri has no ppoll")]
    fn it_rings_while_there_are_items_and_not_longer() {
        let queue = RawQueue::new(session().unwrap(), Bounds::default()).unwrap();
        let bell = Doorbell::new(&queue, Bell::Readable).unwrap();
        assert!(!rings(&bell, 0));
        for _ in 0..100 {
            queue.put(&[b"a"], Patience::FOREVER).unwrap();
            queue.put(&[b"b"], Patience::FOREVER).unwrap();
            assert!(rings(&bell, 10_000));
            queue.get(Patience::FOREVER).unwrap();
            bell.settle();
            assert!(rings(&bell, 0));
            queue.get(Patience::FOREVER).unwrap();
            bell.settle();
            assert!(!rings(&bell, 0));
        }
    }

    #[test]
    fn a_bell_that_nobody_hears_keeps_no_item_from_a_sleeper() {
        let queue = RawQueue::new(session().unwrap(), Bounds::default()).unwrap();
        let _bell = Doorbell::new(&queue, Bell::Readable).unwrap();
        for _ in 0..50 {
            let taker = queue.clone();
            let thread = std::thread::spawn(move || {
                let deadline = Deadline::after(Duration::from_secs(20));
                taker.get(Patience::until(deadline)).is_ok()
            });
            std::thread::sleep(Duration::from_millis(2));
            queue.put(&[b"a"], Patience::FOREVER).unwrap();
            assert!(thread.join().unwrap());
            _bell.settle();
        }
    }

    #[test]
    #[cfg_attr(miri, ignore = "Miri has no ppoll")]
    fn pauses_lose_no_wake() {
        let queue = RawQueue::new(session().unwrap(), Bounds::default()).unwrap();
        let bell = Doorbell::new(&queue, Bell::Readable).unwrap();
        for _ in 0..200 {
            let putter = queue.clone();
            let thread = std::thread::spawn(move || putter.put(&[b"a"], Patience::FOREVER));
            reactor::pause();
            reactor::resume();
            thread.join().unwrap().unwrap();
            assert!(rings(&bell, 10_000));
            queue.get(Patience::FOREVER).unwrap();
            bell.settle();
        }
    }

    #[test]
    fn a_bell_that_is_dropped_leaves_nothing() {
        let _alone = phalanx_testkit::alone();
        let descriptors = || std::fs::read_dir("/proc/self/fd").unwrap().count();
        let queue = RawQueue::new(session().unwrap(), Bounds::default()).unwrap();
        drop(Doorbell::new(&queue, Bell::Readable).unwrap());
        let before = descriptors();
        for _ in 0..500 {
            drop(Doorbell::new(&queue, Bell::Readable).unwrap());
        }
        // Tests beside this one may have some open.
        assert!(descriptors() < before + 100);
        let block = queue.held().block();
        drop(queue);
        // The reactor may be looking at it at this moment.
        let gone = || session().unwrap().kind_of(block).is_none();
        for _ in 0..1000 {
            if gone() {
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        panic!("the queue is still held");
    }

    #[test]
    #[cfg_attr(miri, ignore = "Miri has no ppoll")]
    fn it_rings_for_room() {
        let bounds = Bounds {
            items: Some(1),
            ..Bounds::default()
        };
        let queue = RawQueue::new(session().unwrap(), bounds).unwrap();
        let bell = Doorbell::new(&queue, Bell::Writable).unwrap();
        assert!(rings(&bell, 0));
        queue.put(&[b"a"], Patience::FOREVER).unwrap();
        bell.settle();
        assert!(!rings(&bell, 0));
        queue.get(Patience::FOREVER).unwrap();
        assert!(rings(&bell, 10_000));
    }
}
