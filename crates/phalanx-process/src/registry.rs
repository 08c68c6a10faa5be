//! What the executable says of itself at link time: its tasks, and how a test program becomes a worker.

use std::any::TypeId;
use std::ffi::OsString;

use crate::task::Trampoline;

/// A function marked `#[phalanx::task]`. Written by the macro.
#[derive(Debug)]
pub struct Registered {
    /// Its path.
    pub name: &'static str,
    /// Names its type.
    pub type_id: fn() -> TypeId,
    /// How to call it.
    pub trampoline: fn() -> Trampoline,
}

inventory::collect!(Registered);

/// The test that turns a test program into a worker. Written by `test_entry!`.
#[derive(Debug)]
pub struct TestEntry {
    /// The module it is in, with the crate.
    pub module: &'static str,
    /// The function.
    pub function: &'static str,
}

inventory::collect!(TestEntry);

/// What another crate of the program has to do in every process before anything else of phalanx runs there.
#[derive(Debug)]
pub struct AtEnter(pub fn());

inventory::collect!(AtEnter);

/// Returns the type id of a value's type.
pub fn type_id_of<T: 'static>(_: &T) -> TypeId {
    TypeId::of::<T>()
}

pub(crate) fn name_of(id: TypeId) -> Option<&'static str> {
    inventory::iter::<Registered>
        .into_iter()
        .find(|task| (task.type_id)() == id)
        .map(|task| task.name)
}

pub(crate) fn find(name: &str) -> Option<Trampoline> {
    inventory::iter::<Registered>
        .into_iter()
        .find(|task| task.name == name)
        .map(|task| (task.trampoline)())
}

/// Returns the names of all tasks of this executable.
#[must_use]
pub fn tasks() -> Vec<&'static str> {
    let mut names: Vec<_> = inventory::iter::<Registered>
        .into_iter()
        .map(|task| task.name)
        .collect();
    names.sort_unstable();
    names
}

/// Returns `true` if a test makes this program a worker.
pub(crate) fn has_test_entry() -> bool {
    inventory::iter::<TestEntry>.into_iter().next().is_some()
}

/// Returns the arguments that make this program a worker: none, but for the test harness, which must run one test only.
pub(crate) fn entry_args() -> Vec<OsString> {
    let Some(entry) = inventory::iter::<TestEntry>.into_iter().next() else {
        return Vec::new();
    };
    // The harness names tests without the crate.
    let path = match entry.module.split_once("::") {
        Some((_, inner)) => format!("{inner}::{}", entry.function),
        None => entry.function.to_owned(),
    };
    [
        "--exact",
        &path,
        "--nocapture",
        "--test-threads=1",
        "--quiet",
    ]
    .into_iter()
    .map(OsString::from)
    .collect()
}

/// Returns what this program calls itself.
pub(crate) fn own_name() -> OsString {
    std::env::args_os()
        .next()
        .unwrap_or_else(|| OsString::from("phalanx"))
}

/// Lets the tests of a crate start processes: put it once into each test crate, at its root.
///
/// ```no_run
/// phalanx_process::test_entry!();
/// # fn main() {}
/// ```
#[macro_export]
macro_rules! test_entry {
    () => {
        /// Turns this test program into a worker when a test started it as one; otherwise a test that passes.
        #[test]
        fn phalanx_worker_entry() {
            $crate::enter();
        }

        $crate::inventory::submit! {
            $crate::registry::TestEntry { module: module_path!(), function: "phalanx_worker_entry" }
        }
    };
}
