//! The three ways to start a process, timed: a warm zygote (the default), the program executed again, a fork of this one.
#![expect(unsafe_code, reason = "fork")]

use std::time::Instant;

use phalanx::Zygote;
use phalanx::prelude::*;

fn double(x: u64) -> u64 {
    2 * x
}

#[phalanx::main]
fn main() -> phalanx::Result<()> {
    for method in [StartMethod::Zygote, StartMethod::Spawn] {
        // The first start of a zygote is its own.
        Process::builder()
            .start_method(method)
            .spawn(double, 1)?
            .join()?;
        let begun = Instant::now();
        let answer = Process::builder()
            .start_method(method)
            .spawn(double, 21)?
            .join()?;
        println!("{method:?}: {answer} after {:?}", begun.elapsed());
    }

    let table: Vec<u64> = (0..100).collect();
    let begun = Instant::now();
    // SAFETY: the closure only reads what it captured.
    let process = unsafe { Process::builder().fork(|| table.iter().sum::<u64>()) }?;
    println!("Fork: {} after {:?}", process.join()?, begun.elapsed());

    // SAFETY: as above.
    let zygote = unsafe { Zygote::fork(move |index: usize| table[index]) }?;
    let begun = Instant::now();
    let process = Process::builder().spawn_in(&zygote, 42)?;
    println!(
        "a zygote with a closure: {} after {:?}",
        process.join()?,
        begun.elapsed()
    );
    Ok(())
}
