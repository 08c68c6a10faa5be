//! `cargo xtask check`: everything that can be said about the code without running it.

use std::path::Path;

use crate::sh::{Outcome, Sh};
use crate::{deep, python, rooms, terrace};

/// Another machine the code must at least compile for.
const OTHER_TARGET: &str = "aarch64-unknown-linux-gnu";

/// Why a step could not be done here, which is not a failure of the code.
type Skipped = Option<String>;

/// A part of the check.
type Step = fn() -> Outcome<Skipped>;

/// The steps, the quick ones first.
const STEPS: [(&str, Step); 8] = [
    ("direction", || terrace::check().map(done)),
    ("rooms", || rooms::check().map(done)),
    ("format", || {
        Sh::cargo(&["fmt", "--all", "--check"]).run().map(done)
    }),
    ("clippy", || {
        for_python(Sh::cargo(&[
            "clippy",
            "--workspace",
            "--all-targets",
            "--",
            "-D",
            "warnings",
        ]))?
        .run()
        .map(done)
    }),
    ("docs", || {
        for_python(Sh::cargo(&["doc", "--workspace", "--no-deps"]))?
            .env("RUSTDOCFLAGS", "-D warnings")
            .run()
            .map(done)
    }),
    ("aarch64", other_target),
    ("models", || deep::check_models().map(done)),
    ("benches", || benches().map(done)),
];

/// The names of the steps.
pub(crate) fn steps() -> impl Iterator<Item = &'static str> {
    STEPS.iter().map(|(name, _)| *name)
}

/// Runs every step, or some; lists at the end what failed and what could not be done.
pub(crate) fn check(only: &[String]) -> Outcome {
    let mut failed = Vec::new();
    let mut skipped = Vec::new();
    for (name, step) in STEPS {
        if !only.is_empty() && !only.iter().any(|one| one == name) {
            continue;
        }
        match step() {
            Ok(None) => {}
            Ok(Some(reason)) => skipped.push(format!("not checked: {name}: {reason}")),
            Err(failure) => failed.push(format!("- {name}: {failure}")),
        }
    }
    println!();
    for line in &skipped {
        println!("{line}");
    }
    if failed.is_empty() {
        println!("check: all good");
        return Ok(());
    }
    Err(format!("check found\n{}", failed.join("\n")))
}

/// The bindings are compiled for an interpreter: the one in use.
fn for_python(sh: Sh) -> Outcome<Sh> {
    let interpreter = python::Interpreter::find()?;
    Ok(match interpreter.for_cargo() {
        Some((name, value)) => sh.env(name, value),
        None => sh,
    })
}

fn done((): ()) -> Skipped {
    None
}

/// The benches are a workspace of their own, so that no test run builds the peers; they use the face, and rot when nobody
/// looks. The first time this compiles the peers' interfaces (about a minute), afterwards only ours (seconds).
fn benches() -> Outcome {
    Sh::cargo(&[
        "fmt",
        "--manifest-path",
        crate::bench::MANIFEST,
        "--",
        "--check",
    ])
    .run()?;
    Sh::cargo(&[
        "clippy",
        "--locked",
        "--manifest-path",
        crate::bench::MANIFEST,
        "--all-targets",
        "--",
        "-D",
        "warnings",
    ])
    .run()
}

fn other_target() -> Outcome<Skipped> {
    match install(OTHER_TARGET) {
        Ok(()) => Sh::cargo(&["check", "--workspace", "--target", OTHER_TARGET])
            // The bindings cannot ask an interpreter of another machine.
            .env(
                "PYO3_CROSS_PYTHON_VERSION",
                python::Interpreter::find()?.minor(),
            )
            .run()
            .map(done),
        Err(reason) => Ok(Some(reason)),
    }
}

/// Adds a target to the toolchain in use, unless it is there, or says why that cannot be.
fn install(target: &str) -> Outcome {
    // The toolchain knows where the target's libraries would be; there need not be a rustup to ask.
    let libraries = Sh::new("rustc", &["--print", "target-libdir", "--target", target]).read()?;
    if Path::new(libraries.trim()).is_dir() {
        return Ok(());
    }
    if !Sh::new("rustup", &["--version"]).works() {
        return Err(
            "its standard library is not installed, and there is no rustup to add it".to_owned(),
        );
    }
    Sh::new("rustup", &["target", "add", target])
        .run()
        .map_err(|error| {
            format!("its standard library is not installed, and {error} (is the network there?)")
        })
}
