//! A program that cannot be a worker is told so, and starts nothing.

use phalanx_process::{Process, StartError};

fn five() -> u32 {
    5
}

#[test]
fn without_an_entry_nothing_is_started() {
    let error = Process::spawn(five, ()).unwrap_err();
    assert!(matches!(error, StartError::NoEntry), "{error}");
    assert!(error.to_string().contains("#[phalanx::main]"));
}
