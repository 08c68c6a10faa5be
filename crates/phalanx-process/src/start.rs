//! The record of one start: what to run, with what, and what became of it.
//!
//! | outcome | written by | meaning |
//! |---|---|---|
//! | 0 | | not ended yet |
//! | [`VALUE`] | the child | `result` holds the bytes of the return value |
//! | [`PANIC`] | the child | `result` holds a serialized panic report |
//! | [`REFUSED`] | the child | `result` holds a serialized task error: it never ran |
//! | [`DIED`] | who reaped it | the process ended without any of these |
//!
//! The outcome is written once, by compare-exchange; the result's block is handed to the record before. Parent and child
//! each hold the record, so it lives until both are done with it, however either of them ends.
#![expect(unsafe_code, reason = "the marker of what may be placed in the arena")]

use std::sync::Once;

use phalanx_channel::{Loan, Message};
use phalanx_prim::{AtomicU32, AtomicU64, Ordering, points};
use phalanx_shm::{
    AllocError, Arena, BlockRef, Held, Kind, KindOps, Patience, Placed, Shared, TRANSIT, WaitError,
    current_slot, register_kind,
};
use phalanx_sync::Gate;

use crate::crash::Note;

pub(crate) const VALUE: u32 = 1;
pub(crate) const PANIC: u32 = 2;
pub(crate) const REFUSED: u32 = 3;
pub(crate) const DIED: u32 = 4;

/// See the module's head.
#[derive(Debug)]
#[repr(C)]
pub(crate) struct Start {
    outcome: AtomicU32,
    gate: Gate<Shared>,
    /// The block with the task and its arguments; the record's.
    args: AtomicU64,
    /// The block with the result; the record's once the outcome is written.
    result: AtomicU64,
    /// Bytes the process may allocate, 0 for any number.
    pub(crate) memory_limit: AtomicU64,
    /// Where the process was when a fatal signal struck.
    pub(crate) crash: Note,
}

// SAFETY: repr(C), atomics and a gate only, and the only type placed under its kind.
unsafe impl Placed for Start {
    const KIND: Kind = Kind::Start;
}

phalanx_shm::inventory::submit! {
    phalanx_shm::Kinds(install)
}

pub(crate) fn install() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        register_kind(Kind::Start, KindOps { recover, destroy });
        phalanx_channel::install();
        phalanx_sync::install();
    });
}

fn recover(arena: &Arena, block: BlockRef, _: u16, wake_all: bool) {
    if wake_all && let Ok(start) = arena.view::<Start>(block) {
        start.gate.rouse();
    }
}

fn destroy(arena: &Arena, block: BlockRef) {
    let start = arena.view_held::<Start>(block);
    for bits in [&start.args, &start.result] {
        if let Some(payload) = BlockRef::from_bits(bits.swap(0, Ordering::AcqRel)) {
            Message::discard(arena, payload);
        }
    }
}

/// A hold on a start record.
#[derive(Debug)]
pub(crate) struct StartHandle(Held);

impl StartHandle {
    /// Makes a record that owns `args`.
    pub(crate) fn new(
        arena: &'static Arena,
        args: Loan,
        memory_limit: Option<u64>,
    ) -> Result<Self, AllocError> {
        install();
        let start = Start {
            outcome: AtomicU32::new(0),
            gate: Gate::new(),
            args: AtomicU64::new(0),
            result: AtomicU64::new(0),
            memory_limit: AtomicU64::new(memory_limit.unwrap_or(0)),
            crash: Note::new(),
        };
        let held = arena.publish(arena.emplace(start)?)?;
        let payload = args.into_block();
        held.view::<Start>()
            .args
            .store(payload.to_bits(), Ordering::Release);
        arena.rehold(payload, current_slot(), TRANSIT);
        Ok(Self(held))
    }

    pub(crate) fn from_held(held: Held) -> Self {
        install();
        Self(held)
    }

    pub(crate) fn block(&self) -> BlockRef {
        self.0.block()
    }

    pub(crate) fn view(&self) -> &'static Start {
        self.0.view::<Start>()
    }

    /// Takes the arguments out of the record.
    pub(crate) fn take_args(&self) -> Option<Message> {
        let block = BlockRef::from_bits(self.view().args.load(Ordering::Acquire))?;
        // Ours first: a death from here on gives it back, and what the record still says of it is stale.
        if !self.0.arena().rehold(block, TRANSIT, current_slot()) {
            return None;
        }
        self.view().args.store(0, Ordering::Release);
        Some(Message::from_block(self.0.arena(), block))
    }

    /// Writes the outcome; the first one counts.
    pub(crate) fn finish(&self, outcome: u32, result: Option<Loan>) {
        let start = self.view();
        if let Some(loan) = result {
            let block = loan.into_block();
            start.result.store(block.to_bits(), Ordering::Release);
            points::point("start.result-stored");
            self.0.arena().rehold(block, current_slot(), TRANSIT);
        }
        points::point("start.finishing");
        // The wake is owed from the moment the outcome is written.
        let _owed = phalanx_shm::Interest::of(start.gate.word());
        // Release: pairs with the Acquire in `outcome`.
        let _ = start
            .outcome
            .compare_exchange(0, outcome, Ordering::AcqRel, Ordering::Relaxed);
        start.gate.notify_all();
    }

    pub(crate) fn outcome(&self) -> Option<u32> {
        Some(self.view().outcome.load(Ordering::Acquire)).filter(|outcome| *outcome != 0)
    }

    /// Blocks until there is an outcome.
    pub(crate) fn wait(&self, patience: Patience) -> Result<u32, WaitError> {
        self.view().gate.wait_until(patience, || self.outcome())
    }

    pub(crate) fn gate(&self) -> &'static Gate<Shared> {
        &self.view().gate
    }

    /// Takes the result out of the record.
    pub(crate) fn take_result(&self) -> Option<Message> {
        let block = BlockRef::from_bits(self.view().result.swap(0, Ordering::AcqRel))?;
        self.0
            .arena()
            .seize(block, current_slot())
            .then(|| Message::from_block(self.0.arena(), block))
    }
}
