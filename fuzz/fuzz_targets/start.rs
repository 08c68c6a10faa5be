//! What a started worker reads: its parent's line in the environment, and the payload of its start record.
#![no_main]

use libfuzzer_sys::fuzz_target;
use phalanx_process::fuzzed;

fuzz_target!(|data: &[u8]| {
    fuzzed::orders(&String::from_utf8_lossy(data));
    fuzzed::orders(&format!("1;start;{}", String::from_utf8_lossy(data)));
    fuzzed::payload(data);
    if let Ok(task) = phalanx_channel::codec::decode::<phalanx_process::TaskRef>(data) {
        let _ = task.resolve();
    }
});
