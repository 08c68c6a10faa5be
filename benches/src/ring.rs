//! The minimal ring: fixed records in shared memory, one producer, one consumer, a futex each way.
//!
//! Two counters on cache lines of their own: `head` (records written) and `tail` (records read). The producer owns
//! `head`, the consumer `tail`; record `n` lies in slot `n % capacity` and belongs to the producer while
//! `head <= n`, to the consumer while `tail <= n < head`. No owner, no time-out, no repair: a limit, not a queue.
#![expect(
    unsafe_code,
    reason = "records are copied into and read from shared memory in place"
)]

use std::io;
use std::ptr;
use std::sync::atomic::Ordering;
use std::time::Duration;

use crate::sys::Map;

const HEAD: usize = 0;
const TAIL: usize = 1;
const RECORDS: usize = 128;

/// One end of a ring, or both before the fork.
#[derive(Debug)]
pub struct Ring {
    map: Map,
    record: usize,
    capacity: u32,
    spin: Duration,
    /// Whether the other end's counter is remembered until it no longer suffices, instead of read for each record.
    remember: bool,
    mine: u32,
    theirs: u32,
}

impl Ring {
    /// Makes a ring of `capacity` records (a power of two) of `record` bytes.
    ///
    /// # Errors
    /// The kernel's.
    pub fn new(record: usize, capacity: u32, spin: Duration) -> io::Result<Self> {
        assert!(capacity.is_power_of_two());
        Ok(Self {
            map: Map::new(RECORDS + record * capacity as usize)?,
            record,
            capacity,
            spin,
            remember: false,
            mine: 0,
            theirs: 0,
        })
    }

    /// Lets both ends remember each other's counter: fewer cache lines travel.
    #[must_use]
    pub fn remembering(mut self) -> Self {
        self.remember = true;
        self
    }

    fn slot(&self, number: u32) -> ptr::NonNull<u8> {
        let index = (number % self.capacity) as usize;
        self.map.at(RECORDS + index * self.record, self.record)
    }

    /// Copies `bytes` into the next record; blocks while the ring is full.
    pub fn push(&mut self, bytes: &[u8]) {
        assert!(bytes.len() <= self.record);
        let tail = self.map.line(TAIL);
        if !self.remember || self.mine.wrapping_sub(self.theirs) == self.capacity {
            self.theirs = tail.word.load(Ordering::Acquire);
        }
        if self.mine.wrapping_sub(self.theirs) == self.capacity {
            let (mine, half) = (self.mine, self.capacity / 2);
            let mut seen = self.theirs;
            tail.wait_until(self.spin, || {
                seen = tail.word.load(Ordering::SeqCst);
                mine.wrapping_sub(seen) <= half
            });
            self.theirs = seen;
        }
        // SAFETY: the slot has room (asserted), it is the producer's while `head` has not passed it, and there is one
        // producer.
        unsafe {
            ptr::copy_nonoverlapping(bytes.as_ptr(), self.slot(self.mine).as_ptr(), bytes.len());
        };
        self.mine = self.mine.wrapping_add(1);
        self.map.line(HEAD).publish(self.mine);
    }

    /// Blocks until a record is there, reads one word of each of its cache lines in place, and gives it back.
    pub fn pop(&mut self) -> u64 {
        let head = self.map.line(HEAD);
        if !self.remember || self.mine == self.theirs {
            self.theirs = head.word.load(Ordering::Acquire);
        }
        if self.mine == self.theirs {
            let mine = self.mine;
            let mut seen = mine;
            head.wait_until(self.spin, || {
                seen = head.word.load(Ordering::SeqCst);
                seen != mine
            });
            self.theirs = seen;
        }
        // SAFETY: the record is the consumer's while `tail` has not passed it, and there is one consumer.
        let value = unsafe { read_lines(self.slot(self.mine).as_ptr(), self.record) };
        self.mine = self.mine.wrapping_add(1);
        let tail = self.map.line(TAIL);
        tail.word.store(self.mine, Ordering::SeqCst);
        // A producer that slept is woken only for half a ring: one wake-up for many records.
        if tail.has_sleeper() {
            self.theirs = self.map.line(HEAD).word.load(Ordering::SeqCst);
            if self.theirs.wrapping_sub(self.mine) <= self.capacity / 2 {
                tail.wake();
            }
        }
        value
    }
}

/// Reads one word of each cache line of `len` bytes and returns their sum.
///
/// # Safety
/// `at` is aligned to 8 and valid for reads of `len` bytes, which nobody writes meanwhile.
pub unsafe fn read_lines(at: *const u8, len: usize) -> u64 {
    let mut sum = 0_u64;
    for offset in (0..len).step_by(64) {
        // SAFETY: inside the `len` bytes.
        let word = unsafe { at.add(offset) }.cast::<u64>();
        // SAFETY: aligned, since lines are and `at` is; valid by the caller's promise.
        sum = sum.wrapping_add(unsafe { word.read_volatile() });
    }
    sum
}

/// Reads one word of each cache line of `bytes`: what a message must go through to count as received.
pub fn read_all(bytes: &[u8]) -> u64 {
    bytes.chunks(64).fold(0_u64, |sum, line| {
        let word = line
            .first_chunk::<8>()
            .map_or(u64::from(line[0]), |word| u64::from_ne_bytes(*word));
        sum.wrapping_add(std::hint::black_box(word))
    })
}
