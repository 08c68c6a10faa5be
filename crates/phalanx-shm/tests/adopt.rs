//! Joining a tree by an inherited descriptor: the door, from the side of a program that was started.

use std::fs::File;
use std::os::fd::{AsFd, FromRawFd, OwnedFd};
use std::time::Duration;

use phalanx_shm::{Arena, Kind, OpenError, SlotState, adopt, session, session_if_any};
use phalanx_sys::clock::Deadline;
use phalanx_sys::pidfd::{ExitStatus, PidFd, Polled};
use phalanx_sys::process::Spawn;
use phalanx_testkit::{Level, alone, in_child, watchdog};

const NUMBER: i32 = 200;
const SLOT: &str = "PHALANX_TEST_SLOT";
const EXPECT: &str = "PHALANX_TEST_EXPECT";

/// What the started programs run; a test of its own has nothing to do.
#[test]
fn started() {
    let Ok(expected) = std::env::var(EXPECT) else {
        return;
    };
    let _dog = watchdog(Duration::from_secs(30));
    let slot = std::env::var(SLOT).unwrap().parse().unwrap();
    let outcome = adopt(inherited(), slot);
    let seen = match &outcome {
        Ok(_) => "joined",
        Err(OpenError::Foreign(_)) => "foreign",
        Err(OpenError::Version { .. }) => "version",
        Err(OpenError::Abandoned) => "abandoned",
        Err(_) => "other",
    };
    assert_eq!(seen, expected, "{outcome:?}");
    let Ok(arena) = outcome else {
        assert!(session_if_any().is_none(), "refused is not joined");
        return;
    };
    assert_eq!(phalanx_shm::current_slot(), slot);
    assert_eq!(arena.process(slot).state, SlotState::Live);
    arena.alloc(700, Kind::Bytes).unwrap();
    arena.alloc(70_000, Kind::Bytes).unwrap();
    assert!(matches!(
        adopt(File::open("/dev/null").unwrap().into(), slot),
        Err(OpenError::AlreadyJoined)
    ));
}

#[expect(unsafe_code, reason = "an inherited descriptor is taken by its number")]
fn inherited() -> OwnedFd {
    // SAFETY: the parent mapped the descriptor to this number, and nothing else here knows it.
    unsafe { OwnedFd::from_raw_fd(NUMBER) }
}

fn start(file: impl AsFd, slot: u16, expect: &str) {
    // The first argument is the program's own name: without it the filter would be lost, and each program would start more.
    let pid = Spawn::this_program()
        .arg("adopt")
        .arg("started")
        .arg("--exact")
        .env(SLOT, slot.to_string())
        .env(EXPECT, expect)
        .map_fd(file.as_fd(), NUMBER)
        .start()
        .unwrap();
    let child = PidFd::open(pid).unwrap();
    assert_eq!(
        child.poll(Some(Deadline::after(Duration::from_secs(40)))),
        Polled::Ready
    );
    assert_eq!(
        child.wait_exit().unwrap(),
        Some(ExitStatus::Exited(0)),
        "expected {expect}"
    );
}

#[test]
fn a_started_program_joins_and_what_it_held_comes_back() {
    let _alone = alone();
    let _dog = watchdog(Duration::from_secs(60));
    let arena = session().unwrap();
    let level = Level::now(arena.usage().blocks);
    let slot = arena.reserve_slot().unwrap();
    start(arena.region().file().unwrap(), slot, "joined");
    assert_eq!(arena.usage().blocks, level.blocks + 2);
    assert_eq!(arena.sweep(slot).reclaimed, 2);
    assert_eq!(arena.process(slot).state, SlotState::Free);
    level.assert_back(arena.usage().blocks);
}

#[test]
fn who_is_not_expected_is_refused() {
    let _alone = alone();
    let _dog = watchdog(Duration::from_secs(60));
    let arena = session().unwrap();
    let file = arena.region().file().unwrap();
    // A slot that was given back, this process's own, one that cannot be.
    let slot = arena.reserve_slot().unwrap();
    arena.unreserve_slot(slot);
    start(file, slot, "abandoned");
    start(file, phalanx_shm::current_slot(), "abandoned");
    start(file, 0, "foreign");
    start(file, u16::MAX, "foreign");
    assert_eq!(arena.processes().len(), 1);
}

#[test]
fn another_file_or_version_is_refused() {
    let _alone = alone();
    let _dog = watchdog(Duration::from_secs(60));
    start(
        File::open(file!().rsplit('/').next().map_or_else(String::new, |name| {
            format!("{}/tests/{name}", env!("CARGO_MANIFEST_DIR"))
        }))
        .unwrap(),
        2,
        "foreign",
    );
    start(std::io::pipe().unwrap().0, 2, "foreign");
    let other = Arena::create(32 << 20).unwrap();
    let file = other.region().file().unwrap();
    let raw = File::from(file.as_fd().try_clone_to_owned().unwrap());
    std::os::unix::fs::FileExt::write_all_at(&raw, &9_u32.to_le_bytes(), 8).unwrap();
    start(file, 2, "version");
}

#[test]
fn what_is_meant_for_a_dead_process_does_not_meet_the_next_one_in_its_slot() {
    let _alone = alone();
    let _dog = watchdog(Duration::from_secs(60));
    let arena = session().unwrap();
    let slot = arena.reserve_slot().unwrap();
    let dead = arena.ticket(slot);
    assert!(arena.unreserve_slot(dead));
    // Reserved again, for somebody else.
    let others: Vec<_> = std::iter::repeat_with(|| arena.reserve_slot().unwrap())
        .take_while(|again| *again != slot)
        .collect();
    let next = arena.ticket(slot);
    arena.sweep(dead);
    assert!(!arena.unreserve_slot(dead));
    assert_eq!(arena.process(slot).state, SlotState::Reserved);
    assert_eq!(arena.process(slot).ticket, next);
    for slot in others.into_iter().chain([slot]) {
        assert!(arena.unreserve_slot(slot));
    }
    assert_eq!(arena.processes().len(), 1);
}

#[test]
fn who_comes_too_late_does_not_get_anothers_place() {
    let _alone = alone();
    let _dog = watchdog(Duration::from_secs(60));
    let arena = session().unwrap();
    let slot = arena.reserve_slot().unwrap();
    let late = arena.ticket(slot);
    arena.unreserve_slot(slot);
    // Reserved again, for somebody else.
    let others: Vec<_> = std::iter::repeat_with(|| arena.reserve_slot().unwrap())
        .take_while(|again| *again != slot)
        .collect();
    let next = arena.ticket(slot);
    assert_ne!(late, next);
    let child = in_child(|| {
        assert!(matches!(
            phalanx_shm::adopt_forked(late),
            Err(phalanx_shm::OpenError::Abandoned)
        ));
        phalanx_shm::adopt_forked(next).unwrap();
    });
    assert!(child.wait().is_success());
    arena.sweep(slot);
    for slot in others {
        assert!(arena.unreserve_slot(slot));
    }
    assert_eq!(arena.processes().len(), 1);
}
