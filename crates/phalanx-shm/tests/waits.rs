//! Notes of who waits for what: written on the way to sleep, read by anybody, gone with their process.
#![cfg(not(miri))]

use std::time::{Duration, Instant};

use phalanx_prim::{Deadline, Scope, Waited, Word};
use phalanx_shm::{
    Acquired, Arena, Described, Flagged, Instead, Kind, Local, Patience, RawLock, Subject, Wait,
    Waiting, flag, mark_helper, name_thread, place_of, session,
};
use phalanx_testkit::{in_child, watchdog};

const LIMIT: Duration = Duration::from_secs(60);

fn until<T>(mut look: impl FnMut() -> Option<T>) -> T {
    let begun = Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(begun.elapsed() < LIMIT, "it does not come");
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn wait_at(arena: &Arena, object: u64) -> Option<Wait> {
    let known = arena.threads_known();
    let mut waits = known.into_iter().filter_map(|known| known.wait);
    waits.find(|wait| wait.object == object)
}

#[test]
fn a_sleeper_on_a_lock_is_noted_until_it_has_it() {
    let _dog = watchdog(LIMIT);
    let arena = session().unwrap();
    let lock = RawLock::<Local>::new();
    let at = place_of(arena, lock.word());
    assert_eq!(lock.lock_forever(), Acquired::Clean);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            name_thread("the sleeper");
            let _described = Described::new(format_args!("Lock {:?}", "mine"));
            let _ = lock.lock(Patience::FOREVER);
            lock.unlock();
        });
        let wait = until(|| wait_at(arena, at));
        assert_eq!(wait.subject, Subject::PrivateLock);
        assert_eq!(wait.holder, phalanx_shm::local_token());
        assert_eq!(
            (wait.name.as_str(), wait.label.as_str()),
            ("the sleeper", "Lock \"mine\"")
        );
        assert_eq!(wait.flags & flag::TIMED, 0);
        assert!(arena.still_waits(&wait));
        assert!(arena.tell_once(&wait) && !arena.tell_once(&wait) && arena.is_told(&wait));
        lock.unlock();
        until(|| (!arena.still_waits(&wait)).then_some(()));
    });
    assert_eq!(wait_at(arena, at), None);
}

#[test]
fn a_wait_says_what_it_is_really_for_and_whether_it_ends() {
    let _dog = watchdog(LIMIT);
    let arena = session().unwrap();
    let word = Word::new(7);
    let _instead = Instead::new(Subject::Process, 4711);
    let _idle = Flagged::new(flag::IDLE);
    let patience = Patience::timeout(Duration::from_millis(5));
    let mut waiting = Waiting::new();
    waiting
        .sleeps(Subject::PrivateGate, |_| 1, 0, patience)
        .unwrap();
    let wait = wait_at(arena, 4711).unwrap();
    assert_eq!(wait.subject, Subject::Process);
    assert_eq!(wait.flags, flag::IDLE | flag::TIMED);
    let waited = waiting.wait(&word, 7, patience.deadline, Scope::Private);
    assert_eq!(
        waited,
        Waited::TimedOut,
        "nobody is interested: it is not cut short"
    );
    assert!(patience.deadline.is_some_and(Deadline::has_passed));
    drop(waiting);
    assert!(!arena.still_waits(&wait));
}

#[test]
fn a_child_writes_notes_of_its_own_and_they_go_with_it() {
    let _dog = watchdog(LIMIT);
    let arena = session().unwrap();
    let held = phalanx_shm::session()
        .unwrap()
        .alloc(64, Kind::Bytes)
        .unwrap();
    let word = held.offset() as u64;
    // Its parent's thread is the engine's own; a child's is not.
    std::thread::spawn(move || {
        mark_helper();
        let child = in_child(|| {
            let mut waiting = Waiting::new();
            let _flagged = Flagged::new(flag::RAISABLE);
            let _ = phalanx_shm::current_slot();
            waiting
                .sleeps(Subject::SharedGate, |_| word, 0, Patience::FOREVER)
                .unwrap();
            loop {
                std::thread::park();
            }
        });
        let wait = until(|| wait_at(arena, word));
        assert_eq!(arena.process(wait.slot).pid, child.pid());
        assert_eq!(wait.flags, flag::RAISABLE);
        let mine = arena.threads_known();
        assert!(
            mine.iter()
                .any(|known| known.helper && known.slot == phalanx_shm::current_slot())
        );
        child.kill();
        child.wait_dead();
        assert!(arena.census().contains(&(Kind::Waits, wait.slot)));
        arena.sweep(wait.slot);
        assert_eq!(wait_at(arena, word), None);
        assert!(!arena.still_waits(&wait));
        assert!(!arena.census().contains(&(Kind::Waits, wait.slot)));
    })
    .join()
    .unwrap();
    arena.free(held);
}

#[test]
fn threads_that_end_leave_their_notes_to_others() {
    let _dog = watchdog(LIMIT);
    let arena = session().unwrap();
    let note = || {
        let mut waiting = Waiting::new();
        let slept = waiting.sleeps(Subject::PrivateGate, |_| 1, 0, Patience::FOREVER);
        assert_eq!(slept, Ok(()));
    };
    for _ in 0..200 {
        std::thread::spawn(note).join().unwrap();
    }
    let mine = phalanx_shm::current_slot();
    let blocks = arena.census();
    let blocks = blocks.iter().filter(|line| **line == (Kind::Waits, mine));
    assert!(blocks.count() <= 2, "200 threads, one after the other");
}
