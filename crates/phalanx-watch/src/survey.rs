//! Reading the ledger: from notes, lock words and the system's lists of threads to a graph, and from a graph to proof.
//!
//! # Why nobody is accused who could go on
//!
//! What is read from many places at many moments is no picture of any one moment. A circle in it may be made of a lock that
//! was let go before the next thread began to wait. So a circle is only a suspicion. It is proof if
//!
//! 1. every thread of it is in the same wait (same turn of its note) before and after the edges were read: none of them did
//!    anything in between, as a thread acts only between its waits; and
//! 2. every edge was true at a moment when all of them waited. The word of a lock in the arena is read between the two looks
//!    of 1. Of what lies in another process's own memory, and of conditions (is the queue still empty?), the waiter itself
//!    is the witness: it looks every now and then, and writes down when. Its word counts if that look began after the last
//!    of them fell asleep.
//!
//! Then there is a moment at which all of them wait, each for something that only another of them can do. None of them will
//! ever do anything: what was true then stays true. It does not matter how much time passes between the steps.
//!
//! Threads that have a deadline are helped by the clock and never part of it. *Only another of them can do it* is: for a
//! lock, its owner (a lock that others were seen to free has none; and a thread that waits for a lock it has itself may be
//! waiting for another thread to free it, unless only the guard can); for a joined thread, itself; for a joined process, any thread
//! of it; for everything else, any thread of the process, or of the tree if it is shared. All of them must be accounted for: the threads that the
//! system lists, without the engine's own helpers; no process that is being started or swept; no child with the arena that
//! has not joined; no handler for a signal by which somebody outside could intervene. One thread in a system call that is
//! not ours, and nothing is said.
//!
//! | what the reader finds | verdict |
//! |---|---|
//! | a turn that changed | none: somebody acted |
//! | a look older than the last sleeper's `since` | none yet: ask again later |
//! | an owner that has no note, or does not wait | none: it runs |
//! | an owner whose process is dead | none: the sweep gives the lock on |
//! | anything torn | a turn that changed |

use std::collections::HashMap;

use phalanx_shm::{Arena, BlockRef, Kind, SlotState, Subject, Wait, flag};
use phalanx_sync::lock_facts;
use phalanx_sys::others;

use crate::graph::{Graph, Needs, Population, Thread};

/// The name of the arena's memory file.
pub(crate) const MEMORY: &str = "phalanx";

/// Signals that a program handles to be told something: whoever sends one can end a wait. Bit n − 1 for signal n.
const TELLING: u64 = {
    // Hang-up, quit, user 1 and 2, alarm, terminate, child, urgent, virtual and profiling alarm, input; then the real-time
    // signals but the two that the C library has for itself. Not the interrupt from the keyboard: Python always has it.
    let mut mask = !0 << 33;
    let named = [1, 3, 10, 12, 14, 15, 17, 23, 26, 27, 29];
    let mut i = 0;
    while i < named.len() {
        mask |= 1 << (named[i] - 1);
        i += 1;
    }
    mask
};

/// The end of a child, as a bit of [`TELLING`].
const SIGCHLD: u64 = 1 << (17 - 1);

/// What was read of the tree.
#[derive(Debug, Default)]
pub(crate) struct Survey {
    pub(crate) waits: HashMap<Thread, Wait>,
    pub(crate) graph: Graph,
}

/// Threads of which it is proved that none can ever go on.
#[derive(Clone, Debug)]
pub(crate) struct Core {
    pub(crate) members: Vec<Wait>,
    pub(crate) needs: Vec<Needs>,
    /// Each needs the next, the last the first.
    pub(crate) is_circle: bool,
}

pub(crate) fn thread_of(wait: &Wait) -> Thread {
    Thread {
        slot: wait.slot,
        tid: wait.tid,
    }
}

impl Survey {
    /// Reads who waits, and then what for.
    pub(crate) fn of(arena: &Arena) -> Self {
        let known = arena.threads_known();
        let processes = arena.processes();
        let mut survey = Self::default();
        let ordinals: HashMap<(u16, u32), Thread> = known
            .iter()
            .map(|known| {
                let (slot, tid) = (known.slot, known.tid);
                ((slot, known.ordinal), Thread { slot, tid })
            })
            .collect();
        let slot_of = |pid: u64| {
            let found = processes
                .iter()
                .find(|process| u64::from(process.pid) == pid && process.state == SlotState::Live);
            found.map(|process| process.slot)
        };
        for wait in known.iter().filter_map(|known| known.wait.clone()) {
            let needs = needs_of(arena, &wait, &ordinals, slot_of);
            if let Some(needs) = needs
                && wait.flags & (flag::TIMED | flag::HELPER) == 0
            {
                survey.graph.needs.insert(thread_of(&wait), needs);
            }
            survey.waits.insert(thread_of(&wait), wait);
        }
        let anybody = |needs: &Needs| !matches!(needs, Needs::One(_));
        if !survey.graph.needs.values().any(anybody) {
            return survey;
        }
        // With those that we know: if somebody runs among them, the system need not be asked for more.
        for process in &processes {
            let threads = known
                .iter()
                .filter(|known| known.slot == process.slot && !known.helper);
            survey.graph.processes.insert(
                process.slot,
                Population {
                    threads: threads.map(thread_of_known).collect(),
                    open: process.state != SlotState::Live,
                },
            );
        }
        let stuck = survey.graph.stuck();
        if !stuck
            .iter()
            .any(|thread| anybody(&survey.graph.needs[thread]))
        {
            return survey;
        }
        let pids: Vec<u32> = processes.iter().map(|process| process.pid).collect();
        for process in &processes {
            let helpers: Vec<u32> = known
                .iter()
                .filter(|known| known.slot == process.slot && known.helper)
                .map(|known| known.tid)
                .collect();
            let population = survey.graph.processes.entry(process.slot).or_default();
            match others::threads(process.pid) {
                Ok(threads) => {
                    population.threads = threads
                        .into_iter()
                        .filter(|tid| !helpers.contains(tid))
                        .map(|tid| Thread {
                            slot: process.slot,
                            tid,
                        })
                        .collect();
                    let telling = if population.threads.is_empty() {
                        // A fork server hears of the ends of its children, and tells those who asked for them.
                        TELLING & !SIGCHLD
                    } else {
                        TELLING
                    };
                    population.open |= !is_closed(process.pid, &pids, telling);
                }
                Err(_) => population.open = true,
            }
        }
        // A process that came meanwhile was made by somebody.
        let now: Vec<u32> = arena.processes().iter().map(|now| now.pid).collect();
        if now != pids {
            for population in survey.graph.processes.values_mut() {
                population.open = true;
            }
        }
        survey
    }

    /// Returns the distinct hearts of what is stuck, each with proof.
    pub(crate) fn cores(&self, arena: &Arena) -> Vec<Core> {
        let mut stuck: Vec<Thread> = self.graph.stuck().into_iter().collect();
        stuck.sort_unstable();
        let mut seen: Vec<Vec<Thread>> = Vec::new();
        for thread in stuck {
            if seen.iter().any(|core| core.contains(&thread)) {
                continue;
            }
            let core = self.graph.core(thread);
            if !seen.contains(&core) {
                seen.push(core);
            }
        }
        seen.iter()
            .filter_map(|core| self.prove(arena, core))
            .collect()
    }

    /// See the module's head.
    fn prove(&self, arena: &Arena, core: &[Thread]) -> Option<Core> {
        let members: Vec<Wait> = core
            .iter()
            .map(|thread| self.waits.get(thread).cloned())
            .collect::<Option<_>>()?;
        let needs: Vec<Needs> = core
            .iter()
            .map(|thread| self.graph.needs.get(thread).copied())
            .collect::<Option<_>>()?;
        let last = members.iter().map(|wait| wait.since).max()?;
        let witnessed = |wait: &Wait| match wait.subject {
            Subject::SharedLock => true,
            // Of a thread or process as well: its number may be another's by now.
            _ => wait.looked > last,
        };
        let all = members.iter().all(|wait| {
            witnessed(wait) && !arena.process_is_gone(wait.slot) && arena.still_waits(wait)
        });
        let is_circle = needs.iter().enumerate().all(
            |(i, needs)| matches!(needs, Needs::One(other) if *other == core[(i + 1) % core.len()]),
        );
        all.then_some(Core {
            members,
            needs,
            is_circle,
        })
    }
}

fn thread_of_known(known: &phalanx_shm::Known) -> Thread {
    Thread {
        slot: known.slot,
        tid: known.tid,
    }
}

/// Returns `true` if nobody but its threads and the processes of the tree can make this process do something.
fn is_closed(pid: u32, tree: &[u32], telling: u64) -> bool {
    if others::caught_signals(pid).map_or(true, |caught| caught & telling != 0) {
        return false;
    }
    others::children(pid).is_ok_and(|children| {
        children.iter().all(|child| {
            tree.contains(child)
                || others::maps_memory(*child, MEMORY).is_ok_and(|maps| !maps)
                || is_spare(*child)
        })
    })
}

/// Returns `true` for a child that a zygote keeps ready: it begins when this process asks for one, which reserves its slot.
fn is_spare(pid: u32) -> bool {
    others::thread_state(pid, pid).is_ok_and(|(name, _)| name == "phalanx-spare")
}

fn needs_of(
    arena: &Arena,
    wait: &Wait,
    ordinals: &HashMap<(u16, u32), Thread>,
    slot_of: impl Fn(u64) -> Option<u16>,
) -> Option<Needs> {
    let me = thread_of(wait);
    let signal = wait.flags & flag::SIGNAL != 0;
    let guarded = wait.flags & flag::GUARDED != 0;
    match wait.subject {
        Subject::SharedGate => Some(Needs::Tree),
        Subject::PrivateGate => Some(Needs::Process(wait.slot)),
        Subject::Thread => Some(Needs::One(Thread {
            slot: wait.slot,
            tid: u32::try_from(wait.object).ok()?,
        })),
        // Any of its threads can end it.
        Subject::Process => Some(Needs::Process(slot_of(wait.object)?)),
        Subject::PrivateLock => match wait.holder {
            0 => Some(Needs::Process(wait.slot)),
            _ if signal => Some(Needs::Process(wait.slot)),
            holder if holder == wait.ordinal && !guarded => Some(Needs::Process(wait.slot)),
            holder => Some(Needs::One(*ordinals.get(&(wait.slot, holder))?)),
        },
        Subject::SharedLock => {
            let offset = usize::try_from(wait.object).ok()?;
            let owner = arena.owner_at(offset)?;
            let owner = *ordinals.get(&(owner.slot, u32::from(arena.number_of(owner))))?;
            let lock = lock_block(arena, offset).and_then(|(block, _)| lock_facts(arena, block));
            let signal = signal || lock.is_some_and(|lock| lock.signal);
            if signal || owner == me && !guarded {
                return Some(Needs::Tree);
            }
            Some(Needs::One(owner))
        }
    }
}

/// Returns the block of the user's lock whose word lies at `offset`.
pub(crate) fn lock_block(arena: &Arena, offset: usize) -> Option<(BlockRef, Kind)> {
    let (block, kind) = arena.block_around(offset)?;
    (matches!(kind, Kind::Lock | Kind::RLock) && block.offset() == offset).then_some((block, kind))
}
