//! The slow and thorough ones: `model`, `miri`, `fuzz`.

use crate::sh::{Outcome, Sh, root, target_dir};

/// Crates whose unit tests run on the heap-backed region, without system calls Miri does not know.
const UNDER_MIRI: [&str; 4] = [
    "phalanx-prim",
    "phalanx-shm",
    "phalanx-sync",
    "phalanx-channel",
];

/// Explorers of the models; each has a target folder of its own, so that neither evicts the other's build nor the ordinary one.
const EXPLORERS: [&str; 2] = ["loom", "shuttle"];

/// A command on the models as one of the explorers sees them.
fn explored(explorer: &str, command: &[&str]) -> Sh {
    Sh::cargo(command)
        .args(&["--package", "phalanx-models"])
        .env(
            "CARGO_TARGET_DIR",
            &target_dir().join(explorer).to_string_lossy(),
        )
        .env("RUSTFLAGS", &format!("--cfg phalanx_{explorer}"))
}

/// Runs the models under both explorers.
pub(crate) fn model(filter: Option<&str>) -> Outcome {
    for explorer in EXPLORERS {
        let mut test = explored(explorer, &["test", "--release"]);
        if let Some(filter) = filter {
            test = test.args(&["--", filter]);
        }
        test.run()?;
    }
    Ok(())
}

/// Compiles the models: they replace what the engine stands on, so that it can fail to compile for them alone.
pub(crate) fn check_models() -> Outcome {
    for explorer in EXPLORERS {
        explored(explorer, &["check", "--tests"]).run()?;
    }
    Ok(())
}

/// Runs the unit tests of the crates that handle memory under Miri.
pub(crate) fn miri(package: Option<&str>) -> Outcome {
    nightly_has(
        "miri",
        "rustup toolchain install nightly --component miri,rust-src",
    )?;
    let packages = package.map_or(UNDER_MIRI.to_vec(), |one| vec![one]);
    let mut test = Sh::nightly(&["miri", "test", "--lib"])
        // Tests read the clock and wait with time-outs. Permissive: rustix hands the count of a futex's wake over as a
        // pointer made of a number, which it never follows; our own pointers are all derived.
        .env(
            "MIRIFLAGS",
            "-Zmiri-disable-isolation -Zmiri-permissive-provenance",
        )
        .env(
            "CARGO_TARGET_DIR",
            &target_dir().join("miri").to_string_lossy(),
        );
    for package in packages {
        test = test.args(&["--package", package]);
    }
    test.run()
}

/// Runs every fuzz target for a short while; what it finds stays in fuzz/artifacts.
pub(crate) fn fuzz(seconds: u32) -> Outcome {
    if !root().join("fuzz/Cargo.toml").is_file() {
        return Err("fuzz/Cargo.toml is missing: there is nothing to fuzz".to_owned());
    }
    nightly_has(
        "fuzz",
        "rustup toolchain install nightly && cargo install cargo-fuzz",
    )?;
    let targets = Sh::nightly(&["fuzz", "list"]).read()?;
    for target in targets
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty())
    {
        let limit = format!("-max_total_time={seconds}");
        Sh::nightly(&["fuzz", "run", target, "--", &limit]).run()?;
    }
    Ok(())
}

/// Fails with the way to install it when the nightly toolchain lacks a cargo subcommand.
fn nightly_has(subcommand: &str, install: &str) -> Outcome {
    if Sh::nightly(&[subcommand, "--version"]).works() {
        return Ok(());
    }
    Err(format!(
        "`cargo +nightly {subcommand}` does not run here; to get it: {install}"
    ))
}
