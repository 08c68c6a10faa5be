//! Runs the word count as a user would.

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Output};

/// A folder of this test alone, removed at its end.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let path =
            std::env::temp_dir().join(format!("phalanx-wordcount-{name}-{}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn wordcount(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_wordcount"))
        .args(args)
        .output()
        .unwrap()
}

#[test]
fn all_modes_agree_on_this_builds_sources() {
    let output = wordcount(&["--limit", "4", "--workers", "3"]);
    let shown = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    assert!(shown.contains("all agree"), "{shown}");
    assert!(
        ["sequential", "threads", "processes", "processes × threads"]
            .iter()
            .all(|mode| shown.contains(mode)),
        "{shown}"
    );
}

#[test]
fn killing_workers_changes_nothing() {
    let args = [
        "--limit",
        "8",
        "--workers",
        "2",
        "--batch",
        "64",
        "--modes",
        "sequential,processes,crossed",
        "--chaos",
        "20",
    ];
    let output = wordcount(&args);
    let shown = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    assert!(
        shown.contains("all agree") && shown.contains("were killed meanwhile"),
        "{shown}"
    );
}

#[test]
fn the_counts_are_right() {
    let folder = Folder::new("counts");
    for number in 0..40 {
        fs::write(
            folder.0.join(format!("{number}.txt")),
            "one two two\nthree three three\n",
        )
        .unwrap();
    }
    let output = wordcount(&["--batch", "1", folder.0.to_str().unwrap()]);
    let shown = String::from_utf8_lossy(&output.stdout);
    assert!(
        shown.contains("all agree: 240 words in 80 lines, 3 of them different"),
        "{shown}"
    );
    assert!(shown.contains("120  three"), "{shown}");
}

#[test]
fn nothing_to_count_is_said_plainly() {
    let folder = Folder::new("nothing");
    let output = wordcount(&[folder.0.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("no text file below"), "{said}");

    let output = Command::new(env!("CARGO_BIN_EXE_wordcount"))
        .env("CARGO_HOME", &folder.0)
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("run `cargo fetch`"), "{said}");
}
