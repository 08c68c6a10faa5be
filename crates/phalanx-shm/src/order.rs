//! In which order threads take locks: a log that every process of the tree writes to, while somebody wants to know.
//!
//! A line says that a thread took, or was about to take, one lock while it held another. Lines are written once for each
//! pair of locks, set of other locks held, and thread (the first [`WITNESSES`] of them), before the thread waits. What is
//! concluded from them is phalanx-watch's.
//!
//! | a line | by | a death in between |
//! |---|---|---|
//! | free (`from` is 0) → written, in no chain | whoever has the log's lock | the next owner of the lock frees it |
//! | written → in the chain of its first lock | one store | it is there or not |
//! | in a chain → out of it, then free | whoever finds that one of its locks is gone | the next owner frees it |
//!
//! The log is a block of no process: what one that has ended did is still an order. Its lock is the arena's own kind, whose
//! sleepers look for a dead owner by themselves, and the innermost of all.

use phalanx_prim::global::{AtomicU32 as GlobalU32, AtomicU64 as GlobalU64};
use phalanx_prim::{AtomicU32, AtomicU64, Ordering};

use crate::arena::{Arena, Placed};
use crate::block::{BlockRef, Kind};
use crate::error::AllocError;
use crate::robust::{Acquired, RawLock, Shared};
use crate::token;
use crate::waits::{Text, thread_name};

/// Lines in the log.
const LINES: usize = 4096;
const CHAINS: usize = 1024;
/// As many threads are noted for one order of the same locks: a circle of so many has one for each of its steps, whoever
/// the others are.
const WITNESSES: usize = 4;
/// A thread that holds more locks than this besides the one from which a step leads is not followed.
pub const GATES_MOST: usize = 10;
/// Findings that are remembered, so that nobody tells them again.
const TOLD: usize = 256;
/// Findings that are kept.
const FOUND: usize = 64;

/// One line of the log. All zero is free.
#[derive(Debug)]
#[repr(C)]
struct Line {
    from: AtomicU64,
    to: AtomicU64,
    thread: AtomicU64,
    /// The next of its chain, plus 1.
    next: AtomicU32,
    pid: AtomicU32,
    gates: [AtomicU64; GATES_MOST],
    from_name: Text<6>,
    to_name: Text<6>,
    from_place: Text<8>,
    to_place: Text<8>,
    thread_name: Text<6>,
}

/// The log.
#[derive(Debug)]
#[repr(C, align(64))]
pub(crate) struct Log {
    lock: RawLock<Shared>,
    /// Lines that were ever used.
    used: AtomicU32,
    /// 1 once there was no room for a line.
    full: AtomicU32,
    /// Findings told so far.
    told: AtomicU32,
    chains: [AtomicU32; CHAINS],
    keys: [AtomicU64; TOLD],
    /// Blocks with what was found.
    found: [AtomicU64; FOUND],
    lines: [Line; LINES],
}

// SAFETY: repr(C), atomics and a raw lock only, and the only type placed under its kind.
#[expect(unsafe_code, reason = "the marker of what may be placed in the arena")]
unsafe impl Placed for Log {
    const KIND: Kind = Kind::Order;
}

/// A lock, for as long as it exists: no other has this number, in any process of the tree, before or after.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Node(u64);

/// Set in the numbers of private locks, where a [`BlockRef`] has the highest bit of its place.
const PRIVATE: u64 = 1 << 33;

/// Numbers given to private locks of this process.
static NUMBERS: GlobalU32 = GlobalU32::new(1);
/// Which of them, by their last bits, are in the log.
static LOGGED: [GlobalU64; 256] = [const { GlobalU64::new(0) }; 256];

fn of_this_process() -> u64 {
    let (slot, generation) = token::place_in_tree();
    // 14 bits and 14; the number has 32.
    u64::from(slot) << 50 | u64::from(generation & 0xffff) << 34 | PRIVATE
}

impl Node {
    /// Returns the number of the shared lock in this block.
    #[must_use]
    pub fn shared(block: BlockRef) -> Self {
        Self(block.to_bits())
    }

    /// Returns the number of a private lock, which keeps it in `kept`. In a forked child it is another lock.
    #[must_use]
    pub fn private(kept: &AtomicU64) -> Self {
        let mine = of_this_process();
        let now = kept.load(Ordering::Relaxed);
        if now & !u64::from(u32::MAX) == mine {
            return Self(now);
        }
        let number = NUMBERS.fetch_add(1, phalanx_prim::global::Ordering::Relaxed);
        let new = mine | u64::from(number);
        // Of two threads at once, one gives the number.
        match kept.compare_exchange(now, new, Ordering::Relaxed, Ordering::Relaxed) {
            Ok(_) => Self(new),
            Err(theirs) => Self(theirs),
        }
    }

    /// Returns the number as bits, never 0.
    #[must_use]
    pub fn to_bits(self) -> u64 {
        self.0
    }

    /// Returns the node of bits that [`to_bits`](Self::to_bits) made.
    #[must_use]
    pub fn from_bits(bits: u64) -> Option<Self> {
        (bits != 0).then_some(Self(bits))
    }

    /// Returns the block of a shared lock.
    #[must_use]
    pub fn block(self) -> Option<BlockRef> {
        (self.0 & PRIVATE == 0)
            .then(|| BlockRef::from_bits(self.0))
            .flatten()
    }

    fn logged(self) -> (&'static GlobalU64, u64) {
        let at = self.0 as usize % (LOGGED.len() * 64);
        (&LOGGED[at / 64], 1 << (at % 64))
    }

    fn note_logged(self) {
        if self.block().is_none() {
            let (word, bit) = self.logged();
            word.fetch_or(bit, phalanx_prim::global::Ordering::Relaxed);
        }
    }

    fn may_be_logged(self) -> bool {
        let (word, bit) = self.logged();
        word.load(phalanx_prim::global::Ordering::Relaxed) & bit != 0
    }
}

/// Forgets a private lock that goes, or proved to be no lock; `kept` is what [`Node::private`] was given.
pub fn forget_order(kept: u64) {
    let Some(node) = Node::from_bits(kept).filter(|node| node.block().is_none()) else {
        return;
    };
    if node.may_be_logged()
        && let Some(arena) = crate::session_if_any()
    {
        arena.forget_node(node);
    }
}

/// One step: a thread took one lock while it held another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// The lock it held.
    pub from: Node,
    /// The lock it took.
    pub to: Node,
    /// Which thread, of which process: no other ever has the number.
    pub thread: u64,
    /// The other locks it held.
    pub gates: Vec<Node>,
    /// The process.
    pub pid: u32,
    at: u32,
}

/// What there is to say about a step, in words.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StepText {
    /// What was held, as `"Lock \"a\""`.
    pub from: String,
    /// Where it was taken.
    pub from_place: String,
    /// What was taken.
    pub to: String,
    /// Where.
    pub to_place: String,
}

/// Returns the number of the calling thread among all of the tree's.
#[must_use]
pub fn thread_number() -> u64 {
    let (slot, generation) = token::place_in_tree();
    u64::from(slot) << 50
        | (u64::from(generation) & 0x3_ffff_ffff) << 16
        | u64::from(token::local_token() & 0xffff)
}

/// Mixes the bits of a number.
#[must_use]
pub fn mixed(bits: u64) -> u64 {
    let bits = (bits ^ bits >> 32).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (bits ^ bits >> 29).wrapping_mul(0xbf58_476d_1ce4_e5b9)
}

struct Full;

struct Open<'a>(&'a Log);

impl Drop for Open<'_> {
    fn drop(&mut self) {
        self.0.lock.unlock();
    }
}

impl Arena {
    /// Makes the log, unless there is one.
    ///
    /// # Errors
    ///
    /// [`AllocError`] when there is no memory for it.
    pub fn open_order(&self) -> Result<(), AllocError> {
        if self.order_log().is_some() {
            return Ok(());
        }
        let block = self.alloc(size_of::<Log>(), Kind::Bytes)?;
        self.view_held::<Log>(block).clear();
        self.rekind(block, Kind::Order);
        let header = &self.header().order;
        // As the tree's before anybody finds it: a death in between leaves it to nobody.
        self.give_to_tree(block);
        let made = header.compare_exchange(0, block.to_bits(), Ordering::AcqRel, Ordering::Acquire);
        if made.is_err() {
            self.free(block);
        }
        Ok(())
    }

    fn order_log(&self) -> Option<&Log> {
        let block = BlockRef::from_bits(self.header().order.load(Ordering::Acquire))?;
        self.view::<Log>(block).ok()
    }

    fn opened(&self) -> Option<Open<'_>> {
        let log = self.order_log()?;
        if log.lock.lock_looking() == Acquired::OwnerDied {
            log.mend();
        }
        Some(Open(log))
    }

    /// Writes down that the calling thread, which holds `from` and `gates`, is about to take `to`. If that was not known and
    /// something may follow from it, whoever [`set_detective`](crate::set_detective) named looks at it.
    pub fn note_step(
        &'static self,
        from: Node,
        to: Node,
        gates: &[Node],
        say: impl FnOnce() -> StepText,
    ) {
        match self.new_step(from, to, gates, say) {
            Ok(Some(step)) => crate::waits::judge(self, Some(&step)),
            Ok(None) => {}
            Err(Full) => crate::waits::judge(self, None),
        }
    }

    fn new_step(
        &self,
        from: Node,
        to: Node,
        gates: &[Node],
        say: impl FnOnce() -> StepText,
    ) -> Result<Option<Step>, Full> {
        if gates.len() > GATES_MOST {
            return Ok(None);
        }
        let mut sorted = [0; GATES_MOST];
        for (place, gate) in sorted.iter_mut().zip(gates) {
            *place = gate.0;
        }
        sorted[..gates.len()].sort_unstable();
        let thread = thread_number();
        // In words before the log is locked: to find them may need locks.
        let (text, name) = (say(), thread_name());
        let Some(open) = self.opened() else {
            return Ok(None);
        };
        let log = open.0;
        let mut same = 0;
        for line in log.chain(from) {
            let alike = line.to.load(Ordering::Relaxed) == to.0
                && line.from.load(Ordering::Relaxed) == from.0
                && line
                    .gates
                    .iter()
                    .zip(&sorted)
                    .all(|(there, here)| there.load(Ordering::Relaxed) == *here);
            if alike {
                same += 1;
                if same >= WITNESSES || line.thread.load(Ordering::Relaxed) == thread {
                    return Ok(None);
                }
            }
        }
        let Some(at) = self.room(log) else {
            return match log.full.swap(1, Ordering::Relaxed) {
                0 => Err(Full),
                _ => Ok(None),
            };
        };
        let line = &log.lines[at];
        line.to.store(to.0, Ordering::Relaxed);
        line.thread.store(thread, Ordering::Relaxed);
        line.pid.store(phalanx_sys::ids::pid(), Ordering::Relaxed);
        for (place, gate) in line.gates.iter().zip(sorted) {
            place.store(gate, Ordering::Relaxed);
        }
        line.from_name.write(&text.from);
        line.from_place.write(&text.from_place);
        line.to_name.write(&text.to);
        line.to_place.write(&text.to_place);
        line.thread_name.write(&name);
        let head = &log.chains[chain_of(from)];
        line.next
            .store(head.load(Ordering::Relaxed), Ordering::Relaxed);
        line.from.store(from.0, Ordering::Relaxed);
        from.note_logged();
        to.note_logged();
        // Release: only whole lines are in chains, also for who finds the log after our death.
        head.store(at as u32 + 1, Ordering::Release);
        let leads_on = log
            .chain(to)
            .any(|line| line.from.load(Ordering::Relaxed) == to.0);
        Ok(leads_on.then(|| Step {
            from,
            to,
            thread,
            gates: sorted.iter().copied().map_while(Node::from_bits).collect(),
            pid: phalanx_sys::ids::pid(),
            at: at as u32,
        }))
    }

    /// Returns a free line; those of locks that are gone are free as well.
    fn room(&self, log: &Log) -> Option<usize> {
        let used = log.used.load(Ordering::Relaxed) as usize;
        if used < LINES {
            log.used.store(used as u32 + 1, Ordering::Relaxed);
            return Some(used);
        }
        let free = |line: &Line| line.from.load(Ordering::Relaxed) == 0;
        if let Some(at) = log.lines.iter().position(free) {
            return Some(at);
        }
        log.remove(|step| !self.is_there(step.0) || !self.is_there(step.1));
        log.lines.iter().position(free)
    }

    /// Returns `true` if the lock still exists, as far as that can be seen from outside of its process.
    #[must_use]
    pub fn is_there(&self, node: Node) -> bool {
        match node.block() {
            Some(block) => matches!(
                self.kind_of(block),
                Some(Kind::Lock | Kind::RLock | Kind::Shared)
            ),
            None => {
                let slot = (node.0 >> 50) as u16;
                let generation = (node.0 >> 34 & 0xffff) as u32;
                self.lives_as(slot, generation)
            }
        }
    }

    fn forget_node(&self, node: Node) {
        if let Some(open) = self.opened() {
            open.0.remove(|(from, to)| from == node || to == node);
        }
    }

    /// Returns every step in the log whose locks exist.
    #[must_use]
    pub fn steps(&self) -> Vec<Step> {
        let Some(open) = self.opened() else {
            return Vec::new();
        };
        let log = open.0;
        let used = log.used.load(Ordering::Relaxed) as usize;
        let lines = log.lines.iter().take(used).enumerate();
        let steps = lines.filter_map(|(at, line)| {
            let step = Step {
                from: Node::from_bits(line.from.load(Ordering::Relaxed))?,
                to: Node::from_bits(line.to.load(Ordering::Relaxed))?,
                thread: line.thread.load(Ordering::Relaxed),
                gates: line
                    .gates
                    .iter()
                    .map_while(|gate| Node::from_bits(gate.load(Ordering::Relaxed)))
                    .collect(),
                pid: line.pid.load(Ordering::Relaxed),
                at: at as u32,
            };
            (self.is_there(step.from) && self.is_there(step.to)).then_some(step)
        });
        // Gates stand sorted with the empty ones last: what `map_while` expects.
        steps.collect()
    }

    /// Returns the name of a step's thread and what there is to say about it, `None` if it is not in the log any more.
    #[must_use]
    pub fn step_text(&self, step: &Step) -> Option<(String, StepText)> {
        let open = self.opened()?;
        let line = open.0.lines.get(step.at as usize)?;
        let there = line.from.load(Ordering::Relaxed) == step.from.0
            && line.to.load(Ordering::Relaxed) == step.to.0
            && line.thread.load(Ordering::Relaxed) == step.thread;
        let text = || StepText {
            from: line.from_name.read(),
            from_place: line.from_place.read(),
            to: line.to_name.read(),
            to_place: line.to_place.read(),
        };
        there.then(|| (line.thread_name.read(), text()))
    }

    /// Returns `true` if nobody has told any of these findings, and notes that they are told now.
    #[must_use]
    pub fn tell_order_once(&self, keys: &[u64]) -> bool {
        let Some(open) = self.opened() else {
            return false;
        };
        let log = open.0;
        let is_told = |key: &u64| {
            log.keys
                .iter()
                .any(|told| told.load(Ordering::Relaxed) == *key)
        };
        if keys.iter().any(is_told) {
            return false;
        }
        for key in keys {
            let at = log.told.fetch_add(1, Ordering::Relaxed) as usize % TOLD;
            log.keys[at].store(*key, Ordering::Relaxed);
        }
        true
    }

    /// Keeps what was found for [`order_found`](Self::order_found); `false` if there are 64 already.
    pub fn keep_order_found(&self, text: &str) -> bool {
        let Some(block) = self.write_text(text, Kind::Text) else {
            return false;
        };
        self.give_to_tree(block);
        let kept = self.order_log().is_some_and(|log| {
            log.found.iter().any(|found| {
                found
                    .compare_exchange(0, block.to_bits(), Ordering::AcqRel, Ordering::Relaxed)
                    .is_ok()
            })
        });
        if !kept {
            self.free(block);
        }
        kept
    }

    /// Returns what was found so far by any process of the tree.
    #[must_use]
    pub fn order_found(&self) -> Vec<String> {
        let Some(log) = self.order_log() else {
            return Vec::new();
        };
        let bits = log.found.iter().map(|found| found.load(Ordering::Acquire));
        bits.map_while(BlockRef::from_bits)
            .map(|block| {
                let text = self.text(block, self.len_of(block));
                String::from_utf8_lossy(&text).into_owned()
            })
            .collect()
    }
}

fn chain_of(from: Node) -> usize {
    mixed(from.0) as usize % CHAINS
}

impl Log {
    /// Gives every byte a value: the block may have been anything.
    fn clear(&self) {
        for word in [&self.used, &self.full, &self.told] {
            word.store(0, Ordering::Relaxed);
        }
        self.lock.word().store(0, Ordering::Relaxed);
        for word in &self.chains {
            word.store(0, Ordering::Relaxed);
        }
        for word in self.keys.iter().chain(&self.found) {
            word.store(0, Ordering::Relaxed);
        }
        for line in &self.lines {
            line.from.store(0, Ordering::Relaxed);
        }
    }

    /// The lines in the chain of this lock, and of others of the same chain.
    fn chain(&self, from: Node) -> impl Iterator<Item = &Line> {
        let mut next = self.chains[chain_of(from)].load(Ordering::Relaxed);
        std::iter::from_fn(move || {
            let at = (next as usize).checked_sub(1)?;
            let line = self.lines.get(at)?;
            next = line.next.load(Ordering::Relaxed);
            Some(line)
        })
        // Whatever the memory says, it ends.
        .take(LINES)
    }

    /// Takes the lines out that lead from or to such locks.
    fn remove(&self, gone: impl Fn((Node, Node)) -> bool) {
        for line in &self.lines {
            let from = Node::from_bits(line.from.load(Ordering::Relaxed));
            let to = Node::from_bits(line.to.load(Ordering::Relaxed));
            if let (Some(from), Some(to)) = (from, to)
                && gone((from, to))
            {
                line.from.store(0, Ordering::Relaxed);
            }
        }
        self.mend();
    }

    /// Makes the chains anew of the lines that say something.
    fn mend(&self) {
        let used = (self.used.load(Ordering::Relaxed) as usize).min(LINES);
        for word in &self.chains {
            word.store(0, Ordering::Relaxed);
        }
        for (at, line) in self.lines.iter().take(used).enumerate() {
            if let Some(from) = Node::from_bits(line.from.load(Ordering::Relaxed)) {
                let head = &self.chains[chain_of(from)];
                line.next
                    .store(head.load(Ordering::Relaxed), Ordering::Relaxed);
                head.store(at as u32 + 1, Ordering::Relaxed);
            }
        }
    }
}
