//! A process that never had a pool sweeps after one that had. Alone in its file: no other test may make one here.

use std::time::Duration;

use phalanx_channel::Queue;
use phalanx_pool::{Crew, Pool};
use phalanx_process::{Process, StartMethod};
use phalanx_testkit::{Level, alone, watchdog};

phalanx_process::test_entry!();

fn with_pools(told: Queue<()>) {
    let pool = Pool::new(1).unwrap();
    let crew = Crew::new(1, 1).unwrap();
    told.put(()).unwrap();
    loop {
        std::thread::sleep(Duration::from_secs(60));
        assert!(crew.is_mine() && pool.stats().submitted == 0);
    }
}

fn nothing() {}

fn blocks() -> usize {
    phalanx_shm::session().unwrap().usage().blocks
}

#[test]
fn pools_of_a_killed_child_leave_nothing() {
    let _alone = alone();
    let _dog = watchdog(Duration::from_secs(100));
    let told = Queue::new().unwrap();
    // The zygote and this process's own tables are there from now on.
    Process::spawn(nothing, ()).unwrap().join().unwrap();
    let level = Level::settled(blocks);
    for method in [StartMethod::Zygote, StartMethod::Spawn] {
        let child = Process::builder()
            .start_method(method)
            .spawn(with_pools, told.clone())
            .unwrap();
        told.get().unwrap();
        child.kill().unwrap();
        assert!(child.join().is_err());
        drop(child);
        level.assert_back_with(blocks);
    }
}
