//! Functions in processes of their own: results, panics, deaths, time-outs.

use phalanx::ProcessError;
use phalanx::prelude::*;

fn add(a: u64, b: u64) -> u64 {
    a + b
}

fn divide(a: u64, b: u64) -> u64 {
    a / b
}

fn crash(words: String) {
    eprintln!("{words}");
    std::process::abort();
}

fn sleep(seconds: u64) {
    std::thread::sleep(Duration::from_secs(seconds));
}

#[phalanx::main]
fn main() -> phalanx::Result<()> {
    let sum = Process::spawn(add, (40, 2))?;
    println!("process {} says {}", sum.pid(), sum.join()?);

    if let Err(ProcessError::Panicked(report)) = Process::spawn(divide, (1, 0))?.join() {
        println!("a panic comes back: {report}");
    }

    let victim = Process::builder()
        .name("victim")
        .capture_stderr()
        .spawn(crash, "my last words".to_owned())?;
    if let Err(death) = victim.join() {
        println!("a death comes back: {death}");
    }

    let slow = Process::builder().name("sleeper").spawn(sleep, 3600)?;
    if let Err(error) = slow.join_timeout(Duration::from_millis(50)) {
        println!("{error}");
    }
    slow.terminate()?;
    println!("after terminate(): {:?}", slow.wait(None)?.to_string());

    // A daemon ends with this process instead of being waited for.
    Process::builder().daemon().spawn(sleep, 3600)?;
    Ok(())
}
