//! What a test found when it began, and must find again when it ends.

use std::fs;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

static ALONE: Mutex<()> = Mutex::new(());

/// Keeps other tests of this binary that also call it out until the guard is dropped.
#[must_use = "other tests may run when the guard is dropped"]
pub fn alone() -> MutexGuard<'static, ()> {
    // A failed test says nothing about the next.
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// How much this process has of what leaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Level {
    /// Open descriptors.
    pub descriptors: usize,
    /// Children, zombies included.
    pub children: usize,
    /// Whatever else the caller counts: blocks of the arena, as a rule.
    pub blocks: usize,
}

impl Level {
    /// Counts now. `blocks` is the caller's own count.
    #[must_use]
    pub fn now(blocks: usize) -> Self {
        Self {
            descriptors: descriptors(),
            children: children(),
            blocks,
        }
    }

    /// Counts once nothing has changed for a while: what ended before may still be cleared away on other threads.
    #[must_use]
    pub fn settled(blocks: impl Fn() -> usize) -> Self {
        let mut level = Self::now(blocks());
        let mut calm = 0;
        while calm < 20 {
            std::thread::sleep(Duration::from_millis(5));
            let now = Self::now(blocks());
            calm = if now == level { calm + 1 } else { 0 };
            level = now;
        }
        level
    }

    /// Asserts that everything is back at this level.
    ///
    /// What ends on other threads (a reaper closing a descriptor) gets two seconds to do so.
    ///
    /// # Panics
    ///
    /// When there is more (or less) than there was.
    #[track_caller]
    pub fn assert_back(&self, blocks: usize) {
        self.assert_back_with(|| blocks);
    }

    /// As [`assert_back`](Self::assert_back), counting `blocks` anew with each look.
    ///
    /// # Panics
    ///
    /// When there is more (or less) than there was.
    #[track_caller]
    pub fn assert_back_with(&self, blocks: impl Fn() -> usize) {
        let patience = Instant::now() + Duration::from_secs(2);
        loop {
            let now = Self::now(blocks());
            if now == *self {
                return;
            }
            assert!(
                Instant::now() < patience,
                "not back at the level before: {now:?}, was {self:?}"
            );
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

fn descriptors() -> usize {
    // One of them is the folder being read.
    fs::read_dir("/proc/self/fd").map_or(0, |all| all.count().saturating_sub(1))
}

fn children() -> usize {
    let me = std::process::id();
    let Ok(all) = fs::read_dir("/proc") else {
        return 0;
    };
    let pids = all
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    pids.filter(|pid| parent_of(*pid) == Some(me)).count()
}

fn parent_of(pid: u32) -> Option<u32> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, rest) = stat.rsplit_once(')')?;
    rest.split_whitespace().nth(1)?.parse().ok()
}
