//! `cargo xtask demo` and `cargo xtask test`: the two commands that work on a clean clone.

use crate::python;
use crate::sh::{Outcome, Sh};

/// Checks what the engine needs of the machine and downloads the dependencies.
///
/// Nothing is installed and nothing outside cargo's own folders is written.
pub(crate) fn set_up() -> Outcome {
    if !cfg!(target_os = "linux") {
        return Err("phalanx runs on Linux only so far".to_owned());
    }
    // The whole lock file, other platforms' packages included: they are the example's input.
    let fetch = Sh::cargo(&["fetch", "--locked"]).run();
    fetch.map_err(|failure| {
        format!("{failure}; the dependencies come from the package registry: is the network there, and is Cargo.lock as committed?")
    })
}

/// Runs the main example in release on the sources of this very build.
pub(crate) fn demo(args: &[String]) -> Outcome {
    set_up()?;
    Sh::cargo(&[
        "build",
        "--release",
        "--package",
        "phalanx-examples",
        "--bin",
        "wordcount",
    ])
    .run()?;
    Sh::cargo(&[
        "run",
        "--release",
        "--quiet",
        "--package",
        "phalanx-examples",
        "--bin",
        "wordcount",
        "--",
    ])
    .args(args)
    .run()
}

/// Runs every test, or those of some packages.
///
/// The example programs are run by the tests of their own package, with small inputs.
pub(crate) fn test(packages: &[String]) -> Outcome {
    set_up()?;
    let everything = packages.is_empty();
    // A library for an interpreter has no tests that cargo could run.
    let (python, rust): (Vec<_>, Vec<_>) = packages.iter().partition(|one| *one == python::CRATE);
    if everything || !rust.is_empty() {
        rust_tests(&rust)?;
    }
    if everything || !python.is_empty() {
        python::test()?;
    }
    Ok(())
}

fn rust_tests(packages: &[&String]) -> Outcome {
    let mut scope: Vec<&str> = Vec::new();
    for package in packages {
        scope.extend(["--package", package]);
    }
    if packages.is_empty() {
        scope.push("--workspace");
    }

    if Sh::cargo(&["nextest", "--version"]).works() {
        let profile = if std::env::var_os("CI").is_some() {
            "ci"
        } else {
            "default"
        };
        Sh::cargo(&["nextest", "run", "--profile", profile, "--no-tests", "pass"])
            .args(&scope)
            .run()?;
        // nextest does not run these; the libraries are built already.
        Sh::cargo(&["test", "--doc"]).args(&scope).run()
    } else {
        println!(
            "\ncargo-nextest is not installed: cargo test runs instead, and a hang is ended by each test's own watchdog"
        );
        Sh::cargo(&["test", "--no-fail-fast"]).args(&scope).run()
    }
}
