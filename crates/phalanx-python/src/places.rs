//! Where locks were made and taken, while somebody wants to know (`phalanx.deadlocks`).

use std::collections::HashMap;
use std::sync::{Mutex, OnceLock, PoisonError};

use phalanx_prim::global::{AtomicBool, Ordering};
use phalanx_shm::{Described, local_token};
use phalanx_watch::Thing;
use pyo3::intern;
use pyo3::prelude::*;

static WANTED: AtomicBool = AtomicBool::new(false);

/// Returns `true` while places are wanted.
#[inline]
pub(crate) fn wanted() -> bool {
    WANTED.load(Ordering::Relaxed)
}

pub(crate) fn want(wanted: bool) {
    WANTED.store(wanted, Ordering::Relaxed);
    if !wanted {
        held().clear();
    }
}

/// What a lock is called: the name its user gave it, or the place where it was made, if that was wanted.
#[derive(Debug, Default)]
pub(crate) struct About(OnceLock<String>);

impl About {
    #[inline]
    pub(crate) fn new(py: Python<'_>, name: Option<&str>) -> Self {
        let about = Self::default();
        if let Some(name) = name {
            let _ = about.0.set(format!("{name:?}"));
        } else if wanted()
            && let Ok(place) = place_of_birth(py)
        {
            let _ = about.0.set(format!("made at {place}"));
        }
        about
    }

    pub(crate) fn name(&self) -> &str {
        self.0.get().map_or("", String::as_str)
    }

    /// Describes a wait for it.
    pub(crate) fn described(&self, kind: &str) -> Described {
        match self.name() {
            "" => Described::new(format_args!("{kind}")),
            name => Described::new(format_args!("{kind} {name}")),
        }
    }
}

/// How many were made at each place.
static BORN: Mutex<Option<HashMap<String, u32>>> = Mutex::new(None);

/// As [`place`], with a number from the second on that is made there: `"app.py:3 (2)"`.
pub(crate) fn place_of_birth(py: Python<'_>) -> PyResult<String> {
    let place = place(py)?;
    let mut born = BORN.lock().unwrap_or_else(PoisonError::into_inner);
    let count = born
        .get_or_insert_default()
        .entry(place.clone())
        .or_default();
    *count += 1;
    Ok(match *count {
        1 => place,
        count => format!("{place} ({count})"),
    })
}

/// Returns file and line of the innermost frame outside of the standard library's and this package's own modules about
/// processes and threads.
pub(crate) fn place(py: Python<'_>) -> PyResult<String> {
    let sys = py.import(intern!(py, "sys"))?;
    let mut frame = sys.call_method1(intern!(py, "_getframe"), (0,))?;
    loop {
        let code = frame.getattr(intern!(py, "f_code"))?;
        let file: String = code.getattr(intern!(py, "co_filename"))?.extract()?;
        let back = frame.getattr(intern!(py, "f_back"))?;
        if back.is_none() || !is_inside(&file) {
            let line: u32 = frame.getattr(intern!(py, "f_lineno"))?.extract()?;
            let name = file.rsplit('/').next().unwrap_or(&file);
            return Ok(format!("{name}:{line}"));
        }
        frame = back;
    }
}

fn is_inside(file: &str) -> bool {
    let mut parts = file.rsplit('/');
    let (name, folder) = (parts.next().unwrap_or(""), parts.next().unwrap_or(""));
    matches!(
        folder,
        "phalanx" | "multiprocessing" | "concurrent" | "futures"
    ) || matches!(name, "threading.py" | "queue.py") && folder.starts_with("python")
        || file.starts_with("<frozen")
}

#[derive(Debug)]
struct Taken {
    owner: u32,
    kind: &'static str,
    name: String,
    place: String,
}

/// What threads of this process have, by the lock's address.
static HELD: Mutex<Option<HashMap<u64, Taken>>> = Mutex::new(None);

struct Table(std::sync::MutexGuard<'static, Option<HashMap<u64, Taken>>>);

impl Table {
    fn clear(mut self) {
        *self.0 = None;
    }
}

fn held() -> Table {
    Table(HELD.lock().unwrap_or_else(PoisonError::into_inner))
}

/// Notes that the calling thread has just taken a lock. Called with the interpreter's lock held.
#[cold]
pub(crate) fn taken(py: Python<'_>, lock: u64, kind: &'static str, name: &str) {
    let Ok(place) = place(py) else { return };
    let taken = Taken {
        owner: local_token(),
        kind,
        name: if name.is_empty() {
            format!("at {lock:#x}")
        } else {
            name.to_owned()
        },
        place,
    };
    held().0.get_or_insert_default().insert(lock, taken);
}

/// Notes that a lock is free.
#[inline]
pub(crate) fn freed(lock: u64) {
    if wanted()
        && let Some(table) = held().0.as_mut()
    {
        table.remove(&lock);
    }
}

/// Returns what the calling thread has.
pub(crate) fn mine() -> Vec<Thing> {
    let me = local_token();
    // Not a wait: whoever asks may be asked in the middle of anything.
    let Ok(table) = HELD.try_lock() else {
        return Vec::new();
    };
    let all = table.iter().flat_map(HashMap::values);
    all.filter(|taken| taken.owner == me)
        .map(|taken| Thing::taken(taken.kind, &taken.name, &taken.place))
        .collect()
}

/// In a forked child: another thread may have been in the table at that moment, and its locks are not this process's.
pub(crate) fn forget() {
    if let Ok(mut table) = HELD.try_lock() {
        *table = None;
    }
}
