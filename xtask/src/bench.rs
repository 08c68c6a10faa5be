//! `cargo xtask bench`: one program per table, from the workspace of its own in `benches/`.

use crate::sh::{Outcome, Sh, root};

/// The tables, in the order in which docs/performance.md shows them.
pub(crate) const TABLES: [&str; 6] = ["pingpong", "oneway", "pool", "spawn", "locks", "memory"];

/// Builds all programs first, so that no compiler runs beside a measurement, then runs them.
pub(crate) fn bench(table: Option<&str>, quick: bool) -> Outcome {
    let manifest = "benches/Cargo.toml";
    if !root().join(manifest).is_file() {
        return Err(format!(
            "{manifest} is missing: there is nothing to measure"
        ));
    }
    let tables = table.map_or(TABLES.to_vec(), |one| vec![one]);
    let mut build = Sh::cargo(&["build", "--release", "--manifest-path", manifest]);
    for table in &tables {
        build = build.args(&["--bin", table]);
    }
    build.run()?;
    for table in tables {
        let mut run = Sh::cargo(&[
            "run",
            "--release",
            "--quiet",
            "--manifest-path",
            manifest,
            "--bin",
            table,
        ]);
        if quick {
            run = run.args(&["--", "--quick"]);
        }
        run.run()?;
    }
    Ok(())
}
