//! Results, queues and pipes in coroutines: every result is a future, on any executor (here tokio).

use phalanx::prelude::*;

fn slow_square(x: u64) -> u64 {
    std::thread::sleep(Duration::from_millis(20));
    x * x
}

fn answer(queue: Queue<String>) {
    for text in ["one", "two", "three"] {
        std::thread::sleep(Duration::from_millis(5));
        if queue.put(text.to_owned()).is_err() {
            return;
        }
    }
    queue.close();
}

#[phalanx::main]
fn main() -> phalanx::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()?;
    runtime.block_on(async {
        println!("a process: {}", Process::spawn(slow_square, 3)?.await?);

        let pool = Pool::new(2)?;
        let (one, two) = (
            pool.apply_async(slow_square, 4)?,
            pool.apply_async(slow_square, 5)?,
        );
        println!("two tasks: {} {}", one.await?, two.await?);
        println!("a map: {:?}", pool.map_async(slow_square, 0..4)?.await?);

        let queue = Queue::new()?;
        Process::builder().daemon().spawn(answer, queue.clone())?;
        while let Ok(text) = queue.get_async().await {
            println!("from the queue: {text}");
        }

        let hurried =
            tokio::time::timeout(Duration::from_millis(5), pool.apply_async(slow_square, 6)?).await;
        println!("given up in time: {}", hurried.is_err());
        Ok(())
    })
}
