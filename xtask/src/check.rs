//! `cargo xtask check`: everything that can be said about the code without running it.

use crate::sh::{Outcome, Sh};
use crate::{rooms, terrace};

/// Another machine the code must at least compile for.
const OTHER_TARGET: &str = "aarch64-unknown-linux-gnu";

/// Runs every check, the quick ones first, and lists at the end what failed and what could not run.
pub(crate) fn check() -> Outcome {
    let mut failed = Vec::new();
    let mut skipped = Vec::new();
    let mut note = |outcome: Outcome| failed.extend(outcome.err());

    note(terrace::check());
    note(rooms::check());
    note(Sh::cargo(&["fmt", "--all", "--check"]).run());
    note(
        Sh::cargo(&[
            "clippy",
            "--workspace",
            "--all-targets",
            "--",
            "-D",
            "warnings",
        ])
        .run(),
    );
    note(
        Sh::cargo(&["doc", "--workspace", "--no-deps"])
            .env("RUSTDOCFLAGS", "-D warnings")
            .run(),
    );
    match install(OTHER_TARGET) {
        Ok(()) => note(Sh::cargo(&["check", "--workspace", "--target", OTHER_TARGET]).run()),
        Err(reason) => skipped.push(format!("the {OTHER_TARGET} build: {reason}")),
    }

    println!();
    for what in &skipped {
        println!("not checked: {what}");
    }
    if failed.is_empty() {
        println!("check: all good");
        return Ok(());
    }
    Err(format!("check found:\n- {}", failed.join("\n- ")))
}

/// Adds a target to the toolchain in use, unless it is there, or says why that cannot be.
fn install(target: &str) -> Outcome {
    // The toolchain knows where the target's libraries would be; there need not be a rustup to ask.
    let libraries = Sh::new("rustc", &["--print", "target-libdir", "--target", target]).read()?;
    if std::path::Path::new(libraries.trim()).is_dir() {
        return Ok(());
    }
    if !Sh::new("rustup", &["--version"]).works() {
        return Err(
            "its standard library is not installed, and there is no rustup to add it".to_owned(),
        );
    }
    let add = Sh::new("rustup", &["target", "add", target]).read();
    add.map(drop).map_err(|error| {
        format!("its standard library is not installed, and {error} (is the network there?)")
    })
}
