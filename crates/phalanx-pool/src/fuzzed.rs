//! What a worker and a submitter read of a task record, for the targets in `fuzz/`.

use phalanx_channel::codec;
use phalanx_shm::{Arena, BlockRef};

use crate::record::{self, Choices, TaskView};
use crate::worker::read_function;

/// Makes a queued task and returns its block.
///
/// # Panics
///
/// When memory is short.
#[must_use]
pub fn task(arena: &'static Arena, args: &[u8]) -> BlockRef {
    record::install();
    let task = TaskView::new(arena, Choices::default(), args, &[]).expect("there is memory");
    BlockRef::from_bits(task.bits()).expect("a task has a block")
}

/// Reads all of a task record, ends it if its word lets us, and frees it.
pub fn read(arena: &'static Arena, bits: u64) {
    let Some(task) = TaskView::find(arena, bits) else {
        return;
    };
    let _ = read_function(arena, task.function());
    let _ = (task.outcome(), task.may_retry(), task.timeout_ns());
    let sum = |bytes: &[u8]| bytes.iter().map(|byte| u64::from(*byte)).sum::<u64>();
    std::hint::black_box(task.with_args(sum));
    std::hint::black_box(task.with_result(sum));
    let _ = task.with_args(codec::decode::<(u32, String)>);
    if task.claim(1) {
        task.count_attempt();
        let _ = task.set_result(&[1; 300], &[]);
        let _ = task.finish(record::RUNNING, record::Outcome::Value);
    }
    task.free();
}
