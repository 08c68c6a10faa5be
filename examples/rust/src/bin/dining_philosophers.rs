//! Five philosophers at a table, each a process, each taking the left fork first. Sooner or later all of them have one fork
//! and wait for the next: then the one that came last puts its fork down, and eats later.

use phalanx::OwnerDied;
use phalanx::prelude::*;
use phalanx::watch::{self, Action, recover};

const MEALS: u32 = 20;

fn dine(left: Lock, right: Lock, table: Barrier) -> u32 {
    let _ = table.wait();
    let (mut eaten, mut gave_way) = (0, 0);
    while eaten < MEALS {
        let meal = recover(|| {
            let _left = left.lock().unwrap_or_else(OwnerDied::into_guard);
            // Long enough for the neighbour to take its left fork, too.
            std::thread::sleep(Duration::from_millis(1));
            let _right = right.lock().unwrap_or_else(OwnerDied::into_guard);
        });
        match meal {
            Ok(()) => eaten += 1,
            Err(_) => {
                gave_way += 1;
                // Who takes the fork again at once has it before the neighbour is awake.
                std::thread::sleep(Duration::from_millis(5));
            }
        }
    }
    gave_way
}

#[phalanx::main]
fn main() -> phalanx::Result<()> {
    let options = watch::Options::new(Action::Raise).every(Duration::from_millis(20));
    if let Err(error) = watch::enable_with(options) {
        eprintln!("{error}");
        return Ok(());
    }
    let names = ["Plato", "Hypatia", "Confucius", "Avicenna", "Arendt"];
    let forks: Vec<Lock> = (0..names.len())
        .map(|i| Lock::named(&format!("fork {i}")))
        .collect::<Result<_, _>>()?;
    let table = Barrier::new(names.len() as u32)?;
    let mut philosophers = Vec::new();
    for (i, name) in names.iter().enumerate() {
        let right = forks[(i + 1) % forks.len()].clone();
        let arguments = (forks[i].clone(), right, table.clone());
        let builder = Process::builder().name(*name);
        philosophers.push((name, builder.spawn(dine, arguments)?));
    }
    let mut gave_way = 0;
    for (name, philosopher) in philosophers {
        let times = philosopher.join()?;
        println!("{name} ate {MEALS} times and gave way {times} times");
        gave_way += times;
    }
    println!("all have eaten; {gave_way} deadlocks were ended");
    Ok(())
}
