//! The ways to count: each takes the same batches and must give the same counts.

use std::error::Error;
use std::sync::{Mutex, mpsc};
use std::thread;

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failing_batch_ends_every_mode() {
        let bad = Batch {
            files: vec!["/nowhere/at-all.txt".into()],
            bytes: 1,
        };
        let batches = vec![bad; 64];
        let modes: [&dyn Mode; 2] = [&Sequential, &Threads(3)];
        for mode in modes {
            let failure = mode.run(&batches, &|_| {}).unwrap_err();
            assert!(
                failure.to_string().contains("/nowhere/at-all.txt"),
                "{failure}"
            );
        }
    }
}
