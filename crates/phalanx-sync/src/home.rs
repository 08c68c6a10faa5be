//! Where a lock lives: on the heap of one process, or in the arena of the tree.
#![expect(
    unsafe_code,
    reason = "objects in the arena outlive the borrow of their hold"
)]

use std::fmt::Debug;
use std::ops::Deref;

use phalanx_prim::{Arc, AtomicU64};
use phalanx_shm::{AllocError, Held, Kind, Local, Node, OpenError, Placed, Scope, Shared, session};

use crate::handle;

/// Something could not be made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CreateError {
    /// No shared memory is left.
    #[error(transparent)]
    Alloc(#[from] AllocError),
    /// There is no arena and none can be made.
    #[error(transparent)]
    Session(#[from] OpenError),
    /// A size or number makes no sense.
    #[error("{what} of {given} is not possible; {instead}")]
    Invalid {
        /// What was to be made.
        what: &'static str,
        /// The number that was given.
        given: u64,
        /// What to do.
        instead: &'static str,
    },
}

mod sealed {
    pub trait Sealed {}
    impl Sealed for phalanx_shm::Local {}
    impl Sealed for phalanx_shm::Shared {}
}

/// A scope and the place where its objects live: [`Local`] (threads of this process) or [`Shared`] (processes of the tree).
pub trait Home: Scope + Sized + Debug + sealed::Sealed {
    /// A counted reference to an object of this scope.
    #[doc(hidden)]
    type Ref<T: Placed + Send + Sync + Debug>: Deref<Target = T> + Clone + Send + Sync + Debug;

    /// Returns which lock it is among all of the tree's; a private one keeps its number in `kept`.
    #[doc(hidden)]
    fn node<T: Placed + Send + Sync + Debug>(of: &Self::Ref<T>, kept: &AtomicU64) -> Node;
}

impl Home for Local {
    type Ref<T: Placed + Send + Sync + Debug> = Arc<T>;

    fn node<T: Placed + Send + Sync + Debug>(_: &Arc<T>, kept: &AtomicU64) -> Node {
        Node::private(kept)
    }
}

impl Home for Shared {
    type Ref<T: Placed + Send + Sync + Debug> = Object<T>;

    fn node<T: Placed + Send + Sync + Debug>(of: &Object<T>, _: &AtomicU64) -> Node {
        Node::shared(of.held().block())
    }
}

/// A counted reference to an object in the arena. It can be sent to any process of the tree (see [`handle`]).
pub struct Object<T: 'static> {
    held: Held,
    at: &'static T,
}

impl<T: Placed> Object<T> {
    /// Places `value` in the arena.
    ///
    /// # Errors
    ///
    /// [`CreateError`] when memory is short or there is no arena.
    pub fn new(value: T) -> Result<Self, CreateError> {
        Self::with_extra(value, 0)
    }

    /// Places `value` and `extra` zero bytes behind it.
    ///
    /// # Errors
    ///
    /// [`CreateError`] when memory is short or there is no arena.
    pub fn with_extra(value: T, extra: usize) -> Result<Self, CreateError> {
        crate::install();
        let arena = session()?;
        let block = arena.emplace_with(value, extra)?;
        Ok(Self::from_held(arena.publish(block)?))
    }

    /// Makes a reference of a hold on an object of this kind.
    #[must_use]
    pub fn from_held(held: Held) -> Self {
        let at = held.view::<T>();
        Self { held, at }
    }

    /// Returns the hold.
    #[must_use]
    pub fn held(&self) -> &Held {
        &self.held
    }

    /// Returns the address of the bytes behind the value.
    #[must_use]
    pub fn extra(&self) -> *mut u8 {
        let address = self.held.arena().address(self.held.block()).as_ptr();
        // SAFETY: the block holds a `T`; one past its end is still inside or at the end of the block.
        unsafe { address.add(size_of::<T>()) }
    }
}

impl<T: Placed> Clone for Object<T> {
    /// Takes another hold.
    ///
    /// # Panics
    ///
    /// If no memory is left to note it (every thousandth hold of a process needs a table of 8 KiB).
    fn clone(&self) -> Self {
        Self {
            held: self.held.clone(),
            at: self.at,
        }
    }
}

impl<T> Deref for Object<T> {
    type Target = T;

    #[inline]
    fn deref(&self) -> &T {
        self.at
    }
}

impl<T: Debug> Debug for Object<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Object")
            .field(&self.held.block())
            .field(self.at)
            .finish()
    }
}

impl<T: Placed> serde::Serialize for Object<T> {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        handle::serialize(&self.held, serializer)
    }
}

impl<'de, T: Placed> serde::Deserialize<'de> for Object<T> {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        crate::install();
        handle::deserialize(T::KIND, deserializer).map(Self::from_held)
    }
}

/// Up to 31 bytes of text that travel with an object.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct Name([u8; 32]);

impl Name {
    /// Keeps the first 31 bytes of `name`, cut at a character.
    #[must_use]
    pub fn new(name: &str) -> Self {
        let mut bytes = [0; 32];
        let mut len = name.len().min(31);
        while !name.is_char_boundary(len) {
            len -= 1;
        }
        bytes[..len].copy_from_slice(&name.as_bytes()[..len]);
        Self(bytes)
    }

    /// Returns the text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        let len = self
            .0
            .iter()
            .position(|byte| *byte == 0)
            .unwrap_or(self.0.len());
        std::str::from_utf8(&self.0[..len]).unwrap_or("")
    }
}

impl Debug for Name {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        Debug::fmt(self.as_str(), f)
    }
}

/// Makes `T` the type of a kind of block.
macro_rules! placed {
    ($type:ty, $kind:ident $(, $generics:tt)?) => {
        // SAFETY: repr(C), made of atomics, raw locks, gates and plain bytes written before the block is shared; the only
        // type placed under its kind (its two scopes have one layout, and only the shared one is ever placed).
        unsafe impl $(<$generics: phalanx_shm::Scope>)? phalanx_shm::Placed for $type {
            const KIND: phalanx_shm::Kind = phalanx_shm::Kind::$kind;
        }
    };
}
pub(crate) use placed;

/// Kinds this crate places; for the check of a received handle.
pub(crate) fn kind_name(kind: Kind) -> &'static str {
    match kind {
        Kind::Lock => "Lock",
        Kind::RLock => "RLock",
        Kind::Semaphore | Kind::Permits => "Semaphore",
        Kind::Barrier => "Barrier",
        Kind::Condition => "Condition",
        Kind::Event => "Event",
        Kind::Queue => "Queue",
        Kind::Shared => "Shared",
        Kind::End => "Connection",
        Kind::Pool => "Pool",
        Kind::Start => "Process",
        Kind::Store => "Store",
        _ => "block",
    }
}
