//! Processes killed at random while they use locks of every kind: nobody hangs, nobody is let in who should not be, what
//! the dead held comes back, nothing leaks.

use std::time::{Duration, Instant};

use phalanx_process::Process;
use phalanx_shm::session;
use phalanx_sync::{
    Barrier, BarrierError, BoundedSemaphore, Condition, Event, Lock, OwnerDied, RLock, Semaphore,
    Shared, SharedSlice,
};
use phalanx_testkit::{Level, alone, watchdog};

phalanx_process::test_entry!();

const SOON: Duration = Duration::from_secs(60);

fn blocks() -> usize {
    session().unwrap().usage().blocks
}

fn add(a: u64, b: u64) -> u64 {
    a + b
}

/// What stays for good (the zygote, the reaper, tables of holds) is there.
fn warm_up() -> Level {
    assert_eq!(Process::spawn(add, (1, 2)).unwrap().join().unwrap(), 3);
    Level::settled(blocks)
}

/// A different short time each time.
struct Dice(u64);

impl Dice {
    fn roll(&mut self) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        self.0 >> 33
    }

    fn pause(&mut self) {
        std::thread::sleep(Duration::from_micros(200 + self.roll() % 2500));
    }
}

fn end(process: &Process<()>) {
    process.kill().unwrap();
    let error = process.join().unwrap_err().to_string();
    assert!(error.contains("SIGKILL"), "{error}");
}

/// Kills one of `count` members again and again and starts another in its place; `check` runs after each kill.
fn kill_members(
    seed: u64,
    kills: usize,
    count: usize,
    start: impl Fn(usize) -> Process<()>,
    mut check: impl FnMut(),
) {
    let mut dice = Dice(seed);
    let mut members: Vec<_> = (0..count).map(&start).collect();
    for _ in 0..kills {
        dice.pause();
        let number = dice.roll() as usize % count;
        end(&members[number]);
        members[number] = start(number);
        check();
    }
    members.iter().for_each(end);
}

/// Blocks until `count` grows.
fn grows(count: &Shared<u64>) {
    let (before, patience) = (count.get(), Instant::now() + SOON);
    while count.get() == before {
        assert!(Instant::now() < patience, "nobody gets on");
        std::thread::sleep(Duration::from_micros(100));
    }
}

/// Moves one between two accounts under a lock taken twice; repairs what a dead owner left.
fn transfer(lock: RLock, accounts: SharedSlice<i64>, rounds: Shared<u64>) {
    loop {
        let _outer = lock.lock().unwrap_or_else(|died| {
            accounts.with(|accounts| accounts[1] = 1000 - accounts[0]);
            died.into_guard()
        });
        accounts.with(|accounts| {
            assert_eq!(accounts[0] + accounts[1], 1000, "two were inside at once");
            accounts[0] -= 1;
        });
        let _inner = lock.lock().expect("it is ours already");
        assert_eq!(lock.depth(), 2);
        accounts.with(|accounts| accounts[1] += 1);
        rounds.with(|rounds| *rounds += 1);
    }
}

#[test]
fn owners_of_a_recursive_lock_are_killed() {
    let _alone = alone();
    let _dog = watchdog(Duration::from_secs(300));
    let level = warm_up();
    {
        let lock = RLock::new().unwrap();
        let accounts = SharedSlice::from_slice(&[1000, 0]).unwrap();
        let rounds = Shared::new(0_u64).unwrap();
        let start = |_| {
            let args = (lock.clone(), accounts.clone(), rounds.clone());
            Process::spawn(transfer, args).unwrap()
        };
        kill_members(1, 200, 3, start, || grows(&rounds));
        drop(lock.lock_timeout(SOON).map_err(|error| error.to_string()));
        assert!(!lock.is_locked());
        println!(
            "kill table: RLock: 200 kills, {} rounds, 0 entered twice",
            rounds.get()
        );
    }
    level.assert_back_with(blocks);
}

fn use_permits(all: (Semaphore, BoundedSemaphore), rounds: Shared<u64>) {
    loop {
        let _permit = all.0.acquire();
        let _another = all.1.acquire_timeout(SOON).expect("a permit comes back");
        rounds.with(|rounds| *rounds += 1);
    }
}

#[test]
fn holders_of_permits_are_killed() {
    let _alone = alone();
    let _dog = watchdog(Duration::from_secs(300));
    let level = warm_up();
    {
        let all = (
            Semaphore::new(2).unwrap(),
            BoundedSemaphore::new(1).unwrap(),
        );
        let rounds = Shared::new(0_u64).unwrap();
        let start = |_| Process::spawn(use_permits, (all.clone(), rounds.clone())).unwrap();
        kill_members(2, 200, 4, start, || {
            grows(&rounds);
            assert!(
                all.0.value() <= 2 && all.1.value() <= 1,
                "a permit too many"
            );
        });
        assert_eq!((all.0.value(), all.1.value()), (2, 1), "a permit is lost");
        assert!(all.1.release().is_err());
        println!(
            "kill table: Semaphore, BoundedSemaphore: 200 kills, {} rounds, 0 permits lost",
            rounds.get()
        );
    }
    level.assert_back_with(blocks);
}

/// Made, taken, there: the first two always differ by the third, whoever repairs.
type Tickets = SharedSlice<u64>;

fn repair<G>(tickets: &Tickets, died: OwnerDied<G>) -> G {
    tickets.with(|tickets| tickets[2] = tickets[0] - tickets[1]);
    died.into_guard()
}

fn make_tickets(lock: Lock, more: Condition, tickets: Tickets) {
    loop {
        let _guard = lock.lock().unwrap_or_else(|died| repair(&tickets, died));
        tickets.with(|tickets| {
            assert_eq!(tickets[0], tickets[1] + tickets[2]);
            tickets[0] += 1;
        });
        tickets.with(|tickets| tickets[2] += 1);
        more.notify_one();
    }
}

fn take_tickets(lock: Lock, more: Condition, tickets: Tickets, taken: Shared<u64>) {
    loop {
        let guard = lock.lock().unwrap_or_else(|died| repair(&tickets, died));
        let none = || tickets.with(|tickets| tickets[2] == 0);
        let mut guard = Some(guard);
        while none() {
            let waited = more.wait(guard.take().unwrap());
            guard = Some(waited.unwrap_or_else(|died| repair(&tickets, died)));
        }
        tickets.with(|tickets| tickets[1] += 1);
        tickets.with(|tickets| tickets[2] -= 1);
        taken.with(|taken| *taken += 1);
    }
}

#[test]
fn waiters_and_notifiers_of_a_condition_are_killed() {
    let _alone = alone();
    let _dog = watchdog(Duration::from_secs(300));
    let level = warm_up();
    {
        let (lock, more) = (Lock::new().unwrap(), Condition::new().unwrap());
        let tickets = SharedSlice::from_slice(&[0_u64; 3]).unwrap();
        let taken = Shared::new(0_u64).unwrap();
        let start = |number: usize| {
            let args = (lock.clone(), more.clone(), tickets.clone());
            if number == 0 {
                Process::spawn(make_tickets, args).unwrap()
            } else {
                let args = (args.0, args.1, args.2, taken.clone());
                Process::spawn(take_tickets, args).unwrap()
            }
        };
        kill_members(3, 200, 4, start, || grows(&taken));
        // Those who sleep when the last notifier has died: a notification finds them all the same.
        let takers: Vec<_> = (1..4).map(start).collect();
        let patience = Instant::now() + SOON;
        while more.waiters() < 3 {
            assert!(Instant::now() < patience, "{} wait", more.waiters());
            std::thread::sleep(Duration::from_millis(1));
        }
        end(&takers[0]);
        for _ in 0..50 {
            let before = taken.get();
            {
                let _guard = lock.lock().unwrap_or_else(|died| repair(&tickets, died));
                tickets.with(|tickets| {
                    tickets[0] += 1;
                    tickets[2] += 1;
                });
                more.notify_one();
            }
            let patience = Instant::now() + SOON;
            while taken.get() == before {
                assert!(Instant::now() < patience, "a notification went to the dead");
                std::thread::sleep(Duration::from_micros(100));
            }
        }
        takers[1..].iter().for_each(end);
        println!(
            "kill table: Condition: 203 kills, {} tickets taken, 0 wakes lost",
            taken.get()
        );
    }
    level.assert_back_with(blocks);
}

fn flick(event: Event, rounds: Shared<u64>) {
    loop {
        event.set();
        rounds.with(|rounds| *rounds += 1);
        event.clear();
    }
}

fn follow(event: Event, seen: Shared<u64>) {
    loop {
        event.wait();
        seen.with(|seen| *seen += 1);
    }
}

#[test]
fn those_who_set_events_and_wait_for_them_are_killed() {
    let _alone = alone();
    let _dog = watchdog(Duration::from_secs(300));
    let level = warm_up();
    {
        let event = Event::new().unwrap();
        let counts = [Shared::new(0_u64).unwrap(), Shared::new(0_u64).unwrap()];
        let start = |number: usize| {
            let args = (event.clone(), counts[number % 2].clone());
            if number.is_multiple_of(2) {
                Process::spawn(flick, args).unwrap()
            } else {
                Process::spawn(follow, args).unwrap()
            }
        };
        kill_members(4, 200, 4, start, || counts.iter().for_each(grows));
        event.clear();
        let follower = start(1);
        grows_after(&counts[1], || event.set());
        end(&follower);
        println!(
            "kill table: Event: 201 kills, {} sets, {} waits, 0 hangs",
            counts[0].get(),
            counts[1].get()
        );
    }
    level.assert_back_with(blocks);
}

fn grows_after(count: &Shared<u64>, act: impl FnOnce()) {
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| grows(count));
        std::thread::sleep(Duration::from_millis(20));
        act();
        waiting.join().unwrap();
    });
}

fn meet(barrier: Barrier, meetings: Shared<u64>) {
    loop {
        match barrier.wait() {
            Ok(number) => meetings.with(|meetings| *meetings += u64::from(number == 0)),
            // Until somebody makes it whole.
            Err(BarrierError::Broken) => std::thread::sleep(Duration::from_micros(200)),
            Err(error) => panic!("{error}"),
        }
    }
}

#[test]
fn parties_of_a_barrier_are_killed() {
    let _alone = alone();
    let _dog = watchdog(Duration::from_secs(300));
    let level = warm_up();
    {
        let barrier = Barrier::new(3).unwrap();
        let meetings = Shared::new(0_u64).unwrap();
        let start = |_| Process::spawn(meet, (barrier.clone(), meetings.clone())).unwrap();
        let mut broken = 0;
        kill_members(5, 200, 3, start, || {
            let (before, patience) = (meetings.get(), Instant::now() + SOON);
            // It is broken if the dead one waited there; the others were told, and try until it is whole.
            while meetings.get() == before {
                if barrier.is_broken() {
                    broken += 1;
                    barrier.reset();
                }
                assert!(Instant::now() < patience, "no meeting any more");
                std::thread::sleep(Duration::from_micros(200));
            }
        });
        println!(
            "kill table: Barrier: 203 kills, {} meetings, {broken} times broken, 0 hangs",
            meetings.get()
        );
    }
    level.assert_back_with(blocks);
}
