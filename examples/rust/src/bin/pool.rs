//! A pool of worker processes: apply, map, lazy maps, state, callbacks, ends.

use phalanx::prelude::*;
use phalanx::{current_worker, worker_state};

fn square(x: u64) -> u64 {
    x * x
}

fn power(base: u64, exponent: u32) -> u64 {
    base.pow(exponent)
}

/// What each worker makes once, before its first task.
fn open_table(size: u64) -> Vec<u64> {
    (0..size).map(|x| x * x).collect()
}

fn look_up(index: usize) -> Option<u64> {
    worker_state::<Vec<u64>>()?.get(index).copied()
}

#[phalanx::main]
fn main() -> phalanx::Result<()> {
    let pool = Pool::builder()
        .workers(2)
        .threads_per_worker(2)
        .max_tasks_per_child(1000)
        .initializer(open_table, 100)
        .build()?;

    println!("apply: {}", pool.apply(square, 12)?);
    println!("map: {:?}", pool.map(square, 0..8)?);
    println!("starmap: {:?}", pool.starmap(power, [(2, 10), (3, 4)])?);
    println!("state: {:?}", pool.apply(look_up, 9)?);

    let pending = pool.apply_async(square, 1000)?;
    println!("asynchronously: {}", pending.get()?);
    pool.apply_async(square, 5)?
        .then(|result| println!("callback: {result:?}"));

    // Endless input, taken only as fast as results are.
    let first: Result<Vec<u64>, _> = pool.imap(square, 1..).take(5).collect();
    println!("lazily: {:?}", first?);
    let total: u64 = pool
        .imap_unordered(square, 0..1000)
        .sum::<Result<u64, _>>()?;
    println!("in any order, summed: {total}");

    println!("in the parent, current_worker() is {:?}", current_worker());
    pool.close();
    pool.join()?;
    Ok(())
}
