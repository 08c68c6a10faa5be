//! Where a process was when a fatal signal struck it: noted by the process itself in its start record, which outlives it, and
//! put into words by whoever reads the error.
//!
//! The handler walks the stack by the unwinder of the C runtime, which neither allocates nor waits for a lock that the
//! thread may hold; that it has what it needs is made sure by a walk at the beginning. A stack that is broken itself ends the
//! walk, or the process: by the same signal, without a note.
#![expect(
    unsafe_code,
    reason = "a walk in a signal handler, and the record it is noted in"
)]

use std::fmt;

use phalanx_prim::global::{AtomicUsize, Ordering};
use phalanx_prim::{AtomicU32, AtomicU64};
use phalanx_sys::crash;
use phalanx_sys::image::image;

use crate::start::Start;

const FRAMES: usize = 40;
/// In an address: counted from the executable's first byte.
const OWN: u64 = 1 << 63;

/// The part of a start record that is written by the handler.
#[derive(Debug)]
#[repr(C)]
pub(crate) struct Note {
    signal: AtomicU32,
    frames: AtomicU32,
    build: AtomicU64,
    at: [AtomicU64; FRAMES],
}

impl Note {
    pub(crate) fn new() -> Self {
        Self {
            signal: AtomicU32::new(0),
            frames: AtomicU32::new(0),
            build: AtomicU64::new(0),
            at: std::array::from_fn(|_| AtomicU64::new(0)),
        }
    }

    /// Returns what was noted of the end by this signal.
    pub(crate) fn stack(&self, signal: i32) -> CrashStack {
        let noted = self.signal.load(Ordering::Acquire).cast_signed();
        // The standard library makes an abort of an overflown stack.
        if noted == 0 || (noted != signal && signal != phalanx_sys::signal::SIGABRT) {
            return CrashStack::default();
        }
        let frames = (self.frames.load(Ordering::Relaxed) as usize).min(FRAMES);
        let at = self.at[..frames].iter();
        CrashStack {
            is_ours: self.build.load(Ordering::Relaxed) == build(),
            at: at.map(|at| at.load(Ordering::Relaxed)).collect(),
        }
    }
}

fn build() -> u64 {
    let [a, b, c, d, e, f, g, h, ..] = *image().build_id();
    u64::from_le_bytes([a, b, c, d, e, f, g, h])
}

/// The record of what this process runs, 0 for nothing.
static RUNNING: AtomicUsize = AtomicUsize::new(0);

/// Notes fatal signals in this record until the next call.
pub(crate) fn note_in(start: &'static Start) {
    start.crash.build.store(build(), Ordering::Relaxed);
    RUNNING.store(std::ptr::from_ref(start) as usize, Ordering::Release);
    prepare();
}

/// Installs the handlers. Children that are forked later have them.
pub(crate) fn prepare() {
    static ONCE: std::sync::Once = std::sync::Once::new();
    ONCE.call_once(|| {
        // The first walk finds what the later ones use.
        walk(|_| false);
        crash::on_fatal_signal(struck);
        crash::roomy_stack();
    });
}

/// Calls `each` with the addresses of the calling thread's stack, innermost first, while it answers `true`.
fn walk(mut each: impl FnMut(usize) -> bool) {
    // SAFETY: without the lock of the synchronized call, which is for walks that resolve names meanwhile.
    unsafe { backtrace::trace_unsynchronized(|frame| each(frame.ip() as usize)) };
}

fn struck(signal: i32, instruction: usize) {
    let running = RUNNING.load(Ordering::Acquire) as *const Start;
    // SAFETY: null, or a record that this process holds until it ends.
    let Some(start) = (unsafe { running.as_ref() }) else {
        return;
    };
    let (note, image) = (&start.crash, image());
    let mut count = 0;
    let mut push = |at: usize| {
        let address = if image.contains_code(at) {
            (at - image.base()) as u64 | OWN
        } else {
            at as u64
        };
        note.at[count].store(address, Ordering::Relaxed);
        count += 1;
        note.frames.store(count as u32, Ordering::Relaxed);
        count < FRAMES
    };
    let mut found = false;
    walk(|at| {
        found |= at == instruction;
        // Before it lies this handler.
        !found || push(at)
    });
    if !found {
        push(instruction);
    }
    // Release: the rest is there.
    note.signal.store(signal.cast_unsigned(), Ordering::Release);
}

/// Where a process was when it died of a fatal signal, innermost frame first. Empty where that is not known.
///
/// Names and lines are looked up when it is shown: the first time in a process that takes a moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CrashStack {
    /// The executable is this program's.
    is_ours: bool,
    at: Vec<u64>,
}

/// Most frames that are shown.
const SHOWN: usize = 20;

impl CrashStack {
    /// Returns whether nothing is known.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.at.is_empty()
    }

    /// Returns a line for each frame, without those of the engine that called the function.
    #[must_use]
    pub fn lines(&self) -> Vec<String> {
        let mut lines: Vec<String> = Vec::new();
        for (number, at) in self.at.iter().enumerate() {
            if at & OWN == 0 {
                // Libraries lie elsewhere in each process.
                let line = "in a shared library";
                if lines.last().is_none_or(|last| last != line) {
                    lines.push(line.to_owned());
                }
            } else if self.is_ours {
                let start = image().base() + (at & !OWN) as usize;
                // All but the innermost are where a call returns to.
                let found = names(start - usize::from(number > 0));
                if found.iter().any(|line| line.contains("phalanx_process::")) {
                    break;
                }
                lines.extend(found);
            } else {
                lines.push(format!("at {:#x} of its executable", at & !OWN));
            }
        }
        lines.truncate(SHOWN);
        lines
    }
}

fn names(address: usize) -> Vec<String> {
    let mut lines = Vec::new();
    backtrace::resolve(std::ptr::without_provenance_mut(address), |symbol| {
        let name = symbol.name().map(|name| format!("{name:#}"));
        let mut line = name.unwrap_or_else(|| format!("at {address:#x}"));
        if let (Some(file), Some(at)) = (symbol.filename(), symbol.lineno()) {
            line += &format!(" ({}:{at})", file.display());
        }
        lines.push(line);
    });
    if lines.is_empty() {
        let offset = address - image().base();
        lines.push(format!("at {offset:#x} of the executable"));
    }
    lines
}

impl fmt::Display for CrashStack {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.lines().join("\n"))
    }
}
