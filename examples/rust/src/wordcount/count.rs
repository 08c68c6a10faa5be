//! The counting itself: a batch of files in, one [`Counts`] out.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// Some files to count in one go: the unit of work that is handed to a thread or process.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Batch {
    /// The files.
    pub files: Vec<PathBuf>,
    /// Their size together, for the progress bar.
    pub bytes: u64,
}

/// What was counted, of one file or of many.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    /// Files read.
    pub files: u64,
    /// Bytes read.
    pub bytes: u64,
    /// Lines.
    pub lines: u64,
    /// How often each word occurs, as it is written.
    pub words: HashMap<String, u64>,
}

impl Counts {
    /// Adds one text.
    pub fn add_text(&mut self, text: &str) {
        self.files += 1;
        self.bytes += text.len() as u64;
        self.lines += text.lines().count() as u64;
        for word in words(text) {
            self.add_word(word, 1);
        }
    }

    /// Adds what was counted elsewhere.
    pub fn merge(&mut self, other: Self) {
        self.files += other.files;
        self.bytes += other.bytes;
        self.lines += other.lines;
        if self.words.is_empty() {
            self.words = other.words;
            return;
        }
        for (word, times) in other.words {
            *self.words.entry(word).or_default() += times;
        }
    }

    /// Returns the number of words, repetitions included.
    pub fn total(&self) -> u64 {
        self.words.values().sum()
    }

    /// Returns the most frequent words, most frequent first, ties in alphabetical order.
    pub fn top(&self, how_many: usize) -> Vec<(&str, u64)> {
        let mut all: Vec<(&str, u64)> = self
            .words
            .iter()
            .map(|(word, times)| (word.as_str(), *times))
            .collect();
        all.sort_unstable_by(|one, other| other.1.cmp(&one.1).then(one.0.cmp(other.0)));
        all.truncate(how_many);
        all
    }

    fn add_word(&mut self, word: &str, times: u64) {
        // Most words were seen before: look first, and copy the word only if it is new.
        match self.words.get_mut(word) {
            Some(count) => *count += times,
            None => {
                self.words.insert(word.to_owned(), times);
            }
        }
    }
}

/// Returns the words of a text: runs of letters, digits and underscores, but for those made of digits alone.
pub fn words(text: &str) -> impl Iterator<Item = &str> {
    text.split(|c: char| !(c.is_alphanumeric() || c == '_'))
        .filter(|word| word.contains(|c: char| c.is_alphabetic()))
}

/// Reads and counts every file of a batch.
///
/// # Errors
///
/// When a file cannot be read, or is no longer text; the error names the file.
pub fn count(batch: &Batch) -> io::Result<Counts> {
    let mut counts = Counts::default();
    for file in &batch.files {
        let text = fs::read_to_string(file).map_err(|error| {
            io::Error::new(
                error.kind(),
                format!("cannot count {}: {error}", file.display()),
            )
        })?;
        counts.add_text(&text);
    }
    Ok(counts)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_runs_of_letters_digits_and_underscores() {
        let found: Vec<&str> = words("fn été_1(x: u32) -> 42 // don't").collect();
        assert_eq!(found, ["fn", "été_1", "x", "u32", "don", "t"]);
    }

    #[test]
    fn merged_parts_equal_the_whole() {
        let (one, other) = ("a b a\n", "b c\nd\n");
        let mut whole = Counts::default();
        whole.add_text(one);
        whole.add_text(other);
        let mut merged = Counts::default();
        for text in [one, other] {
            let mut part = Counts::default();
            part.add_text(text);
            merged.merge(part);
        }
        assert_eq!(merged, whole);
        assert_eq!((whole.total(), whole.lines, whole.files), (6, 3, 2));
        assert_eq!(whole.top(2), [("a", 2), ("b", 2)]);
    }

    #[test]
    fn a_missing_file_is_named() {
        let batch = Batch {
            files: vec!["/nowhere/at-all.txt".into()],
            bytes: 0,
        };
        let error = count(&batch).unwrap_err();
        assert!(error.to_string().contains("/nowhere/at-all.txt"), "{error}");
    }
}
