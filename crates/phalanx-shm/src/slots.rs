//! The process table: one slot per process of the tree.
//!
//! | state | meaning | next |
//! |---|---|---|
//! | free | nobody | reserved (by a parent) |
//! | reserved | a parent is starting a process | live (the child), free (the start failed) |
//! | live | pid and start time are valid | sweeping |
//! | sweeping(by) | dead, a sweeper returns what it held | free, or sweeping(another) if the sweeper died too |
//!
//! State and "by" (in a reserved slot: the parent) share one word, so that exactly one process sweeps, and a start whose
//! parent died is found. A slot is reused only after its sweep, which is
//! why a slot number in a lock word cannot mean two processes.
//!
//! Beside them stands a generation, one up with each reservation: whoever looked at the slot, was preempted, and acts on
//! what it saw when another process is there already, fails its compare-exchange. The processes of one slot number their
//! threads from different places for the same reason, see [`crate::token`].

use std::ptr::NonNull;

use phalanx_prim::{AtomicU32, AtomicU64, Ordering, Word, points};
use phalanx_sys::{pidfd::PidFd, process};

use crate::arena::Arena;
use crate::error::{AllocError, OpenError};
use crate::token;

/// The most processes of one tree that can be alive at once.
pub const MAX_PROCESSES: usize = if cfg!(any(phalanx_loom, phalanx_shuttle)) {
    // A model's arena is made anew for each execution.
    7
} else {
    16_383
};

pub(crate) const INTERESTS: usize = 32;

const GENERATION: u32 = 0xfffc;
const ONE_GENERATION: u32 = 4;

/// A place in the table of processes, reserved for one process. A slot is given to others later: whoever was told of it before
/// and comes too late has a ticket that is not valid any more.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ticket(u32);

impl Ticket {
    /// Returns the slot.
    #[must_use]
    pub fn slot(self) -> u16 {
        self.0 as u16
    }

    /// Returns the ticket as a number that can be sent.
    #[must_use]
    pub fn to_bits(self) -> u32 {
        self.0
    }

    /// Makes a ticket of its number.
    #[must_use]
    pub fn from_bits(bits: u32) -> Self {
        Self(bits)
    }

    fn is_for(self, state: u32) -> bool {
        match self.0 >> 16 {
            0 => true,
            turn => (turn - 1) * ONE_GENERATION == state & GENERATION,
        }
    }
}

impl From<u16> for Ticket {
    /// A ticket for whichever turn of the slot it is: for a process that cannot be late.
    fn from(slot: u16) -> Self {
        Self(slot.into())
    }
}

const WATCHED: u32 = 1;
const BOUND: u32 = 2;

const FREE: u32 = 0;
const RESERVED: u32 = 1;
const LIVE: u32 = 2;
const SWEEPING: u32 = 3;

/// What a slot is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SlotState {
    /// Nobody's.
    Free,
    /// A process is being started.
    Reserved,
    /// A process runs.
    Live,
    /// The process is dead; what it held is being returned.
    Sweeping,
}

/// One process. 512 bytes; all zero is a free slot.
#[derive(Debug)]
#[repr(C, align(512))]
pub(crate) struct Slot {
    /// State in bits 0–1, generation in bits 2–15; in bits 16–31 the slot of who sweeps, or of the parent that reserved it.
    pub(crate) state: Word,
    pub(crate) pid: AtomicU32,
    /// When it joined the tree, in nanoseconds since boot: with the pid a name for good.
    pub(crate) joined_at: AtomicU64,
    pub(crate) parent: AtomicU32,
    /// [`WATCHED`] once the parent watches this process by pidfd; [`BOUND`] if it is not to outlive its parent.
    pub(crate) watched: AtomicU32,
    /// How it ended: 1 + wait status + 1 bit of validity, 0 while unknown. See [`ExitRecord`].
    pub(crate) exit: AtomicU64,
    /// The first block of the hold table.
    pub(crate) holds: AtomicU64,
    /// Set for good when more than [`INTERESTS`] threads slept at once.
    pub(crate) interest_overflow: AtomicU32,
    /// The first block of the notes of who waits for what.
    pub(crate) waits: AtomicU64,
    /// Lines of the interest list that threads keep for brief notes; a hint, which may be off by a few.
    kept: AtomicU32,
    /// The id of a sibling that this process forked ahead and has not handed over, 0 for none. The kernel writes it.
    spare: AtomicU32,
    reserved: AtomicU32,
    pub(crate) interests: [AtomicU64; INTERESTS],
}

const _: () = assert!(size_of::<Slot>() == 512);

/// How a process ended, as its parent saw it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExitRecord {
    /// It returned or called exit.
    Code(i32),
    /// A signal ended it.
    Signal(i32),
    /// Nobody could ask (another wait took the status, or its parent died first).
    Unknown,
}

impl ExitRecord {
    fn to_bits(self) -> u64 {
        match self {
            Self::Code(code) => 1 << 32 | u64::from(code as u32),
            Self::Signal(signal) => 2 << 32 | u64::from(signal as u32),
            Self::Unknown => 3 << 32,
        }
    }

    fn from_bits(bits: u64) -> Option<Self> {
        match bits >> 32 {
            1 => Some(Self::Code(bits as u32 as i32)),
            2 => Some(Self::Signal(bits as u32 as i32)),
            3 => Some(Self::Unknown),
            _ => None,
        }
    }
}

/// A line of the process table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProcessInfo {
    /// Its slot.
    pub slot: u16,
    /// What the slot is doing.
    pub state: SlotState,
    /// The kernel's id, 0 before it has started.
    pub pid: u32,
    /// When it joined the tree, in nanoseconds since boot; with `pid` this names a process for good.
    pub joined_at: u64,
    /// The slot of the process that started it, 0 for the root.
    pub parent: u16,
    /// Which turn of the slot this is.
    pub ticket: Ticket,
}

/// A used line of the interest list; see [`crate::Interest`].
#[derive(Debug)]
pub(crate) struct InterestEntry {
    // The arena outlives the process's use of it, see `session`.
    entry: Option<&'static AtomicU64>,
}

impl Drop for InterestEntry {
    fn drop(&mut self) {
        if let Some(entry) = self.entry {
            entry.store(0, Ordering::Release);
        }
    }
}

impl Slot {
    pub(crate) fn kind(&self) -> SlotState {
        match self.state.load(Ordering::Acquire) & 3 {
            FREE => SlotState::Free,
            RESERVED => SlotState::Reserved,
            LIVE => SlotState::Live,
            _ => SlotState::Sweeping,
        }
    }

    /// Who sweeps it, or who reserved it.
    pub(crate) fn by(&self) -> u16 {
        (self.state.load(Ordering::Acquire) >> 16) as u16
    }

    /// live, reserved or sweeping(somebody) → sweeping(by), if the word is still `now`.
    pub(crate) fn begin_sweep(&self, now: u32, by: u16) -> bool {
        self.state
            .compare_exchange(
                now,
                SWEEPING | now & GENERATION | u32::from(by) << 16,
                Ordering::AcqRel,
                Ordering::Relaxed,
            )
            .is_ok()
    }

    pub(crate) fn finish_sweep(&self) {
        for word in [
            &self.pid,
            &self.parent,
            &self.watched,
            &self.interest_overflow,
            &self.spare,
        ] {
            word.store(0, Ordering::Relaxed);
        }
        self.joined_at.store(0, Ordering::Relaxed);
        self.holds.store(0, Ordering::Relaxed);
        self.waits.store(0, Ordering::Relaxed);
        self.kept.store(0, Ordering::Relaxed);
        for entry in &self.interests {
            entry.store(0, Ordering::Relaxed);
        }
        // Only its sweeper writes to the word now. Release: the next user of the slot finds it empty.
        let generation = self.state.load(Ordering::Relaxed) & GENERATION;
        self.state.store(FREE | generation, Ordering::Release);
    }
}

impl Arena {
    /// Reserves a slot for a process that the caller is about to start.
    ///
    /// # Errors
    ///
    /// When all slots are taken or their table has no memory.
    pub fn reserve_slot(&self) -> Result<u16, AllocError> {
        let parent = u32::from(token::current_slot());
        self.reserve_slot_for(parent)
    }

    pub(crate) fn reserve_slot_for(&self, parent: u32) -> Result<u16, AllocError> {
        // Start where the last search ended: slots are reused late, which keeps reports readable.
        let start = self.header().slot_cursor.fetch_add(1, Ordering::Relaxed) as usize;
        let used = self.header().slots_used.load(Ordering::Relaxed) as usize;
        let reuse = (1..=used).map(|i| 1 + (start + i) % used.max(1));
        for slot in reuse.chain(used + 1..=MAX_PROCESSES) {
            if slot > self.header().slots_used.load(Ordering::Relaxed) as usize {
                self.commit_slot(slot)?;
                self.header()
                    .slots_used
                    .fetch_max(slot as u32, Ordering::AcqRel);
            }
            let entry = self.slot(slot as u16);
            let now = entry.state.load(Ordering::Acquire);
            let generation = now.wrapping_add(ONE_GENERATION) & GENERATION;
            if now & 3 == FREE
                && entry
                    .state
                    .compare_exchange(
                        now,
                        RESERVED | generation | parent << 16,
                        Ordering::AcqRel,
                        Ordering::Relaxed,
                    )
                    .is_ok()
            {
                points::point("slot.reserved");
                entry.exit.store(0, Ordering::Relaxed);
                entry.parent.store(parent, Ordering::Release);
                return Ok(slot as u16);
            }
        }
        Err(AllocError::TooManyProcesses)
    }

    /// Gives a reserved place back; the process was not started. Returns `false`, and keeps it, if one runs in it already or
    /// the slot was given to another meanwhile.
    pub fn unreserve_slot(&self, place: impl Into<Ticket>) -> bool {
        let ticket = place.into();
        let slot = ticket.slot();
        let entry = self.slot(slot);
        let now = entry.state.load(Ordering::Acquire);
        if now & 3 != RESERVED
            || !ticket.is_for(now)
            || !entry.begin_sweep(now, token::current_slot())
        {
            return false;
        }
        self.drop_table_of(slot);
        entry.finish_sweep();
        true
    }

    /// Takes a slot over for its sweep; `false` if nobody is in it, a living process is, or somebody alive sweeps it.
    pub(crate) fn take_for_sweep(&self, ticket: Ticket) -> bool {
        let slot = ticket.slot();
        let entry = self.slot(slot);
        let now = entry.state.load(Ordering::Acquire);
        // Swept by somebody else meanwhile, and reserved again: that process is not the dead one.
        if !ticket.is_for(now) {
            return false;
        }
        let may = match now & 3 {
            FREE => false,
            RESERVED => true,
            // The caller has seen its process dead; but is it still the same process that is meant?
            LIVE => !self.surely_lives(slot),
            _ => {
                let by = (now >> 16) as u16;
                by != token::current_slot() && self.process_is_gone(by)
            }
        };
        may && entry.begin_sweep(now, token::current_slot())
    }

    /// Asks the kernel whether the process in `slot` runs. Without an answer it does not.
    fn surely_lives(&self, slot: u16) -> bool {
        let entry = self.slot(slot);
        let pid = entry.pid.load(Ordering::Acquire);
        let joined_at = entry.joined_at.load(Ordering::Relaxed);
        if phalanx_prim::modelled().is_some() {
            return pid != 0;
        }
        PidFd::open(pid).is_ok_and(|fd| !fd.is_dead())
            && process::was_there(pid, joined_at).unwrap_or(false)
    }

    /// Fills a reserved slot with the calling process.
    ///
    /// # Errors
    ///
    /// When it is not reserved any more: whoever was to start this process died or gave up, and somebody swept.
    pub(crate) fn occupy_slot(&self, ticket: Ticket) -> Result<(), OpenError> {
        let entry = self.slot(ticket.slot());
        let now = entry.state.load(Ordering::Acquire);
        // Reserved again for somebody else is not ours either.
        if now & 3 != RESERVED || !ticket.is_for(now) {
            return Err(OpenError::Abandoned);
        }
        let pid = phalanx_sys::ids::pid();
        entry
            .joined_at
            .store(process::since_boot(), Ordering::Relaxed);
        entry.pid.store(pid, Ordering::Relaxed);
        // Release: whoever sees the slot live sees pid and start time.
        let mine = entry.state.compare_exchange(
            now,
            LIVE | now & GENERATION,
            Ordering::AcqRel,
            Ordering::Relaxed,
        );
        if mine.is_err() {
            return Err(OpenError::Abandoned);
        }
        // Whoever sees a lock of ours sees us alive.
        phalanx_prim::fence(Ordering::Release);
        entry.state.wake(u32::MAX, phalanx_prim::Scope::Shared);
        Ok(())
    }

    /// Names the place that the caller has reserved: what its process is told.
    #[must_use]
    pub fn ticket(&self, slot: u16) -> Ticket {
        Ticket(u32::from(slot) | (self.generation_of(slot) + 1) << 16)
    }

    /// Returns which process in this slot it is: the number of reservations so far, in 14 bits.
    pub(crate) fn generation_of(&self, slot: u16) -> u32 {
        (self.slot(slot).state.load(Ordering::Acquire) & GENERATION) / ONE_GENERATION
    }

    /// Returns `true` if the process that has joined in this slot as this generation of it is not known to be gone.
    pub(crate) fn lives_as(&self, slot: u16, generation: u32) -> bool {
        if slot == 0 || slot as usize > MAX_PROCESSES {
            return false;
        }
        let now = self.slot(slot).state.load(Ordering::Acquire);
        !matches!(now & 3, FREE | SWEEPING) && (now & GENERATION) / ONE_GENERATION == generation
    }

    /// Returns the table's line of a slot.
    #[must_use]
    pub fn process(&self, slot: u16) -> ProcessInfo {
        // Before the rest: what is swept by it is this process, or nothing.
        let ticket = self.ticket(slot);
        let entry = self.slot(slot);
        ProcessInfo {
            slot,
            ticket,
            state: entry.kind(),
            pid: entry.pid.load(Ordering::Acquire),
            joined_at: entry.joined_at.load(Ordering::Relaxed),
            parent: entry.parent.load(Ordering::Relaxed) as u16,
        }
    }

    /// Returns the lines of all processes that are not free.
    #[must_use]
    pub fn processes(&self) -> Vec<ProcessInfo> {
        let used = self.header().slots_used.load(Ordering::Acquire) as u16;
        (1..=used)
            .map(|slot| self.process(slot))
            .filter(|p| p.state != SlotState::Free)
            .collect()
    }

    /// Records that the parent watches the process in `slot`.
    pub fn set_watched(&self, slot: u16) {
        self.slot(slot).watched.fetch_or(WATCHED, Ordering::Release);
    }

    /// Records that the process in `slot` is not to outlive its parent.
    pub fn set_bound(&self, slot: u16) {
        self.slot(slot).watched.fetch_or(BOUND, Ordering::Release);
    }

    /// Returns `true` if the process in `slot` is not to outlive its parent.
    #[must_use]
    pub fn is_bound(&self, slot: u16) -> bool {
        self.slot(slot).watched.load(Ordering::Acquire) & BOUND != 0
    }

    /// Returns `true` if a parent watches the process in `slot`.
    #[must_use]
    pub fn is_watched(&self, slot: u16) -> bool {
        self.slot(slot).watched.load(Ordering::Acquire) & WATCHED != 0
    }

    /// Returns where the calling process's slot notes a sibling that it forked and has not told their parent of, for the
    /// kernel to write its id there.
    #[must_use]
    pub fn note_of_spare(&self) -> NonNull<u32> {
        NonNull::from(&self.slot(token::current_slot()).spare).cast()
    }

    /// Says that the calling process has no such sibling any more.
    pub fn forget_spare(&self) {
        let entry = self.slot(token::current_slot());
        entry.spare.store(0, Ordering::Release);
    }

    /// Returns the id of the sibling that the process in `slot` forked and has not told their parent of, 0 if there is none.
    #[must_use]
    pub fn spare_of(&self, slot: u16) -> u32 {
        self.slot(slot).spare.load(Ordering::Acquire)
    }

    /// Makes the collecting of a sibling that the process in `slot` forked ahead the caller's business, who has found it dead.
    /// Returns `false` if it was handed over, or somebody else collects it.
    pub fn claim_spare(&self, slot: u16, pid: u32) -> bool {
        let entry = self.slot(slot);
        entry
            .spare
            .compare_exchange(pid, 0, Ordering::AcqRel, Ordering::Relaxed)
            .is_ok()
    }

    /// Records how the process in `slot` ended, for those who find its name in a lock or pipe.
    pub fn record_exit(&self, slot: u16, exit: ExitRecord) {
        self.slot(slot)
            .exit
            .store(exit.to_bits(), Ordering::Release);
    }

    /// Returns how the last process in `slot` ended, if that is known.
    #[must_use]
    pub fn exit_of(&self, slot: u16) -> Option<ExitRecord> {
        ExitRecord::from_bits(self.slot(slot).exit.load(Ordering::Acquire))
    }

    /// Asks the kernel whether the process in `slot` is gone. A slot nobody is in counts as gone.
    #[must_use]
    pub fn process_is_gone(&self, slot: u16) -> bool {
        if slot == 0 || slot as usize > MAX_PROCESSES || slot == token::slot_if_joined() {
            return false;
        }
        let entry = self.slot(slot);
        let now = entry.state.load(Ordering::Acquire);
        match now & 3 {
            FREE | SWEEPING => return true,
            // Its parent answers for it until it has started.
            RESERVED => return false,
            _ => {}
        }
        let pid = entry.pid.load(Ordering::Acquire);
        let joined_at = entry.joined_at.load(Ordering::Relaxed);
        if phalanx_prim::modelled().is_some() {
            return pid == 0;
        }
        let gone = match PidFd::open(pid) {
            Ok(fd) => fd.is_dead() || process::was_there(pid, joined_at).is_ok_and(|was| !was),
            // No such process. Out of descriptors is no proof of death.
            Err(error) => error.raw_os_error() == Some(3),
        };
        // Another process may be in the slot by now; then somebody swept, and woke whoever waits for that.
        gone && entry.state.load(Ordering::Acquire) & GENERATION == now & GENERATION
    }

    pub(crate) fn note_interest(&'static self, word: &Word) -> Option<InterestEntry> {
        let offset = self.region().offset_of(std::ptr::from_ref(word).cast())? as u64;
        match self.take_line(offset) {
            Some(line) => Some(InterestEntry { entry: Some(line) }),
            None => {
                let entry = self.slot(token::current_slot());
                entry.interest_overflow.store(1, Ordering::SeqCst);
                Some(InterestEntry { entry: None })
            }
        }
    }

    /// Takes a free line of this process's interest list.
    fn take_line(&'static self, value: u64) -> Option<&'static AtomicU64> {
        let entry = self.slot(token::current_slot());
        let first = token::local_token() as usize % INTERESTS;
        (0..INTERESTS)
            .map(|i| &entry.interests[(first + i) % INTERESTS])
            .find(|line| {
                // SeqCst: the note is in the ledger before the word is looked at or changed.
                line.load(Ordering::Relaxed) == 0
                    && line
                        .compare_exchange(0, value, Ordering::SeqCst, Ordering::Relaxed)
                        .is_ok()
            })
    }

    /// Notes interest in a word for the length of one operation: two stores, as the thread keeps a line for it.
    #[inline]
    pub(crate) fn note_brief(&'static self, word: &Word) -> BriefEntry {
        if phalanx_prim::modelled().is_some() {
            // A thread's line is kept beyond an execution.
            return BriefEntry {
                line: None,
                full: self.note_interest(word),
            };
        }
        let slot = token::current_slot();
        let (owner, line) = BRIEF.get();
        let line = if owner == slot {
            line
        } else {
            self.keep_line(slot)
        };
        let Some(offset) = self.region().offset_of(std::ptr::from_ref(word).cast()) else {
            return BriefEntry {
                line: None,
                full: None,
            };
        };
        match line {
            Some(line) if line.load(Ordering::Relaxed) == KEPT => {
                // Release: nothing; x86 and the releasing store of the commit keep it before the commit.
                line.store(offset as u64, Ordering::Release);
                BriefEntry {
                    line: Some(line),
                    full: None,
                }
            }
            // All lines are kept by other threads, or this one is inside another operation.
            _ => BriefEntry {
                line: None,
                full: self.note_interest(word),
            },
        }
    }

    #[cold]
    fn keep_line(&'static self, slot: u16) -> Option<&'static AtomicU64> {
        // Some are left for those that sleep.
        let entry = self.slot(slot);
        let kept = entry.kept.load(Ordering::Relaxed);
        let line = if kept < KEPT_MOST {
            self.take_line(KEPT)
        } else {
            None
        };
        if line.is_some() {
            entry.kept.store(kept + 1, Ordering::Relaxed);
            token::at_thread_end(release_line);
        }
        BRIEF.set((slot, line));
        line
    }
}

/// The value of a line that a thread keeps for its brief notes: no word's offset.
const KEPT: u64 = 1;
const KEPT_MOST: u32 = INTERESTS as u32 / 2;

thread_local! {
    // The slot of the process that it was when it took the line: a forked child has its own.
    static BRIEF: std::cell::Cell<(u16, Option<&'static AtomicU64>)> = const { std::cell::Cell::new((0, None)) };
}

fn release_line() {
    let (slot, line) = BRIEF.replace((0, None));
    if let (Some(line), Some(arena)) = (line, crate::session::session_if_any())
        && slot == token::slot_if_joined()
    {
        line.store(0, Ordering::Release);
        let kept = &arena.slot(slot).kept;
        kept.store(
            kept.load(Ordering::Relaxed).saturating_sub(1),
            Ordering::Relaxed,
        );
    }
}

/// A brief note; ends on drop.
#[derive(Debug)]
pub(crate) struct BriefEntry {
    line: Option<&'static AtomicU64>,
    #[expect(dead_code, reason = "held for its destructor")]
    full: Option<InterestEntry>,
}

impl Drop for BriefEntry {
    #[inline]
    fn drop(&mut self) {
        if let Some(line) = self.line {
            line.store(KEPT, Ordering::Release);
        }
    }
}
