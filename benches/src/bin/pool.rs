//! A pool's work: small tasks (one number there, one number back) for workers that are warm already.

use std::collections::VecDeque;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use phalanx_benches::ours::Waits;
use phalanx_benches::peers::{CROSSMIST, ipc::Echo};
use phalanx_benches::ring::Ring;
use phalanx_benches::sys::Forked;
use phalanx_benches::{
    Contestant, Entry, Group, LONG_SPIN, Options, Result, Role, SPIN, ours, program, run,
};

const SPINNING: &str = "two rings a worker, 50 µs spin";
const BRIEFLY: &str = "two rings a worker, 2 µs spin";
const SLEEPING: &str = "two rings a worker, sleep at once";

fn main() -> ExitCode {
    program(table)
}

fn table(options: &Options) -> Result {
    for (title, workers, window, limit) in [
        ("Pool: one warm worker, one task at a time", 1, 1, SPINNING),
        ("Pool: one worker, 64 tasks outstanding", 1, 64, SPINNING),
        // With the caller these are three processes: on two cores a long spin keeps somebody else from working.
        (
            "Pool: two workers, 64 tasks outstanding each",
            2,
            64,
            BRIEFLY,
        ),
    ] {
        if options.wants(title) {
            let group = Group::new(title, limit, contestants(workers, window));
            run(group.when_busy(SLEEPING).note(CROSSMIST), options)?;
        }
    }
    Ok(())
}

/// All rows. This project's own belong at the end, as `Role::Phalanx`: either a [`Worker`] in [`Hands`], or, for
/// whatever hands tasks out by itself, a closure over `count` as procspawn's.
fn contestants(workers: usize, window: usize) -> Vec<Entry> {
    vec![
        Entry::new(Role::Limit, SLEEPING, move || {
            Hands::new(workers, window, || Rings::start(Duration::ZERO))
        }),
        Entry::new(Role::Limit, BRIEFLY, move || {
            Hands::new(workers, window, || Rings::start(SPIN))
        }),
        Entry::new(Role::Limit, SPINNING, move || {
            Hands::new(workers, window, || Rings::start(LONG_SPIN))
        }),
        Entry::new(Role::Peer, "procspawn: Pool, join in order", move || {
            procspawn_pool(workers, window)
        }),
        Entry::new(
            Role::Peer,
            "ipc-channel: two channels to a worker made by hand",
            move || Hands::new(workers, window, Echo::start),
        ),
        Entry::new(
            Role::InProcess,
            "threads, two crossbeam channels each",
            move || Hands::new(workers, window, Thread::start),
        ),
        Entry::new(Role::Phalanx, "Pool, get in order", move || {
            ours::pool(workers, window, Waits::Usually)
        }),
        Entry::new(Role::Phalanx, "Pool, get in order, spin off", move || {
            ours::pool(workers, window, Waits::AtOnce)
        }),
    ]
}

/// What computes a task.
fn task(value: u64) -> u64 {
    std::hint::black_box(value) + 1
}

/// One worker: tasks in, results out, in order.
trait Worker {
    /// Hands a task over.
    fn give(&mut self, value: u64) -> Result;
    /// Waits for the oldest result.
    fn take(&mut self) -> Result<u64>;
}

/// Keeps `window` tasks outstanding at each worker.
struct Hands<W> {
    workers: Vec<W>,
    window: usize,
}

impl<W: Worker> Hands<W> {
    fn new(workers: usize, window: usize, start: impl FnMut() -> Result<W>) -> Result<Self> {
        let workers = std::iter::repeat_with(start)
            .take(workers)
            .collect::<Result<_>>()?;
        Ok(Self { workers, window })
    }
}

impl<W: Worker> Contestant for Hands<W> {
    fn run(&mut self, count: u64) -> Result<Duration> {
        let all = self.workers.len();
        let ahead = (self.window * all) as u64;
        let mut sum = 0_u64;
        let began = Instant::now();
        let mut taken = 0;
        for given in 0..count {
            // The worker whose turn it is has its window full once everybody's is: its oldest result first.
            let worker = &mut self.workers[given as usize % all];
            if given >= ahead {
                sum += worker.take()?;
                taken += 1;
            }
            worker.give(given)?;
        }
        while taken < count {
            sum += self.workers[taken as usize % all].take()?;
            taken += 1;
        }
        let time = began.elapsed();
        // Each number came back one greater.
        if sum == count * (count - 1) / 2 + count {
            Ok(time)
        } else {
            Err("wrong results came back".into())
        }
    }
}

struct Rings {
    tasks: Ring,
    results: Ring,
    _process: Forked,
}

impl Rings {
    fn start(spin: Duration) -> Result<Self> {
        let mut tasks = Ring::new(64, 64, spin)?;
        let mut results = Ring::new(64, 64, spin)?;
        let process = Forked::start(&[], || {
            loop {
                let value = tasks.pop();
                results.push(&task(value).to_ne_bytes());
            }
        })?;
        Ok(Self {
            tasks,
            results,
            _process: process,
        })
    }
}

impl Worker for Rings {
    fn give(&mut self, value: u64) -> Result {
        self.tasks.push(&value.to_ne_bytes());
        Ok(())
    }

    fn take(&mut self) -> Result<u64> {
        Ok(self.results.pop())
    }
}

impl Worker for Echo {
    fn give(&mut self, value: u64) -> Result {
        Echo::give(self, value)
    }

    fn take(&mut self) -> Result<u64> {
        Echo::take(self)
    }
}

struct Thread {
    tasks: crossbeam_channel::Sender<u64>,
    results: crossbeam_channel::Receiver<u64>,
}

impl Thread {
    fn start() -> Result<Self> {
        let (tasks, todo) = crossbeam_channel::bounded(64);
        let (done, results) = crossbeam_channel::bounded(64);
        std::thread::spawn(move || {
            while let Ok(value) = todo.recv() {
                if done.send(task(value)).is_err() {
                    return;
                }
            }
        });
        Ok(Self { tasks, results })
    }
}

impl Worker for Thread {
    fn give(&mut self, value: u64) -> Result {
        Ok(self.tasks.send(value)?)
    }

    fn take(&mut self) -> Result<u64> {
        Ok(self.results.recv()?)
    }
}

/// The pool chooses the worker; a result is joined before the task that would exceed the window.
fn procspawn_pool(workers: usize, window: usize) -> Result<impl Contestant> {
    let pool = procspawn::Pool::new(workers)?;
    let mut open = VecDeque::new();
    Ok(move |count| {
        let began = Instant::now();
        for value in 0..count {
            if open.len() == window * workers {
                join(&mut open)?;
            }
            open.push_back(procspawn::spawn!(in pool, (value) || task(value)));
        }
        while !open.is_empty() {
            join(&mut open)?;
        }
        Ok(began.elapsed())
    })
}

fn join(open: &mut VecDeque<procspawn::JoinHandle<u64>>) -> Result {
    if let Some(handle) = open.pop_front() {
        handle.join()?;
    }
    Ok(())
}
