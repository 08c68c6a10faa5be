//! What all processes of a crew see: the board, with a seat per worker thread and the crew's two queues.
//!
//! A seat says which range of which lot its worker answers for; see `lot.rs`. The board is held by the crew's maker and by each
//! worker. It owns the lots that a dead maker has left, and frees them when it goes.
#![expect(unsafe_code, reason = "the marker of what may be placed in the arena")]

use phalanx_channel::{Loan, Message, RawQueue};
use phalanx_prim::{AtomicU32, AtomicU64, Ordering};
use phalanx_shm::{
    Arena, BlockRef, Kind, KindOps, Placed, Shared, TRANSIT, current_slot, register_kind,
};
use phalanx_sync::{CreateError, Gate, Object};

use crate::lot::{free_orphans, free_payloads, submitter_died};

/// Most worker threads of one crew, all processes together.
pub const SEATS: usize = 1024;

/// A worker thread's place on the board.
#[derive(Debug)]
#[repr(C, align(128))]
pub(crate) struct Seat {
    /// The lot it works on, or looks at.
    pub(crate) lot: AtomicU64,
    /// The range of it that it answers for.
    pub(crate) from: AtomicU32,
    pub(crate) to: AtomicU32,
    /// The entry that it runs or is about to claim, plus 1.
    pub(crate) cursor: AtomicU32,
    pub(crate) phase: AtomicU32,
    /// When the current task must be done, 0 for whenever.
    pub(crate) deadline_ns: AtomicU64,
    /// When it began.
    pub(crate) since_ns: AtomicU64,
    pub(crate) tasks: AtomicU64,
    pub(crate) busy_ns: AtomicU64,
    /// How far it is inside a task that is many calls.
    pub(crate) inside: AtomicU64,
    /// Named, so that it has a value.
    padding: [AtomicU64; 8],
}

const _: () = assert!(
    size_of::<Seat>() == 16 * 8,
    "no padding but that which is named"
);

/// What all processes of a crew see.
#[derive(Debug)]
#[repr(C)]
pub(crate) struct Board {
    tasks: AtomicU64,
    port: AtomicU64,
    /// Whether the overseer sleeps or was rung for; see `crew::ring`.
    pub(crate) asleep: AtomicU32,
    pub(crate) closing: AtomicU32,
    /// When the overseer looks next on its own.
    pub(crate) next_look_ns: AtomicU64,
    /// Why the crew is broken: a payload block, 0 while it is not.
    pub(crate) broken: AtomicU64,
    /// Results of lots that are taken one by one are announced here.
    pub(crate) results: Gate<Shared>,
    pub(crate) used: AtomicU32,
    pub(crate) seats: [Seat; SEATS],
}

// SAFETY: repr(C), atomics and a gate only, the only type placed under its kind.
unsafe impl Placed for Board {
    const KIND: Kind = Kind::Crew;
    const PADDED_UP_TO: usize = std::mem::offset_of!(Board, seats);
}

const TASKS: usize = std::mem::offset_of!(Board, tasks);
const PORT: usize = std::mem::offset_of!(Board, port);

phalanx_shm::inventory::submit! {
    phalanx_shm::Kinds(install)
}

pub(crate) fn install() {
    static ONCE: std::sync::Once = std::sync::Once::new();
    ONCE.call_once(|| {
        phalanx_channel::install();
        register_kind(
            Kind::Lot,
            KindOps {
                recover: |arena, block, dead, _| submitter_died(arena, block, dead),
                destroy: free_payloads,
            },
        );
        register_kind(
            Kind::Crew,
            KindOps {
                recover: |arena, block, _, wake_all| {
                    if wake_all && let Ok(board) = arena.view::<Board>(block) {
                        board.results.rouse();
                    }
                },
                destroy: |arena, block| {
                    arena.detach(block, TASKS);
                    arena.detach(block, PORT);
                    let board = arena.view_held::<Board>(block);
                    let broken = board.broken.swap(0, Ordering::AcqRel);
                    if let Some(broken) = BlockRef::from_bits(broken) {
                        Message::discard(arena, broken);
                    }
                    free_orphans(arena, block);
                },
            },
        );
    });
}

/// Makes a board that holds both queues.
pub(crate) fn new_board(
    tasks: &RawQueue,
    port: &RawQueue,
    used: u32,
) -> Result<Object<Board>, CreateError> {
    install();
    let word = AtomicU64::new;
    let half = AtomicU32::new;
    let board = Board {
        tasks: word(0),
        port: word(0),
        asleep: half(0),
        closing: half(0),
        next_look_ns: word(u64::MAX),
        broken: word(0),
        results: Gate::new(),
        used: half(used),
        seats: std::array::from_fn(|_| Seat {
            lot: word(0),
            from: half(0),
            to: half(0),
            cursor: half(0),
            phase: half(0),
            deadline_ns: word(0),
            since_ns: word(0),
            tasks: word(0),
            busy_ns: word(0),
            inside: word(0),
            padding: std::array::from_fn(|_| word(0)),
        }),
    };
    let board = Object::new(board)?;
    let (arena, block) = (board.held().arena(), board.held().block());
    for (at, queue) in [(TASKS, tasks), (PORT, port)] {
        let attached = arena.attach(block, at, queue.held().block());
        debug_assert!(attached.is_ok(), "the caller holds both");
    }
    Ok(board)
}

/// Returns the board's queues: tasks, port.
pub(crate) fn queues_of(board: &Object<Board>) -> Option<(RawQueue, RawQueue)> {
    let queue = |bits: &AtomicU64| {
        let block = BlockRef::from_bits(bits.load(Ordering::Acquire))?;
        let held = board.held().arena().hold(block).ok()?;
        Some(RawQueue::from_held(held))
    };
    Some((queue(&board.tasks)?, queue(&board.port)?))
}

impl Board {
    /// The seats in use.
    pub(crate) fn seats(&self) -> &[Seat] {
        let used = self.used.load(Ordering::Relaxed) as usize;
        &self.seats[..used.min(SEATS)]
    }

    pub(crate) fn seat(&self, number: u32) -> &Seat {
        &self.seats[number as usize % SEATS]
    }

    /// Returns `true` if some seat names the lot.
    pub(crate) fn is_named(&self, lot: u64) -> bool {
        self.seats()
            .iter()
            .any(|seat| seat.lot.load(Ordering::SeqCst) == lot)
    }

    pub(crate) fn break_with(&self, arena: &'static Arena, reason: &[u8]) -> bool {
        let Ok(mut loan) = Loan::new(arena, reason.len(), &[]) else {
            return false;
        };
        loan.copy_from_slice(reason);
        let block = loan.into_block();
        let first = self
            .broken
            .compare_exchange(0, block.to_bits(), Ordering::AcqRel, Ordering::Relaxed)
            .is_ok();
        if first {
            arena.rehold(block, current_slot(), TRANSIT);
        } else {
            Message::discard(arena, block);
        }
        first
    }

    pub(crate) fn broken_reason(&self, arena: &'static Arena) -> Option<Vec<u8>> {
        let block = BlockRef::from_bits(self.broken.load(Ordering::Acquire))?;
        let message = std::mem::ManuallyDrop::new(Message::from_block(arena, block));
        Some(message.to_vec())
    }
}
