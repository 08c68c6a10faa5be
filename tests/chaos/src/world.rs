//! What all members of a chaos tree share, and what each notes there: cells of shared memory that outlive whoever is killed in the
//! middle of a line.

use std::time::{Duration, Instant};

use phalanx::prelude::*;
use phalanx::{CreateError, LockError, OwnerDied};
use serde::{Deserialize, Serialize};

/// States of an item, as its producer notes them.
pub(crate) const TRIED: u8 = 1;
pub(crate) const ACCEPTED: u8 = 2;
pub(crate) const REFUSED: u8 = 3;

pub(crate) const ITEMS_MOST: usize = 400_000;
pub(crate) const TASKS_MOST: usize = 400_000;
pub(crate) const PRODUCERS: usize = 2;
pub(crate) const PERMITS: u32 = 2;
pub(crate) const PARTIES: u32 = 3;
pub(crate) const CELLS: usize = 512;

/// An item: producer, number, bytes.
pub(crate) type Item = (usize, usize, Vec<u8>);

/// The shared objects of one tree.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct World {
    pub(crate) zygote: bool,
    pub(crate) grace: f64,
    pub(crate) stop: Event,
    pub(crate) queue: Queue<Item>,
    pub(crate) state: Vec<SharedSlice<u8>>,
    pub(crate) got: Vec<SharedSlice<u8>>,
    /// How often each task of the root's pool ran.
    pub(crate) ran: SharedSlice<u8>,
    pub(crate) lock: Lock,
    pub(crate) rlock: RLock,
    /// Who is inside of the two.
    pub(crate) inside: SharedSlice<u32>,
    pub(crate) seats: BoundedSemaphore,
    /// Who sits, and in which turn.
    pub(crate) seated: SharedSlice<u64>,
    pub(crate) condition: Condition,
    pub(crate) condition_lock: Lock,
    pub(crate) tickets: Shared<i64>,
    pub(crate) event: Event,
    pub(crate) barrier: Barrier,
    /// All cells are equal while nobody writes, unless a writer died. The first says who writes.
    pub(crate) array: SharedSlice<u64>,
    pub(crate) array_lock: Lock,
    /// What each member notes: operations, the worst delay beyond a time-out in milliseconds, broken promises.
    pub(crate) counts: SharedSlice<u64>,
    pub(crate) late: SharedSlice<u64>,
    pub(crate) broken: SharedSlice<u64>,
}

impl World {
    pub(crate) fn new(members: usize, zygote: bool, grace: f64) -> Result<Self, CreateError> {
        let many = |len| {
            (0..PRODUCERS)
                .map(|_| SharedSlice::zeroed(len))
                .collect::<Result<Vec<_>, _>>()
        };
        Ok(Self {
            zygote,
            grace,
            stop: Event::new()?,
            queue: Queue::<Item>::builder().items(64).joinable().build()?,
            state: many(ITEMS_MOST)?,
            got: many(ITEMS_MOST)?,
            ran: SharedSlice::zeroed(TASKS_MOST)?,
            lock: Lock::named("the Lock")?,
            rlock: RLock::named("the RLock")?,
            inside: SharedSlice::zeroed(2)?,
            seats: BoundedSemaphore::new(PERMITS)?,
            seated: SharedSlice::zeroed(members)?,
            condition: Condition::new()?,
            condition_lock: Lock::named("the condition's lock")?,
            tickets: Shared::new(0)?,
            event: Event::new()?,
            barrier: Barrier::new(PARTIES)?,
            array: SharedSlice::zeroed(CELLS + 1)?,
            array_lock: Lock::named("the array's lock")?,
            counts: SharedSlice::zeroed(members)?,
            late: SharedSlice::zeroed(members)?,
            broken: SharedSlice::zeroed(members)?,
        })
    }

    pub(crate) fn method(&self) -> StartMethod {
        if self.zygote {
            StartMethod::Zygote
        } else {
            StartMethod::Spawn
        }
    }
}

/// One member's own view of the world.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Member {
    pub(crate) world: World,
    pub(crate) name: String,
    pub(crate) number: usize,
}

impl Member {
    pub(crate) fn running(&self) -> bool {
        !self.world.stop.is_set()
    }

    /// Notes a broken promise.
    pub(crate) fn complain(&self, text: &str) {
        self.world.broken.with(|broken| broken[self.number] += 1);
        eprintln!("BROKEN {} ({}): {text}", self.name, std::process::id());
    }

    pub(crate) fn done(&self) {
        self.world.counts.with(|counts| counts[self.number] += 1);
    }

    /// Runs an operation and notes by how much it outlasted its time-out.
    pub(crate) fn within<T>(&self, seconds: f64, what: &str, operation: impl FnOnce() -> T) -> T {
        let begun = Instant::now();
        let value = operation();
        let late = begun.elapsed().as_secs_f64() - seconds;
        if late > 0.0 {
            self.world.late.with(|worst| {
                worst[self.number] = worst[self.number].max((late * 1000.0) as u64);
            });
        }
        if late > self.world.grace {
            self.complain(&format!(
                "{what} took {late:.1} s longer than its {seconds} s"
            ));
        }
        value
    }

    /// Takes a lock for as long as the guard lives; `None` when the time was up. A dead owner's lock is a lock.
    pub(crate) fn have<G>(
        &self,
        what: &str,
        lock: impl FnOnce(Duration) -> Result<G, LockError<G>>,
    ) -> Option<G> {
        match self.within(5.0, what, || lock(Duration::from_secs(5))) {
            Ok(guard) => Some(guard),
            Err(LockError::OwnerDied(died)) => Some(OwnerDied::into_guard(died)),
            Err(LockError::TimedOut { .. } | LockError::Interrupted | LockError::Deadlock(_)) => {
                None
            }
        }
    }
}

/// Tells whether a process is there and no zombie.
pub(crate) fn is_alive(pid: u32) -> bool {
    stat_of(pid).is_some_and(|stat| !matches!(stat.state, 'Z' | 'X'))
}

/// What the kernel says of a process.
pub(crate) struct Stat {
    pub(crate) state: char,
    pub(crate) session: u32,
}

pub(crate) fn stat_of(pid: u32) -> Option<Stat> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, rest) = stat.rsplit_once(')')?;
    let mut fields = rest.split_whitespace();
    Some(Stat {
        state: fields.next()?.chars().next()?,
        session: fields.nth(2)?.parse().ok()?,
    })
}
