//! Looking at the arena from outside of its objects: which block a word lies in, who has which lock.

use phalanx_prim::{AtomicU32, Ordering};

use crate::arena::Arena;
use crate::block::{BlockRef, Kind};
use crate::token::Owner;

impl Arena {
    /// Returns the block in which the byte at `offset` lies, and what it holds; `None` if no living block is there.
    #[must_use]
    pub fn block_around(&self, offset: usize) -> Option<(BlockRef, Kind)> {
        let (begin, head) = self.head_around(offset)?;
        let now = head.read();
        let kind = now.is_live().then(|| now.kind()).flatten()?;
        Some((BlockRef::new(begin, now.generation()), kind))
    }

    /// Returns who has the lock whose word lies at `offset`. The word of no lock at all names nobody in particular.
    #[must_use]
    pub fn owner_at(&self, offset: usize) -> Option<Owner> {
        if !offset.is_multiple_of(4) || offset + 4 > self.region().len() {
            return None;
        }
        self.block_around(offset)?;
        Owner::of(self.lock_word(offset).load(Ordering::Acquire))
    }

    #[expect(unsafe_code, reason = "a lock's word is an atomic at an offset")]
    fn lock_word(&self, offset: usize) -> &AtomicU32 {
        // SAFETY: inside the region and aligned (checked by the callers, and again by `get`); the block around it is in use, so
        // its memory is there, and an atomic is valid in any bytes.
        unsafe { self.region().get(offset) }
    }

    /// Calls `visit` with every lock that somebody has: its block, its kind, its owner. Their blocks begin with their words.
    pub fn each_held_lock(&self, mut visit: impl FnMut(BlockRef, Kind, Owner)) {
        self.each_block(|block, _, now| {
            if let Some(kind @ (Kind::Lock | Kind::RLock)) = now.kind()
                && let Some(owner) =
                    Owner::of(self.lock_word(block.offset()).load(Ordering::Acquire))
            {
                visit(block, kind, owner);
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use crate::block::Kind;
    use crate::session::session;

    #[test]
    fn a_word_is_found_in_its_block_and_nowhere_else() {
        let arena = session().unwrap();
        for len in [64, 100, 8000, 200_000] {
            let block = arena.alloc(len, Kind::Bytes).unwrap();
            for at in [0, 60, len - 1] {
                let found = arena.block_around(block.offset() + at);
                assert_eq!(found, Some((block, Kind::Bytes)), "{len} {at}");
            }
            arena.free(block);
            assert_eq!(arena.block_around(block.offset()), None);
        }
        assert_eq!(arena.block_around(0), None);
        assert_eq!(arena.block_around(usize::MAX), None);
    }
}
