//! Data that processes share without a copy: a value, a slice, named memory.
#![expect(
    unsafe_code,
    reason = "disjoint parts of a slice are written without its lock"
)]

use phalanx::prelude::*;

fn fill(numbers: SharedSlice<f64>, part: usize, parts: usize) {
    let len = numbers.len() / parts;
    let range = part * len..(part + 1) * len;
    // SAFETY: each process has a part of its own.
    let mine = unsafe { numbers.part_mut(range.clone()) };
    for (index, number) in range.zip(mine) {
        *number = (index as f64).sqrt();
    }
}

fn count(counter: Shared<u64>) {
    for _ in 0..500 {
        counter.with(|counter| *counter += 1);
    }
}

fn read_named(name: String) -> String {
    let Ok(memory) = SharedMemory::attach(&name) else {
        return "there is no such memory".to_owned();
    };
    let mut bytes = vec![0; 5];
    match memory.read_at(0, &mut bytes) {
        Ok(()) => String::from_utf8_lossy(&bytes).into_owned(),
        Err(error) => error.to_string(),
    }
}

#[phalanx::main]
fn main() -> phalanx::Result<()> {
    let numbers = SharedSlice::<f64>::zeroed(1_000_000)?;
    let parts = 4;
    let fillers: Vec<_> = (0..parts)
        .map(|part| Process::spawn(fill, (numbers.clone(), part, parts)))
        .collect::<Result<_, _>>()?;
    for filler in fillers {
        filler.join()?;
    }
    println!(
        "a million square roots, filled by 4 processes: {:.1}",
        numbers.with(|all| all.iter().sum::<f64>())
    );

    let counter = Shared::new(0_u64)?;
    let counters: Vec<_> = (0..3)
        .map(|_| Process::spawn(count, counter.clone()))
        .collect::<Result<_, _>>()?;
    for process in counters {
        process.join()?;
    }
    println!("counted to {}", counter.get());

    let name = format!("phalanx-example-{}", std::process::id());
    let memory = SharedMemory::create(&name, 4096)?;
    let written = memory.write_at(0, b"hello");
    println!(
        "another process reads {:?} ({written:?})",
        Process::spawn(read_named, name)?.join()?
    );
    memory.unlink()?;
    Ok(())
}
