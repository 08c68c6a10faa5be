//! Nobody notes the order of locks when nobody wants to know: in a tree of its own, which other tests would enable it for.
#![cfg(not(miri))]

use std::time::Duration;

use phalanx_sync::Lock;
use phalanx_testkit::watchdog;
use phalanx_watch::{disable_lock_order, enable_lock_order, inversions};

#[test]
fn nothing_is_noted_when_nobody_wants_to_know() {
    let _dog = watchdog(Duration::from_secs(100));
    let (a, b) = (Lock::local_named("a"), Lock::named("b").unwrap());
    let there = || {
        std::thread::spawn({
            let (a, b) = (a.clone(), b.clone());
            move || {
                let _a = a.lock().unwrap();
                let _b = b.lock().unwrap();
            }
        })
        .join()
        .unwrap();
    };
    let back = || {
        let _b = b.lock().unwrap();
        let _a = a.lock().unwrap();
    };
    there();
    back();
    assert_eq!(inversions(), []);
    enable_lock_order().unwrap();
    back();
    disable_lock_order();
    there();
    assert_eq!(inversions(), []);
    assert!(phalanx_sync::held_here().is_empty());
    enable_lock_order().unwrap();
    there();
    assert_eq!(inversions().len(), 1);
}
