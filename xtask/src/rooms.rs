//! The rooms with unsafe code: counted, and compared with the table in SAFETY.md.
//!
//! A room is a file whose inner attribute expects `unsafe_code`. The table's rows name rooms in their first cell, in
//! backticks, as paths below `crates/`; a name that ends in `/*` stands for every room in that folder.

use std::fs;
use std::path::Path;

use crate::sh::{Outcome, root};
use crate::terrace::rust_files;

/// A file that may hold unsafe code.
struct Room {
    /// Its path below `crates/`.
    path: String,
    /// Lines of code on which `unsafe` stands.
    lines: usize,
    /// `SAFETY:` notes.
    notes: usize,
    /// Notes that admit to have no argument yet.
    untriaged: usize,
}

/// Prints the rooms with their counts; fails when SAFETY.md names others.
pub(crate) fn check() -> Outcome {
    println!("\n$ (rooms) unsafe code against SAFETY.md");
    let rooms = find(&root().join("crates"))?;
    println!("  {:<48} {:>6} {:>6}", "room", "unsafe", "notes");
    for Room {
        path, lines, notes, ..
    } in &rooms
    {
        println!("  {path:<48} {lines:>6} {notes:>6}");
    }
    let notes: usize = rooms.iter().map(|room| room.notes).sum();
    let untriaged: usize = rooms.iter().map(|room| room.untriaged).sum();
    println!(
        "  {} rooms, {notes} notes, {untriaged} of them untriaged",
        rooms.len()
    );

    let table = fs::read_to_string(root().join("SAFETY.md"))
        .map_err(|error| format!("SAFETY.md: {error}"))?;
    let complaints = compare(&rooms, &named(&table));
    if complaints.is_empty() {
        return Ok(());
    }
    Err(format!(
        "SAFETY.md and the sources differ\n    {}",
        complaints.join("\n    ")
    ))
}

fn find(crates: &Path) -> Outcome<Vec<Room>> {
    let mut rooms = Vec::new();
    for file in rust_files(crates)? {
        let path = file.strip_prefix(crates).unwrap_or(&file);
        let is_shipped = path.iter().nth(1).is_some_and(|folder| folder == "src");
        let source =
            fs::read_to_string(&file).map_err(|error| format!("{}: {error}", file.display()))?;
        if is_shipped && is_room(&source) {
            rooms.push(Room {
                path: path.to_string_lossy().into_owned(),
                lines: unsafe_lines(&source),
                notes: source.matches("SAFETY:").count(),
                untriaged: source.matches("SAFETY: untriaged").count(),
            });
        }
    }
    Ok(rooms)
}

/// Returns `true` if the file, or a module inside it, opts in.
fn is_room(source: &str) -> bool {
    let code: String = source.chars().filter(|c| !c.is_whitespace()).collect();
    [
        "#![expect(unsafe_code",
        "#![allow(unsafe_code",
        "#[expect(unsafe_code",
        "#[allow(unsafe_code",
    ]
    .iter()
    .any(|attribute| code.contains(attribute))
}

fn unsafe_lines(source: &str) -> usize {
    let code = source
        .lines()
        .map(|line| line.split("//").next().unwrap_or_default());
    code.filter(|line| {
        line.split(|c: char| !c.is_alphanumeric() && c != '_')
            .any(|word| word == "unsafe")
    })
    .count()
}

/// Returns the rooms that a table names.
fn named(table: &str) -> Vec<String> {
    let mut names = Vec::new();
    for row in table.lines().filter(|line| line.starts_with('|')) {
        let cell = row.split('|').nth(1).unwrap_or_default();
        let quoted = cell.split('`').skip(1).step_by(2);
        names.extend(
            quoted
                .filter(|name| name.contains("/src/"))
                .map(str::to_owned),
        );
    }
    names
}

fn compare(rooms: &[Room], named: &[String]) -> Vec<String> {
    let covers = |name: &str, path: &str| match name.strip_suffix('*') {
        Some(folder) => path.starts_with(folder),
        None => path == name,
    };
    let unnamed = rooms
        .iter()
        .filter(|room| !named.iter().any(|name| covers(name, &room.path)))
        .map(|room| {
            format!(
                "`{}` has unsafe code and no row in SAFETY.md: say why it must, and what proves it",
                room.path
            )
        });
    let empty = named
        .iter()
        .filter(|name| !rooms.iter().any(|room| covers(name, &room.path)))
        .map(|name| format!("SAFETY.md names `{name}`, which has no unsafe code"));
    unnamed.chain(empty).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_names_rooms_in_its_first_cell() {
        let table = "# Safety\n\n| Room | Why | Proof |\n|---|---|---|\n\
            | `phalanx-sys/src/linux/*` | calls | `x/src/y.rs` |\n| `a/src/b.rs`, `a/src/c.rs` | bytes | Miri |\n";
        assert_eq!(
            named(table),
            ["phalanx-sys/src/linux/*", "a/src/b.rs", "a/src/c.rs"]
        );
    }

    #[test]
    fn a_room_without_a_row_and_a_row_without_a_room_are_both_wrong() {
        let room = |path: &str| Room {
            path: path.to_owned(),
            lines: 1,
            notes: 1,
            untriaged: 0,
        };
        let rooms = [room("s/src/linux/map.rs"), room("a/src/b.rs")];
        assert_eq!(
            compare(&rooms, &["s/src/linux/*".into(), "a/src/b.rs".into()]).len(),
            0
        );
        assert_eq!(compare(&rooms, &["s/src/linux/*".into()]).len(), 1);
        assert_eq!(
            compare(
                &rooms,
                &["s/src/*".into(), "a/src/b.rs".into(), "z/src/*".into()]
            )
            .len(),
            1
        );
    }

    #[test]
    fn only_the_word_itself_counts() {
        assert_eq!(
            unsafe_lines("unsafe { a() }\n// unsafe\nlet unsafe_code = 1;\nunsafe fn b() {}"),
            2
        );
        assert!(is_room(
            "//! Doc.\n#![expect(\n    unsafe_code,\n    reason = \"maps\"\n)]"
        ));
        assert!(!is_room("#![forbid(unsafe_code)]"));
    }
}
