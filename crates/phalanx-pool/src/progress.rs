//! A progress bar for lazy maps.

use indicatif::{ProgressBar, ProgressStyle};

/// The results of a lazy map, with a progress bar on stderr; see [`Imap::progress`](crate::Imap::progress).
#[must_use = "a lazy map does nothing until it is asked for results"]
#[derive(Debug)]
pub struct Progress<I> {
    results: I,
    bar: ProgressBar,
}

impl<I: Iterator> Progress<I> {
    pub(crate) fn new(results: I) -> Self {
        let known = results.size_hint().1.map(|most| most as u64);
        let bar = match known {
            Some(most) => ProgressBar::new(most),
            None => ProgressBar::new_spinner(),
        };
        let template = if known.is_some() {
            "{wide_bar} {pos}/{len} {per_sec}, {eta} left"
        } else {
            "{spinner} {pos} {per_sec}, {elapsed}"
        };
        // A template of ours that does not parse leaves the plain bar.
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style);
        }
        Self { results, bar }
    }

    /// Writes `text` before the bar: what is being worked on.
    pub fn message(self, text: impl Into<String>) -> Self {
        if let Ok(style) = ProgressStyle::with_template("{msg} {wide_bar} {pos}/{len} {eta} left") {
            self.bar.set_style(style);
        }
        self.bar.set_message(text.into());
        self
    }

    /// Returns the bar, to be styled, hidden or asked.
    pub fn bar(&self) -> &ProgressBar {
        &self.bar
    }
}

impl<I: Iterator> Iterator for Progress<I> {
    type Item = I::Item;

    fn next(&mut self) -> Option<I::Item> {
        let result = self.results.next();
        match result {
            Some(_) => self.bar.inc(1),
            None => self.bar.finish_and_clear(),
        }
        result
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        self.results.size_hint()
    }
}

impl<I> Drop for Progress<I> {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}
