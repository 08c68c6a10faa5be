//! Messages of a pipe and values of the wire format, whatever their bytes are, with handles in them.
#![no_main]

use std::time::Duration;

use libfuzzer_sys::fuzz_target;
use phalanx_channel::{Connection, Queue, codec, pipe};
use phalanx_shm::Patience;
use phalanx_sync::{Barrier, Condition, Event, Lock, RLock, Semaphore, Shared, SharedSlice};

type Handles = (Lock, RLock, Semaphore, Event, Condition, Barrier);

fuzz_target!(|data: &[u8]| {
    let (left, right) = pipe::<Vec<String>, Option<(u64, Lock)>>().expect("memory");
    // What the other side's process might have put there.
    left.raw().0.put(&[data], Patience::FOREVER).expect("memory");
    right.raw().0.put(&[data], Patience::FOREVER).expect("memory");
    let _ = right.recv_timeout(Duration::ZERO);
    let _ = left.recv_timeout(Duration::ZERO);
    let _ = codec::decode::<Handles>(data);
    let _ = codec::decode::<Vec<Queue<u32>>>(data);
    let _ = codec::decode::<Connection<u8, u8>>(data);
    let _ = codec::decode::<Shared<u64>>(data);
    let _ = codec::decode::<SharedSlice<u32>>(data);
    let _ = codec::decode::<phalanx_thread::panics::PanicReport>(data);
    let _ = codec::decode::<phalanx_process::TaskError>(data);
});
