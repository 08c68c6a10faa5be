//! Payloads in blocks of their own: written once, read in place, and the handles that travel in them.
//!
//! ```text
//! | handles: u64 | payload length: u64 | entries: u64 × handles | … | payload, from a multiple of 64 |
//! ```
//!
//! A block without handles is of kind `Bytes`. One with handles is of kind `Message`: each entry is a hold on an object
//! (see `phalanx_shm::Arena::attach`), given back when the block is freed, by whoever frees it.
#![expect(unsafe_code, reason = "a payload is bytes at an address")]

use std::mem::ManuallyDrop;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;

use phalanx_prim::points;
use phalanx_shm::{AllocError, Arena, BlockRef, Held, Kind, KindOps, PLACED_MOST, register_kind};

const HEAD: usize = 16;
const ALIGN: usize = 64;

pub(crate) fn install() {
    register_kind(
        Kind::Message,
        KindOps {
            recover: |_, _, _, _| {},
            destroy: detach_all,
        },
    );
}

/// Returns `true` if a block that somebody named is one that may carry a payload.
pub(crate) fn is_payload(arena: &Arena, block: BlockRef) -> bool {
    matches!(arena.kind_of(block), Some(Kind::Bytes | Kind::Message))
}

fn payload_at(handles: usize) -> usize {
    (HEAD + handles * 8).next_multiple_of(ALIGN)
}

fn handles_of(arena: &Arena, block: BlockRef) -> usize {
    let count = word(arena, block, 0) as usize;
    count.min(arena.capacity_of(block).saturating_sub(HEAD) / 8)
}

pub(crate) fn word(arena: &Arena, block: BlockRef, at: usize) -> u64 {
    let address = arena.region().at(block.offset() + at, 8).cast::<u64>();
    // SAFETY: inside the arena (checked by `at`), aligned (blocks are, and `at` is a multiple of 8); initialised memory.
    unsafe { address.read() }
}

pub(crate) fn set_word(arena: &Arena, block: BlockRef, at: usize, value: u64) {
    let address = arena.region().at(block.offset() + at, 8).cast::<u64>();
    // SAFETY: as above, and the block is the caller's alone.
    unsafe { address.write(value) };
}

fn detach_all(arena: &Arena, block: BlockRef) {
    for handle in 0..handles_of(arena, block) {
        arena.detach(block, HEAD + handle * 8);
    }
}

/// Frees a payload block and gives back the holds that travel in it.
pub(crate) fn discard(arena: &Arena, block: BlockRef) {
    if arena.kind_of(block) == Some(Kind::Message) {
        detach_all(arena, block);
    }
    arena.free(block);
}

fn payload(arena: &Arena, block: BlockRef, len: usize) -> NonNull<u8> {
    let at = payload_at(handles_of(arena, block));
    arena.region().at(block.offset() + at, len)
}

/// A payload that is being written in place. Dropped without being put, its memory is freed.
#[derive(Debug)]
pub struct Loan {
    arena: &'static Arena,
    block: BlockRef,
    at: NonNull<u8>,
    len: usize,
}

// SAFETY: the block belongs to this value alone, whichever thread it is on.
unsafe impl Send for Loan {}
// SAFETY: shared access only reads.
unsafe impl Sync for Loan {}

impl Loan {
    /// Makes room for `len` bytes and takes a hold on each of `objects` for the journey.
    ///
    /// # Errors
    ///
    /// [`AllocError`] when memory is short.
    pub fn new(arena: &'static Arena, len: usize, objects: &[Held]) -> Result<Self, AllocError> {
        let mut loan = Self::unfilled(arena, len, objects)?;
        // The padding of what lay here before has no value, and the caller may read.
        loan[..len.min(PLACED_MOST)].fill(0);
        Ok(loan)
    }

    /// As [`new`](Self::new), for callers that write every byte before anybody reads one.
    pub(crate) fn unfilled(
        arena: &'static Arena,
        len: usize,
        objects: &[Held],
    ) -> Result<Self, AllocError> {
        let at = payload_at(objects.len());
        let total = at.checked_add(len).ok_or(AllocError::Exhausted {
            requested: len,
            reserved: arena.region().len(),
        })?;
        let block = arena.alloc(total, Kind::Bytes)?;
        set_word(arena, block, 0, objects.len() as u64);
        set_word(arena, block, 8, len as u64);
        if !objects.is_empty() {
            for handle in 0..objects.len() {
                set_word(arena, block, HEAD + handle * 8, 0);
            }
            // Only now do the entries mean something, to the sweep too.
            arena.rekind(block, Kind::Message);
            for (handle, object) in objects.iter().enumerate() {
                points::point("message.attaching");
                // The caller's hold keeps the object alive, so it cannot be stale.
                let attached = arena.attach(block, HEAD + handle * 8, object.block());
                debug_assert!(attached.is_ok());
            }
        }
        let at = arena.region().at(block.offset() + at, len);
        Ok(Self {
            arena,
            block,
            at,
            len,
        })
    }

    /// Names the block.
    #[must_use]
    pub fn block(&self) -> BlockRef {
        self.block
    }

    /// The block is somebody else's now.
    pub(crate) fn given_away(self) {
        let _ = ManuallyDrop::new(self);
    }

    /// Turns the loan into a message of this process, without a journey.
    #[must_use]
    pub fn into_message(self) -> Message {
        let loan = ManuallyDrop::new(self);
        Message::new(loan.arena, loan.block, loan.len)
    }

    /// Gives the block away as a bare reference; whoever gets it frees it (see [`Message::from_block`]).
    #[must_use]
    pub fn into_block(self) -> BlockRef {
        let loan = ManuallyDrop::new(self);
        loan.block
    }
}

impl Deref for Loan {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: `len` bytes at `at` lie in a block that is ours alone; all of them were
        // written or were zero from the start (see `new`).
        unsafe { std::slice::from_raw_parts(self.at.as_ptr(), self.len) }
    }
}

impl DerefMut for Loan {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above, and borrowed mutably.
        unsafe { std::slice::from_raw_parts_mut(self.at.as_ptr(), self.len) }
    }
}

impl Drop for Loan {
    fn drop(&mut self) {
        discard(self.arena, self.block);
    }
}

#[derive(Debug)]
enum Place {
    Heap(Vec<u8>),
    Block {
        arena: &'static Arena,
        block: BlockRef,
        at: NonNull<u8>,
        len: usize,
    },
}

/// A received payload: bytes of this process, on the heap or in place in the arena. Dropping it frees them.
#[derive(Debug)]
pub struct Message {
    place: Place,
}

// SAFETY: the bytes belong to this value alone.
unsafe impl Send for Message {}
// SAFETY: shared access only reads.
unsafe impl Sync for Message {}

impl Message {
    pub(crate) fn new(arena: &'static Arena, block: BlockRef, len: usize) -> Self {
        let room = arena
            .capacity_of(block)
            .saturating_sub(payload_at(handles_of(arena, block)));
        let len = len.min(room);
        let at = payload(arena, block, len);
        Self {
            place: Place::Block {
                arena,
                block,
                at,
                len,
            },
        }
    }

    /// Takes over a payload block that was given away by [`Loan::into_block`]; the caller's process holds it.
    #[must_use]
    pub fn from_block(arena: &'static Arena, block: BlockRef) -> Self {
        if !is_payload(arena, block) {
            // Whoever wrote the reference meant something else.
            return Self::from_vec(Vec::new());
        }
        Self::new(arena, block, word(arena, block, 8) as usize)
    }

    pub(crate) fn from_vec(bytes: Vec<u8>) -> Self {
        Self {
            place: Place::Heap(bytes),
        }
    }

    /// Copies the bytes of a payload block that an object owns, and names the objects whose handles are in it. Whoever calls
    /// it keeps the block from being freed meanwhile.
    #[must_use]
    pub fn peek(arena: &Arena, block: BlockRef) -> (Vec<u8>, Vec<BlockRef>) {
        let handles = match arena.kind_of(block) {
            Some(Kind::Message) => handles_of(arena, block),
            _ => 0,
        };
        let objects = (0..handles)
            .filter_map(|handle| BlockRef::from_bits(word(arena, block, HEAD + handle * 8)))
            .collect();
        let room = arena.capacity_of(block).saturating_sub(payload_at(handles));
        let len = (word(arena, block, 8) as usize).min(room);
        let at = payload(arena, block, len);
        // SAFETY: `len` bytes that lie in the block, whose owner lets nobody write to them.
        let bytes = unsafe { std::slice::from_raw_parts(at.as_ptr(), len) };
        (bytes.to_vec(), objects)
    }

    /// Frees a payload block that an object owned, and gives back the holds that travel in it. For teardowns.
    pub fn discard(arena: &Arena, block: BlockRef) {
        if is_payload(arena, block) {
            discard(arena, block);
        }
    }

    /// Returns the bytes as a vector; copies them if they are in the arena.
    #[must_use]
    pub fn into_vec(self) -> Vec<u8> {
        match &self.place {
            Place::Heap(_) => {}
            Place::Block { .. } => return self.to_vec(),
        }
        let mut this = self;
        match &mut this.place {
            Place::Heap(bytes) => std::mem::take(bytes),
            Place::Block { .. } => Vec::new(),
        }
    }

    /// Returns `true` if the bytes are read where the sender wrote them.
    #[must_use]
    pub fn is_in_place(&self) -> bool {
        matches!(self.place, Place::Block { .. })
    }
}

/// A payload in the arena that lives as long as anybody holds it: a message that was received and is now referred to from
/// several places, or one that is written once and read by many.
///
/// A forked child has its own hold on it, as on every object.
#[derive(Debug)]
pub struct Kept {
    held: Held,
    at: NonNull<u8>,
    len: usize,
}

// SAFETY: the bytes are memory of the arena; who may write them is for the holders to agree on.
unsafe impl Send for Kept {}
// SAFETY: as above; the methods only read the fields.
unsafe impl Sync for Kept {}

impl Message {
    /// Turns a message that is read in place into one that is held; gives it back if it lies on the heap.
    ///
    /// # Errors
    ///
    /// [`AllocError`] when there is no memory to note the hold; the message is lost then.
    pub fn keep(self) -> Result<Result<Kept, Self>, AllocError> {
        let Place::Block {
            arena,
            block,
            at,
            len,
        } = self.place
        else {
            return Ok(Err(self));
        };
        let _ = ManuallyDrop::new(self);
        let held = arena.publish(block)?;
        Ok(Ok(Kept { held, at, len }))
    }
}

impl Kept {
    /// Returns the payload's address and length.
    #[must_use]
    pub fn bytes(&self) -> (NonNull<u8>, usize) {
        (self.at, self.len)
    }

    /// Returns the hold on the block.
    #[must_use]
    pub fn held(&self) -> &Held {
        &self.held
    }

    /// Gives the hold out of the hand.
    #[must_use]
    pub fn into_held(self) -> Held {
        self.held
    }

    /// Makes a payload of a hold on its block.
    #[must_use]
    pub fn from_held(held: Held) -> Self {
        let (arena, block) = (held.arena(), held.block());
        let room = arena
            .capacity_of(block)
            .saturating_sub(payload_at(handles_of(arena, block)));
        let len = (word(arena, block, 8) as usize).min(room);
        let at = payload(arena, block, len);
        Self { held, at, len }
    }
}

impl Deref for Message {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match &self.place {
            Place::Heap(bytes) => bytes,
            // SAFETY: the block belongs to this value, and `len` was cut to its size.
            Place::Block { at, len, .. } => unsafe {
                std::slice::from_raw_parts(at.as_ptr(), *len)
            },
        }
    }
}

impl DerefMut for Message {
    fn deref_mut(&mut self) -> &mut [u8] {
        match &mut self.place {
            Place::Heap(bytes) => bytes,
            // SAFETY: as above, and borrowed mutably.
            Place::Block { at, len, .. } => unsafe {
                std::slice::from_raw_parts_mut(at.as_ptr(), *len)
            },
        }
    }
}

impl AsRef<[u8]> for Message {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl Drop for Message {
    fn drop(&mut self) {
        if let Place::Block { arena, block, .. } = &self.place {
            discard(arena, *block);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use phalanx_shm::session;
    use phalanx_sync::Event;

    #[test]
    fn handles_live_as_long_as_the_message_they_travel_in() {
        let _alone = phalanx_testkit::alone();
        crate::install();
        let arena = session().unwrap();
        let block = arena.alloc(64, Kind::Bytes).unwrap();
        let object = arena.publish(block).unwrap();
        let mut loan = Loan::new(arena, 10, std::slice::from_ref(&object)).unwrap();
        loan.copy_from_slice(b"0123456789");
        drop(object);
        assert_eq!(arena.holds_on(block), 1);
        let message = Message::from_block(arena, loan.into_block());
        assert_eq!(&*message, b"0123456789");
        drop(message);
        assert_eq!(arena.kind_of(block), None);
    }

    #[test]
    fn a_loan_that_is_not_put_is_freed() {
        crate::install();
        let arena = session().unwrap();
        let loan = Loan::new(arena, 5000, &[]).unwrap();
        let block = loan.block();
        // Fresh memory is some bytes; looking at it is allowed.
        assert!(loan.iter().map(|byte| u64::from(*byte)).sum::<u64>() <= 255 * 5000);
        drop(loan);
        assert_eq!(arena.kind_of(block), None);
    }

    #[test]
    fn an_event_is_sent_through_a_queue_and_set_by_the_receiver() {
        let _dog = phalanx_testkit::watchdog(std::time::Duration::from_secs(100));
        let queue = crate::Queue::<(Event, Vec<u8>)>::new().unwrap();
        let event = Event::new().unwrap();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for _ in 0..2 {
                    let (event, bytes) = queue.get().unwrap();
                    assert!(bytes.iter().all(|byte| *byte == 3));
                    event.set();
                }
            });
            for len in [10, 4000] {
                queue.put((event.clone(), vec![3; len])).unwrap();
                event.wait();
                event.clear();
            }
        });
        assert!(queue.is_empty() && !event.is_set());
    }
}
