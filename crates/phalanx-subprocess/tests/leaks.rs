//! Nothing is left behind: no zombie, no descriptor. One test, since it looks at the whole process.

mod common;

use std::fs;
use std::time::Duration;

use common::{Watchdog, children};
use phalanx_subprocess::{Command, Redirect};

fn descriptors() -> usize {
    fs::read_dir("/proc/self/fd").unwrap().count()
}

#[test]
fn no_zombie_and_no_descriptor_is_left() {
    let _watchdog = Watchdog::new();
    let round = || {
        let soon = Duration::from_millis(20);
        let _ = Command::shell("sleep 1000 & wait")
            .capture_output()
            .timeout(soon)
            .run()
            .unwrap_err();
        let _ = Command::new("no-such-program")
            .capture_output()
            .input("x")
            .timeout(soon)
            .run()
            .unwrap_err();
        Command::new("cat")
            .input("x")
            .capture_output()
            .timeout(Duration::from_secs(50))
            .run()
            .unwrap();
        Command::new("true").die_with_parent(true).run().unwrap();
        drop(
            Command::new("cat")
                .stdin(Redirect::Pipe)
                .stdout(Redirect::Pipe)
                .spawn()
                .unwrap(),
        );
    };
    round();
    let before = descriptors();
    for _ in 0..20 {
        round();
        assert_eq!(children(), [0u32; 0]);
    }
    assert_eq!(descriptors(), before);
}
