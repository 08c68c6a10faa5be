//! What every thread of a tree waits for and holds, seen from outside.

use std::collections::HashMap;
use std::fmt;
use std::io;
use std::time::Duration;

use phalanx_prim::{Deadline, clock};
use phalanx_shm::{Arena, OpenError, SlotState, Wait, flag};
use phalanx_sys::map::SharedFile;
use phalanx_sys::others;
use serde::{Deserialize, Serialize};

use crate::graph::{Needs, Thread};
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
    /// The call that it sleeps in, if that is one about a descriptor and not phalanx's; who could end it is not known.
    #[serde(default)]
    pub outside: Option<String>,
    /// Where it is, innermost call last, if it waits and somebody watches; else empty.
    #[serde(default)]
    pub stack: String,
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
    #[error("cannot look into process {pid}: {}", reason(*pid, error))]
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

fn reason(pid: u32, error: &io::Error) -> String {
    match error.kind() {
        _ if others::threads(pid).is_err() => "there is no such process".to_owned(),
        io::ErrorKind::PermissionDenied => {
            "it is not yours to look into; ask as its user, or as root".to_owned()
        }
        io::ErrorKind::NotFound => {
            "it does not use phalanx, or has shared nothing yet and is not watched".to_owned()
        }
        _ => error.to_string(),
    }
}

/// Threads that look up more rarely than this are not asked.
const ASKED_EVERY_MOST_MS: u32 = 2000;

/// Looks at the tree that process `pid` belongs to, from any process of the same user. Nothing in the tree is stopped; if it is
/// watched, those who wait are asked where they are, for up to a few of their looks.
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

/// Asks all who wait, and look up now and then, where they are and what they hold.
fn ask(arena: &Arena, survey: &Survey) -> HashMap<Thread, Testimony> {
    let every = arena.watch().every_ms;
    let mut said = HashMap::new();
    // Who looks up more rarely would be waited for for long.
    if !(1..=ASKED_EVERY_MOST_MS).contains(&every) {
        return said;
    }
    let mut asked: Vec<_> = survey
        .waits
        .iter()
        .filter(|(_, wait)| wait.flags & (flag::HELPER | flag::IDLE) == 0)
        .map(|(thread, wait)| (*thread, wait, arena.ask(wait)))
        .collect();
    let until = Deadline::after(Duration::from_millis(u64::from(every) * 2 + 500));
    while !asked.is_empty() && !until.has_passed() {
        asked.retain(|(thread, wait, question)| {
            let Some(answer) = arena.answer(wait, *question) else {
                return arena.still_waits(wait);
            };
            if let Ok(testimony) = serde_json::from_str(&answer) {
                said.insert(*thread, testimony);
            }
            false
        });
        std::thread::sleep(Duration::from_millis(2));
    }
    said
}

fn dump_arena(arena: &Arena) -> Dump {
    let survey = Survey::of(arena);
    let said = ask(arena, &survey);
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
                        outside: None,
                        stack: String::new(),
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
                    let at = Thread {
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
                        if let Some(said) = said.get(&at) {
                            said.add_to(&mut thread.holds);
                            thread.stack.clone_from(&said.stack);
                        }
                    } else if !thread.helper {
                        thread.outside = others::call_on_descriptor(process.pid, tid);
                    }
                    thread
                })
                .collect(),
        })
        .collect();
    // Without the detective nobody looks, and only circles of locks in shared memory can be proved from outside.
    let testimony = |wait: &Wait| said.get(&thread_of(wait)).cloned().unwrap_or_default();
    let deadlocks = survey
        .cores(arena)
        .iter()
        .map(|core| Deadlock::of(arena, core, testimony))
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
                    (None, _) if let Some(call) = &thread.outside => {
                        writeln!(f, ": in a {call}, of an unknown owner")?;
                    }
                    (None, _) if thread.state == 'S' => {
                        writeln!(f, ": sleeps, not in a call of phalanx")?;
                    }
                    (None, _) => writeln!(f, ": state {}", thread.state)?,
                }
                for thing in &thread.holds {
                    writeln!(f, "    holds {thing}")?;
                }
                for line in thread.stack.lines() {
                    writeln!(f, "      {line}")?;
                }
            }
        }
        for deadlock in &self.deadlocks {
            write!(f, "\ndeadlock: {deadlock}")?;
        }
        Ok(())
    }
}
