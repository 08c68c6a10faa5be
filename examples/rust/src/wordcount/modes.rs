//! The ways to count: each takes the same batches and must give the same counts.

use std::error::Error;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use phalanx::Pool;

use super::count::{Batch, Counts, count};

/// What a way of counting may fail with: the file that could not be read, the worker that died.
pub type Failure = Box<dyn Error + Send + Sync>;

/// A way to count all batches.
pub trait Mode {
    /// Returns its name, for the table.
    fn name(&self) -> &'static str;

    /// Returns how much runs at once, for the table: `1`, `4`, `2 × 2`.
    fn width(&self) -> String;

    /// Counts all batches and calls `counted` with the bytes of each batch when it is done.
    ///
    /// # Errors
    ///
    /// When a file cannot be read, or a worker is lost for good.
    fn run(&self, batches: &[Batch], counted: &dyn Fn(u64)) -> Result<Counts, Failure>;

    /// Returns how many workers were killed while it ran.
    fn killed(&self) -> u64 {
        0
    }
}

/// One batch after the other, here.
pub struct Sequential;

impl Mode for Sequential {
    fn name(&self) -> &'static str {
        "sequential"
    }

    fn width(&self) -> String {
        "1".to_owned()
    }

    fn run(&self, batches: &[Batch], counted: &dyn Fn(u64)) -> Result<Counts, Failure> {
        let mut all = Counts::default();
        for batch in batches {
            all.merge(count(batch)?);
            counted(batch.bytes);
        }
        Ok(all)
    }
}

/// Some threads of this process take batches from one list.
pub struct Threads(pub usize);

impl Mode for Threads {
    fn name(&self) -> &'static str {
        "threads"
    }

    fn width(&self) -> String {
        self.0.to_string()
    }

    fn run(&self, batches: &[Batch], counted: &dyn Fn(u64)) -> Result<Counts, Failure> {
        let left = Mutex::new(batches.iter());
        let (give, results) = mpsc::sync_channel(self.0 * 2);
        thread::scope(|scope| {
            for _ in 0..self.0 {
                let (left, give) = (&left, give.clone());
                scope.spawn(move || {
                    let next = || {
                        left.lock()
                            .expect("no thread panics while it takes a batch")
                            .next()
                    };
                    while let Some(batch) = next() {
                        // The receiver went away: another batch failed, and nobody needs this one.
                        if give.send((batch.bytes, count(batch))).is_err() {
                            break;
                        }
                    }
                });
            }
            // The threads' clones alone keep the channel open from here on.
            drop(give);
            let mut all = Counts::default();
            for (bytes, counts) in results {
                all.merge(counts?);
                counted(bytes);
            }
            Ok(all)
        })
    }
}

/// Counts one batch in a worker process.
///
/// # Errors
///
/// The sentence that says which file could not be read.
#[phalanx::task]
pub fn count_batch(batch: Batch) -> Result<Counts, String> {
    count(&batch).map_err(|failure| failure.to_string())
}

/// Worker processes, each with some threads, that claim batches from one pool.
#[derive(Default)]
pub struct Processes {
    /// How many processes.
    pub workers: usize,
    /// How many threads in each.
    pub threads: usize,
    /// How often a worker is killed, if at all.
    pub chaos: Option<Duration>,
    /// How many were killed.
    pub killed: AtomicU64,
}

impl Mode for Processes {
    fn name(&self) -> &'static str {
        if self.threads == 1 {
            "processes"
        } else {
            "processes × threads"
        }
    }

    fn killed(&self) -> u64 {
        self.killed.load(Ordering::Relaxed)
    }

    fn width(&self) -> String {
        if self.threads == 1 {
            self.workers.to_string()
        } else {
            format!("{} × {}", self.workers, self.threads)
        }
    }

    fn run(&self, batches: &[Batch], counted: &dyn Fn(u64)) -> Result<Counts, Failure> {
        // A batch that meets a kill is counted again, however often that takes.
        let retries = if self.chaos.is_some() { u32::MAX } else { 0 };
        let pool = Pool::builder()
            .workers(self.workers)
            .threads_per_worker(self.threads)
            .retries(retries)
            .name("wordcount")
            .build()?;
        let (stop, stopped) = mpsc::channel::<()>();
        thread::scope(|scope| {
            if let Some(every) = self.chaos {
                let (pool, killed) = (&pool, &self.killed);
                scope.spawn(move || kill_workers(pool, every, &stopped, killed));
            }
            let mut all = Counts::default();
            let results = pool
                .imap_unordered(count_batch, batches.iter().cloned())
                .numbered();
            let outcome = results.into_iter().try_for_each(|(number, counts)| {
                all.merge(counts??);
                counted(batches[number as usize].bytes);
                Ok::<(), Failure>(())
            });
            drop(stop);
            outcome.map(|()| all)
        })
    }
}

/// Kills a random worker of `pool` every now and then until `stopped` is.
fn kill_workers(pool: &Pool, every: Duration, stopped: &mpsc::Receiver<()>, killed: &AtomicU64) {
    let begun = Instant::now();
    while stopped.recv_timeout(every) == Err(mpsc::RecvTimeoutError::Timeout) {
        let pids = pool.worker_pids();
        // As random as the clock's last digits.
        let dice = begun.elapsed().subsec_nanos() as usize / 7;
        let Some(victim) = (!pids.is_empty()).then(|| pids[dice % pids.len()]) else {
            continue;
        };
        let Some(victim) = rustix::process::Pid::from_raw(victim.cast_signed()) else {
            continue;
        };
        if rustix::process::kill_process(victim, rustix::process::Signal::KILL).is_ok() {
            killed.fetch_add(1, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    phalanx::test_entry!();

    #[test]
    fn a_failing_batch_ends_every_mode() {
        let bad = Batch {
            files: vec!["/nowhere/at-all.txt".into()],
            bytes: 1,
        };
        let batches = vec![bad; 64];
        let processes = Processes {
            workers: 2,
            threads: 2,
            ..Processes::default()
        };
        let modes: [&dyn Mode; 3] = [&Sequential, &Threads(3), &processes];
        for mode in modes {
            let failure = mode.run(&batches, &|_| {}).unwrap_err();
            assert!(
                failure.to_string().contains("/nowhere/at-all.txt"),
                "{failure}"
            );
        }
    }
}
