//! `cargo xtask bench`: one program per table, from the workspace of its own in `benches/`.

use crate::python;
use crate::sh::{Outcome, Sh, root};

/// The tables, in the order in which docs/performance.md shows them.
pub(crate) const TABLES: [&str; 8] = [
    "pingpong", "oneway", "pool", "spawn", "locks", "memory", WATCH, PYTHON,
];

/// The table of locks that are watched for deadlocks: built with a feature of its own, which changes a peer's locks.
const WATCH: &str = "watch";

/// The table of the Python face, which is a program of its own.
const PYTHON: &str = "python";

/// Those in which somebody waits: measured a second time while other processes keep all cores busy.
const WAITING: [&str; 4] = ["pingpong", "oneway", "pool", "locks"];

/// Their own workspace.
pub(crate) const MANIFEST: &str = "benches/Cargo.toml";

/// Builds all programs first, so that no compiler runs beside a measurement, then runs them.
pub(crate) fn bench(table: Option<&str>, quick: bool) -> Outcome {
    if !root().join(MANIFEST).is_file() {
        return Err(format!(
            "{MANIFEST} is missing: there is nothing to measure"
        ));
    }
    if table == Some(PYTHON) {
        return python::bench(quick);
    }
    let tables: Vec<&str> = match table {
        Some(one) => vec![one],
        None => TABLES.into_iter().filter(|one| *one != PYTHON).collect(),
    };
    let (watched, tables): (Vec<&str>, Vec<&str>) =
        tables.into_iter().partition(|table| *table == WATCH);
    if !tables.is_empty() {
        build(&tables)?;
    }
    for table in tables {
        run(table, quick, false)?;
        if WAITING.contains(&table) {
            run(table, quick, true)?;
        }
    }
    if !watched.is_empty() {
        build(&watched)?;
        run(WATCH, quick, false)?;
    }
    if table.is_none() {
        python::bench(quick)?;
    }
    Ok(())
}

fn features(command: Sh, table: &str) -> Sh {
    if table == WATCH {
        command.args(&["--features", WATCH])
    } else {
        command
    }
}

fn build(tables: &[&str]) -> Outcome {
    let mut build = Sh::cargo(&[
        "build",
        "--release",
        "--locked",
        "--manifest-path",
        MANIFEST,
    ]);
    for table in tables {
        build = features(build.args(&["--bin", table]), table);
    }
    build.run()
}

fn run(table: &str, quick: bool, busy: bool) -> Outcome {
    let mut run = Sh::cargo(&["run", "--release", "--locked", "--quiet"]).args(&[
        "--manifest-path",
        MANIFEST,
        "--bin",
        table,
    ]);
    run = features(run, table).args(&["--"]);
    if quick {
        run = run.args(&["--quick"]);
    }
    if busy {
        run = run.args(&["--busy"]);
    }
    run.run()
}
