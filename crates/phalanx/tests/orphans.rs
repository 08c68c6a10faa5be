//! A parent that is killed: nobody of its family stays.

use std::time::{Duration, Instant};

use phalanx::{Event, Fork, Pool, Process, Queue, StartMethod, Zygote};
use phalanx_testkit::{alone, watchdog};

phalanx::test_entry!();

fn sleep_for_ever() {
    loop {
        std::thread::sleep(Duration::from_secs(60));
    }
}

type Pids = Queue<(String, u32)>;

fn tell(pids: &Pids, what: &str, pid: u32) {
    pids.put((what.to_owned(), pid)).unwrap();
}

/// A child that has a child in turn.
fn with_a_child(pids: Pids) {
    let grandchild = Process::spawn(sleep_for_ever, ()).unwrap();
    tell(&pids, "grandchild", grandchild.pid());
    sleep_for_ever();
}

fn busy(pids: Pids) {
    tell(&pids, "pool worker at work", std::process::id());
    // A worker's own child, from inside a task.
    let child = Process::builder()
        .start_method(StartMethod::Spawn)
        .spawn(sleep_for_ever, ());
    tell(&pids, "child of a pool worker", child.unwrap().pid());
    sleep_for_ever();
}

#[expect(unsafe_code, reason = "fork")]
fn family(pids: Pids, complete: Event) {
    for method in [StartMethod::Zygote, StartMethod::Spawn] {
        let child = Process::builder()
            .start_method(method)
            .spawn(with_a_child, pids.clone());
        tell(&pids, &format!("child by {method:?}"), child.unwrap().pid());
    }
    // SAFETY: the closure sleeps, which takes nothing that another thread may hold.
    let forked = unsafe { Process::builder().fork(sleep_for_ever) }.unwrap();
    tell(&pids, "child by fork", forked.pid());
    // SAFETY: as above.
    match unsafe { phalanx::fork() }.unwrap() {
        Fork::Child => sleep_for_ever(),
        Fork::Parent(child) => tell(&pids, "bare fork", child.pid()),
    }
    // SAFETY: as above.
    let zygote = unsafe { Zygote::fork(|(): ()| sleep_for_ever()) }.unwrap();
    tell(&pids, "zygote of one's own", zygote.pid());
    let child = Process::builder().spawn_in(&zygote, ()).unwrap();
    tell(&pids, "child of that zygote", child.pid());
    let pool = Pool::new(2).unwrap();
    for pid in pool.worker_pids() {
        tell(&pids, "pool worker", pid);
    }
    let _busy = pool.apply_async(busy, pids.clone()).unwrap();
    complete.set();
    sleep_for_ever();
}

fn is_gone(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // Whoever inherits a zombie collects it when he likes.
    stat.rsplit(')')
        .next()
        .is_none_or(|rest| rest.is_empty() || rest.trim_start().starts_with(['Z', 'X']))
}

#[test]
fn a_killed_parent_takes_its_whole_family_along() {
    let _alone = alone();
    let _dog = watchdog(Duration::from_secs(120));
    let (pids, complete) = (Pids::new().unwrap(), Event::new().unwrap());
    let parent = Process::spawn(family, (pids.clone(), complete.clone())).unwrap();
    assert!(
        complete.wait_timeout(Duration::from_secs(60)),
        "{:?}",
        parent.death()
    );
    let mut members: Vec<(String, u32)> = Vec::new();
    // Two children with a child each, four by forks, two workers, of which one says so and has a child.
    while members.len() < 12 {
        members.push(pids.get_timeout(Duration::from_secs(60)).unwrap());
    }
    assert!(
        members
            .iter()
            .all(|(what, pid)| !is_gone(*pid) || panic!("{what} is gone early"))
    );
    parent.kill().unwrap();
    let killed = Instant::now();
    while let Some((what, pid)) = members.iter().find(|(_, pid)| !is_gone(*pid)) {
        assert!(
            killed.elapsed() < Duration::from_secs(30),
            "{what} (process {pid}) outlived its parent"
        );
        std::thread::sleep(Duration::from_micros(200));
    }
    println!(
        "a family of {} was gone {:?} after its parent was killed",
        members.len(),
        killed.elapsed()
    );
    parent.join().unwrap_err();
}
