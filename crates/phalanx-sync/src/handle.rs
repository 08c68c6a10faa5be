//! Handles as serde values.
//!
//! A handle (a lock, a queue, a shared value) is written as one number, its name in the arena. The object must not vanish
//! while the number is on its way, so whoever serializes collects the holds of all handles it met ([`collect`]) and lets
//! them travel with the bytes. Read back, the number becomes a hold of the receiving process.

use std::cell::{Cell, RefCell};

use phalanx_shm::{BlockRef, Held, HoldOrAlloc, Kind, session};
use serde::{Deserialize, Deserializer, Serializer};

thread_local! {
    // How many `collect` this thread is in, and how many holds they have met so far: without a destructor, so that those
    // who meet none pay for a few moves only.
    static DEPTH: Cell<u32> = const { Cell::new(0) };
    static COUNT: Cell<usize> = const { Cell::new(0) };
    // The holds of all levels, the innermost last.
    static COLLECTED: RefCell<Vec<Held>> = const { RefCell::new(Vec::new()) };
    // Binary formats drop the text of an error; this keeps it for the codec.
    static LAST_ERROR: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// One `collect`: at its end, by a panic too, what was met in it is off the list.
struct Level {
    before: usize,
}

impl Level {
    #[inline]
    fn enter() -> Self {
        DEPTH.set(DEPTH.get() + 1);
        Self {
            before: COUNT.get(),
        }
    }

    #[inline(always)]
    fn take(&self) -> Vec<Held> {
        if COUNT.get() == self.before {
            return Vec::new();
        }
        self.take_some()
    }

    #[cold]
    fn take_some(&self) -> Vec<Held> {
        COUNT.set(self.before);
        COLLECTED.with_borrow_mut(|all| all.split_off(self.before))
    }
}

impl Drop for Level {
    #[inline]
    fn drop(&mut self) {
        DEPTH.set(DEPTH.get() - 1);
        drop(self.take());
    }
}

/// Runs `serialize` and returns the holds of all handles that were serialized in it by this thread.
#[inline]
pub fn collect<T>(serialize: impl FnOnce() -> T) -> (T, Vec<Held>) {
    let level = Level::enter();
    let value = serialize();
    let holds = level.take();
    (value, holds)
}

/// As [`collect`], and calls `then` with the value and the holds: for hot paths, where there are rarely any.
#[inline]
pub fn collect_then<T, R>(serialize: impl FnOnce() -> T, then: impl FnOnce(T, &[Held]) -> R) -> R {
    let level = Level::enter();
    let value = serialize();
    if COUNT.get() == level.before {
        drop(level);
        return then(value, &[]);
    }
    let holds = level.take();
    drop(level);
    then(value, &holds)
}

/// Returns and forgets why the last handle of this thread could not be serialized or read back.
#[must_use]
pub fn take_last_error() -> Option<String> {
    LAST_ERROR.take()
}

/// An object of the arena behind one of the typed handles, for faces that carry handles in formats of their own.
pub trait Handle: Sized {
    /// What its block says it is.
    const KIND: Kind;

    /// Returns the hold.
    fn held(&self) -> &Held;

    /// Makes a handle of a hold on an object of this kind.
    fn from_held(held: Held) -> Self;
}

/// Makes the handles of a type whose state is an [`Object`](crate::Object).
macro_rules! handle {
    ($type:ty, $state:ty) => {
        impl crate::handle::Handle for $type {
            const KIND: phalanx_shm::Kind = <$state as phalanx_shm::Placed>::KIND;

            fn held(&self) -> &phalanx_shm::Held {
                self.state.held()
            }

            fn from_held(held: phalanx_shm::Held) -> Self {
                crate::install();
                Self {
                    state: crate::Object::from_held(held),
                }
            }
        }
    };
}
pub(crate) use handle;

/// Lets a further hold travel with what this thread serializes. Returns `false`, and does nothing, outside of [`collect`]:
/// the caller then sees to it that the object lives until the number has become a hold elsewhere.
///
/// # Errors
///
/// [`HoldOrAlloc`] when the object is gone or there is no memory to note the hold.
pub fn travel(held: &Held) -> Result<bool, HoldOrAlloc> {
    if DEPTH.get() == 0 {
        return Ok(false);
    }
    let travelling = held.arena().hold(held.block())?;
    COLLECTED.with_borrow_mut(|all| {
        all.push(travelling);
        COUNT.set(all.len());
    });
    Ok(true)
}

/// Makes a hold of a number that a handle of this kind was written as.
///
/// # Errors
///
/// The reason, as text: there is no such object any more, or it is of another kind.
pub fn receive(kind: Kind, bits: u64) -> Result<Held, String> {
    hold(kind, bits)
}

fn fail(text: String) -> String {
    LAST_ERROR.set(Some(text.clone()));
    text
}

/// Writes a handle.
///
/// # Errors
///
/// Outside of [`collect`]: a number in a file or a socket would name nothing.
pub fn serialize<S: Serializer>(held: &Held, serializer: S) -> Result<S::Ok, S::Error> {
    let text = match travel(held) {
        Ok(true) => return serializer.serialize_u64(held.block().to_bits()),
        Ok(false) => "a phalanx handle can only be sent to a process of the same tree: as an argument or result of a task, or through a queue or pipe".to_owned(),
        Err(error) => error.to_string(),
    };
    Err(serde::ser::Error::custom(fail(text)))
}

/// Reads a handle on an object of this kind.
///
/// # Errors
///
/// If the object is gone or of another kind.
pub fn deserialize<'de, D: Deserializer<'de>>(
    kind: Kind,
    deserializer: D,
) -> Result<Held, D::Error> {
    let bits = u64::deserialize(deserializer)?;
    hold(kind, bits).map_err(|text| serde::de::Error::custom(fail(text)))
}

fn hold(kind: Kind, bits: u64) -> Result<Held, String> {
    let block =
        BlockRef::from_bits(bits).ok_or_else(|| "a handle of 0 names nothing".to_owned())?;
    let arena = session().map_err(|error| error.to_string())?;
    let found = arena.kind_of(block);
    if found != Some(kind) {
        let wanted = crate::home::kind_name(kind);
        return Err(match found {
            Some(other) => format!(
                "this handle names a {}, not a {wanted}",
                crate::home::kind_name(other)
            ),
            None => phalanx_shm::StaleHandle.to_string(),
        });
    }
    arena.hold(block).map_err(|error| error.to_string())
}
