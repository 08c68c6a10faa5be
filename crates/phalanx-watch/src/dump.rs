//! What every thread of a tree waits for and holds, seen from outside.

use std::fmt;
use std::io;

use phalanx_prim::clock;
use phalanx_shm::{Arena, OpenError, SlotState};
use phalanx_sys::map::SharedFile;
use phalanx_sys::others;
use serde::{Deserialize, Serialize};

use crate::graph::Needs;
use crate::report::{Deadlock, Testimony, Thing, held_by, thing_of};
use crate::survey::{MEMORY, Survey, thread_of};

/// A thread of the tree.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct DumpedThread {
    /// The kernel's id.
    pub tid: u32,
    /// Its name.
    pub name: String,
    /// The letter of its state as the kernel has it: `S` sleeps, `R` runs.
    pub state: char,
    /// The engine's own.
    pub helper: bool,
    /// What it waits for, if that is known: it waits through phalanx.
    pub waits_for: Option<Thing>,
    /// Where in the program it waits, if that is known.
    #[serde(default)]
    pub place: Option<String>,
    /// For how long, in seconds.
    pub seconds: f64,
    /// Process and thread that alone could end the wait.
    pub needs: Option<(u32, u32)>,
    /// What it holds.
    pub holds: Vec<Thing>,
}

/// A process of the tree.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct DumpedProcess {
    /// Its id.
    pub pid: u32,
    /// What it was started as.
    pub command: String,
    /// Its threads.
    pub threads: Vec<DumpedThread>,
}

/// Every thread of a tree, at about one moment.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Dump {
    /// The processes.
    pub processes: Vec<DumpedProcess>,
    /// Those that can never go on, as far as that is proved.
    pub deadlocks: Vec<Deadlock>,
}

/// A tree could not be looked at.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DumpError {
    /// There is no such process, it belongs to somebody else, or it does not use phalanx.
    #[error("cannot look into process {pid}: {error}")]
    Process {
        /// The process.
        pid: u32,
        /// What the system said.
        error: io::Error,
    },
    /// Its shared memory is not of this version.
    #[error(transparent)]
    Arena(#[from] OpenError),
}

/// Looks at the tree that process `pid` belongs to, from any process of the same user. Nothing in the tree is stopped or
/// changed.
///
/// # Errors
///
/// [`DumpError`].
pub fn dump(pid: u32) -> Result<Dump, DumpError> {
    let file =
        others::open_memory(pid, MEMORY).map_err(|error| DumpError::Process { pid, error })?;
    let arena = Arena::open(SharedFile::from_fd(file))?;
    Ok(dump_arena(&arena))
}

fn dump_arena(arena: &Arena) -> Dump {
    let survey = Survey::of(arena);
    let now = clock::now_ns();
    let known = arena.threads_known();
    let processes = arena
        .processes()
        .into_iter()
        .filter(|process| process.state == SlotState::Live)
        .map(|process| DumpedProcess {
            pid: process.pid,
            command: others::command_line(process.pid),
            threads: others::threads(process.pid)
                .unwrap_or_default()
                .into_iter()
                .map(|tid| {
                    let (name, state) = others::thread_state(process.pid, tid)
                        .unwrap_or_else(|_| (String::new(), '?'));
                    let mut thread = DumpedThread {
                        tid,
                        name,
                        state,
                        helper: false,
                        waits_for: None,
                        place: None,
                        seconds: 0.0,
                        needs: None,
                        holds: Vec::new(),
                    };
                    if let Some(known) = known
                        .iter()
                        .find(|known| (known.slot, known.tid) == (process.slot, tid))
                    {
                        thread.helper = known.helper;
                        thread.holds = held_by(arena, process.slot, known.ordinal);
                    }
                    let at = crate::graph::Thread {
                        slot: process.slot,
                        tid,
                    };
                    if let Some(wait) = survey.waits.get(&at) {
                        if !wait.name.is_empty() {
                            thread.name.clone_from(&wait.name);
                        }
                        thread.waits_for = Some(thing_of(arena, wait));
                        thread.place = arena.place_at(wait.place);
                        thread.seconds = now.saturating_sub(wait.since) as f64 / 1e9;
                        if let Some(Needs::One(other)) = survey.graph.needs.get(&thread_of(wait)) {
                            thread.needs = Some((arena.process(other.slot).pid, other.tid));
                        }
                    }
                    thread
                })
                .collect(),
        })
        .collect();
    // Without the detective nobody looks, and only circles of locks in shared memory can be proved from outside.
    let deadlocks = survey
        .cores(arena)
        .iter()
        .map(|core| Deadlock::of(arena, core, |_| Testimony::default()))
        .collect();
    Dump {
        processes,
        deadlocks,
    }
}

impl Dump {
    /// Returns the whole as JSON.
    #[must_use]
    pub fn to_json(&self) -> String {
        serde_json::to_string_pretty(self).unwrap_or_default()
    }
}

impl fmt::Display for Dump {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for process in &self.processes {
            writeln!(f, "process {}: {}", process.pid, process.command)?;
            for thread in &process.threads {
                write!(f, "  thread {} {:?}", thread.tid, thread.name)?;
                match (&thread.waits_for, thread.helper) {
                    (_, true) => writeln!(f, ": the engine's own")?,
                    (Some(thing), _) => {
                        write!(f, ": waits for {thing}, for {:.1} s", thread.seconds)?;
                        if let Some(place) = &thread.place {
                            write!(f, ", at {place}")?;
                        }
                        match thread.needs {
                            Some((pid, tid)) if pid == process.pid => {
                                writeln!(f, "; needs thread {tid}")?;
                            }
                            Some((pid, tid)) => {
                                writeln!(f, "; needs thread {tid} of process {pid}")?;
                            }
                            None => writeln!(f)?,
                        }
                    }
                    (None, _) if thread.state == 'S' => {
                        writeln!(f, ": sleeps, not in a call of phalanx")?;
                    }
                    (None, _) => writeln!(f, ": state {}", thread.state)?,
                }
                for thing in &thread.holds {
                    writeln!(f, "    holds {thing}")?;
                }
            }
        }
        for deadlock in &self.deadlocks {
            write!(f, "\ndeadlock: {deadlock}")?;
        }
        Ok(())
    }
}
