//! The root's own pool: each task has one outcome, and runs at most once.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use phalanx::prelude::*;
use phalanx::{BuildError, PoolError, TaskHandle};

use crate::members::square;
use crate::world::{Member, TASKS_MOST};

/// A task of the root: counts its runs.
fn run_once(ran: SharedSlice<u8>, number: u64) -> u64 {
    ran.with(|ran| ran[number as usize] += 1);
    square(number)
}

pub(crate) struct Tasks {
    root: Member,
    pool: Pool,
    handles: Vec<(u64, TaskHandle<u64>)>,
    pub(crate) outcomes: BTreeMap<String, u64>,
    called: Arc<AtomicU64>,
    to_be_called: u64,
    next: u64,
}

impl Tasks {
    pub(crate) fn new(root: Member) -> Result<Self, BuildError> {
        let pool = Pool::builder()
            .workers(2)
            .threads_per_worker(2)
            .start_method(root.world.method())
            .build()?;
        Ok(Self {
            root,
            pool,
            handles: Vec::new(),
            outcomes: BTreeMap::new(),
            called: Arc::default(),
            to_be_called: 0,
            next: 0,
        })
    }

    pub(crate) fn submit(&mut self) {
        if self.next as usize + 32 > TASKS_MOST || self.handles.len() > 2000 {
            return;
        }
        for number in self.next..self.next + 32 {
            let args = (self.root.world.ran.clone(), number);
            let Ok(handle) = self.pool.apply_async(run_once, args) else {
                self.count("refused");
                continue;
            };
            if number % 2 == 0 {
                self.handles.push((number, handle));
            } else {
                let called = Arc::clone(&self.called);
                self.to_be_called += 1;
                handle.then(move |_| {
                    called.fetch_add(1, Ordering::Relaxed);
                });
            }
        }
        self.next += 32;
    }

    fn count(&mut self, outcome: &str) {
        *self.outcomes.entry(outcome.to_owned()).or_insert(0) += 1;
    }

    /// Looks at those that are done; at the end waits for all.
    pub(crate) fn settle(&mut self, wait: bool) {
        let (done, rest) = std::mem::take(&mut self.handles)
            .into_iter()
            .partition(|(_, handle)| wait || handle.is_done());
        self.handles = rest;
        for (number, handle) in done {
            self.read(number, &handle);
        }
    }

    fn read(&mut self, number: u64, handle: &TaskHandle<u64>) {
        let patience = Duration::from_secs(60);
        let outcome = self
            .root
            .within(60.0, "a task of the root", || handle.get_timeout(patience));
        let ran = self.root.world.ran.with(|ran| ran[number as usize]);
        match outcome {
            Ok(value) => {
                self.count("value");
                if value != number * number || ran != 1 {
                    self.root
                        .complain(&format!("task {number} gave {value} and ran {ran} times"));
                }
            }
            Err(PoolError::Died(_)) => self.count("died"),
            Err(PoolError::NotDone(_)) => self
                .root
                .complain(&format!("task {number} has no outcome after 60 s")),
            Err(error) => {
                self.count("short");
                eprintln!("task {number}: {error}");
            }
        }
        if ran > 1 {
            self.root
                .complain(&format!("task {number} ran {ran} times"));
        }
    }

    pub(crate) fn end(&mut self) {
        self.settle(true);
        self.pool.close();
        let patience = Duration::from_secs(60);
        if let Err(error) = self
            .root
            .within(60.0, "Pool::join", || self.pool.join_timeout(patience))
        {
            self.root.complain(&format!("Pool::join: {error}"));
        }
        let called = self.called.load(Ordering::Relaxed);
        if called != self.to_be_called {
            self.root.complain(&format!(
                "{called} of {} callbacks were called",
                self.to_be_called
            ));
        }
        *self.outcomes.entry("called back".to_owned()).or_insert(0) += called;
    }
}
