//! Locks across processes: they know their owner and survive its death.

use phalanx::OwnerDied;
use phalanx::prelude::*;

fn add(lock: Lock, total: Shared<u64>, times: u64) {
    for _ in 0..times {
        let _guard = lock.lock().unwrap_or_else(OwnerDied::into_guard);
        let now = total.get();
        total.set(now + 1);
    }
}

fn die_holding(lock: Lock) {
    let _guard = lock.lock();
    std::process::abort();
}

fn meet(barrier: Barrier, go: Event) -> u32 {
    go.wait();
    barrier.wait().unwrap_or(u32::MAX)
}

fn use_seat(seats: Semaphore, most: Shared<i32>, now: Shared<i32>) {
    let _permit = seats.acquire();
    let here = now.with(|now| {
        *now += 1;
        *now
    });
    most.with(|most| *most = here.max(*most));
    std::thread::sleep(Duration::from_millis(5));
    now.with(|now| *now -= 1);
}

#[phalanx::main]
fn main() -> phalanx::Result<()> {
    let (lock, total) = (Lock::named("ledger")?, Shared::new(0)?);
    let adders: Vec<_> = (0..4)
        .map(|_| Process::spawn(add, (lock.clone(), total.clone(), 1000)))
        .collect::<Result<_, _>>()?;
    for adder in adders {
        adder.join()?;
    }
    println!("4 processes added 1000 each: {}", total.get());

    let _ = Process::spawn(die_holding, lock.clone())?.join();
    match lock.lock() {
        Ok(_) => println!("nobody died?"),
        Err(died) => println!("{died}"),
    }
    println!("told once: {}", lock.lock().is_ok());

    let (barrier, go) = (Barrier::new(3)?, Event::new()?);
    let parties: Vec<_> = (0..3)
        .map(|_| Process::spawn(meet, (barrier.clone(), go.clone())))
        .collect::<Result<_, _>>()?;
    go.set();
    let mut order = Vec::new();
    for party in parties {
        order.push(party.join()?);
    }
    order.sort_unstable();
    println!("met at the barrier: {order:?}");

    let (seats, most, now) = (Semaphore::new(2)?, Shared::new(0)?, Shared::new(0)?);
    let guests: Vec<_> = (0..6)
        .map(|_| Process::spawn(use_seat, (seats.clone(), most.clone(), now.clone())))
        .collect::<Result<_, _>>()?;
    for guest in guests {
        guest.join()?;
    }
    println!("6 guests, 2 seats, never more than {} at once", most.get());
    Ok(())
}
