//! Tasks that fail alone: they panic, crash, run away, eat memory, or are not wanted any more.

use phalanx::TaskOptions;
use phalanx::prelude::*;

fn fine(x: u32) -> u32 {
    x
}

fn panics() {
    panic!("I do not like this input");
}

fn crashes() {
    eprintln!("about to crash");
    std::process::abort();
}

fn runs_away() {
    loop {
        std::thread::sleep(Duration::from_secs(1));
    }
}

fn eats_memory(megabytes: usize) -> usize {
    let eaten: Vec<Vec<u8>> = (0..megabytes).map(|_| vec![1; 1 << 20]).collect();
    eaten.len()
}

/// Crashes in its first two runs.
fn flaky(runs: Shared<u32>) -> u32 {
    let run = runs.with(|runs| {
        *runs += 1;
        *runs
    });
    if run < 3 {
        std::process::abort();
    }
    run
}

fn show<T: std::fmt::Debug>(what: &str, result: Result<T, phalanx::PoolError>) {
    match result {
        Ok(value) => println!("{what}: {value:?}"),
        Err(error) => println!("{what}: {error}"),
    }
}

#[phalanx::main]
fn main() -> phalanx::Result<()> {
    let pool = Pool::builder().workers(2).memory_limit(256 << 20).build()?;
    show("a panic", pool.apply(panics, ()));
    show("a crash", pool.apply(crashes, ()));
    let limited = TaskOptions::new().timeout(Duration::from_millis(100));
    show("a time-out", pool.apply_with(limited, runs_away, ())?.get());
    show("too much memory", pool.apply(eats_memory, 100_000));
    let again = TaskOptions::new().retries(5);
    show(
        "a flaky task, retried",
        pool.apply_with(again, flaky, Shared::new(0)?)?.get(),
    );
    let unwanted = pool.apply_async(runs_away, ())?;
    std::thread::sleep(Duration::from_millis(50));
    unwanted.cancel();
    show("cancelled while it ran", unwanted.get());
    show("and the pool goes on", pool.map(fine, 0..5));
    Ok(())
}
