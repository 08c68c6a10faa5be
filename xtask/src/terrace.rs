//! Who may use whom: the terrace of ARCHITECTURE.md, checked against the manifests and sources.
//!
//! Cargo refuses a cycle but not a step aside, nor a dev-dependency that climbs, nor a second crate that calls the
//! operating system. This does.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::sh::{Outcome, Sh, root};

/// Each crate's floor; a crate may use crates of lower floors only.
const FLOORS: [(&str, u32); 15] = [
    ("phalanx-macros", 0),
    ("phalanx-sys", 0),
    ("phalanx-testkit", 1),
    ("phalanx-prim", 1),
    ("phalanx-subprocess", 2),
    ("phalanx-shm", 2),
    ("phalanx-sync", 3),
    ("phalanx-channel", 4),
    ("phalanx-thread", 4),
    ("phalanx-watch", 4),
    ("phalanx-store", 5),
    ("phalanx-process", 5),
    ("phalanx-pool", 6),
    ("phalanx", 7),
    ("phalanx-python", 8),
];

/// The only crate that speaks to the operating system, and the crates by which one does.
const SYSTEM: &str = "phalanx-sys";
const SYSTEM_CRATES: [&str; 5] = ["libc", "rustix", "nix", "linux-raw-sys", "windows-sys"];

/// A tool of the tests, which no shipped code uses.
const TESTKIT: &str = "phalanx-testkit";

/// Crates whose sources name the standard library's atomics: the seam, what it stands on, and the tests' tool.
const NAME_ATOMICS: [&str; 3] = [SYSTEM, "phalanx-prim", TESTKIT];

/// Fails with every edge that points up or aside, and every name that belongs to another crate.
pub(crate) fn check() -> Outcome {
    println!("\n$ (direction) manifests and sources against the terrace");
    let metadata = Sh::cargo(&["metadata", "--no-deps", "--format-version", "1"]).read()?;
    let metadata: Value =
        serde_json::from_str(&metadata).map_err(|error| format!("cargo metadata: {error}"))?;
    let crates: Vec<Crate> = list(&metadata, "packages").map(Crate::read).collect();

    let mut complaints = Vec::new();
    for this in crates.iter().filter(|one| one.is_ours()) {
        this.check_edges(&mut complaints);
        if !NAME_ATOMICS.contains(&this.name.as_str()) {
            this.check_atomics(&mut complaints)?;
        }
    }
    if complaints.is_empty() {
        println!("  ok");
        return Ok(());
    }
    Err(format!(
        "edges and names that point the wrong way\n    {}",
        complaints.join("\n    ")
    ))
}

/// A package of the workspace.
struct Crate {
    name: String,
    folder: PathBuf,
    uses: Vec<Edge>,
}

/// One line of a manifest's dependencies.
struct Edge {
    to: String,
    is_dev: bool,
}

impl Crate {
    fn read(package: &Value) -> Self {
        let manifest = PathBuf::from(text(package, "manifest_path"));
        Self {
            name: text(package, "name"),
            folder: manifest.parent().unwrap_or(root()).to_owned(),
            uses: list(package, "dependencies")
                .map(|one| Edge {
                    to: text(one, "name"),
                    is_dev: one["kind"] == "dev",
                })
                .collect(),
        }
    }

    /// Returns `true` for the engine's crates; examples, models and this program may use anything.
    fn is_ours(&self) -> bool {
        self.folder.starts_with(root().join("crates"))
    }

    fn check_edges(&self, complaints: &mut Vec<String>) {
        let name = &self.name;
        let Some(floor) = floor(name) else {
            complaints.push(format!(
                "{name} stands on no floor: add it to FLOORS in xtask/src/terrace.rs"
            ));
            return;
        };
        for Edge { to, is_dev } in &self.uses {
            if SYSTEM_CRATES.contains(&to.as_str()) && name != SYSTEM {
                complaints.push(format!(
                    "{name} uses {to}: only {SYSTEM} may, give it what is missing"
                ));
            }
            // A crate may test itself through its own name, and the tests' tool stands beside all floors.
            let is_tool = *is_dev && (to == TESTKIT || to == name);
            match self::floor(to) {
                _ if is_tool => {}
                Some(_) if to == TESTKIT => {
                    complaints.push(format!("{name} uses {to} outside its tests"));
                }
                Some(below) if below >= floor => {
                    complaints.push(format!("{name} uses {to}, which is not below it"));
                }
                _ => {}
            }
        }
    }

    fn check_atomics(&self, complaints: &mut Vec<String>) -> Outcome {
        for file in rust_files(&self.folder.join("src"))? {
            let source = fs::read_to_string(&file)
                .map_err(|error| format!("{}: {error}", file.display()))?;
            if names_atomics(&source) {
                complaints.push(format!(
                    "{} names std::sync::atomic: take it from phalanx-prim, so that it can be modelled",
                    file.strip_prefix(root()).unwrap_or(&file).display()
                ));
            }
        }
        Ok(())
    }
}

fn floor(name: &str) -> Option<u32> {
    FLOORS
        .iter()
        .find(|(one, _)| *one == name)
        .map(|(_, floor)| *floor)
}

/// Returns `true` if code (not a comment) reaches into `std::sync::atomic`, alone or in a grouped `use`.
fn names_atomics(source: &str) -> bool {
    let mut code = String::new();
    for line in source.lines() {
        let line = line.split("//").next().unwrap_or_default();
        code.extend(line.chars().filter(|c| !c.is_whitespace()));
    }
    let grouped = code.split("sync::{").skip(1).any(|rest| {
        let group = rest.split(';').next().unwrap_or_default();
        group
            .split(['{', ','])
            .any(|name| name.starts_with("atomic::"))
    });
    grouped || code.contains("std::sync::atomic") || code.contains("core::sync::atomic")
}

/// Returns the Rust files below a folder, in order.
pub(crate) fn rust_files(folder: &Path) -> Outcome<Vec<PathBuf>> {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        if !folder.is_dir() {
            continue;
        }
        let entries =
            fs::read_dir(&folder).map_err(|error| format!("{}: {error}", folder.display()))?;
        for entry in entries {
            let path = entry
                .map_err(|error| format!("{}: {error}", folder.display()))?
                .path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|ending| ending == "rs") {
                found.push(path);
            }
        }
    }
    found.sort();
    Ok(found)
}

fn list<'a>(value: &'a Value, name: &str) -> impl Iterator<Item = &'a Value> {
    value[name].as_array().into_iter().flatten()
}

fn text(value: &Value, name: &str) -> String {
    value[name].as_str().unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn atomics_are_found_in_every_form_of_use() {
        assert!(names_atomics("use std::sync::atomic::AtomicU32;"));
        assert!(names_atomics("let x = core::sync::atomic::fence(o);"));
        assert!(names_atomics(
            "use std::sync::{Arc,\n    atomic::{AtomicU32, Ordering}};"
        ));
        assert!(names_atomics(
            "use std::{io, sync::{Mutex, atomic::Ordering}};"
        ));
        assert!(!names_atomics(
            "//! unlike std::sync::atomic\nuse phalanx_prim::AtomicU32;"
        ));
        assert!(!names_atomics(
            "use std::sync::{Arc, Mutex};\nuse phalanx_prim::{self as atomic};"
        ));
    }

    fn complaints(name: &str, uses: &[(&str, bool)]) -> usize {
        let uses = uses.iter().map(|(to, is_dev)| Edge {
            to: (*to).to_owned(),
            is_dev: *is_dev,
        });
        let this = Crate {
            name: name.to_owned(),
            folder: PathBuf::new(),
            uses: uses.collect(),
        };
        let mut found = Vec::new();
        this.check_edges(&mut found);
        found.len()
    }

    #[test]
    fn edges_point_down() {
        assert_eq!(
            complaints("phalanx-sync", &[("phalanx-shm", false), ("serde", false)]),
            0
        );
        assert_eq!(
            complaints(
                "phalanx-sync",
                &[("phalanx-testkit", true), ("phalanx-sync", true)]
            ),
            0
        );
        assert_eq!(complaints("phalanx-sync", &[("phalanx-testkit", false)]), 1);
        assert_eq!(complaints("phalanx-sync", &[("phalanx-pool", true)]), 1);
        assert_eq!(
            complaints("phalanx-channel", &[("phalanx-thread", false)]),
            1
        );
        assert_eq!(
            complaints("phalanx-pool", &[("libc", true), ("rustix", false)]),
            2
        );
        assert_eq!(complaints("phalanx-cellar", &[]), 1);
    }
}
