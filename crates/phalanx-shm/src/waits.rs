//! Who waits for what: one note per thread that sleeps, where every process of the tree can read it.
//!
//! A note is written on the slow path alone, by the thread it is about, just before it sleeps:
//!
//! | `turn` | meaning | next |
//! |---|---|---|
//! | even | its thread runs; the rest of the note says nothing | odd, when it is about to sleep |
//! | odd | its thread waits, and has not acted since `since` | even, when it has what it waited for, or gives up |
//!
//! So the same odd turn at two moments means that the thread did nothing between them. Beside it stands `looked`: when
//! the thread itself last found, awake for a moment, that what it waits for is not there. Threads look by themselves every
//! now and then while somebody is interested ([`Arena::set_watch`]); what can be concluded from it is phalanx-watch's.
//!
//! Notes lie in blocks of their process, a chain from its line of the process table, and go with it in the sweep. A
//! thread has its note until it ends. A forked child writes notes of its own.

use std::cell::{Cell, RefCell};
use std::fmt::Write as _;
use std::marker::PhantomData;
use std::sync::OnceLock;

use phalanx_prim::{AtomicU32, AtomicU64, Deadline, Ordering, Waited, Word, clock, fence};

use crate::arena::{Arena, Placed};
use crate::block::{BlockRef, Kind};
use crate::order::Step;
use crate::robust::{Patience, WaitError};
use crate::stuck::{self, DeadlockError, Stuck};
use crate::{session, token};

/// Notes in one block.
const NOTES: usize = 31;
/// More blocks of notes than this are not a chain any more, whatever the memory says.
const CHAIN_MOST: usize = 4096;

/// Text that one thread writes and others read; torn between two writes, never invalid.
#[derive(Debug)]
#[repr(C)]
pub(crate) struct Text<const N: usize>([AtomicU64; N]);

impl<const N: usize> Text<N> {
    pub(crate) fn write(&self, text: &str) {
        let mut chunks = text.as_bytes().chunks(8);
        for word in &self.0 {
            let mut bytes = [0; 8];
            let chunk = chunks.next().unwrap_or_default();
            bytes[..chunk.len()].copy_from_slice(chunk);
            word.store(u64::from_le_bytes(bytes), Ordering::Relaxed);
            if chunk.len() < 8 {
                break;
            }
        }
    }

    pub(crate) fn read(&self) -> String {
        let words = self.0.iter().map(|word| word.load(Ordering::Relaxed));
        let bytes: Vec<u8> = words
            .flat_map(u64::to_le_bytes)
            .take_while(|byte| *byte != 0)
            .collect();
        String::from_utf8_lossy(&bytes)
            .trim_end_matches('\u{fffd}')
            .to_owned()
    }
}

/// One thread's note. All zero is nobody's.
#[derive(Debug)]
#[repr(C, align(64))]
pub(crate) struct Note {
    turn: AtomicU64,
    /// The kernel's id of the thread, 0 for nobody.
    tid: AtomicU32,
    ordinal: AtomicU32,
    /// A [`Subject`] in bits 0–7, [`flags`](flag) above.
    about: AtomicU32,
    /// The ordinal of the thread that has a private lock, as its waiter saw it last.
    holder: AtomicU32,
    object: AtomicU64,
    since: AtomicU64,
    looked: AtomicU64,
    /// Up by one each time somebody wants to know more.
    asked: AtomicU32,
    /// What `asked` was when the thread last answered.
    answered: AtomicU32,
    /// A block of the process with the answer.
    answer: AtomicU64,
    /// The turn somebody was told about.
    told: AtomicU64,
    /// The turn of which somebody thinks that it never ends by itself, and that this thread should see to it.
    suspected: AtomicU64,
    /// Where in the program it waits; see [`Arena::place_at`].
    place: AtomicU64,
    name: Text<7>,
    label: Text<14>,
}

const _: () = assert!(size_of::<Note>() == 256);

/// A block of notes.
#[derive(Debug)]
#[repr(C, align(64))]
pub(crate) struct Notes {
    next: AtomicU64,
    notes: [Note; NOTES],
}

const _: () = assert!(size_of::<Notes>() <= 8192);

// SAFETY: repr(C), atomics only, and the only type placed under its kind.
#[expect(unsafe_code, reason = "the marker of what may be placed in the arena")]
unsafe impl Placed for Notes {
    const KIND: Kind = Kind::Waits;
}

/// What a thread waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Subject {
    /// A lock in the arena; the object is the offset of its word, which names the owner.
    SharedLock = 1,
    /// Something that becomes true in the arena; the object is the offset of the gate's word.
    SharedGate = 2,
    /// A lock of this process; the object is its address, the holder the ordinal of the thread that has it (0: unknown).
    PrivateLock = 3,
    /// Something that becomes true in this process; the object is its address.
    PrivateGate = 4,
    /// The end of a thread of this process; the object is the kernel's id of the thread.
    Thread = 5,
    /// The end of a process; the object is its id.
    Process = 6,
}

impl Subject {
    fn from_bits(bits: u32) -> Option<Self> {
        Some(match bits & 0xff {
            1 => Self::SharedLock,
            2 => Self::SharedGate,
            3 => Self::PrivateLock,
            4 => Self::PrivateGate,
            5 => Self::Thread,
            6 => Self::Process,
            _ => return None,
        })
    }
}

/// Bits beside a wait.
pub mod flag {
    /// The wait ends by itself: it has a deadline, or what the thread does has one.
    pub const TIMED: u32 = 1 << 8;
    /// The wait can be made to fail.
    pub const RAISABLE: u32 = 1 << 9;
    /// The engine's own thread, which does nothing but answer others.
    pub const HELPER: u32 = 1 << 10;
    /// A worker that waits for its next task.
    pub const IDLE: u32 = 1 << 11;
    /// Others than the owner were seen to free the lock: nobody owns it.
    pub const SIGNAL: u32 = 1 << 12;
    /// Nobody but the owner can free the lock.
    pub const GUARDED: u32 = 1 << 13;
}

/// A thread that waits, at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wait {
    /// Its process's slot.
    pub slot: u16,
    /// The kernel's id of the thread.
    pub tid: u32,
    /// The thread's ordinal in its process, as private lock words have it.
    pub ordinal: u32,
    /// Which of its waits it is: while this is the same, the thread has not acted.
    pub turn: u64,
    /// What kind of thing it waits for.
    pub subject: Subject,
    /// Bits of [`flag`].
    pub flags: u32,
    /// See [`Subject`].
    pub object: u64,
    /// See [`Subject::PrivateLock`].
    pub holder: u32,
    /// When it last acted before the wait, in nanoseconds of the monotonic clock.
    pub since: u64,
    /// When it last began a look that found nothing.
    pub looked: u64,
    /// The thread's name.
    pub name: String,
    /// What the wait itself says it is about, as `"Lock accounts"`; may be empty.
    pub label: String,
    /// Where in the program the thread waits; see [`Arena::place_at`].
    pub place: u64,
    at: usize,
}

/// A thread with a note, waiting or not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Known {
    /// Its process's slot.
    pub slot: u16,
    /// The kernel's id of the thread.
    pub tid: u32,
    /// The thread's ordinal in its process.
    pub ordinal: u32,
    /// It is the engine's own.
    pub helper: bool,
    /// What it waits for, if it waits.
    pub wait: Option<Wait>,
}

/// How the processes of the tree look for waits that never end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Watch {
    /// How long a waiter sleeps between its looks, in milliseconds; 0 for no looks.
    pub every_ms: u32,
    /// What to do when one is found; its meaning is phalanx-watch's.
    pub action: u8,
    /// Threads note where they take locks.
    pub places: bool,
    /// Threads note in which order they take locks.
    pub order: bool,
}

impl Watch {
    fn bits(self) -> u64 {
        u64::from(self.every_ms)
            | u64::from(self.action) << 32
            | u64::from(self.places) << 40
            | u64::from(self.order) << 41
    }

    #[inline]
    fn from_bits(bits: u64) -> Self {
        Self {
            every_ms: bits as u32,
            action: (bits >> 32) as u8,
            places: bits >> 40 & 1 != 0,
            order: bits >> 41 & 1 != 0,
        }
    }

    /// Returns `true` if threads note something when they take a lock.
    #[inline]
    #[must_use]
    pub fn notes(self) -> bool {
        self.places || self.order
    }
}

/// What a look concludes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Wait on.
    Wait,
    /// This wait has to fail.
    Leave(DeadlockError),
}

/// A thread in the middle of a wait, for its own look.
#[derive(Debug)]
pub struct Look<'a> {
    note: &'a Note,
    slot: u16,
    arena: &'static Arena,
}

/// What [`set_detective`] takes.
#[derive(Clone, Copy, Debug)]
pub struct Detective {
    /// Called by each waiter when it has looked.
    pub look: fn(&Look<'_>) -> Verdict,
    /// Called by a waiter that has to leave a wait which cannot report it: panics.
    pub leave: fn(DeadlockError),
    /// Called when a thread is about to take a lock in an order from which something may follow, and without a step when the
    /// log of such orders has become full.
    pub step: fn(&'static Arena, Option<&Step>),
}

static DETECTIVE: OnceLock<Detective> = OnceLock::new();

/// Sets what waiters of this process call when they look. The first call counts.
pub fn set_detective(detective: Detective) {
    let _ = DETECTIVE.set(detective);
}

/// Panics with the deadlock, for a call that cannot return it.
pub fn leave(deadlock: DeadlockError) {
    if let Some(detective) = DETECTIVE.get() {
        (detective.leave)(deadlock);
    }
}

/// Has somebody look at what follows from a new step.
pub(crate) fn judge(arena: &'static Arena, step: Option<&Step>) {
    if let Some(detective) = DETECTIVE.get() {
        (detective.step)(arena, step);
    }
}

thread_local! {
    static MINE: Cell<(u16, Option<&'static Note>)> = const { Cell::new((0, None)) };
    static HELPER: Cell<u32> = const { Cell::new(0) };
    static FLAGS: Cell<u32> = const { Cell::new(0) };
    static INSTEAD: Cell<Option<(Subject, u64)>> = const { Cell::new(None) };
    static DEPTH: Cell<u32> = const { Cell::new(0) };
    static NAME: RefCell<Option<String>> = const { RefCell::new(None) };
    static LABEL: RefCell<String> = const { RefCell::new(String::new()) };
}

/// Names the calling thread in reports. Without it, it has the name the standard library knows.
pub fn name_thread(name: &str) {
    NAME.with_borrow_mut(|now| *now = Some(name.to_owned()));
    if let Some(note) = MINE.get().1
        && MINE.get().0 == token::slot_if_joined()
    {
        note.name.write(name);
    }
}

/// Returns the calling thread's name in reports; empty if it has none.
pub(crate) fn thread_name() -> String {
    let named = NAME.with_borrow(Clone::clone);
    named.unwrap_or_else(|| std::thread::current().name().unwrap_or_default().to_owned())
}

/// While it lives, waits of the calling thread have these bits.
#[must_use = "the bits are set only while this lives"]
#[derive(Debug)]
pub struct Flagged(u32, PhantomData<*const ()>);

impl Flagged {
    /// Sets bits of [`flag`].
    pub fn new(flags: u32) -> Self {
        Self(FLAGS.replace(FLAGS.get() | flags), PhantomData)
    }
}

impl Drop for Flagged {
    fn drop(&mut self) {
        FLAGS.set(self.0);
    }
}

/// Marks the calling thread as the engine's own: it acts for others, and never by itself.
pub fn mark_helper() {
    // By its number: the thread that a fork leaves to a child is none.
    HELPER.set(phalanx_sys::ids::tid());
    if let Some(arena) = session::session_if_any()
        && let Some((_, note)) = my_note(arena)
    {
        note.about.store(flag::HELPER, Ordering::Relaxed);
    }
}

fn helper_bit(tid: u32) -> u32 {
    if HELPER.get() == tid { flag::HELPER } else { 0 }
}

/// While it lives, waits of the calling thread are said to be about this. The outermost counts.
#[must_use = "the description lasts only while this lives"]
#[derive(Debug)]
pub struct Described(bool);

impl Described {
    /// Describes what the calling thread is about to wait for.
    pub fn new(what: std::fmt::Arguments<'_>) -> Self {
        Self(LABEL.with_borrow_mut(|label| {
            let first = label.is_empty();
            if first {
                let _ = label.write_fmt(what);
            }
            first
        }))
    }
}

impl Drop for Described {
    fn drop(&mut self) {
        if self.0 {
            LABEL.with_borrow_mut(String::clear);
        }
    }
}

/// While it lives, waits of the calling thread are noted as waits for this. The outermost counts.
#[must_use = "it lasts only while this lives"]
#[derive(Debug)]
pub struct Instead(Option<(Subject, u64)>, PhantomData<*const ()>);

impl Instead {
    /// Says what the calling thread really waits for in the calls to come.
    pub fn new(subject: Subject, object: u64) -> Self {
        let before = INSTEAD.get();
        INSTEAD.set(before.or(Some((subject, object))));
        Self(before, PhantomData)
    }
}

impl Drop for Instead {
    fn drop(&mut self) {
        INSTEAD.set(self.0);
    }
}

/// Says from when to when somebody puts an end to what the calling thread does when it takes too long.
pub fn set_timed(timed: bool) {
    let bit = if timed { flag::TIMED } else { 0 };
    FLAGS.set(FLAGS.get() & !flag::TIMED | bit);
}

/// The calling thread's wait, from before its first sleep until it goes on. Notes nothing before it sleeps.
#[must_use = "the wait is noted only while this lives"]
#[derive(Debug)]
pub struct Waiting {
    note: Option<(&'static Arena, &'static Note, u16)>,
    begun: bool,
    /// When the look that is under way began; 0 for none.
    look: u64,
    /// Sleeps of this wait that ended without news.
    looks: u32,
    thread: PhantomData<*const ()>,
}

impl Waiting {
    /// Begins a wait that has not slept yet.
    #[inline]
    pub fn new() -> Self {
        Self {
            note: None,
            begun: false,
            look: 0,
            looks: 0,
            thread: PhantomData,
        }
    }

    /// Notes the wait, or that the look for which a sleep was cut short found nothing: call it right before each sleep, when
    /// the condition was found false.
    ///
    /// # Errors
    ///
    /// [`WaitError::Deadlock`] or [`WaitError::Interrupted`] when the wait has to fail and `patience` says so.
    ///
    /// # Panics
    ///
    /// If the wait has to fail and `patience` says that it panics then.
    #[inline]
    pub fn sleeps(
        &mut self,
        subject: Subject,
        object: impl FnOnce(&Arena) -> u64,
        holder: u32,
        patience: Patience,
    ) -> Result<(), WaitError> {
        if !self.begun {
            self.begin(subject, object, holder, patience);
            return Ok(());
        }
        if self.look != 0 {
            return self.looked(holder, patience);
        }
        if let Some((_, note, _)) = self.note {
            note.holder.store(holder, Ordering::Relaxed);
        }
        Ok(())
    }

    #[cold]
    fn begin(
        &mut self,
        subject: Subject,
        object: impl FnOnce(&Arena) -> u64,
        holder: u32,
        patience: Patience,
    ) {
        self.begun = true;
        if phalanx_prim::modelled().is_some() || DEPTH.get() > 0 {
            return;
        }
        let Some(arena) = session::session_if_any() else {
            return;
        };
        let Some((slot, note)) = my_note(arena) else {
            return;
        };
        DEPTH.set(1);
        // What this thread did is seen by all before its wait has begun; and the note is not changed before all see that the
        // last wait is over.
        fence(Ordering::SeqCst);
        let timed = if patience.deadline.is_some() {
            flag::TIMED
        } else {
            0
        };
        let raisable = if patience.interruptible || patience.stuck != Stuck::Waits {
            flag::RAISABLE
        } else {
            0
        };
        let (subject, object) = INSTEAD.get().unwrap_or((subject, object(arena)));
        let helper = helper_bit(note.tid.load(Ordering::Relaxed));
        let about = subject as u32 | FLAGS.get() | helper | timed | raisable;
        note.about.store(about, Ordering::Relaxed);
        note.object.store(object, Ordering::Relaxed);
        note.holder.store(holder, Ordering::Relaxed);
        LABEL.with_borrow(|label| note.label.write(label));
        let place = patience.place.map_or(0, |place| arena.place_bits(place));
        note.place.store(place, Ordering::Relaxed);
        token::keep_places(arena.watch().notes());
        let now = clock::now_ns();
        note.since.store(now, Ordering::Relaxed);
        note.looked.store(now, Ordering::Relaxed);
        // Release: who sees the turn sees the rest.
        note.turn.fetch_add(1, Ordering::Release);
        self.note = Some((arena, note, slot));
    }

    /// Says that the condition is about to be looked at again: call it before each look.
    #[inline]
    pub fn looks(&mut self) {
        if self.look == 1 {
            self.look = clock::now_ns();
            // What others did before that moment is seen by the look.
            fence(Ordering::SeqCst);
        }
    }

    #[cold]
    fn looked(&mut self, holder: u32, patience: Patience) -> Result<(), WaitError> {
        let began = std::mem::take(&mut self.look);
        let Some((arena, note, slot)) = self.note else {
            return Ok(());
        };
        note.holder.store(holder, Ordering::Relaxed);
        token::keep_places(arena.watch().notes());
        // Release: who sees this look sees the holder it found.
        note.looked.store(began.max(2), Ordering::Release);
        let Some(detective) = DETECTIVE.get() else {
            return Ok(());
        };
        match (detective.look)(&Look { note, slot, arena }) {
            Verdict::Wait => Ok(()),
            Verdict::Leave(found) => match patience.stuck {
                Stuck::Fails => {
                    stuck::keep(found);
                    Err(WaitError::Deadlock)
                }
                Stuck::Panics => {
                    (detective.leave)(found);
                    Ok(())
                }
                Stuck::Waits if patience.interruptible => {
                    stuck::keep(found);
                    Err(WaitError::Interrupted)
                }
                Stuck::Waits => Ok(()),
            },
        }
    }

    /// Returns when the next sleep has to end: at the deadline, or earlier for a look.
    #[inline]
    #[must_use]
    pub fn until(&self, deadline: Option<Deadline>) -> Option<Deadline> {
        let Some((arena, ..)) = self.note else {
            return deadline;
        };
        let every = arena.watch().every_ms;
        if every == 0 {
            return deadline;
        }
        let look = Deadline::after(std::time::Duration::from_millis(u64::from(every)));
        Some(deadline.map_or(look, |deadline| deadline.min(look)))
    }

    /// Sleeps on a word as [`Word::wait`] does; a sleep that was cut short for a look ends as if the word had changed.
    #[inline]
    pub fn wait(
        &mut self,
        word: &Word,
        expected: u32,
        deadline: Option<Deadline>,
        scope: phalanx_prim::Scope,
    ) -> Waited {
        let until = self.until(deadline);
        match word.wait(expected, until, scope) {
            Waited::TimedOut if until != deadline => {
                self.cut();
                Waited::Changed
            }
            waited => waited,
        }
    }

    /// Returns `true` if the last sleep was cut short for a look that has not begun yet.
    #[inline]
    #[must_use]
    pub fn is_cut(&self) -> bool {
        self.look == 1
    }

    /// Says that a sleep was cut short for a look.
    pub fn cut(&mut self) {
        self.look = 1;
        self.looks += 1;
    }
}

impl Default for Waiting {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Waiting {
    #[inline]
    fn drop(&mut self) {
        if let Some((_, note, slot)) = self.note {
            DEPTH.set(0);
            // In a child that was forked by a signal handler in the middle of the wait, it is the parent's.
            if MINE.get().0 == slot {
                note.turn.fetch_add(1, Ordering::Release);
            }
        }
    }
}

/// Names a word: its offset in the arena, or its address in this process.
#[must_use]
pub fn place_of(arena: &Arena, word: &Word) -> u64 {
    let address = std::ptr::from_ref(word).cast::<u8>();
    let offset = arena.region().offset_of(address);
    offset.unwrap_or(address as usize) as u64
}

/// Returns the note of the calling thread, taking one on first use.
#[inline]
fn my_note(arena: &'static Arena) -> Option<(u16, &'static Note)> {
    let slot = token::slot_if_joined();
    let (owner, note) = MINE.get();
    if owner == slot && slot != 0 {
        return note.map(|note| (slot, note));
    }
    take_note(arena)
}

#[cold]
fn take_note(arena: &'static Arena) -> Option<(u16, &'static Note)> {
    if token::slot_if_joined() == 0 && arena.watch().every_ms == 0 {
        return None;
    }
    let slot = token::current_slot();
    let (tid, ordinal) = (phalanx_sys::ids::tid(), token::local_token());
    let note = arena
        .note_chain(slot)
        .find_map(|notes| notes.claim(tid))
        .or_else(|| arena.add_notes(slot)?.claim(tid));
    if let Some(note) = note {
        note.ordinal.store(ordinal, Ordering::Relaxed);
        note.about
            .store(FLAGS.get() | helper_bit(tid), Ordering::Relaxed);
        NAME.with_borrow(|name| match name {
            Some(name) => note.name.write(name),
            None => note
                .name
                .write(std::thread::current().name().unwrap_or_default()),
        });
        token::at_thread_end(release_note);
    }
    DEPTH.set(0);
    MINE.set((slot, note));
    note.map(|note| (slot, note))
}

fn release_note() {
    let (slot, note) = MINE.replace((0, None));
    if let Some(note) = note
        && slot == token::slot_if_joined()
    {
        note.name.write("");
        note.about.store(0, Ordering::Relaxed);
        note.tid.store(0, Ordering::Release);
    }
}

impl Notes {
    fn claim(&self, tid: u32) -> Option<&Note> {
        self.notes.iter().find(|note| {
            note.tid.load(Ordering::Relaxed) == 0
                && note
                    .tid
                    .compare_exchange(0, tid, Ordering::AcqRel, Ordering::Relaxed)
                    .is_ok()
        })
    }
}

impl Note {
    fn read(&self, slot: u16, at: usize) -> Option<Known> {
        let turn = self.turn.load(Ordering::Acquire);
        let tid = self.tid.load(Ordering::Acquire);
        if tid == 0 {
            return None;
        }
        let about = self.about.load(Ordering::Relaxed);
        let ordinal = self.ordinal.load(Ordering::Relaxed);
        let mut known = Known {
            slot,
            tid,
            ordinal,
            helper: about & flag::HELPER != 0,
            wait: None,
        };
        if turn & 1 == 0 {
            return Some(known);
        }
        // The look before what it found.
        let looked = self.looked.load(Ordering::Acquire);
        let wait = Subject::from_bits(about).map(|subject| Wait {
            slot,
            tid,
            ordinal,
            turn,
            subject,
            flags: about & !0xff,
            object: self.object.load(Ordering::Relaxed),
            holder: self.holder.load(Ordering::Relaxed),
            since: self.since.load(Ordering::Relaxed),
            looked,
            name: self.name.read(),
            label: self.label.read(),
            place: self.place.load(Ordering::Relaxed),
            at,
        });
        fence(Ordering::Acquire);
        if self.turn.load(Ordering::Relaxed) == turn {
            known.wait = wait;
        }
        Some(known)
    }
}

impl Arena {
    fn note_chain(&self, slot: u16) -> impl Iterator<Item = &Notes> {
        let mut next = self.slot(slot).waits.load(Ordering::Acquire);
        std::iter::from_fn(move || {
            let notes = self.view::<Notes>(BlockRef::from_bits(next)?).ok()?;
            next = notes.next.load(Ordering::Acquire);
            Some(notes)
        })
        .take(CHAIN_MOST)
    }

    fn add_notes(&self, slot: u16) -> Option<&Notes> {
        let block = self.alloc(size_of::<Notes>(), Kind::Bytes).ok()?;
        let notes = self.view_held::<Notes>(block);
        notes.clear();
        self.rekind(block, Kind::Waits);
        let head = &self.slot(slot).waits;
        let mut now = head.load(Ordering::Acquire);
        loop {
            notes.next.store(now, Ordering::Relaxed);
            // Release: who finds the block finds it empty.
            match head.compare_exchange(now, block.to_bits(), Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => return Some(notes),
                Err(seen) => now = seen,
            }
        }
    }

    /// Returns every thread of the tree that has a note: all that ever slept, until they end.
    #[must_use]
    pub fn threads_known(&self) -> Vec<Known> {
        let mut known = Vec::new();
        for process in self.processes() {
            for notes in self.note_chain(process.slot) {
                for note in &notes.notes {
                    let at = self
                        .region()
                        .offset_of(std::ptr::from_ref(note).cast())
                        .unwrap_or(0);
                    known.extend(note.read(process.slot, at));
                }
            }
        }
        known
    }

    /// Returns `true` if the thread is still in the same wait: it has not acted in between.
    #[must_use]
    pub fn still_waits(&self, wait: &Wait) -> bool {
        self.note_at(wait)
            .is_some_and(|note| note.turn.load(Ordering::Acquire) == wait.turn)
    }

    fn note_at(&self, wait: &Wait) -> Option<&Note> {
        self.note_chain(wait.slot).find_map(|notes| {
            notes.notes.iter().find(|note| {
                self.region().offset_of(std::ptr::from_ref(*note).cast()) == Some(wait.at)
                    && note.tid.load(Ordering::Acquire) == wait.tid
            })
        })
    }

    /// Asks a waiting thread to say more at its next look; returns the number its answer will have.
    pub fn ask(&self, wait: &Wait) -> u32 {
        self.note_at(wait).map_or(0, |note| {
            note.asked.fetch_add(1, Ordering::AcqRel).wrapping_add(1)
        })
    }

    /// Returns what a thread answered, if it has answered that question or a later one.
    #[must_use]
    pub fn answer(&self, wait: &Wait, question: u32) -> Option<String> {
        let note = self.note_at(wait)?;
        // Acquire: pairs with the Release of `Look::answer`.
        let answered = note.answered.load(Ordering::Acquire);
        if answered.wrapping_sub(question).cast_signed() < 0 {
            return None;
        }
        let block = BlockRef::from_bits(note.answer.load(Ordering::Relaxed))?;
        let len = self.len_of(block);
        if self.kind_of(block) != Some(Kind::Text) {
            return None;
        }
        Some(String::from_utf8_lossy(&self.text(block, len)).into_owned())
    }

    /// Notes that the calling process tells about this wait; `false` if somebody did before.
    #[must_use]
    pub fn tell_once(&self, wait: &Wait) -> bool {
        self.note_at(wait)
            .is_some_and(|note| note.told.swap(wait.turn, Ordering::AcqRel) != wait.turn)
    }

    /// Returns `true` if somebody has told about this wait.
    #[must_use]
    pub fn is_told(&self, wait: &Wait) -> bool {
        self.note_at(wait)
            .is_some_and(|note| note.told.load(Ordering::Acquire) == wait.turn)
    }

    /// Leaves it to a waiting thread to find out at its next look whether its wait can end.
    pub fn suspect(&self, wait: &Wait) {
        if let Some(note) = self.note_at(wait) {
            note.suspected.store(wait.turn, Ordering::Release);
        }
    }

    /// Returns `true` to one caller of the whole tree in that much time.
    #[must_use]
    pub fn may_survey(&self, every_ns: u64) -> bool {
        let (now, surveyed) = (clock::now_ns(), &self.header().surveyed);
        let last = surveyed.load(Ordering::Relaxed);
        now.saturating_sub(last) >= every_ns
            && surveyed
                .compare_exchange(last, now, Ordering::Relaxed, Ordering::Relaxed)
                .is_ok()
    }

    /// Changes how the processes of the tree look for waits that never end, from their next sleep on.
    pub fn change_watch(&self, change: impl Fn(&mut Watch)) {
        let word = &self.header().watch;
        let mut now = word.load(Ordering::Relaxed);
        loop {
            let mut watch = Watch::from_bits(now);
            change(&mut watch);
            match word.compare_exchange(now, watch.bits(), Ordering::AcqRel, Ordering::Relaxed) {
                Ok(_) => return token::keep_places(watch.notes()),
                Err(seen) => now = seen,
            }
        }
    }

    /// Returns how the processes of the tree look for waits that never end.
    #[inline]
    #[must_use]
    pub fn watch(&self) -> Watch {
        Watch::from_bits(self.header().watch.load(Ordering::Relaxed))
    }

    pub(crate) fn text(&self, block: BlockRef, len: usize) -> Vec<u8> {
        let words = (0..len.min(TEXT_MOST).div_ceil(8)).map(|i| self.text_word(block, i));
        let mut bytes: Vec<u8> = words
            .flat_map(|word| word.load(Ordering::Relaxed).to_le_bytes())
            .collect();
        bytes.truncate(len);
        bytes
    }

    /// Writes text into a block of its own, of one of the kinds that are text; `None` without memory for it.
    pub(crate) fn write_text(&self, text: &str, kind: Kind) -> Option<BlockRef> {
        let bytes = &text.as_bytes()[..text.len().min(TEXT_MOST)];
        let block = self.alloc(bytes.len().max(1), Kind::Bytes).ok()?;
        for (index, chunk) in bytes.chunks(8).enumerate() {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            self.text_word(block, index)
                .store(u64::from_le_bytes(word), Ordering::Relaxed);
        }
        self.rekind(block, kind);
        Some(block)
    }

    #[expect(unsafe_code, reason = "text is made of atomics at an offset")]
    fn text_word(&self, block: BlockRef, index: usize) -> &AtomicU64 {
        // SAFETY: blocks are multiples of 64 bytes; the index is cut to the block's length, and a stale reference reads
        // bytes of another block at worst.
        unsafe { self.region().get(block.offset() + index * 8) }
    }
}

/// An answer is cut to this.
const TEXT_MOST: usize = 60_000;

impl Notes {
    /// Gives every byte a value: the block may have been anything.
    fn clear(&self) {
        self.next.store(0, Ordering::Relaxed);
        for note in &self.notes {
            for word in [&note.tid, &note.ordinal, &note.about, &note.holder] {
                word.store(0, Ordering::Relaxed);
            }
            for word in [&note.asked, &note.answered] {
                word.store(0, Ordering::Relaxed);
            }
            for word in [&note.turn, &note.object, &note.since, &note.looked] {
                word.store(0, Ordering::Relaxed);
            }
            note.answer.store(0, Ordering::Relaxed);
            note.told.store(0, Ordering::Relaxed);
            note.suspected.store(0, Ordering::Relaxed);
            note.place.store(0, Ordering::Relaxed);
            note.name.0.iter().chain(&note.label.0).for_each(|word| {
                word.store(0, Ordering::Relaxed);
            });
        }
    }
}

impl Look<'_> {
    /// Returns the wait that is looked at.
    #[must_use]
    pub fn wait(&self) -> Option<Wait> {
        let at = self
            .arena
            .region()
            .offset_of(std::ptr::from_ref(self.note).cast())?;
        self.note.read(self.slot, at)?.wait
    }

    /// Returns the arena.
    #[must_use]
    pub fn arena(&self) -> &'static Arena {
        self.arena
    }

    /// Returns `true` if somebody left it to this thread to find out whether its wait can end.
    #[must_use]
    pub fn is_suspected(&self) -> bool {
        let turn = self.note.turn.load(Ordering::Relaxed);
        self.note.suspected.load(Ordering::Acquire) == turn
            && self.note.told.load(Ordering::Acquire) != turn
    }

    /// Returns `true` if somebody has asked this thread to say more.
    #[must_use]
    pub fn is_asked(&self) -> bool {
        self.note.asked.load(Ordering::Acquire) != self.note.answered.load(Ordering::Relaxed)
    }

    /// Answers what was asked.
    pub fn answer(&self, text: &str) {
        let asked = self.note.asked.load(Ordering::Acquire);
        let old = BlockRef::from_bits(self.note.answer.load(Ordering::Relaxed));
        // Without memory for it the answer is empty.
        let block = self.arena.write_text(text, Kind::Text);
        self.note
            .answer
            .store(block.map_or(0, BlockRef::to_bits), Ordering::Relaxed);
        // Release: who sees the number sees the text.
        self.note.answered.store(asked, Ordering::Release);
        if let Some(old) = old {
            self.arena.free(old);
        }
    }
}
