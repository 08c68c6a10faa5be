//! This project's own contestants.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use phalanx::{
    Lock, Patience, Pool, Process, Queue, RawQueue, SharedScope, Spin, StartMethod, TaskHandle,
};

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::lock::Locked;
use crate::ring::read_all;
use crate::{Contestant, Result, repeat};

/// Whether both sides of a row may spin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Waits {
    /// As it comes: spins while that pays.
    Usually,
    /// Sleeps at once.
    AtOnce,
}

impl Waits {
    /// Holds for the calling process until what is returned is dropped.
    fn here(self) -> impl Sized {
        struct Back;
        impl Drop for Back {
            fn drop(&mut self) {
                Spin::allow(crate::cores() > 1);
            }
        }
        (self == Self::AtOnce).then(|| {
            Spin::allow(false);
            Back
        })
    }

    /// Holds for a helper process for good.
    fn for_good(at_once: bool) {
        if at_once {
            Spin::allow(false);
        }
    }
}

/// A process that ends with its handle.
struct Ended(Process<()>);

impl Drop for Ended {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait(None);
    }
}

fn echo(there: Queue<u64>, back: Queue<u64>, at_once: bool) {
    Waits::for_good(at_once);
    while let Ok(value) = there.get() {
        if back.put(value + 1).is_err() {
            return;
        }
    }
}

/// A round trip over two queues of numbers.
///
/// # Errors
/// When the process cannot be started.
pub fn ping_pong(waits: Waits) -> Result<impl Contestant> {
    let (there, back) = (Queue::<u64>::new()?, Queue::<u64>::new()?);
    let process = Ended(Process::spawn(
        echo,
        (there.clone(), back.clone(), waits == Waits::AtOnce),
    )?);
    Ok(move |count| {
        let _waits = waits.here();
        let _ = &process;
        repeat(count, || {
            there.put(1)?;
            match back.get()? {
                2 => Ok(()),
                other => Err(format!("{other} came back").into()),
            }
        })
    })
}

/// Receives messages in place, reads every line, and says when so many have come.
fn receive(queue: Queue<u64>, done: Queue<u64>, announced: Queue<u64>, at_once: bool) {
    Waits::for_good(at_once);
    let mut buffer = Vec::new();
    while let Ok(count) = announced.get() {
        for _ in 0..count {
            match queue.raw().get_into(&mut buffer, Patience::FOREVER) {
                Ok(phalanx::Received::Inline) => {
                    std::hint::black_box(read_all(&buffer));
                }
                Ok(phalanx::Received::Block(message)) => {
                    std::hint::black_box(read_all(&message));
                }
                Err(_) => return,
            }
        }
        if done.put(count).is_err() {
            return;
        }
    }
}

/// Messages of bytes through a bounded queue; large ones are received where they were written.
///
/// # Errors
/// When the process cannot be started.
pub fn one_way_bytes(size: usize, waits: Waits) -> Result<impl Contestant> {
    // As much ahead as the limits' rings hold, two messages at least.
    let ahead = ((1 << 20) / size as u64).clamp(2, 1024);
    let (queue, done, announced) = (
        Queue::<u64>::bounded(ahead)?,
        Queue::<u64>::new()?,
        Queue::<u64>::new()?,
    );
    let process = Ended(Process::spawn(
        receive,
        (
            queue.clone(),
            done.clone(),
            announced.clone(),
            waits == Waits::AtOnce,
        ),
    )?);
    let payload = vec![7_u8; size];
    Ok(move |count| -> Result<Duration> {
        let _waits = waits.here();
        let _ = &process;
        let raw: &RawQueue = queue.raw();
        announced.put(count)?;
        let began = Instant::now();
        for _ in 0..count {
            raw.put(&[&payload], Patience::FOREVER)?;
        }
        done.get()?;
        Ok(began.elapsed())
    })
}

fn receive_typed<T>(queue: Queue<T>, done: Queue<u64>, announced: Queue<u64>)
where
    T: DeserializeOwned + AsRef<[u8]>,
{
    while let Ok(count) = announced.get() {
        for _ in 0..count {
            match queue.get() {
                Ok(value) => {
                    std::hint::black_box(read_all(value.as_ref()));
                }
                Err(_) => return,
            }
        }
        if done.put(count).is_err() {
            return;
        }
    }
}

/// Messages as serde values: `Vec<u8>`, or what serializes bytes as bytes.
///
/// # Errors
/// When the process cannot be started.
pub fn one_way_typed<T>(size: usize) -> Result<impl Contestant>
where
    T: Serialize + DeserializeOwned + AsRef<[u8]> + From<Vec<u8>> + Send + Sync + 'static,
{
    let ahead = ((1 << 20) / size as u64).clamp(2, 1024);
    let (queue, done, announced) = (
        Queue::<T>::bounded(ahead)?,
        Queue::<u64>::new()?,
        Queue::<u64>::new()?,
    );
    let process = Ended(Process::spawn(
        receive_typed::<T>,
        (queue.clone(), done.clone(), announced.clone()),
    )?);
    Ok(move |count| -> Result<Duration> {
        let _ = &process;
        announced.put(count)?;
        let began = Instant::now();
        for _ in 0..count {
            queue
                .put(T::from(vec![7_u8; size]))
                .map_err(|error| error.kind)?;
        }
        done.get()?;
        Ok(began.elapsed())
    })
}

fn task(value: u64) -> u64 {
    std::hint::black_box(value) + 1
}

/// A pool with a window of tasks outstanding at each worker.
///
/// # Errors
/// When the pool cannot be made.
pub fn pool(workers: usize, window: usize, waits: Waits) -> Result<impl Contestant> {
    let pool = Pool::builder()
        .workers(workers)
        .initializer(Waits::for_good, waits == Waits::AtOnce)
        .build()?;
    let mut open: VecDeque<TaskHandle<u64>> = VecDeque::new();
    Ok(move |count| -> Result<Duration> {
        let _waits = waits.here();
        let began = Instant::now();
        let mut sum = 0;
        for value in 0..count {
            if open.len() == window * workers
                && let Some(oldest) = open.pop_front()
            {
                sum += oldest.get()?;
            }
            open.push_back(pool.apply_async(task, value)?);
        }
        while let Some(oldest) = open.pop_front() {
            sum += oldest.get()?;
        }
        let time = began.elapsed();
        if sum == count * (count - 1) / 2 + count {
            Ok(time)
        } else {
            Err("wrong results came back".into())
        }
    })
}

/// A function in a new process, joined.
///
/// # Errors
/// When a process cannot be started.
pub fn start(method: StartMethod) -> Result<impl Contestant> {
    Process::builder()
        .start_method(method)
        .spawn(task, 1)?
        .join()?;
    Ok(move |count| {
        repeat(count, || {
            let process = Process::builder().start_method(method).spawn(task, 1)?;
            match process.join()? {
                2 => Ok(()),
                other => Err(format!("{other} is the wrong result").into()),
            }
        })
    })
}

impl Locked for Lock<SharedScope> {
    fn locked<R>(&self, inside: impl FnOnce() -> R) -> R {
        let _guard = self.lock();
        inside()
    }
}

impl Locked for Lock<phalanx::Local> {
    fn locked<R>(&self, inside: impl FnOnce() -> R) -> R {
        let _guard = self.lock();
        inside()
    }
}

/// What an idle pool is made of.
///
/// # Errors
/// When the pool cannot be made.
pub fn idle_pool(workers: usize) -> Result<Pool> {
    let pool = Pool::new(workers)?;
    pool.map(task, 0..workers as u64)?;
    Ok(pool)
}

/// So many shared locks, each used once.
///
/// # Errors
/// When shared memory is short.
pub fn locks(count: usize) -> Result<Vec<Lock>> {
    let locks = (0..count)
        .map(|_| Lock::new())
        .collect::<std::result::Result<Vec<_>, _>>()?;
    for lock in &locks {
        drop(lock.lock());
    }
    Ok(locks)
}
