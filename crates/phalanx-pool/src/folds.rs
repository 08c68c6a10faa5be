//! A hash of a few words, for maps that each task asks: keys are addresses and references of our own, nobody's input.

use std::hash::{BuildHasher, Hasher};

/// Makes [`Fold`]s.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Folds;

/// Folds words by a multiplication each, as FxHash does.
#[derive(Debug, Default)]
pub(crate) struct Fold(u64);

impl BuildHasher for Folds {
    type Hasher = Fold;

    fn build_hasher(&self) -> Fold {
        Fold::default()
    }
}

impl Hasher for Fold {
    #[inline]
    fn write_u64(&mut self, word: u64) {
        self.0 = (self.0.rotate_left(5) ^ word).wrapping_mul(0x517c_c1b7_2722_0a95);
    }

    #[inline]
    fn write_usize(&mut self, word: usize) {
        self.write_u64(word as u64);
    }

    fn write(&mut self, bytes: &[u8]) {
        for chunk in bytes.chunks(8) {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            self.write_u64(u64::from_le_bytes(word));
        }
    }

    #[inline]
    fn finish(&self) -> u64 {
        // The product's upper half is the better mixed; maps look at both ends.
        self.0 ^ self.0 >> 32
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn addresses_in_a_row_differ_at_both_ends() {
        let hashes: Vec<u64> = (0..1000_usize)
            .map(|number| Folds.hash_one((0x5555_0000 + 16 * number, number % 3)))
            .collect();
        let low: HashSet<u64> = hashes.iter().map(|hash| hash & 0xfff).collect();
        let high: HashSet<u64> = hashes.iter().map(|hash| hash >> 57).collect();
        assert!(low.len() > 600, "{}", low.len());
        assert!(high.len() > 100, "{}", high.len());
    }
}
