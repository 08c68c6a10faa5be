//! Every blocking call that takes a time-out: it ends the whole call, says so, and leaves the object usable.
//!
//! Each line waits for what does not come while it waits; how long it took is only asked from below.

use std::time::{Duration, Instant};

use phalanx::prelude::*;
use phalanx::{
    BarrierError, GetError, JoinError, JoinPoolError, LockError, PoolError, ProcessError,
    PutErrorKind, thread,
};
use phalanx_testkit::{alone, watchdog};

phalanx::test_entry!();

const SHORT: Duration = Duration::from_millis(150);
const LONG: Duration = Duration::from_secs(60);

fn nap(millis: u64) -> u64 {
    std::thread::sleep(Duration::from_millis(millis));
    millis
}

fn square(number: u64) -> u64 {
    number * number
}

/// Holds a lock until told to let go.
fn hold(lock: Lock, rlock: RLock, there: Event, over: Event) {
    let _guards = (lock.lock(), rlock.lock());
    there.set();
    // Told or not, it is over then.
    let _ = over.wait_timeout(LONG);
}

/// Asserts that a call waited for its time, and for this outcome.
#[track_caller]
fn waits(what: &str, call: impl FnOnce() -> bool) {
    let begun = Instant::now();
    assert!(call(), "{what}: it did not say that the time was up");
    let took = begun.elapsed();
    assert!(took >= SHORT - Duration::from_millis(2), "{what}: {took:?}");
}

#[test]
fn locks_and_friends() {
    let _alone = alone();
    let _dog = watchdog(Duration::from_secs(100));
    let (lock, rlock) = (Lock::new().unwrap(), RLock::new().unwrap());
    let (there, over) = (Event::new().unwrap(), Event::new().unwrap());
    let args = (lock.clone(), rlock.clone(), there.clone(), over.clone());
    let holder = Process::spawn(hold, args).unwrap();
    assert!(there.wait_timeout(LONG));
    waits(
        "Lock",
        || matches!(lock.lock_timeout(SHORT), Err(LockError::TimedOut { owner: Some(owner) }) if owner.pid == holder.pid()),
    );
    waits("RLock", || {
        matches!(
            rlock.lock_timeout(SHORT),
            Err(LockError::TimedOut { owner: Some(_) })
        )
    });
    over.set();
    holder.join().unwrap();
    drop((
        lock.lock_timeout(LONG).unwrap(),
        rlock.lock_timeout(LONG).unwrap(),
    ));

    let shared = Shared::new(7_u64).unwrap();
    std::thread::scope(|scope| {
        let guard = shared.lock().unwrap();
        scope
            .spawn(|| {
                waits("Shared", || {
                    matches!(shared.lock_timeout(SHORT), Err(LockError::TimedOut { .. }))
                })
            })
            .join()
            .unwrap();
        drop(guard);
    });
    assert_eq!(*shared.lock_timeout(LONG).unwrap(), 7);

    let seats = Semaphore::new(1).unwrap();
    let permit = seats.acquire();
    waits("Semaphore", || seats.acquire_timeout(SHORT).is_none());
    drop(permit);
    assert!(seats.acquire_timeout(LONG).is_some());

    let (condition, lock) = (Condition::new().unwrap(), Lock::new().unwrap());
    let guard = lock.lock().unwrap();
    let mut guard = Some(guard);
    waits("Condition::wait_timeout", || {
        let (back, notified) = condition
            .wait_timeout(guard.take().unwrap(), SHORT)
            .unwrap();
        guard = Some(back);
        !notified
    });
    waits("Condition::wait_timeout_while", || {
        let waited = condition.wait_timeout_while(guard.take().unwrap(), SHORT, || true);
        let (back, done) = waited.unwrap();
        guard = Some(back);
        !done
    });
    assert!(lock.is_mine(), "the lock is ours again");
    drop(guard);

    let event = Event::new().unwrap();
    waits("Event", || !event.wait_timeout(SHORT));
    event.set();
    assert!(event.wait_timeout(LONG));

    let barrier = Barrier::new(2).unwrap();
    waits("Barrier", || {
        matches!(
            barrier.wait_timeout(SHORT),
            Err(BarrierError::TimedOut {
                arrived: 1,
                parties: 2
            })
        )
    });
    barrier.reset();
    std::thread::scope(|scope| {
        let other = scope.spawn(|| barrier.wait_timeout(LONG));
        assert!(barrier.wait_timeout(LONG).is_ok());
        assert!(other.join().unwrap().is_ok());
    });
}

#[test]
fn queues_and_pipes() {
    let _alone = alone();
    let _dog = watchdog(Duration::from_secs(100));
    let queue = Queue::<Vec<u8>>::builder()
        .items(1)
        .joinable()
        .build()
        .unwrap();
    waits("Queue::get_timeout", || {
        matches!(queue.get_timeout(SHORT), Err(GetError::Empty))
    });
    queue.put(vec![1]).unwrap();
    waits("Queue::put_timeout", || {
        // Large: the time-out bounds the transfer too.
        let refused = queue.put_timeout(vec![2; 3_000_000], SHORT).unwrap_err();
        matches!(refused.kind, PutErrorKind::Full) && refused.value.len() == 3_000_000
    });
    assert_eq!(queue.get_timeout(LONG).unwrap(), [1]);
    waits("Queue::join_timeout", || {
        matches!(queue.join_timeout(SHORT), Err(JoinError::TimedOut))
    });
    queue.task_done().unwrap();
    queue.join_timeout(LONG).unwrap();
    queue.put_timeout(vec![3; 3_000_000], LONG).unwrap();
    assert_eq!(queue.get_timeout(LONG).unwrap().len(), 3_000_000);

    let (ours, theirs) = pipe::<u32, u32>().unwrap();
    waits("Connection::recv_timeout", || {
        matches!(ours.recv_timeout(SHORT), Err(GetError::Empty))
    });
    waits("Connection::poll_timeout", || !ours.poll_timeout(SHORT));
    waits("wait", || wait(&[&ours, &queue], Some(SHORT)).is_empty());
    theirs.send(5).unwrap();
    assert_eq!(wait(&[&ours, &queue], Some(LONG)), [0]);
    assert_eq!(ours.recv_timeout(LONG).unwrap(), 5);
}

#[test]
fn processes_pools_and_threads() {
    let _alone = alone();
    let _dog = watchdog(Duration::from_secs(100));
    for method in [StartMethod::Zygote, StartMethod::Spawn] {
        let process = Process::builder()
            .start_method(method)
            .spawn(nap, 3_600_000)
            .unwrap();
        waits("Process::join_timeout", || {
            matches!(
                process.join_timeout(SHORT),
                Err(ProcessError::TimedOut { .. })
            )
        });
        waits("Process::wait", || process.wait(Some(SHORT)).is_err());
        waits("Process::result_timeout", || {
            process.result_timeout(SHORT).is_err()
        });
        assert!(process.is_alive());
        process.kill().unwrap();
        assert!(process.join_timeout(LONG).is_err());
    }

    let pool = Pool::new(1).unwrap();
    let task = pool.apply_async(nap, 3_600_000).unwrap();
    waits("TaskHandle::get_timeout", || {
        matches!(task.get_timeout(SHORT), Err(PoolError::NotDone(_)))
    });
    waits("TaskHandle::wait_timeout", || !task.wait_timeout(SHORT));
    assert!(task.cancel());
    assert!(matches!(task.get_timeout(LONG), Err(PoolError::Cancelled)));
    let many = pool.map_async(nap, [400, 400]).unwrap();
    waits("MapHandle::wait_timeout", || !many.wait_timeout(SHORT));
    assert_eq!(many.get().unwrap(), [400, 400]);
    let last = pool.apply_async(nap, 1_000).unwrap();
    pool.close();
    waits("Pool::join_timeout", || {
        matches!(pool.join_timeout(SHORT), Err(JoinPoolError::TimedOut))
    });
    pool.join_timeout(LONG).unwrap();
    assert_eq!(last.get().unwrap(), 1_000);

    let pool = ThreadPool::new(1).unwrap();
    let task = pool.apply_async(|| nap(500)).unwrap();
    waits("ThreadTask::get_timeout", || {
        task.get_timeout(SHORT).is_err()
    });
    assert_eq!(task.get().unwrap(), 500);
    assert_eq!(pool.apply_async(|| square(4)).unwrap().get().unwrap(), 16);

    let thread = thread::Thread::spawn(|| nap(500)).unwrap();
    waits("Thread::join_timeout", || {
        thread.join_timeout(SHORT).is_err()
    });
    assert_eq!(thread.join_timeout(LONG).unwrap(), 500);
}

#[test]
fn commands() {
    let _alone = alone();
    let _dog = watchdog(Duration::from_secs(100));
    use phalanx::subprocess::{Command, Error};
    waits("subprocess::run", || {
        matches!(
            Command::new("sleep").arg("1000").timeout(SHORT).run(),
            Err(Error::TimeoutExpired(_))
        )
    });
}
