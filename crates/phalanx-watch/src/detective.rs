//! What a waiter does at its looks; see the table above `lib.rs`.

use std::cell::RefCell;
use std::error::Error;
use std::io::Write;
use std::panic::{self, AssertUnwindSafe};
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use phalanx_prim::clock;
use phalanx_shm::{
    AllocError, Arena, DeadlockError, Detective, Look, OpenError, Verdict, Wait, Watch, flag,
    session, session_if_any, set_detective,
};

use crate::report::{Deadlock, Testimony, is_raisable};
use crate::survey::{Core, Survey, thread_of};
use crate::witness;

/// What to do with a deadlock.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(u8)]
pub enum Action {
    /// Print a hint to standard error, and leave it at that. Meant for long intervals.
    Hint = 1,
    /// Print the report to standard error.
    #[default]
    Report = 2,
    /// Make the youngest waiter's call fail. One that cannot is reported.
    Raise = 3,
    /// Print the report and end every process of the tree by SIGABRT.
    Abort = 4,
}

impl Action {
    fn from_bits(bits: u8) -> Option<Self> {
        Some(match bits {
            1 => Self::Hint,
            2 => Self::Report,
            3 => Self::Raise,
            4 => Self::Abort,
            _ => return None,
        })
    }
}

/// Choices for [`enable_with`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Options {
    /// What to do with a deadlock.
    pub action: Action,
    /// How long a waiter sleeps between two looks; a deadlock is found after a few of these. From 1 ms to 49 days.
    pub every: Duration,
}

impl Options {
    /// Returns the options for this action: a look each 200 ms, each ten seconds for hints.
    #[must_use]
    pub fn new(action: Action) -> Self {
        let ms = if action == Action::Hint { 10_000 } else { 200 };
        Self {
            action,
            every: Duration::from_millis(ms),
        }
    }

    /// Sets how long a waiter sleeps between two looks.
    #[must_use]
    pub fn every(mut self, every: Duration) -> Self {
        self.every = every;
        self
    }
}

/// The detective could not begin.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EnableError {
    /// There is no shared memory and none can be made.
    #[error("the detective needs the tree's shared memory: {0}")]
    Open(#[from] OpenError),
    /// There is not enough of it.
    #[error("the detective has no memory to note the order of locks: {0}")]
    Alloc(#[from] AllocError),
}

/// Lets every process of the tree look for deadlocks, from each thread's next sleep on.
///
/// Processes that are started later look as well. Called again, it changes what is done.
///
/// # Errors
///
/// [`EnableError`] if there is no shared memory and none can be made.
pub fn enable(action: Action) -> Result<(), EnableError> {
    enable_with(Options::new(action))
}

/// As [`enable`], with more choices.
///
/// # Errors
///
/// As for `enable`.
pub fn enable_with(options: Options) -> Result<(), EnableError> {
    install();
    let ms = options.every.as_millis().clamp(1, u128::from(u32::MAX));
    session()?.change_watch(|watch| {
        watch.every_ms = ms as u32;
        watch.action = options.action as u8;
        watch.places = options.action != Action::Hint;
    });
    Ok(())
}

/// Lets nobody look any more, from each thread's next sleep on.
pub fn disable() {
    if let Some(arena) = session_if_any() {
        arena.change_watch(|watch| {
            *watch = Watch {
                order: watch.order,
                ..Watch::default()
            };
        });
    }
}

/// Lets this process take part if another one of the tree enables the detective. Done for every program with
/// `#[phalanx::main]`; costs nothing until then.
pub fn install() {
    set_detective(Detective {
        look,
        leave,
        step: crate::order::step,
    });
}

#[derive(Debug, Default)]
struct Paths {
    json: Option<PathBuf>,
    svg: Option<PathBuf>,
}

static PATHS: Mutex<Paths> = Mutex::new(Paths {
    json: None,
    svg: None,
});

/// Lets this process, and those it forks, write what they find to files as well: JSON, and a picture (SVG; DOT if the name
/// ends so). Other processes of the tree go by `PHALANX_DEADLOCKS_JSON` and `PHALANX_DEADLOCKS_SVG` in their environment.
pub fn set_paths(json: Option<PathBuf>, svg: Option<PathBuf>) {
    *PATHS.lock().unwrap_or_else(PoisonError::into_inner) = Paths { json, svg };
}

/// How long the leader waits for the others' answers.
const ANSWERS_WITHIN_NS: u64 = 2_000_000_000;
/// One survey of the whole tree in this time, if nobody is suspected.
const SURVEY_EVERY_NS: u64 = 50_000_000;

/// What a leader is in the middle of.
struct Case {
    members: Vec<(Wait, u32)>,
    opened: u64,
}

thread_local! {
    static CASE: RefCell<Option<Case>> = const { RefCell::new(None) };
}

/// Returns and forgets the deadlock for which the calling thread's last wait failed, if that was the reason: of a call
/// that returned [`WaitError::Deadlock`](phalanx_shm::WaitError::Deadlock), or that was interrupted.
#[must_use]
pub fn take_deadlock() -> Option<Deadlock> {
    let found = phalanx_shm::take_deadlock()?;
    found.deadlock().downcast_ref().cloned()
}

/// Returns `true` if the calling thread's wait was interrupted for a deadlock that nobody has taken yet.
#[must_use]
pub fn taking() -> bool {
    phalanx_shm::has_deadlock()
}

/// Returns the deadlock for which a call failed ([`Action::Raise`]), whichever error it has become.
///
/// ```no_run
/// # fn exchange() -> Result<(), Box<dyn std::error::Error>> { Ok(()) }
/// if let Err(error) = exchange() {
///     match phalanx_watch::deadlock_in(&*error) {
///         Some(deadlock) => eprintln!("{} parties: {deadlock}", deadlock.parties.len()),
///         None => eprintln!("{error}"),
///     }
/// }
/// ```
#[must_use]
pub fn deadlock_in<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a Deadlock> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(deadlock) = error.downcast_ref::<Deadlock>() {
            return Some(deadlock);
        }
        next = error.source();
    }
    None
}

/// Runs `f`; the deadlock if one of its waits had to fail ([`Action::Raise`]).
///
/// For calls that cannot return it, as [`Lock::lock`](phalanx_sync::Lock::lock): such a wait panics, so that all guards on
/// the way are dropped; other panics go on. Calls with an error to return it in do that; see [`deadlock_in`].
///
/// # Errors
///
/// The [`Deadlock`].
pub fn recover<T>(f: impl FnOnce() -> T) -> Result<T, Deadlock> {
    panic::catch_unwind(AssertUnwindSafe(f)).map_err(|payload| match payload.downcast() {
        Ok(deadlock) => *deadlock,
        Err(other) => panic::resume_unwind(other),
    })
}

fn leave(found: DeadlockError) {
    if let Some(deadlock) = found.deadlock().downcast_ref::<Deadlock>() {
        // Not the panic hook's business: it is meant to be caught, and has been chosen.
        panic::resume_unwind(Box::new(deadlock.clone()));
    }
}

fn look(look: &Look<'_>) -> Verdict {
    let arena = look.arena();
    if look.is_asked() {
        let said = serde_json::to_string(&witness::testimony()).unwrap_or_default();
        look.answer(&said);
    }
    let Some(action) = Action::from_bits(arena.watch().action) else {
        return Verdict::Wait;
    };
    if !look.is_suspected() {
        if arena.may_survey(SURVEY_EVERY_NS) {
            survey(arena, action);
        }
        if !look.is_suspected() {
            CASE.set(None);
            return Verdict::Wait;
        }
    }
    let Some(me) = look.wait() else {
        return Verdict::Wait;
    };
    let mine = survey(arena, action)
        .into_iter()
        .find(|core| same(leader(core, action), &me));
    match mine {
        Some(core) => lead(arena, &core, &me, action),
        None => {
            CASE.set(None);
            Verdict::Wait
        }
    }
}

fn same(one: &Wait, other: &Wait) -> bool {
    (one.slot, one.tid, one.turn) == (other.slot, other.tid, other.turn)
}

/// Looks at the whole tree and tells the leaders of what it proves.
fn survey(arena: &Arena, action: Action) -> Vec<Core> {
    let cores = Survey::of(arena).cores(arena);
    for core in &cores {
        arena.suspect(leader(core, action));
    }
    cores
}

fn leader(core: &Core, action: Action) -> &Wait {
    let youngest = core
        .members
        .iter()
        .filter(|wait| action == Action::Raise && is_raisable(wait))
        .max_by_key(|wait| (wait.since, wait.slot, wait.tid));
    youngest.unwrap_or(&core.members[0])
}

fn lead(arena: &'static Arena, core: &Core, me: &Wait, action: Action) -> Verdict {
    let known = CASE.with_borrow(|case| {
        case.as_ref().is_some_and(|case| {
            case.members.len() == core.members.len()
                && case
                    .members
                    .iter()
                    .zip(&core.members)
                    .all(|((one, _), other)| {
                        // One that only waits to be of use may look up now and then.
                        let idle = one.flags & other.flags & flag::IDLE != 0;
                        same(one, other) || idle && thread_of(one) == thread_of(other)
                    })
        })
    });
    if !known {
        let ask = |wait: &Wait| {
            let question = if same(wait, me) { 0 } else { arena.ask(wait) };
            (wait.clone(), question)
        };
        CASE.set(Some(Case {
            members: core.members.iter().map(ask).collect(),
            opened: clock::now_ns(),
        }));
        if core.members.len() > 1 {
            return Verdict::Wait;
        }
    }
    let answers: Option<Vec<Option<String>>> = CASE.with_borrow(|case| {
        let case = case.as_ref()?;
        let answers: Vec<_> = case
            .members
            .iter()
            .map(|(wait, question)| {
                if same(wait, me) || wait.flags & flag::IDLE != 0 {
                    // Where somebody idle is tells nothing.
                    Some(String::new())
                } else {
                    arena.answer(wait, *question)
                }
            })
            .collect();
        let late = clock::now_ns().saturating_sub(case.opened) > ANSWERS_WITHIN_NS;
        (late || answers.iter().all(Option::is_some)).then_some(answers)
    });
    let Some(answers) = answers else {
        return Verdict::Wait;
    };
    CASE.set(None);
    let own = witness::testimony();
    let deadlock = Deadlock::of(arena, core, |wait| {
        if same(wait, me) {
            return own.clone();
        }
        let at = core.members.iter().position(|member| same(member, wait));
        let said = at.and_then(|at| answers[at].as_deref());
        said.and_then(|said| serde_json::from_str::<Testimony>(said).ok())
            .unwrap_or_default()
    });
    conclude(arena, deadlock, me, action)
}

fn conclude(arena: &Arena, deadlock: Deadlock, me: &Wait, action: Action) -> Verdict {
    if !arena.tell_once(me) {
        return Verdict::Wait;
    }
    if action == Action::Raise && is_raisable(me) {
        write_files(&deadlock);
        return Verdict::Leave(DeadlockError::new(deadlock));
    }
    let text = if action == Action::Hint {
        format!("phalanx: hint: deadlock: {deadlock}")
    } else {
        format!("phalanx: deadlock: {deadlock}")
    };
    // Nobody may read it; that changes nothing.
    let _ = std::io::stderr().lock().write_all(text.as_bytes());
    write_files(&deadlock);
    if action == Action::Abort {
        abort(arena);
    }
    Verdict::Wait
}

fn write_files(deadlock: &Deadlock) {
    let paths = PATHS.lock().unwrap_or_else(PoisonError::into_inner);
    let from = |variable: &str| std::env::var_os(variable).map(PathBuf::from);
    let json = paths
        .json
        .clone()
        .or_else(|| from("PHALANX_DEADLOCKS_JSON"));
    let svg = paths.svg.clone().or_else(|| from("PHALANX_DEADLOCKS_SVG"));
    drop(paths);
    let mut failed = Vec::new();
    if let Some(path) = json
        && let Err(error) = std::fs::write(&path, deadlock.to_json())
    {
        failed.push((path, error));
    }
    if let Some(path) = svg {
        let is_dot = path.extension().is_some_and(|extension| extension == "dot");
        let text = if is_dot {
            deadlock.to_dot()
        } else {
            deadlock.to_svg()
        };
        if let Err(error) = std::fs::write(&path, text) {
            failed.push((path, error));
        }
    }
    for (path, error) in failed {
        let text = format!("phalanx: cannot write {}: {error}\n", path.display());
        let _ = std::io::stderr().lock().write_all(text.as_bytes());
    }
}

/// Ends the tree: its other processes first, then this one.
fn abort(arena: &Arena) {
    let me = phalanx_sys::ids::pid();
    let mut pids: Vec<u32> = arena
        .processes()
        .iter()
        .map(|process| process.pid)
        .collect();
    // Who was there first ends last, so that nobody is surprised by a dead child.
    pids.retain(|pid| *pid != 0 && *pid != me);
    for pid in pids {
        // Gone already is as good.
        let _ = phalanx_sys::process::signal(pid, phalanx_sys::signal::SIGABRT);
    }
    std::process::abort();
}
