//! Shared data: one value, a slice, plain memory.
#![expect(
    unsafe_code,
    reason = "values at addresses of the arena, guarded by a lock beside them"
)]

use std::fmt;
use std::io;
use std::marker::PhantomData;
use std::ops::{Deref, DerefMut};
use std::time::Duration;

use bytemuck::{AnyBitPattern, NoUninit};
use phalanx_prim::{AtomicU64, Ordering};
use phalanx_shm::{
    Acquired, DeadlockError, Kind, KindOps, Patience, RawLock, Shared as SharedScope, WaitError,
    register_kind,
};
use phalanx_sys::map::{Mapping, SharedFile};
use phalanx_sys::named;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::home::{CreateError, Object, placed};
use crate::lock::{LockError, OwnerDied};

/// What may live in shared memory: plain data without pointers or padding, for which any bytes are a value.
///
/// Derive [`bytemuck::NoUninit`] and [`bytemuck::AnyBitPattern`] (or `Pod`) on a `#[repr(C)]` struct.
pub trait Plain: NoUninit + AnyBitPattern + Send + Sync + 'static {}
impl<T: NoUninit + AnyBitPattern + Send + Sync + 'static> Plain for T {}

/// The head of a shared value; its bytes follow, from the next multiple of 64.
#[derive(Debug)]
#[repr(C, align(64))]
pub struct SharedState {
    raw: RawLock<SharedScope>,
    /// Bytes of one element; a handle read as another type is refused.
    size: AtomicU64,
    len: AtomicU64,
}
placed!(SharedState, Shared);

pub(crate) fn install() {
    register_kind(
        Kind::Shared,
        KindOps {
            recover: |arena, block, dead, wake_all| {
                let Ok(state) = arena.view::<SharedState>(block) else {
                    return;
                };
                if !state.raw.owner_died(dead) && wake_all {
                    state.raw.wake_all();
                }
            },
            destroy: |_, _| {},
        },
    );
}

fn bytes_of<T>(len: usize) -> Result<usize, CreateError> {
    const {
        assert!(
            align_of::<T>() <= 64,
            "a shared value is aligned to 64 bytes at most"
        )
    };
    len.checked_mul(size_of::<T>()).ok_or(CreateError::Invalid {
        what: "a slice with a length",
        given: len as u64,
        instead: "its bytes must fit the address space",
    })
}

fn make<T: Plain>(len: usize) -> Result<Object<SharedState>, CreateError> {
    let state = SharedState {
        raw: RawLock::new(),
        size: AtomicU64::new(size_of::<T>() as u64),
        len: AtomicU64::new(len as u64),
    };
    Object::with_extra(state, bytes_of::<T>(len)?)
}

fn read<'de, T, D: Deserializer<'de>>(
    deserializer: D,
    one: bool,
) -> Result<Object<SharedState>, D::Error> {
    let object = Object::<SharedState>::deserialize(deserializer)?;
    let size = object.size.load(Ordering::Relaxed);
    if size != size_of::<T>() as u64 || (one && object.len.load(Ordering::Relaxed) != 1) {
        return Err(serde::de::Error::custom(format!(
            "this shared value has elements of {size} bytes, a {} has {}",
            std::any::type_name::<T>(),
            size_of::<T>()
        )));
    }
    Ok(object)
}

macro_rules! guarded {
    ($Type:ident, $Guard:ident, $target:ty, $at:ident, $at_mut:ident) => {
        impl<T: Plain> $Type<T> {
            /// Blocks until this thread has the data to itself.
            ///
            /// # Errors
            ///
            /// [`OwnerDied`] with the guard when the process that had it before died: it may be half-changed.
            ///
            /// # Panics
            ///
            /// With the deadlock as its payload, if the wait could never end and somebody wants such waits to fail;
            /// [`lock_with`](Self::lock_with) returns it.
            #[track_caller]
            pub fn lock(&self) -> Result<$Guard<'_, T>, OwnerDied<$Guard<'_, T>>> {
                match self.lock_with(Patience::or_panic()) {
                    Ok(guard) => Ok(guard),
                    Err(LockError::OwnerDied(died)) => Err(died),
                    Err(_) => unreachable!("an endless wait ended"),
                }
            }

            /// As [`lock`](Self::lock), for at most `timeout`.
            ///
            /// # Errors
            ///
            /// [`LockError`].
            #[track_caller]
            pub fn lock_timeout(
                &self,
                timeout: Duration,
            ) -> Result<$Guard<'_, T>, LockError<$Guard<'_, T>>> {
                self.lock_with(Patience::timeout(timeout).here())
            }

            /// As [`lock`](Self::lock), as `patience` says.
            ///
            /// # Errors
            ///
            /// [`LockError`].
            pub fn lock_with(
                &self,
                patience: Patience,
            ) -> Result<$Guard<'_, T>, LockError<$Guard<'_, T>>> {
                let guard = || $Guard {
                    of: self,
                    thread: PhantomData,
                };
                match self.state.raw.lock(patience) {
                    Ok(Acquired::Clean) => Ok(guard()),
                    Ok(Acquired::OwnerDied) => Err(LockError::OwnerDied(OwnerDied::new(guard()))),
                    Err(WaitError::TimedOut) => Err(LockError::TimedOut { owner: None }),
                    Err(WaitError::Interrupted) => Err(LockError::Interrupted),
                    Err(WaitError::Deadlock) => Err(LockError::Deadlock(DeadlockError::taken())),
                }
            }

            /// Runs `f` with the data to itself, whether or not the process that had it before died.
            ///
            /// # Panics
            ///
            /// As for [`lock`](Self::lock).
            #[track_caller]
            pub fn with<R>(&self, f: impl FnOnce(&mut $target) -> R) -> R {
                let mut guard = self.lock().unwrap_or_else(OwnerDied::into_guard);
                f(&mut guard)
            }
        }

        /// Has the data to itself until dropped.
        #[must_use = "the data is free again as soon as the guard is dropped"]
        pub struct $Guard<'a, T: Plain> {
            of: &'a $Type<T>,
            thread: PhantomData<*const ()>,
        }

        impl<T: Plain> Deref for $Guard<'_, T> {
            type Target = $target;

            fn deref(&self) -> &$target {
                self.of.$at()
            }
        }

        impl<T: Plain> DerefMut for $Guard<'_, T> {
            fn deref_mut(&mut self) -> &mut $target {
                self.of.$at_mut()
            }
        }

        impl<T: Plain> Drop for $Guard<'_, T> {
            fn drop(&mut self) {
                self.of.state.raw.unlock();
            }
        }

        impl<T: Plain + fmt::Debug> fmt::Debug for $Guard<'_, T> {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                (**self).fmt(f)
            }
        }

        impl<T: Plain> Clone for $Type<T> {
            /// Makes another handle on the same data.
            fn clone(&self) -> Self {
                Self {
                    state: self.state.clone(),
                    of: PhantomData,
                }
            }
        }

        impl<T: Plain> fmt::Debug for $Type<T> {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}<{}>", stringify!($Type), std::any::type_name::<T>())
            }
        }

        impl<T: Plain> Serialize for $Type<T> {
            fn serialize<Z: Serializer>(&self, serializer: Z) -> Result<Z::Ok, Z::Error> {
                self.state.serialize(serializer)
            }
        }
    };
}

/// One value that the processes of the tree share, with a lock of its own.
///
/// ```
/// use phalanx_sync::Shared;
///
/// let total = Shared::new(40_u64)?;
/// *total.lock().unwrap() += 2;
/// assert_eq!(total.get(), 42);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Shared<T: Plain> {
    state: Object<SharedState>,
    of: PhantomData<T>,
}

guarded!(Shared, SharedGuard, T, value, value_mut);

impl<T: Plain> Shared<T> {
    /// Makes one that holds `value`.
    ///
    /// # Errors
    ///
    /// [`CreateError`] when shared memory is short.
    pub fn new(value: T) -> Result<Self, CreateError> {
        let shared = Self {
            state: make::<T>(1)?,
            of: PhantomData,
        };
        *shared.value_mut() = value;
        Ok(shared)
    }

    fn value(&self) -> &T {
        // SAFETY: a `T` lies behind the head, aligned; the callers hold the lock or are the maker.
        unsafe { &*self.state.extra().cast::<T>() }
    }

    #[expect(
        clippy::mut_from_ref,
        reason = "the lock makes it exclusive, which the callers hold"
    )]
    fn value_mut(&self) -> &mut T {
        // SAFETY: as above, and exclusively.
        unsafe { &mut *self.state.extra().cast::<T>() }
    }

    /// Returns a copy of the value.
    #[must_use]
    pub fn get(&self) -> T
    where
        T: Copy,
    {
        self.with(|value| *value)
    }

    /// Changes the value.
    pub fn set(&self, value: T) {
        self.with(|now| *now = value);
    }

    /// Returns the address of the value, for access that is synchronized by other means.
    #[must_use]
    pub fn as_ptr(&self) -> *mut T {
        self.state.extra().cast()
    }
}

impl<'de, T: Plain> Deserialize<'de> for Shared<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        read::<T, D>(deserializer, true).map(|state| Self {
            state,
            of: PhantomData,
        })
    }
}

/// A slice of values that the processes of the tree share, with one lock.
///
/// ```
/// use phalanx_sync::SharedSlice;
///
/// let numbers = SharedSlice::<f64>::zeroed(1000)?;
/// numbers.lock().unwrap()[3] = 1.5;
/// assert_eq!(numbers.with(|numbers| numbers.iter().sum::<f64>()), 1.5);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct SharedSlice<T: Plain> {
    state: Object<SharedState>,
    of: PhantomData<T>,
}

guarded!(SharedSlice, SharedSliceGuard, [T], values, values_mut);

impl<T: Plain> SharedSlice<T> {
    /// Makes one of `len` elements whose bytes are all zero.
    ///
    /// # Errors
    ///
    /// [`CreateError`] when shared memory is short or the size exceeds the address space.
    pub fn zeroed(len: usize) -> Result<Self, CreateError> {
        Ok(Self {
            state: make::<T>(len)?,
            of: PhantomData,
        })
    }

    /// Makes one that holds a copy of `values`.
    ///
    /// # Errors
    ///
    /// [`CreateError`] when shared memory is short.
    pub fn from_slice(values: &[T]) -> Result<Self, CreateError> {
        let slice = Self::zeroed(values.len())?;
        slice.values_mut().copy_from_slice(values);
        Ok(slice)
    }

    /// Returns the number of elements.
    #[must_use]
    pub fn len(&self) -> usize {
        self.state.len.load(Ordering::Relaxed) as usize
    }

    /// Returns `true` if there is no element.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Returns the address of the first element, for access that is synchronized by other means (each process writes a part
    /// of its own, say).
    #[must_use]
    pub fn as_ptr(&self) -> *mut T {
        self.state.extra().cast()
    }

    fn values(&self) -> &[T] {
        // SAFETY: `len` elements lie behind the head, aligned; the callers hold the lock or are the maker.
        unsafe { std::slice::from_raw_parts(self.as_ptr(), self.len()) }
    }

    #[expect(
        clippy::mut_from_ref,
        reason = "the lock makes it exclusive, which the callers hold"
    )]
    fn values_mut(&self) -> &mut [T] {
        // SAFETY: as above, and exclusively.
        unsafe { std::slice::from_raw_parts_mut(self.as_ptr(), self.len()) }
    }

    /// Returns the elements without taking the lock.
    ///
    /// # Safety
    ///
    /// Nobody writes to them, in any process, for as long as the slice is used.
    #[must_use]
    pub unsafe fn as_slice(&self) -> &[T] {
        self.values()
    }

    /// Returns a part of the elements for writing, without taking the lock: several processes may write disjoint parts.
    ///
    /// # Panics
    ///
    /// If the range is outside of the slice.
    ///
    /// # Safety
    ///
    /// Nobody else uses this part, in any process, for as long as the slice is used.
    #[must_use]
    #[expect(clippy::mut_from_ref, reason = "exclusive by the caller's promise")]
    pub unsafe fn part_mut(&self, range: std::ops::Range<usize>) -> &mut [T] {
        assert!(
            range.start <= range.end && range.end <= self.len(),
            "{range:?} is outside of {} elements",
            self.len()
        );
        // SAFETY: inside the elements (checked above).
        let first = unsafe { self.as_ptr().add(range.start) };
        // SAFETY: as above; exclusive by the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(first, range.len()) }
    }
}

impl<'de, T: Plain> Deserialize<'de> for SharedSlice<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        read::<T, D>(deserializer, false).map(|state| Self {
            state,
            of: PhantomData,
        })
    }
}

impl crate::handle::Handle for SharedSlice<u8> {
    const KIND: Kind = Kind::Shared;

    fn held(&self) -> &phalanx_shm::Held {
        self.state.held()
    }

    /// Elements of another type are read as so many bytes, which are fewer.
    fn from_held(held: phalanx_shm::Held) -> Self {
        crate::install();
        Self {
            state: Object::from_held(held),
            of: PhantomData,
        }
    }
}

impl From<SharedSlice<u8>> for SharedMemory {
    fn from(bytes: SharedSlice<u8>) -> Self {
        Self {
            place: Place::Arena(bytes),
        }
    }
}

/// A block of memory that processes share, as bytes.
///
/// One made with [`new`](SharedMemory::new) lives in the arena of the tree: it is a serde value, has no name, and is gone
/// with its last holder. One made with [`create`](SharedMemory::create) has a name by which any process of the machine can
/// [`attach`](SharedMemory::attach) to it, and stays until somebody calls [`unlink`](SharedMemory::unlink).
///
/// ```
/// use phalanx_sync::SharedMemory;
///
/// let memory = SharedMemory::new(1 << 20)?;
/// memory.write_at(10, b"hello")?;
/// let mut back = [0; 5];
/// memory.read_at(10, &mut back)?;
/// assert_eq!(&back, b"hello");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug)]
pub struct SharedMemory {
    place: Place,
}

#[derive(Clone, Debug)]
enum Place {
    Arena(SharedSlice<u8>),
    Named(std::sync::Arc<NamedMemory>),
}

#[derive(Debug)]
struct NamedMemory {
    name: String,
    mapping: Mapping,
    len: usize,
}

/// A range outside of the memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{len} bytes at {offset} are outside of a shared memory of {size} bytes")]
pub struct OutOfRange {
    /// Where it was to begin.
    pub offset: usize,
    /// How long it was to be.
    pub len: usize,
    /// How large the memory is.
    pub size: usize,
}

impl SharedMemory {
    /// Makes `len` zero bytes in the arena of the tree.
    ///
    /// # Errors
    ///
    /// [`CreateError`] when shared memory is short.
    pub fn new(len: usize) -> Result<Self, CreateError> {
        Ok(Self {
            place: Place::Arena(SharedSlice::zeroed(len)?),
        })
    }

    /// Returns the bytes in the arena, `None` for memory with a name.
    #[must_use]
    pub fn in_arena(&self) -> Option<&SharedSlice<u8>> {
        match &self.place {
            Place::Arena(slice) => Some(slice),
            Place::Named(_) => None,
        }
    }

    /// Makes `len` zero bytes under a name, without a slash: a new POSIX shared memory object.
    ///
    /// # Errors
    ///
    /// [`io::ErrorKind::AlreadyExists`] when the name is taken, [`io::ErrorKind::InvalidInput`] for a name with a slash or
    /// a length of 0, and when memory is short.
    pub fn create(name: &str, len: usize) -> io::Result<Self> {
        if len == 0 {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "shared memory of 0 bytes has no use; ask for at least 1",
            ));
        }
        let file = named::create(name, len)?;
        let made = file
            .commit(0, len)
            .and_then(|()| Self::map(name, &file, len));
        if made.is_err() {
            let _ = named::unlink(name);
        }
        made
    }

    /// Attaches to the memory of this name.
    ///
    /// # Errors
    ///
    /// [`io::ErrorKind::NotFound`] when there is none.
    pub fn attach(name: &str) -> io::Result<Self> {
        let file = named::open(name)?;
        let len = usize::try_from(file.size()?).map_err(io::Error::other)?;
        Self::map(name, &file, len)
    }

    fn map(name: &str, file: &SharedFile, len: usize) -> io::Result<Self> {
        let mapping = Mapping::new(file, len)?;
        Ok(Self {
            place: Place::Named(std::sync::Arc::new(NamedMemory {
                name: name.to_owned(),
                mapping,
                len,
            })),
        })
    }

    /// Removes the name. Those who are attached stay so; memory in the arena has no name and needs none of this.
    ///
    /// # Errors
    ///
    /// [`io::ErrorKind::NotFound`] when somebody removed it before.
    pub fn unlink(&self) -> io::Result<()> {
        match &self.place {
            Place::Arena(_) => Ok(()),
            Place::Named(named) => named::unlink(&named.name),
        }
    }

    /// Returns the name, if it has one.
    #[must_use]
    pub fn name(&self) -> Option<&str> {
        match &self.place {
            Place::Arena(_) => None,
            Place::Named(named) => Some(&named.name),
        }
    }

    /// Returns the size in bytes.
    #[must_use]
    pub fn len(&self) -> usize {
        match &self.place {
            Place::Arena(slice) => slice.len(),
            Place::Named(named) => named.len,
        }
    }

    /// Returns `true` for a memory of 0 bytes.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Returns the address of the first byte.
    #[must_use]
    pub fn as_ptr(&self) -> *mut u8 {
        match &self.place {
            Place::Arena(slice) => slice.as_ptr(),
            Place::Named(named) => named.mapping.base().as_ptr(),
        }
    }

    fn check(&self, offset: usize, len: usize) -> Result<*mut u8, OutOfRange> {
        let size = self.len();
        if offset.checked_add(len).is_none_or(|end| end > size) {
            return Err(OutOfRange { offset, len, size });
        }
        // SAFETY: inside the memory (checked above).
        Ok(unsafe { self.as_ptr().add(offset) })
    }

    /// Copies bytes in. Without a lock: two writers of the same bytes mix.
    ///
    /// # Errors
    ///
    /// [`OutOfRange`].
    pub fn write_at(&self, offset: usize, bytes: &[u8]) -> Result<(), OutOfRange> {
        let at = self.check(offset, bytes.len())?;
        // SAFETY: inside the memory; no reference to its bytes exists but by the promise of `as_slice`.
        unsafe { at.copy_from(bytes.as_ptr(), bytes.len()) };
        Ok(())
    }

    /// Copies bytes out.
    ///
    /// # Errors
    ///
    /// [`OutOfRange`].
    pub fn read_at(&self, offset: usize, bytes: &mut [u8]) -> Result<(), OutOfRange> {
        let at = self.check(offset, bytes.len())?;
        // SAFETY: inside the memory, whose bytes are always initialised.
        unsafe { at.copy_to(bytes.as_mut_ptr(), bytes.len()) };
        Ok(())
    }

    /// Returns the bytes in place.
    ///
    /// # Safety
    ///
    /// Nobody writes to them, in any process, for as long as the slice is used.
    #[must_use]
    pub unsafe fn as_slice(&self) -> &[u8] {
        // SAFETY: `len` initialised bytes; unchanged by the caller's promise.
        unsafe { std::slice::from_raw_parts(self.as_ptr(), self.len()) }
    }

    /// Returns the bytes in place, for writing.
    ///
    /// # Safety
    ///
    /// Nobody else uses them, in any process, for as long as the slice is used.
    #[must_use]
    #[expect(clippy::mut_from_ref, reason = "exclusive by the caller's promise")]
    pub unsafe fn as_mut_slice(&self) -> &mut [u8] {
        // SAFETY: `len` initialised bytes; exclusive by the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.as_ptr(), self.len()) }
    }
}

#[derive(Serialize, Deserialize)]
enum Sent {
    Arena(SharedSlice<u8>),
    Named(String),
}

impl Serialize for SharedMemory {
    fn serialize<Z: Serializer>(&self, serializer: Z) -> Result<Z::Ok, Z::Error> {
        match &self.place {
            Place::Arena(slice) => Sent::Arena(slice.clone()).serialize(serializer),
            Place::Named(named) => Sent::Named(named.name.clone()).serialize(serializer),
        }
    }
}

impl<'de> Deserialize<'de> for SharedMemory {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match Sent::deserialize(deserializer)? {
            Sent::Arena(slice) => Ok(Self {
                place: Place::Arena(slice),
            }),
            Sent::Named(name) => Self::attach(&name).map_err(|error| {
                serde::de::Error::custom(format!(
                    "cannot attach to shared memory {name:?}: {error}"
                ))
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROUNDS: u64 = if cfg!(miri) { 10 } else { 2_000 };

    #[test]
    fn threads_change_a_value_one_after_another() {
        let _dog = phalanx_testkit::watchdog(Duration::from_secs(100));
        let shared = Shared::new([0_u64; 2]).unwrap();
        std::thread::scope(|scope| {
            for _ in 0..2 {
                let shared = shared.clone();
                scope.spawn(move || {
                    for _ in 0..ROUNDS {
                        shared.with(|pair| *pair = [pair[0] + 1, pair[1] + 2]);
                    }
                });
            }
        });
        assert_eq!(shared.get(), [2 * ROUNDS, 4 * ROUNDS]);
    }

    #[test]
    fn a_slice_and_bare_memory_keep_what_is_written() {
        let slice = SharedSlice::from_slice(&[1_u16, 2, 3]).unwrap();
        slice.with(|values| values.reverse());
        assert_eq!(&*slice.lock().unwrap(), [3, 2, 1]);
        let zeros = SharedSlice::<u64>::zeroed(100).unwrap();
        assert!(zeros.with(|values| values.iter().all(|value| *value == 0)));

        let memory = SharedMemory::new(10).unwrap();
        memory.write_at(7, b"end").unwrap();
        let mut read = [1; 4];
        memory.read_at(6, &mut read).unwrap();
        assert_eq!(&read, b"\0end");
        assert!(memory.write_at(8, b"end").is_err());
    }
}
