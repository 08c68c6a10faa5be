//! Named threads with results, and a pool of them.

use phalanx::ThreadPool;
use phalanx::thread::{
    Builder, Run, Thread, active_count, current, enumerate, join_all, main_thread,
};

struct Greeter(String);

impl Run for Greeter {
    type Output = String;

    fn run(self) -> String {
        format!("hello {} from {}", self.0, current().name())
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!(
        "I am {}, {} thread runs",
        main_thread().name(),
        active_count()
    );
    let first = Thread::spawn(|| current().name())?;
    println!("the first is {}", first.join()?);
    println!(
        "{}",
        Builder::new()
            .name("greeter")
            .run(Greeter("you".to_owned()))?
            .join()?
    );

    let (stop, stopped) = std::sync::mpsc::channel::<()>();
    let waiting = Builder::new()
        .name("waiting")
        .spawn(move || stopped.recv().is_err())?;
    println!(
        "now there are {:?}",
        enumerate()
            .iter()
            .map(|thread| thread.name())
            .collect::<Vec<_>>()
    );
    if let Err(error) = waiting.join_timeout(std::time::Duration::from_millis(10)) {
        println!("{error}");
    }
    drop(stop);
    waiting.join()?;

    let unlucky = Thread::<()>::spawn(|| panic!("no luck"))?;
    if let Err(report) = unlucky.join() {
        println!("a panic comes back: {report}");
    }

    let pool = ThreadPool::new(2)?;
    let factor = 3;
    println!(
        "a pool of threads runs closures: {:?}",
        pool.map(move |x| x * factor, 0..5)?
    );
    join_all();
    Ok(())
}
