//! What a handle can do. The protocol is in the module above.

use phalanx_prim::{AtomicU32, AtomicU64, Ordering, Padded, points};
use phalanx_shm::{
    AllocError, Arena, BlockRef, Held, Patience, Shared, TRANSIT, WaitError, current_slot,
};
use phalanx_sync::Gate;

use super::{
    Bounds, Closed, Core, FIRST_RING, INLINE_MOST, RawGetError, RawPutError, RawQueue, Received,
    Record, Room, Side, State, new_segment,
};
use crate::message::{Loan, Message};

#[cold]
fn out_of_memory(error: AllocError) -> Box<RawPutError> {
    Box::new(error.into())
}

impl RawQueue {
    /// Makes a queue.
    ///
    /// # Errors
    ///
    /// [`AllocError`] when memory is short or the arena cannot be made.
    pub fn new(arena: &'static Arena, bounds: Bounds) -> Result<Self, AllocError> {
        crate::install();
        let segment = new_segment(arena, FIRST_RING)?;
        let state = State {
            tail: Padded(Side::new(segment)),
            head: Padded(Side::new(segment)),
            not_empty: Padded(Gate::new()),
            not_full: Padded(Room {
                some: Gate::new(),
                half: Gate::new(),
            }),
            capacity: AtomicU64::new(bounds.items.unwrap_or(0)),
            byte_capacity: AtomicU64::new(bounds.bytes.unwrap_or(0)),
            closed: AtomicU32::new(0),
            joinable: AtomicU32::new(u32::from(bounds.joinable)),
            closer: AtomicU64::new(0),
            done: AtomicU64::new(0),
            lost: AtomicU64::new(0),
            all_done: Gate::new(),
            takers: std::array::from_fn(|_| AtomicU64::new(0)),
        };
        let made = arena.emplace(state).and_then(|block| arena.publish(block));
        match made {
            Ok(held) => {
                arena.rehold(segment, current_slot(), TRANSIT);
                Ok(Self { held })
            }
            Err(error) => {
                arena.free(segment);
                Err(error)
            }
        }
    }

    /// Makes a handle of a hold on a queue.
    #[must_use]
    pub fn from_held(held: Held) -> Self {
        crate::install();
        Self { held }
    }

    /// Returns the hold, to send the handle elsewhere.
    #[must_use]
    pub fn held(&self) -> &Held {
        &self.held
    }

    fn core(&self) -> Core<'_> {
        Core {
            arena: self.held.arena(),
            state: self.held.view::<State>(),
        }
    }

    /// Makes room for `len` bytes to be written in place and then put without a copy.
    ///
    /// # Errors
    ///
    /// [`AllocError`] when memory is short.
    pub fn loan(&self, len: usize) -> Result<Loan, AllocError> {
        Loan::new(self.held.arena(), len, &[])
    }

    /// Puts the bytes of `parts`, one after the other, as one item; blocks while the queue is full.
    ///
    /// # Errors
    ///
    /// [`RawPutError`]; nothing was put then.
    #[inline]
    pub fn put(&self, parts: &[&[u8]], patience: Patience) -> Result<(), RawPutError> {
        self.put_parts(parts, patience).map_err(|error| *error)
    }

    /// As [`put`](Self::put). The error lies elsewhere, so that what is returned fits a register.
    #[inline]
    fn put_parts(&self, parts: &[&[u8]], patience: Patience) -> Result<(), Box<RawPutError>> {
        let len = parts.iter().map(|part| part.len()).sum();
        if len <= INLINE_MOST {
            return self.put_record(&Record::Inline(parts, len), patience);
        }
        let mut loan = Loan::unfilled(self.held.arena(), len, &[]).map_err(out_of_memory)?;
        let mut rest = &mut *loan;
        for part in parts {
            let (here, behind) = rest.split_at_mut(part.len());
            here.copy_from_slice(part);
            rest = behind;
        }
        self.put_loaned(loan, patience).map_err(|(error, _)| error)
    }

    /// Puts bytes together with the objects whose handles they contain; the objects live on while they are on their way.
    ///
    /// # Errors
    ///
    /// [`RawPutError`]; nothing was put then.
    pub fn put_with(
        &self,
        bytes: &[u8],
        objects: &[Held],
        patience: Patience,
    ) -> Result<(), RawPutError> {
        self.put_all(bytes, objects, patience)
            .map_err(|error| *error)
    }

    /// As [`put_with`](Self::put_with). The error lies elsewhere, as in `put_parts`.
    #[inline]
    pub(crate) fn put_all(
        &self,
        bytes: &[u8],
        objects: &[Held],
        patience: Patience,
    ) -> Result<(), Box<RawPutError>> {
        if objects.is_empty() {
            return self.put_parts(&[bytes], patience);
        }
        let mut loan =
            Loan::unfilled(self.held.arena(), bytes.len(), objects).map_err(out_of_memory)?;
        loan.copy_from_slice(bytes);
        self.put_loaned(loan, patience).map_err(|(error, _)| error)
    }

    /// Puts bytes that were written in place; blocks while the queue is full.
    ///
    /// # Errors
    ///
    /// [`RawPutError`] and the loan back; nothing was put then.
    pub fn put_loan(&self, loan: Loan, patience: Patience) -> Result<(), (RawPutError, Loan)> {
        self.put_loaned(loan, patience)
            .map_err(|(error, loan)| (*error, loan))
    }

    fn put_loaned(&self, loan: Loan, patience: Patience) -> Result<(), (Box<RawPutError>, Loan)> {
        let record = Record::Block(loan.block(), loan.len());
        match self.put_record(&record, patience) {
            Ok(()) => {
                loan.given_away();
                Ok(())
            }
            Err(error) => Err((error, loan)),
        }
    }

    fn put_record(&self, record: &Record<'_>, patience: Patience) -> Result<(), Box<RawPutError>> {
        let core = self.core();
        let payload = record.payload();
        let most = core.state.byte_capacity.load(Ordering::Relaxed);
        if most != 0 && payload > most {
            return Err(Box::new(RawPutError::TooLarge {
                bytes: payload,
                most,
            }));
        }
        loop {
            core.lock_tail();
            if let Some(closed) = core.closed() {
                core.state.tail.lock.unlock();
                return Err(Box::new(RawPutError::Closed(closed)));
            }
            if core.has_room_locked(payload) {
                let put = core.put_locked(record);
                core.state.tail.lock.unlock();
                points::point("queue.put.unlocked");
                core.state.not_empty.notify_after_unlock(1);
                return put.map_err(out_of_memory);
            }
            core.state.tail.lock.unlock();
            core.wait_for_room(payload, patience)
                .map_err(|error| Box::new(RawPutError::Wait(error)))?;
        }
    }

    /// Takes the first item; blocks while the queue is empty. A small payload is copied into `buffer`, a large one is
    /// returned where it is.
    ///
    /// # Errors
    ///
    /// [`RawGetError`]; nothing was taken then.
    #[inline]
    pub fn get_into(
        &self,
        buffer: &mut Vec<u8>,
        patience: Patience,
    ) -> Result<Received, RawGetError> {
        self.take_into(buffer, patience).map_err(|error| *error)
    }

    /// As [`get_into`](Self::get_into). The error lies elsewhere, as in `put_parts`.
    #[inline]
    pub(crate) fn take_into(
        &self,
        buffer: &mut Vec<u8>,
        patience: Patience,
    ) -> Result<Received, Box<RawGetError>> {
        let core = self.core();
        // The copy under the lock must not allocate.
        buffer.clear();
        buffer.reserve(INLINE_MOST);
        loop {
            if core.has_item() {
                core.lock_head();
                let got = core.get_locked(buffer, |_| {});
                core.unlock_head_taken();
                match got {
                    Some(None) => return Ok(Received::Inline),
                    Some(Some((block, len))) => {
                        return Ok(Received::Block(Message::new(self.held.arena(), block, len)));
                    }
                    None => {}
                }
            }
            // Closed is looked at before the last look at the count: what was put before the closing is still taken.
            let closed = core.closed();
            if core.has_item() {
                continue;
            }
            if let Some(closed) = closed {
                return Err(Box::new(RawGetError::Closed(closed)));
            }
            core.state
                .not_empty
                .wait_until(patience, || {
                    (core.has_item() || core.closed().is_some()).then_some(())
                })
                .map_err(|error| Box::new(RawGetError::Wait(error)))?;
        }
    }

    /// Takes the first item, which is small, if there is one now. `claim` sees its bytes under the queue's lock, before it
    /// leaves the queue: if this process dies in between, another consumer sees them again. It must be quick and must not
    /// panic. Returns whether there was an item.
    pub fn try_get_claimed(&self, buffer: &mut Vec<u8>, claim: impl FnOnce(&[u8])) -> bool {
        let core = self.core();
        if !core.has_item() {
            return false;
        }
        buffer.clear();
        buffer.reserve(INLINE_MOST);
        core.lock_head();
        let got = core.get_locked(buffer, claim);
        core.unlock_head_taken();
        if let Some(Some((block, len))) = got {
            drop(Message::new(self.held.arena(), block, len));
        }
        got.is_some()
    }

    /// Takes the first item as a message of its own; blocks while the queue is empty.
    ///
    /// # Errors
    ///
    /// [`RawGetError`]; nothing was taken then.
    pub fn get(&self, patience: Patience) -> Result<Message, RawGetError> {
        let mut buffer = Vec::new();
        match self.get_into(&mut buffer, patience)? {
            Received::Inline => Ok(Message::from_vec(buffer)),
            Received::Block(message) => Ok(message),
        }
    }

    /// Closes the queue in this block, for teardowns of objects that refer to one.
    pub(crate) fn close_block(arena: &Arena, block: BlockRef) {
        if let Ok(state) = arena.view::<State>(block) {
            Core { arena, state }.close();
        }
    }

    /// Closes the queue: nothing more can be put, what is in it can still be taken. Wakes everybody who waits.
    pub fn close(&self) {
        self.core().close();
    }

    /// Returns whether and why the queue is closed.
    #[must_use]
    pub fn closed(&self) -> Option<Closed> {
        self.core().closed()
    }

    /// Returns the number of items in the queue; a moment later it may be another.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.core().len()
    }

    /// Returns `true` if there is no item in the queue; a moment later there may be.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Returns the payload bytes in the queue.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.core().bytes()
    }

    /// Returns the bounds it was made with.
    #[must_use]
    pub fn bounds(&self) -> Bounds {
        let state = self.core().state;
        let some =
            |value: &AtomicU64| Some(value.load(Ordering::Relaxed)).filter(|value| *value != 0);
        Bounds {
            items: some(&state.capacity),
            bytes: some(&state.byte_capacity),
            joinable: state.joinable.load(Ordering::Relaxed) != 0,
        }
    }

    /// Says that an item this process took is done. `false` if it has taken none that is not done.
    #[must_use]
    pub fn task_done(&self) -> bool {
        let core = self.core();
        core.lock_head();
        let counted = core.count_taker(current_slot(), -1);
        if counted {
            core.state.done.fetch_add(1, Ordering::AcqRel);
            core.state.all_done.notify_all();
        }
        core.state.head.lock.unlock();
        counted
    }

    /// Says that an item is done, whichever process took it; this process's own first. `false` if all that were put are done.
    #[must_use]
    pub fn task_done_by_anyone(&self) -> bool {
        let core = self.core();
        core.lock_head();
        let own = core.count_taker(current_slot(), -1);
        let counted = own || {
            // Acquire: an item is counted before it can be taken.
            let put = core.state.tail.items.load(Ordering::Acquire);
            let more = core.state.done.load(Ordering::Acquire) < put;
            let taker = core.state.takers.iter().find_map(|taker| {
                let now = taker.load(Ordering::Relaxed);
                (now & 0xffff_ffff != 0).then_some((now >> 32) as u16)
            });
            if let Some(taker) = taker.filter(|_| more) {
                core.count_taker(taker, -1);
            }
            more
        };
        if counted {
            core.state.done.fetch_add(1, Ordering::AcqRel);
            core.state.all_done.notify_all();
        }
        core.state.head.lock.unlock();
        counted
    }

    /// Blocks until every item put so far is done, or lost with the process that took it; returns how many were lost.
    ///
    /// # Errors
    ///
    /// [`WaitError`] as `patience` says.
    pub fn join(&self, patience: Patience) -> Result<u64, WaitError> {
        let core = self.core();
        core.state.all_done.wait_until(patience, || {
            let done = core.state.done.load(Ordering::Acquire);
            (done >= core.state.tail.items.load(Ordering::Acquire))
                .then(|| core.state.lost.load(Ordering::Acquire))
        })
    }

    /// Returns the gate at which those wait who want to take, for waiting on several queues at once.
    #[must_use]
    pub fn readable(&self) -> &'static Gate<Shared> {
        &self.held.view::<State>().not_empty
    }

    /// Returns the gate at which those wait who want to put.
    #[must_use]
    pub fn writable(&self) -> &'static Gate<Shared> {
        &self.held.view::<State>().not_full.some
    }

    /// Returns `true` if a put of an item of one byte would not wait: there is room, or the queue is closed.
    #[must_use]
    pub fn has_room(&self) -> bool {
        let core = self.core();
        core.has_room(1) || core.closed().is_some()
    }

    /// Blocks until a get would not wait, and takes nothing.
    ///
    /// # Errors
    ///
    /// [`WaitError`] as `patience` says.
    pub fn wait_ready(&self, patience: Patience) -> Result<(), WaitError> {
        let gate = &self.held.view::<State>().not_empty;
        let waited = gate.wait_until(patience, || self.is_ready().then_some(()));
        // The wake may have been meant for one who takes.
        if waited.is_ok() {
            gate.notify(1);
        }
        waited
    }

    /// Returns `true` if a get would not wait: there is an item, or the queue is closed.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        let core = self.core();
        core.has_item() || core.closed().is_some()
    }
}

#[cfg(any(fuzzing, test))]
impl RawQueue {
    /// Returns the segment that is read next, and the payload blocks that its records name.
    pub(crate) fn places(&self) -> (BlockRef, Vec<BlockRef>) {
        let core = self.core();
        let (segment, ring) = core.segment(&core.state.head.segment);
        let mut at = ring.head.load(Ordering::Acquire);
        let mut named = Vec::new();
        while at < ring.tail.at.load(Ordering::Acquire) && named.len() < 64 {
            let (found, end) = core.read_record(segment, ring, at);
            named.extend(found.block());
            at = end;
        }
        named.retain(|block| crate::message::is_payload(core.arena, *block));
        (segment, named)
    }
}
