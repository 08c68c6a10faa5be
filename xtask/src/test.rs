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

/// Runs the main example in release on the sources of this very build: the Rust one, then the Python one, which is written
/// against the standard library, on that and on this project.
pub(crate) fn demo(args: &[String]) -> Outcome {
    set_up()?;
    let example = [
        "--release",
        "--package",
        "phalanx-examples",
        "--bin",
        "wordcount",
    ];
    Sh::cargo(&["build"]).args(&example).run()?;
    let venv = python::Venv::with_package()?;
    let program = "examples/python/wordcount.py";

    let rust = Sh::cargo(&["run", "--quiet"]).args(&example).args(&["--"]);
    let runs = [
        ("Rust", rust.args(args).run_and_read()?),
        (
            "Python, standard library",
            venv.python(&[program]).args(args).run_and_read()?,
        ),
        (
            "Python, phalanx",
            venv.python(&["-m", "phalanx", program])
                .args(args)
                .run_and_read()?,
        ),
    ];
    println!(
        "\n{:<22} {:>24} {:>24} {:>24}",
        "seconds", runs[0].0, runs[1].0, runs[2].0
    );
    for mode in ["sequential", "threads", "processes", "processes x threads"] {
        let times = runs.each_ref().map(|(_, printed)| seconds(printed, mode));
        let cells =
            times.map(|time| time.map_or_else(|| "-".to_owned(), |time| format!("{time:.2}")));
        println!(
            "{mode:<22} {:>24} {:>24} {:>24}",
            cells[0], cells[1], cells[2]
        );
    }
    Ok(())
}

/// Finds how long a mode took in the table that a word count printed.
fn seconds(printed: &str, mode: &str) -> Option<f64> {
    printed.lines().find_map(|line| {
        // The sign for "times" differs.
        let line = line.replace('×', "x");
        let (before, _) = line
            .strip_prefix(&format!("{mode:<22} "))?
            .split_once(" s ")?;
        before.split_whitespace().last()?.parse().ok()
    })
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_found_in_the_table() {
        let printed = "mode                     width       time       MB/s    ratio\n\
                       threads                      2     1.30 s          3    1.04x\n\
                       processes × threads      1 × 2     0.70 s          6    1.94x\n";
        assert_eq!(seconds(printed, "threads"), Some(1.3));
        assert_eq!(seconds(printed, "processes x threads"), Some(0.7));
        assert_eq!(seconds(printed, "processes"), None);
    }
}
