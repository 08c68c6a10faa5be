//! A test program whose entry has another name than it says: its workers run the tests instead, which must not start
//! processes in turn without an end.

use std::time::Duration;

use phalanx_process::{Process, StartMethod};

phalanx_process::inventory::submit! {
    phalanx_process::registry::TestEntry { module: "elsewhere::than", function: "said" }
}

fn five() -> u32 {
    5
}

#[test]
fn said() {
    let started = Process::builder()
        .start_method(StartMethod::Spawn)
        .spawn(five, ());
    let Ok(process) = started else { return };
    // The child finds no test of that name and ends well without a result.
    let error = process.join_timeout(Duration::from_secs(60)).unwrap_err();
    assert!(error.to_string().contains("exited with code 0"), "{error}");
}
