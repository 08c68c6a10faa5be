//! Queues and pipes: bounded, joinable, duplex, waited for together.

use phalanx::prelude::*;
use phalanx::{Connection, GetError};

fn produce(queue: Queue<String>, name: String) -> phalanx::Result<(), String> {
    for number in 0..3 {
        queue
            .put(format!("{name}{number}"))
            .map_err(|error| error.to_string())?;
    }
    Ok(())
}

fn echo(pipe: Connection<String, String>) {
    while let Ok(text) = pipe.recv() {
        if pipe.send(text.to_uppercase()).is_err() {
            break;
        }
    }
}

fn work(jobs: Queue<u32>, done: Shared<u32>) {
    while let Ok(job) = jobs.get() {
        *done.lock().unwrap() += job;
        let _ = jobs.task_done();
    }
}

#[phalanx::main]
fn main() -> phalanx::Result<()> {
    // Handles are values: they travel as arguments.
    let queue = Queue::bounded(2)?;
    for name in ["a", "b"] {
        Process::spawn(produce, (queue.clone(), name.to_owned()))?;
    }
    let mut received: Vec<String> = (0..6).map(|_| queue.get()).collect::<Result<_, _>>()?;
    received.sort();
    println!("received {received:?}");

    let (ours, theirs) = pipe::<String, String>()?;
    let process = Process::spawn(echo, theirs)?;
    ours.send("hello".to_owned())?;
    println!("the pipe answers {:?}", ours.recv()?);

    let other = Queue::<u8>::new()?;
    println!(
        "ready at once: {:?}",
        wait(&[&ours, &other], Some(Duration::from_millis(20)))
    );
    process.kill()?;
    match ours.recv() {
        Err(error @ GetError::Closed(_)) => println!("the other end was killed: {error}"),
        other => println!("{other:?}"),
    }

    let (jobs, done) = (Queue::joinable()?, Shared::new(0)?);
    let _worker = Process::builder()
        .daemon()
        .spawn(work, (jobs.clone(), done.clone()))?;
    for job in 1..=10 {
        jobs.put(job)?;
    }
    jobs.join()?;
    println!("all jobs are done, their sum is {}", done.get());
    Ok(())
}
