//! The members of a chaos tree: each a process that works until the tree stops, and may be killed at any moment.

use std::thread::sleep;
use std::time::{Duration, Instant};

use phalanx::prelude::*;
use phalanx::{BarrierError, GetError, PoolError, PutErrorKind, TaskHandle};

use crate::world::{ACCEPTED, CELLS, ITEMS_MOST, Item, Member, PERMITS, REFUSED, TRIED, is_alive};

const MILLI: Duration = Duration::from_millis(1);

fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn me() -> u32 {
    std::process::id()
}

/// Runs the role that a name begins with.
pub(crate) fn play(member: Member) {
    let role = match member.name.rsplit_once('-') {
        Some((role, _)) => role,
        None => &member.name,
    };
    match role {
        "producer" => producer(&member),
        "consumer" => consumer(&member),
        "locker" => locker(&member),
        "sitter" => sitter(&member),
        "giver" => giver(&member),
        "taker" => taker(&member),
        "meeter" => meeter(&member),
        "ringer" => ringer(&member),
        "hearer" => hearer(&member),
        "writer" => writer(&member),
        "caller" => caller(&member),
        "boss" => boss(&member),
        "hog" => hog(&member),
        other => member.complain(&format!("there is no role {other}")),
    }
}

// ---- queues ----

/// The bytes of an item: most fit the ring, some take pages of their own.
fn payload(producer: usize, number: usize) -> Vec<u8> {
    let len = if number % 37 == 36 {
        200_000
    } else {
        number % 300
    };
    vec![(producer * 101 + number) as u8; len]
}

fn producer(member: &Member) {
    let index = member
        .name
        .rsplit_once('-')
        .and_then(|(_, index)| index.parse().ok())
        .unwrap_or(0);
    let state = &member.world.state[index];
    let first = state.with(|state| state.iter().position(|at| *at == 0));
    for number in first.unwrap_or(ITEMS_MOST)..ITEMS_MOST {
        if !member.running() {
            return;
        }
        state.with(|state| state[number] = TRIED);
        let item = (index, number, payload(index, number));
        let put = member.within(2.0, "put", || {
            member.world.queue.put_timeout(item, seconds(2))
        });
        let outcome = match put {
            Ok(()) => ACCEPTED,
            Err(error) => {
                if !matches!(error.kind, PutErrorKind::Full | PutErrorKind::Alloc(_)) {
                    member.complain(&format!("put: {}", error.kind));
                }
                sleep(10 * MILLI);
                REFUSED
            }
        };
        state.with(|state| state[number] = outcome);
        member.done();
        if number % 64 == 0 {
            sleep(MILLI);
        }
    }
}

fn consumer(member: &Member) {
    while member.running() {
        let got = member.within(1.0, "get", || member.world.queue.get_timeout(seconds(1)));
        match got {
            Ok(item) => {
                note_item(member, &item);
                if let Err(error) = member.world.queue.task_done() {
                    member.complain(&format!("task_done: {error}"));
                }
                member.done();
            }
            Err(GetError::Empty) => {}
            Err(error) => member.complain(&format!("get: {error}")),
        }
    }
}

/// Notes that an item came, and looks whether it is whole.
pub(crate) fn note_item(member: &Member, (producer, number, bytes): &Item) {
    if *bytes != payload(*producer, *number) {
        member.complain(&format!("item {number} of producer {producer} is torn"));
    }
    let times = member.world.got[*producer].with(|got| {
        got[*number] += 1;
        got[*number]
    });
    if times > 1 {
        member.complain(&format!("item {number} of producer {producer} came twice"));
    }
}

// ---- locks ----

/// Is inside; nobody else who is alive may be.
fn critical(member: &Member, which: usize, what: &str) {
    let inside = &member.world.inside;
    let other = inside.with(|inside| std::mem::replace(&mut inside[which], me()));
    if other != 0 && other != me() && is_alive(other) {
        member.complain(&format!("{other} is inside of the {what} as well"));
    }
    sleep(MILLI / 2);
    let now = inside.with(|inside| std::mem::replace(&mut inside[which], 0));
    if now != me() {
        member.complain(&format!("{now} came into the {what}"));
    }
}

fn locker(member: &Member) {
    let world = &member.world;
    while member.running() {
        if let Some(_guard) = member.have("Lock", |timeout| world.lock.lock_timeout(timeout)) {
            critical(member, 0, "Lock");
        }
        if let Some(_outer) = member.have("RLock", |timeout| world.rlock.lock_timeout(timeout)) {
            let _inner = world.rlock.lock();
            critical(member, 1, "RLock");
        }
        member.done();
        sleep(MILLI);
    }
}

fn sitter(member: &Member) {
    let world = &member.world;
    let mut turn = 0_u64;
    while member.running() {
        let permit = member.within(5.0, "BoundedSemaphore", || {
            world.seats.acquire_timeout(seconds(5))
        });
        if permit.is_some() {
            turn += 1;
            // Under the slice's own lock: who sits now sits at one moment.
            let seated = world.seated.with(|seated| {
                seated[member.number] = u64::from(me()) << 24 | turn & 0xff_ffff;
                seated.to_vec()
            });
            let here = seated
                .iter()
                .filter(|seat| **seat != 0 && is_alive((**seat >> 24) as u32));
            let still = world.seated.with(|seated| seated.to_vec());
            let here = here.filter(|seat| still.contains(seat)).count();
            if here > PERMITS as usize {
                member.complain(&format!("{here} hold one of {PERMITS} permits"));
            }
            sleep(MILLI);
            world.seated.with(|seated| seated[member.number] = 0);
        }
        drop(permit);
        member.done();
        sleep(MILLI);
    }
}

fn giver(member: &Member) {
    let world = &member.world;
    while member.running() {
        if let Some(_guard) = member.have("the condition's lock", |timeout| {
            world.condition_lock.lock_timeout(timeout)
        }) {
            world.tickets.with(|tickets| *tickets += 2);
            world.condition.notify(2);
        }
        member.done();
        sleep(4 * MILLI);
    }
}

fn taker(member: &Member) {
    let world = &member.world;
    while member.running() {
        let Some(guard) = member.have("the condition's lock", |timeout| {
            world.condition_lock.lock_timeout(timeout)
        }) else {
            continue;
        };
        let begun = Instant::now();
        let waited = member.within(3.0, "Condition", || {
            let blocked = || world.tickets.get() <= 0 && !world.stop.is_set();
            world
                .condition
                .wait_timeout_while(guard, seconds(3), blocked)
        });
        let (guard, there) = waited.unwrap_or_else(phalanx::OwnerDied::into_guard);
        let tickets = world.tickets.get();
        if tickets > 10 && begun.elapsed() > Duration::from_millis(2900) {
            member.complain("nobody woke a waiter, and tickets are there");
        }
        if there && tickets > 0 {
            world.tickets.with(|tickets| *tickets -= 1);
        }
        drop(guard);
        member.done();
    }
}

fn meeter(member: &Member) {
    let barrier = &member.world.barrier;
    while member.running() {
        match member.within(1.0, "Barrier", || barrier.wait_timeout(seconds(1))) {
            Ok(_) => {}
            Err(BarrierError::Broken | BarrierError::TimedOut { .. }) => {
                sleep(10 * MILLI);
                barrier.reset();
            }
            Err(error) => member.complain(&format!("barrier: {error}")),
        }
        member.done();
        sleep(2 * MILLI);
    }
}

fn ringer(member: &Member) {
    let event = &member.world.event;
    while member.running() {
        member.within(1.0, "Event::set", || event.set());
        sleep(2 * MILLI);
        member.within(1.0, "Event::clear", || event.clear());
        member.done();
        sleep(2 * MILLI);
    }
}

fn hearer(member: &Member) {
    while member.running() {
        member.within(1.0, "Event::wait", || {
            member.world.event.wait_timeout(seconds(1))
        });
        member.done();
        sleep(MILLI);
    }
}

// ---- shared data ----

fn writer(member: &Member) {
    let world = &member.world;
    let mut stamp = 0;
    while member.running() {
        let Some(guard) = member.have("the array's lock", |timeout| {
            world.array_lock.lock_timeout(timeout)
        }) else {
            continue;
        };
        stamp += 1;
        let (other, whole) = world.array.with(|array| {
            let whole = array[1..].iter().all(|cell| *cell == array[1]);
            (std::mem::replace(&mut array[0], me().into()) as u32, whole)
        });
        if other == 0 && !whole {
            member.complain("the array is not whole, and nobody died while writing it");
        } else if other != 0 && other != me() && is_alive(other) {
            member.complain(&format!("{other} writes the array as well"));
        }
        for half in [1..CELLS / 2, CELLS / 2..CELLS + 1] {
            world.array.with(|array| array[half].fill(stamp));
            sleep(MILLI / 2);
        }
        world.array.with(|array| array[0] = 0);
        drop(guard);
        member.done();
        sleep(2 * MILLI);
    }
}

// ---- processes and pools ----

fn echo(end: Connection<u64, u64>) {
    while let Ok(number) = end.recv() {
        if end.send(number).is_err() {
            return;
        }
    }
}

/// Starts a child again and again, and talks to it.
fn caller(member: &Member) {
    while member.running() {
        let Ok((ours, theirs)) = pipe::<u64, u64>() else {
            sleep(50 * MILLI);
            continue;
        };
        let started = member.within(20.0, "Process::spawn", || {
            Process::builder()
                .start_method(member.world.method())
                .daemon()
                .spawn(echo, theirs)
        });
        let Ok(child) = started else {
            sleep(50 * MILLI);
            continue;
        };
        for number in 0..40 {
            if ours.send(number).is_err() {
                break;
            }
            match member.within(3.0, "recv", || ours.recv_timeout(seconds(3))) {
                Ok(answer) if answer == number => member.done(),
                Ok(_) => member.complain("a pipe brought something else"),
                Err(GetError::Closed(_)) => break,
                Err(GetError::Empty) => {
                    if !is_alive(child.pid()) {
                        member.complain("a dead child's pipe has no end");
                    }
                    break;
                }
                Err(error) => member.complain(&format!("recv: {error}")),
            }
        }
        drop(ours);
        let _ = member.within(5.0, "Process::join_timeout", || {
            child.join_timeout(seconds(5))
        });
        if child.is_alive() {
            let _ = child.kill();
            let _ = member.within(5.0, "join of a killed one", || {
                child.join_timeout(seconds(5))
            });
            if child.is_alive() {
                member.complain("a killed child does not end");
            }
        }
    }
}

pub(crate) fn square(number: u64) -> u64 {
    if number % 11 == 10 {
        sleep(3 * MILLI);
    }
    number * number
}

fn locked_square(lock: Lock, number: u64) -> u64 {
    let _guard = lock.lock();
    number * number
}

fn oversleep(seconds: u64) {
    sleep(Duration::from_secs(seconds));
}

fn nested(number: u64) -> Option<u64> {
    Pool::new(1).ok()?.apply(square, number).ok()
}

/// Waits for a task: it has one outcome, in time. Returns its value if it has one.
fn settle<R: serde::Serialize + serde::de::DeserializeOwned>(
    member: &Member,
    task: Result<TaskHandle<R>, phalanx::SubmitError>,
) -> Option<R> {
    let task = task.ok()?;
    match member.within(30.0, "a task", || task.get_timeout(seconds(30))) {
        Ok(value) => Some(value),
        Err(PoolError::NotDone(_)) => {
            member.complain("a task has no outcome after 30 s");
            None
        }
        Err(PoolError::Panicked(report)) => {
            member.complain(&format!("a task panicked: {report}"));
            None
        }
        Err(_) => None,
    }
}

/// Has a pool of its own, and uses it in all ways.
fn boss(member: &Member) {
    while member.running() {
        let pool = member.within(30.0, "Pool", || {
            Pool::builder()
                .workers(2)
                .start_method(member.world.method())
                .build()
        });
        let Ok(pool) = pool else {
            sleep(50 * MILLI);
            continue;
        };
        for turn in 0..12 {
            if !member.running() {
                break;
            }
            use_pool(member, &pool, turn);
        }
        pool.close();
        if let Err(error) = member.within(30.0, "Pool::join", || pool.join_timeout(seconds(30))) {
            member.complain(&format!("Pool::join: {error}"));
        }
    }
}

fn use_pool(member: &Member, pool: &Pool, turn: u64) {
    let tasks: Vec<_> = (0..40)
        .map(|number| pool.apply_async(square, number))
        .collect();
    for (number, task) in (0..).zip(tasks) {
        if settle(member, task).is_some_and(|value| value != number * number) {
            member.complain("a task gave another's value");
        }
        member.done();
    }
    match turn % 4 {
        0 => {
            if let Ok(lock) = Lock::new() {
                let value = settle(member, pool.apply_async(locked_square, (lock, 7)));
                if value.is_some_and(|value| value != 49) {
                    member.complain("a task with a lock gave something else");
                }
            }
        }
        1 => {
            let options = TaskOptions::new().timeout(50 * MILLI);
            if settle(member, pool.apply_with(options, oversleep, 60)).is_some() {
                member.complain("a task outlived its time-out");
            }
        }
        2 => {
            if let Ok(task) = pool.apply_async(oversleep, 60) {
                sleep(10 * MILLI);
                let _ = task.cancel();
                if settle(member, Ok(task)).is_some() {
                    member.complain("a cancelled task has a value");
                }
            }
        }
        _ => {
            let value = settle(member, pool.apply_async(nested, 5)).flatten();
            if value.is_some_and(|value| value != 25) {
                member.complain("a pool in a task gave something else");
            }
        }
    }
}

/// Takes all descriptors of this process, or all memory of the arena, for a moment; then starts something.
fn hog(member: &Member) {
    while member.running() {
        let mut kept = Vec::new();
        while kept.len() < 5000 {
            match std::fs::File::open("/dev/null") {
                Ok(file) => kept.push(file),
                Err(_) => break,
            }
        }
        try_something(member);
        drop(kept);
        if let Ok(queue) = Queue::<Vec<u8>>::new() {
            for _ in 0..64 {
                if queue.put_timeout(vec![7; 2_000_000], seconds(1)).is_err() {
                    try_something(member);
                    break;
                }
            }
            while queue.try_get().is_ok() {}
        }
        member.done();
        sleep(50 * MILLI);
    }
}

fn try_something(member: &Member) {
    let begun = member.within(20.0, "a start without room", || Process::spawn(square, 3));
    if let Ok(child) = begun {
        let _ = child.join_timeout(seconds(10));
        let _ = child.kill();
        let _ = member.within(5.0, "join of a killed one", || {
            child.join_timeout(seconds(5))
        });
    }
}
