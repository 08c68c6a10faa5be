//! The tools themselves.

use std::time::Duration;

use phalanx_testkit::{Level, PANICKED, alone, in_child, watchdog};

#[test]
fn a_child_returns_panics_or_is_killed() {
    let _alone = alone();
    let _dog = watchdog(Duration::from_secs(20));
    let level = Level::now(0);
    assert!(in_child(|| {}).wait().is_success());
    let failed = in_child(|| std::panic::panic_any(1)).wait();
    assert_eq!(failed.0.code(), Some(PANICKED));
    let sleeper = in_child(|| std::thread::sleep(Duration::from_secs(60)));
    assert!(!sleeper.dies_within(Duration::from_millis(5)));
    sleeper.wait_asleep();
    sleeper.kill();
    assert!(sleeper.wait().is_killed());
    drop(sleeper);
    level.assert_back(0);
}

#[test]
fn a_zombie_and_a_descriptor_are_seen() {
    let _alone = alone();
    let _dog = watchdog(Duration::from_secs(20));
    let level = Level::now(7);
    let child = in_child(|| {});
    child.wait_dead();
    let more = Level::now(7);
    assert_eq!(more.children, level.children + 1);
    assert!(more.descriptors > level.descriptors);
    drop(child);
    level.assert_back(7);
}

#[test]
fn children_end_with_their_parent() {
    let _alone = alone();
    let _dog = watchdog(Duration::from_secs(20));
    let (reader, writer) = std::io::pipe().unwrap();
    let middle = in_child(move || {
        let mut writer = writer;
        let below = in_child(|| std::thread::sleep(Duration::from_secs(60)));
        std::io::Write::write_all(&mut writer, &below.pid().to_le_bytes()).unwrap();
        std::thread::sleep(Duration::from_secs(60));
    });
    let mut pid = [0; 4];
    std::io::Read::read_exact(&mut { reader }, &mut pid).unwrap();
    middle.kill();
    middle.wait();
    let stat = format!("/proc/{}/stat", u32::from_le_bytes(pid));
    // Gone, or a zombie that whoever adopted it has not collected.
    let alive = || {
        std::fs::read_to_string(&stat)
            .is_ok_and(|stat| !stat.rsplit(')').next().unwrap_or("").starts_with(" Z"))
    };
    while alive() {
        std::thread::sleep(Duration::from_millis(1));
    }
}
