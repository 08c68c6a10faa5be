//! Payloads whose memory a program keeps and may write to, across a fork.
//!
//! A received payload is mapped shared, like the whole arena, and belongs to one process: writing to it concerns nobody. A
//! fork makes that two. So before each fork the pages of every such payload are mapped again, privately, at the same place: from
//! then on parent and child each have what was there, and each sees its own writes, as with any other memory. Nothing is copied
//! until it is written. When the payload is let go its pages become the arena's again.
//!
//! Pages that were not written yet still are the arena's, so the block must not be given to anybody else while parent or child
//! look at it. Each has a hold of its own, but the child only once it has joined the tree; until then the parent's hold must last:
//!
//! | the parent lets go | its hold |
//! |---|---|
//! | after every child forked so far has joined | is dropped |
//! | before | is kept, and dropped by a later one that finds they have |
//!
//! A child that dies before it joins keeps such holds from being dropped as long as the parent lives: memory, not correctness.
#![expect(unsafe_code, reason = "a count that parent and child share")]

use std::collections::BTreeMap;
use std::mem::ManuallyDrop;
use std::ops::Range;
use std::sync::{Mutex, MutexGuard, PoisonError};

use phalanx_prim::{AtomicU64, Ordering};
use phalanx_shm::{Arena, BlockRef, Held, Kind};
use phalanx_sys::map::Mapping;

use crate::message::Kept;

#[derive(Debug, Default)]
struct Registry {
    /// By the offset of their first page: where it ends, and whether it is mapped privately.
    live: BTreeMap<usize, (usize, bool)>,
    /// Children forked while something was live.
    forked: u64,
    /// The block that counts those that joined; 0 before the first such fork.
    joined: u64,
    /// Holds of payloads that children may look at who have no hold yet.
    waiting: Vec<Held>,
}

static REGISTRY: Mutex<Registry> = Mutex::new(Registry {
    live: BTreeMap::new(),
    forked: 0,
    joined: 0,
    waiting: Vec::new(),
});

fn registry() -> MutexGuard<'static, Registry> {
    REGISTRY.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Keeps the table whole while the process forks.
pub(crate) fn freeze() -> impl Sized + 'static {
    registry()
}

fn count(arena: &Arena, block: BlockRef) -> &AtomicU64 {
    // SAFETY: the block was taken for this count and is never freed while this process lives; it is an atomic.
    unsafe { arena.region().get(block.offset()) }
}

impl Registry {
    fn all_joined(&self, arena: &Arena) -> bool {
        let joined = BlockRef::from_bits(self.joined);
        joined.is_none_or(|block| count(arena, block).load(Ordering::Acquire) >= self.forked)
    }
}

/// See the module's head.
#[derive(Debug)]
pub struct Exposed {
    kept: ManuallyDrop<Kept>,
    pages: Option<Range<usize>>,
}

impl Exposed {
    /// Exposes a payload. One that shares its pages with others (a small one) is not kept apart by a fork: copy it instead.
    #[must_use]
    pub fn new(kept: Kept) -> Self {
        let pages = kept.held().arena().pages_of(kept.held().block());
        crate::frozen::install();
        if let Some(pages) = &pages {
            registry().live.insert(pages.start, (pages.end, false));
        }
        Self {
            kept: ManuallyDrop::new(kept),
            pages,
        }
    }

    /// Returns the payload.
    #[must_use]
    pub fn kept(&self) -> &Kept {
        &self.kept
    }
}

impl Drop for Exposed {
    fn drop(&mut self) {
        // SAFETY: taken once, here; nobody uses it afterwards.
        let kept = unsafe { ManuallyDrop::take(&mut self.kept) };
        let arena = kept.held().arena();
        let mut registry = registry();
        let was = self
            .pages
            .as_ref()
            .and_then(|pages| registry.live.remove(&pages.start));
        let Some((end, true)) = was else {
            return;
        };
        if let Some(pages) = &self.pages
            && arena
                .region()
                .map_shared(pages.start, end - pages.start)
                .is_err()
        {
            // The range cannot be the arena's again in this process: it must never be anybody's.
            std::mem::forget(kept);
            return;
        }
        if registry.all_joined(arena) {
            registry.waiting.clear();
        } else {
            registry.waiting.push(kept.into_held());
        }
    }
}

/// Keeps parent and child apart. Call before a fork, with no other thread using payloads.
pub fn before_fork() {
    let Some(arena) = phalanx_shm::session_if_any() else {
        return;
    };
    let mut registry = registry();
    if registry.live.is_empty() {
        return;
    }
    for (start, (end, private)) in &mut registry.live {
        // Refused (too many mappings): parent and child share this one, as they would without us.
        *private = *private || arena.region().map_private(*start, *end - *start).is_ok();
    }
    if registry.joined == 0
        && let Ok(block) = arena.alloc(8, Kind::Bytes)
    {
        count(arena, block).store(0, Ordering::Release);
        registry.joined = block.to_bits();
    }
    registry.forked += 1;
}

/// Joins the tree, so that this process holds what it inherited. Call in a forked child.
///
/// # Panics
///
/// If the tree has no place for another process.
pub fn after_fork_in_child() {
    let Some(arena) = phalanx_shm::session_if_any() else {
        return;
    };
    let mut registry = registry();
    // What the parent still waits for is the parent's; our copies of its holds are let go with it.
    let inherited = std::mem::take(&mut registry.waiting);
    let (parents, had) = (registry.joined, !registry.live.is_empty());
    registry.joined = 0;
    registry.forked = 0;
    drop(registry);
    if had {
        let _ = phalanx_shm::current_slot();
        if let Some(block) = BlockRef::from_bits(parents)
            && arena.kind_of(block).is_some()
        {
            count(arena, block).fetch_add(1, Ordering::AcqRel);
        }
    }
    drop(inherited);
}

/// A payload that many read, mapped once more for one of them: it sees its own writes, the others do not.
#[derive(Debug)]
pub struct Private {
    mapping: Mapping,
    at: usize,
    len: usize,
    _held: Held,
}

impl Private {
    /// Maps a payload.
    ///
    /// # Errors
    ///
    /// When the system refuses the mapping, or the payload shares its pages with others.
    pub fn new(kept: &Kept) -> std::io::Result<Self> {
        let held = kept.held();
        let region = held.arena().region();
        let (start, len) = kept.bytes();
        let pages = held.arena().pages_of(held.block());
        let (Some(pages), Some(from)) = (pages, region.offset_of(start.as_ptr())) else {
            return Err(std::io::Error::other(
                "only large payloads have pages of their own",
            ));
        };
        let mapping = region.private_copy(pages.start, pages.len())?;
        Ok(Self {
            mapping,
            at: from - pages.start,
            len,
            _held: held.clone(),
        })
    }

    /// Returns the payload's address and length.
    #[must_use]
    pub fn bytes(&self) -> (std::ptr::NonNull<u8>, usize) {
        assert!(
            self.at + self.len <= self.mapping.len(),
            "a payload lies in its pages"
        );
        // SAFETY: inside the mapping (checked).
        (unsafe { self.mapping.base().add(self.at) }, self.len)
    }
}

#[cfg(test)]
mod tests {
    use phalanx_shm::session;

    use super::*;
    use crate::message::Loan;

    fn exposed(byte: u8) -> Exposed {
        let mut loan = Loan::new(session().unwrap(), 300_000, &[]).unwrap();
        loan.fill(byte);
        Exposed::new(loan.into_message().keep().unwrap().unwrap())
    }

    fn fill(exposed: &Exposed, byte: u8) {
        let (at, len) = exposed.kept().bytes();
        // SAFETY: the tests hold the payload, and nobody reads it at the same time.
        unsafe { at.write_bytes(byte, len) };
    }

    fn is_full_of(exposed: &Exposed, byte: u8) -> bool {
        let (at, len) = exposed.kept().bytes();
        // SAFETY: as above; nobody writes it at the same time.
        let bytes = unsafe { std::slice::from_raw_parts(at.as_ptr(), len) };
        bytes.iter().all(|found| *found == byte)
    }

    #[test]
    fn a_fork_keeps_parent_and_child_apart() {
        // Not beside tests that wait for their last handle to go: the child has copies of all.
        let _alone = phalanx_testkit::alone();
        let payload = exposed(1);
        before_fork();
        let child = phalanx_testkit::in_child(|| {
            after_fork_in_child();
            assert!(is_full_of(&payload, 1));
            fill(&payload, 2);
            assert!(is_full_of(&payload, 2));
        });
        assert!(child.wait().is_success());
        assert!(is_full_of(&payload, 1));
        fill(&payload, 3);
        let block = payload.kept().held().block();
        drop(payload);
        // Its pages are the arena's again: what the next one writes there is seen through the file.
        let again = exposed(4);
        if again.kept().held().block().offset() == block.offset() {
            let private = Private::new(again.kept()).unwrap();
            let (at, _) = private.bytes();
            // SAFETY: the first byte of a mapped payload.
            assert_eq!(unsafe { at.read() }, 4);
        }
    }

    #[test]
    fn each_private_mapping_is_its_own() {
        let payload = exposed(7);
        let (one, two) = (
            Private::new(payload.kept()).unwrap(),
            Private::new(payload.kept()).unwrap(),
        );
        // SAFETY: the first byte of a mapped payload.
        unsafe { one.bytes().0.write(8) };
        // SAFETY: as above.
        assert_eq!(unsafe { two.bytes().0.read() }, 7);
        assert!(is_full_of(&payload, 7));
    }
}
