//! Places in programs, as text that every process of the tree can read.
//!
//! A place is written into a block of the process once, and named by it from then on. The table that remembers which is
//! lock-free, so that a forked child may use it: what its parent wrote serves it until the parent's blocks are gone.

use std::panic::Location;

use phalanx_prim::global::{AtomicU64, AtomicUsize, Ordering};

use crate::arena::Arena;
use crate::block::{BlockRef, Kind};

/// Places in one table; a program with more has some without a text.
const MOST: usize = 1024;
/// How far from its own line a place is looked for.
const PROBES: usize = 32;
/// A text is cut to this, at its beginning: one block of the smallest size.
const LEN: usize = 64;

struct Line {
    /// The address of the place, 0 for none.
    place: AtomicUsize,
    /// Its block.
    text: AtomicU64,
}

static TABLE: [Line; MOST] = [const {
    Line {
        place: AtomicUsize::new(0),
        text: AtomicU64::new(0),
    }
}; MOST];

/// Writes a place as reports have it: the last parts of the file's path, and the line.
#[must_use]
pub fn place_text(place: &Location<'_>) -> String {
    let line = place.line();
    let (mut file, most) = (place.file(), LEN - 12);
    let mut parts = file.rmatch_indices('/').skip(2);
    if let Some((at, _)) = parts.next() {
        file = &file[at + 1..];
    }
    while file.len() > most {
        let mut chars = file.chars();
        chars.next();
        file = chars.as_str();
    }
    format!("{file}:{line}")
}

impl Arena {
    /// Returns what names the place in words of the arena; 0 when there is no room to write it down.
    #[must_use]
    pub fn place_bits(&self, place: &'static Location<'static>) -> u64 {
        let address = std::ptr::from_ref(place) as usize;
        let begin = address / align_of::<Location<'_>>();
        for probe in 0..PROBES {
            let line = &TABLE[begin.wrapping_add(probe) % MOST];
            let mut now = line.place.load(Ordering::Relaxed);
            if now == 0 {
                now = match line.place.compare_exchange(
                    0,
                    address,
                    Ordering::Relaxed,
                    Ordering::Relaxed,
                ) {
                    Ok(_) => address,
                    Err(seen) => seen,
                };
            }
            if now == address {
                return self.written(line, place);
            }
        }
        0
    }

    fn written(&self, line: &Line, place: &Location<'_>) -> u64 {
        // Relaxed: who finds the number finds the text by it in the same thread, or reads it as one that says nothing.
        let bits = line.text.load(Ordering::Relaxed);
        if self.is_place(bits) {
            return bits;
        }
        let Some(block) = self.write_text(&place_text(place), Kind::Place) else {
            return 0;
        };
        let mine = block.to_bits();
        match line
            .text
            .compare_exchange(bits, mine, Ordering::Relaxed, Ordering::Relaxed)
        {
            Ok(_) => mine,
            Err(theirs) => {
                self.free(block);
                theirs
            }
        }
    }

    fn is_place(&self, bits: u64) -> bool {
        BlockRef::from_bits(bits).is_some_and(|block| self.kind_of(block) == Some(Kind::Place))
    }

    /// Reads what [`place_bits`](Self::place_bits) named; `None` if it was nothing, or is gone with its process.
    #[must_use]
    pub fn place_at(&self, bits: u64) -> Option<String> {
        let block = BlockRef::from_bits(bits)?;
        if self.kind_of(block) != Some(Kind::Place) {
            return None;
        }
        let text = self.text(block, self.len_of(block));
        let text = String::from_utf8_lossy(&text);
        let text = text.trim_end_matches('\0');
        (self.kind_of(block) == Some(Kind::Place)).then(|| text.to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::session::session;

    #[test]
    fn a_place_is_written_once_and_read_back() {
        let arena = session().unwrap();
        let (here, there) = (Location::caller(), Location::caller());
        let bits = arena.place_bits(here);
        assert_eq!(bits, arena.place_bits(here));
        assert_ne!(bits, arena.place_bits(there));
        let text = arena.place_at(bits).unwrap();
        assert_eq!(text, place_text(here));
        assert!(text.contains("places.rs:"), "{text}");
        assert!(text.len() <= LEN);
        assert_eq!(arena.place_at(0), None);
    }

    #[test]
    fn a_text_that_is_gone_is_written_anew() {
        let arena = session().unwrap();
        let here = Location::caller();
        let bits = arena.place_bits(here);
        arena.free(BlockRef::from_bits(bits).unwrap());
        assert_eq!(arena.place_at(bits), None);
        let again = arena.place_bits(here);
        assert_eq!(arena.place_at(again), Some(place_text(here)));
    }
}
