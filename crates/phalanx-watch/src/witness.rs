//! What a thread says of itself: where it is, and what it holds that only it knows of.

use std::backtrace::Backtrace;
use std::sync::OnceLock;

use phalanx_shm::{place_text, session_if_any};
use phalanx_sync::{Holding, held_here};

use crate::report::{Testimony, Thing, shared_name};

/// What [`set_witness`] takes; for faces of other languages.
#[derive(Clone, Copy, Debug)]
pub struct Witness {
    /// Returns the calling thread's stack, innermost call last; `None` if the thread runs none of that language's code.
    pub stack: fn() -> Option<String>,
    /// Returns what the calling thread holds, for those that are known.
    pub holds: fn() -> Vec<Thing>,
}

static WITNESS: OnceLock<Witness> = OnceLock::new();

/// Lets a face of another language speak for its threads. The first call counts.
pub fn set_witness(witness: Witness) {
    let _ = WITNESS.set(witness);
}

/// Lines of a stack beyond this are left out.
const LINES_MOST: usize = 60;

pub(crate) fn testimony() -> Testimony {
    let face = WITNESS.get();
    let mut holds = face.map_or_else(Vec::new, |witness| (witness.holds)());
    holds.extend(held_here().iter().map(thing_of));
    Testimony {
        stack: face
            .and_then(|witness| (witness.stack)())
            .unwrap_or_else(own_stack),
        holds,
    }
}

fn thing_of(held: &Holding) -> Thing {
    let arena = session_if_any();
    let offset = arena.and_then(|arena| arena.region().offset_of(held.address as *const u8));
    let name = match offset {
        Some(offset) => shared_name(held.name.as_str(), offset),
        None if held.name.as_str().is_empty() => format!("at {:#x}", held.address),
        None => format!("{:?}", held.name.as_str()),
    };
    Thing::taken(held.kind, &name, &place_text(held.place))
}

/// Returns the Rust functions that the calling thread is in, without those of the engine and the standard library.
fn own_stack() -> String {
    if cfg!(miri) {
        return String::new();
    }
    tidy(&Backtrace::force_capture().to_string())
}

/// Turns the standard library's text into one line for each call, outermost first.
fn tidy(text: &str) -> String {
    const OTHERS: [&str; 9] = [
        "std::",
        "core::",
        "alloc::",
        "<alloc::",
        "<core::",
        "<std::",
        "phalanx_shm::",
        "phalanx_watch::",
        "phalanx_sync::gate::",
    ];
    let mut calls: Vec<String> = Vec::new();
    let mut shown = false;
    for line in text.lines() {
        let line = line.trim_start();
        if let Some(place) = line.strip_prefix("at ") {
            if shown && let Some(call) = calls.last_mut() {
                *call = format!("{call} at {}", place.trim_start_matches("./"));
            }
            continue;
        }
        let Some((number, name)) = line.split_once(": ") else {
            continue;
        };
        shown = number.parse::<u32>().is_ok()
            && !OTHERS.iter().any(|other| name.starts_with(other))
            && !name.starts_with("__")
            && !matches!(name, "_start" | "main" | "clone3" | "start_thread");
        if shown {
            calls.push(name.to_owned());
        }
    }
    calls.truncate(LINES_MOST);
    calls.reverse();
    calls.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stack_is_the_users_calls_outermost_first() {
        let text = "   0: std::backtrace::Backtrace::create\n             at /rustc/x/library/std/src/backtrace.rs:331:13\n   \
                    1: phalanx_shm::robust::RawLock<S>::lock\n             at ./crates/x.rs:1:1\n   2: app::inner\n             \
                    at ./src/main.rs:7:3\n   3: app::outer\n   4: main\n";
        assert_eq!(tidy(text), "app::outer\napp::inner at src/main.rs:7:3");
    }

    #[test]
    fn a_thread_knows_where_it_is() {
        if cfg!(miri) {
            return;
        }
        assert!(testimony().holds.is_empty());
        assert!(!own_stack().contains("std::backtrace"));
    }
}
