//! What was found, as a value; and as text, JSON, DOT and SVG.

use std::fmt::{self, Write as _};

use phalanx_prim::clock;
use phalanx_shm::{Arena, Kind, Subject, Wait, flag};
use phalanx_sync::lock_facts;
use serde::{Deserialize, Serialize};

use crate::graph::Needs;
use crate::survey::{Core, lock_block, thread_of};

/// Something that is waited for or held.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Thing {
    /// What it is: `"Lock"`, `"Queue"`, `"thread"`, …
    pub kind: String,
    /// The name its user gave it, or what else tells it from others.
    pub name: String,
    /// Where its holder took it, if that is known: `"app.py:12"`.
    pub place: Option<String>,
}

impl Thing {
    /// Describes something that a thread took somewhere.
    #[must_use]
    pub fn taken(kind: &str, name: &str, place: &str) -> Self {
        Self {
            kind: kind.to_owned(),
            name: name.to_owned(),
            place: Some(place.to_owned()),
        }
    }
}

impl fmt::Display for Thing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.kind)?;
        if !self.name.is_empty() {
            write!(f, " {}", self.name)?;
        }
        match &self.place {
            Some(place) => write!(f, " (taken at {place})"),
            None => Ok(()),
        }
    }
}

/// A thread that can never go on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Party {
    /// Its process.
    pub pid: u32,
    /// The kernel's id of the thread.
    pub tid: u32,
    /// The thread's name.
    pub thread: String,
    /// What it waits for.
    pub waits_for: Thing,
    /// Where in the program it waits, if that is known: `"src/main.rs:12"`.
    #[serde(default)]
    pub place: Option<String>,
    /// For how long, in seconds.
    pub seconds: f64,
    /// The number of the party, from 0, that alone could end the wait; `None` if any of them could.
    pub needs: Option<usize>,
    /// What it holds.
    pub holds: Vec<Thing>,
    /// Where it is, innermost last; empty if it did not say.
    pub stack: String,
}

/// Threads that wait for each other and can never go on.
///
/// Also the error with which one of them is made to fail.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Deadlock {
    /// Who. If it is a circle, each needs the next and the last the first.
    pub parties: Vec<Party>,
    /// Whether it is a circle of threads of which each needs one other. If not, any of them could help the others, if it
    /// could go on.
    pub circle: bool,
}

/// Where a thread says it is, and what it says it holds.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Testimony {
    pub(crate) stack: String,
    pub(crate) holds: Vec<Thing>,
}

impl Testimony {
    /// Adds what it knows of what its thread holds.
    pub(crate) fn add_to(&self, holds: &mut Vec<Thing>) {
        for thing in &self.holds {
            match holds.iter_mut().find(|held| held.name == thing.name) {
                Some(held) => held.place = thing.place.clone().or(held.place.take()),
                None => holds.push(thing.clone()),
            }
        }
    }
}

/// Returns what a wait is for.
pub(crate) fn thing_of(arena: &Arena, wait: &Wait) -> Thing {
    let (mut kind, mut name) = match wait.subject {
        Subject::Thread => ("thread".to_owned(), wait.object.to_string()),
        Subject::Process => ("process".to_owned(), wait.object.to_string()),
        Subject::PrivateLock => ("Lock".to_owned(), format!("at {:#x}", wait.object)),
        Subject::PrivateGate => ("event".to_owned(), format!("at {:#x}", wait.object)),
        Subject::SharedLock | Subject::SharedGate => {
            let offset = usize::try_from(wait.object).unwrap_or(0);
            shared_thing(arena, offset)
        }
    };
    if let Some((said, rest)) = wait.label.split_once(' ') {
        (kind, name) = (said.to_owned(), rest.to_owned());
    } else if !wait.label.is_empty() {
        kind.clone_from(&wait.label);
    }
    Thing {
        kind,
        name,
        place: None,
    }
}

fn shared_thing(arena: &Arena, offset: usize) -> (String, String) {
    if let Some((block, kind)) = lock_block(arena, offset) {
        let name = lock_facts(arena, block).unwrap_or_default().name;
        return (kind_name(kind).to_owned(), shared_name(&name, offset));
    }
    match arena.block_around(offset) {
        Some((block, kind)) => (kind_name(kind).to_owned(), shared_name("", block.offset())),
        None => ("the engine's own".to_owned(), format!("#{offset:x}")),
    }
}

pub(crate) fn shared_name(name: &str, offset: usize) -> String {
    if name.is_empty() {
        format!("#{offset:x}")
    } else {
        format!("{name:?}")
    }
}

pub(crate) fn kind_name(kind: Kind) -> &'static str {
    match kind {
        Kind::Lock => "Lock",
        Kind::RLock => "RLock",
        Kind::Semaphore | Kind::Permits => "Semaphore",
        Kind::Barrier => "Barrier",
        Kind::Condition => "Condition",
        Kind::Event => "Event",
        Kind::Queue | Kind::Segment => "Queue",
        Kind::Pipe | Kind::End => "Connection",
        Kind::Shared => "lock of shared data",
        Kind::Start => "result of a process",
        Kind::Pool | Kind::Crew => "results of a pool",
        Kind::Task | Kind::Lot => "result of a task",
        Kind::Store | Kind::Table => "shared collection",
        _ => "block",
    }
}

/// Returns the locks in the arena that a thread has.
pub(crate) fn held_by(arena: &Arena, slot: u16, ordinal: u32) -> Vec<Thing> {
    let mut held = Vec::new();
    arena.each_held_lock(|block, _, owner| {
        if owner.slot == slot && u32::from(arena.number_of(owner)) == ordinal {
            let (kind, name) = shared_thing(arena, block.offset());
            let place = lock_facts(arena, block).and_then(|lock| lock.place);
            held.push(Thing { kind, name, place });
        }
    });
    held
}

impl Deadlock {
    /// Describes what was proved.
    pub(crate) fn of(arena: &Arena, core: &Core, testimony: impl Fn(&Wait) -> Testimony) -> Self {
        let now = clock::now_ns();
        let place = |needs: &Needs| match needs {
            Needs::One(other) => core
                .members
                .iter()
                .position(|wait| thread_of(wait) == *other),
            Needs::Process(_) | Needs::Tree => None,
        };
        let mut parties: Vec<Party> = core
            .members
            .iter()
            .zip(&core.needs)
            .map(|(wait, needs)| {
                let said = testimony(wait);
                let mut holds = held_by(arena, wait.slot, wait.ordinal);
                said.add_to(&mut holds);
                Party {
                    pid: arena.process(wait.slot).pid,
                    tid: wait.tid,
                    thread: wait.name.clone(),
                    waits_for: thing_of(arena, wait),
                    place: arena.place_at(wait.place),
                    seconds: now.saturating_sub(wait.since) as f64 / 1e9,
                    needs: place(needs),
                    holds,
                    stack: said.stack,
                }
            })
            .collect();
        // What one waits for, the one it needs has.
        for i in 0..parties.len() {
            let is_lock = matches!(
                core.members[i].subject,
                Subject::SharedLock | Subject::PrivateLock
            );
            if let Some(owner) = parties[i].needs.filter(|_| is_lock) {
                let thing = parties[i].waits_for.clone();
                if !parties[owner]
                    .holds
                    .iter()
                    .any(|held| held.name == thing.name)
                {
                    parties[owner].holds.push(thing);
                }
            }
        }
        Self {
            parties,
            circle: core.is_circle,
        }
    }

    /// Returns the whole as JSON.
    #[must_use]
    pub fn to_json(&self) -> String {
        // Strings and numbers: there is nothing that could not be written.
        serde_json::to_string_pretty(self).unwrap_or_default()
    }

    /// Reads what [`to_json`](Self::to_json) wrote.
    ///
    /// # Errors
    ///
    /// When it is something else.
    pub fn from_json(text: &str) -> Result<Self, serde_json::Error> {
        serde_json::from_str(text)
    }

    /// Returns the edges: from, to (`None` for anybody), label.
    fn edges(&self) -> impl Iterator<Item = (usize, Option<usize>, String)> {
        let edge = |(i, party): (usize, &Party)| (i, party.needs, party.waits_for.to_string());
        self.parties.iter().enumerate().map(edge)
    }

    /// Returns the whole as a graph for Graphviz.
    #[must_use]
    pub fn to_dot(&self) -> String {
        let mut text = String::from("digraph deadlock {\n  node [shape=box, fontname=sans];\n");
        for (i, party) in self.parties.iter().enumerate() {
            let _ = writeln!(text, "  p{i} [label={:?}];", party.title());
        }
        if !self.circle {
            text.push_str("  anybody [label=\"anybody of them\", style=dashed];\n");
        }
        for (from, to, label) in self.edges() {
            let to = to.map_or_else(|| "anybody".to_owned(), |to| format!("p{to}"));
            let _ = writeln!(text, "  p{from} -> {to} [label={label:?}, fontname=sans];");
        }
        text.push_str("}\n");
        text
    }

    /// Returns the whole as a picture.
    #[must_use]
    pub fn to_svg(&self) -> String {
        crate::picture::draw(self)
    }
}

impl Party {
    /// Who it is, in a line.
    #[must_use]
    pub fn title(&self) -> String {
        if self.thread.is_empty() {
            format!("process {}, thread {}", self.pid, self.tid)
        } else {
            format!("process {}, thread {:?}", self.pid, self.thread)
        }
    }
}

impl fmt::Display for Deadlock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.circle, self.parties.len()) {
            (true, 1) => writeln!(f, "a thread waits for itself and can never go on:")?,
            (true, count) => writeln!(
                f,
                "{count} threads wait for each other in a circle and can never go on:"
            )?,
            (false, 1) => writeln!(f, "a thread waits and nobody is left who could help it:")?,
            (false, count) => writeln!(
                f,
                "{count} threads wait and none of them can go on to help the others:"
            )?,
        }
        for (i, party) in self.parties.iter().enumerate() {
            writeln!(f, "\n  ({}) {} (tid {})", i + 1, party.title(), party.tid)?;
            let for_whom = match party.needs {
                Some(other) if other == i => ", which it has itself".to_owned(),
                Some(other) => format!(", which ({}) has", other + 1),
                None => String::new(),
            };
            let joins = matches!(party.waits_for.kind.as_str(), "thread" | "process");
            let for_whom = match party.needs {
                Some(other) if joins => format!(", which is ({})", other + 1),
                _ => for_whom,
            };
            let at = match &party.place {
                Some(place) => format!(", at {place}"),
                None => String::new(),
            };
            writeln!(
                f,
                "      waits for {}{for_whom}, for {:.1} s{at}",
                party.waits_for, party.seconds
            )?;
            for thing in &party.holds {
                writeln!(f, "      holds {thing}")?;
            }
            if !party.stack.is_empty() {
                writeln!(f, "      it is here:")?;
                for line in party.stack.lines() {
                    writeln!(f, "        {line}")?;
                }
            }
        }
        writeln!(f)?;
        for (from, to, label) in self.edges() {
            let to = to.map_or_else(|| "anybody".to_owned(), |to| format!("({})", to + 1));
            writeln!(f, "  ({}) --- {label} --> {to}", from + 1)?;
        }
        Ok(())
    }
}

impl std::error::Error for Deadlock {}

/// Returns `true` if this wait can be made to fail.
pub(crate) fn is_raisable(wait: &Wait) -> bool {
    wait.flags & flag::RAISABLE != 0 && wait.flags & flag::IDLE == 0
}
