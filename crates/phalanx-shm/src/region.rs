//! A home for bytes: a shared mapping, or the heap for Miri and unit tests.
#![expect(unsafe_code, reason = "bytes at offsets become references")]

use std::alloc::Layout;
use std::io;
use std::ptr::NonNull;

use phalanx_sys::map::{Mapping, SharedFile};

/// Bytes with a fixed base in this process; offsets into it mean the same in every process.
#[derive(Debug)]
pub struct Region {
    base: NonNull<u8>,
    len: usize,
    home: Home,
}

#[derive(Debug)]
enum Home {
    Mapped { file: SharedFile, mapping: Mapping },
    Heap { layout: Layout },
}

// SAFETY: a region is plain memory; all access to shared bytes goes through atomics or a holder's exclusive right.
unsafe impl Send for Region {}
// SAFETY: as above; the methods only read the fields.
unsafe impl Sync for Region {}

impl Region {
    /// Makes an anonymous shared file and maps it. `len` is reserved, not used.
    ///
    /// # Errors
    ///
    /// When the system refuses the descriptor or the address range.
    pub fn create(len: usize) -> io::Result<Self> {
        let file = SharedFile::create("phalanx", len)?;
        Self::map(file, len)
    }

    /// Maps an inherited or received file of a known length.
    ///
    /// # Errors
    ///
    /// When the system refuses the mapping.
    pub fn map(file: SharedFile, len: usize) -> io::Result<Self> {
        let mapping = Mapping::new(&file, len)?;
        Ok(Self {
            base: mapping.base(),
            len,
            home: Home::Mapped { file, mapping },
        })
    }

    /// Makes a region of zeroed heap memory, seen by this process only.
    ///
    /// # Panics
    ///
    /// If the allocator has no `len` bytes.
    #[must_use]
    pub fn heap(len: usize) -> Self {
        let layout =
            Layout::from_size_align(len.max(1), 1 << 16).expect("a small power of two aligns");
        // SAFETY: the layout is not empty.
        let base = unsafe { std::alloc::alloc_zeroed(layout) };
        let Some(base) = NonNull::new(base) else {
            std::alloc::handle_alloc_error(layout)
        };
        Self {
            base,
            len,
            home: Home::Heap { layout },
        }
    }

    /// Returns the length in bytes.
    #[must_use]
    #[expect(clippy::len_without_is_empty, reason = "a region is never empty")]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Returns the shared file, `None` for a heap region.
    #[must_use]
    pub fn file(&self) -> Option<&SharedFile> {
        match &self.home {
            Home::Mapped { file, .. } => Some(file),
            Home::Heap { .. } => None,
        }
    }

    /// Gives the range its memory now.
    ///
    /// # Errors
    ///
    /// When there is none left.
    pub fn commit(&self, offset: usize, len: usize) -> io::Result<()> {
        match &self.home {
            Home::Mapped { file, .. } => file.commit(offset, len),
            Home::Heap { .. } => Ok(()),
        }
    }

    /// Gives the memory of the range back; it reads as zero afterwards (or keeps its bytes on the heap).
    pub fn release(&self, offset: usize, len: usize) {
        if let Home::Mapped { file, .. } = &self.home {
            // Punching a hole into a file of our own fails only when the system forbids it: then memory stays in use.
            let _ = file.release(offset, len);
        }
    }

    /// Enters the range into this process's page table in one call. Advice only.
    pub fn prefault(&self, offset: usize, len: usize) {
        if let Home::Mapped { mapping, .. } = &self.home {
            mapping.prefault(offset, len);
        }
    }

    /// Makes whole pages this process's own from now on: it sees what is there, and its writes stay with it.
    ///
    /// # Errors
    ///
    /// When the system allows no more mappings; on the heap, where all memory is this process's own.
    pub fn map_private(&self, offset: usize, len: usize) -> io::Result<()> {
        match &self.home {
            Home::Mapped { file, mapping } => mapping.remap(file, offset, len, false),
            Home::Heap { .. } => Err(io::ErrorKind::Unsupported.into()),
        }
    }

    /// Shares pages with the other processes again, after [`map_private`](Self::map_private). What was written since is lost.
    ///
    /// # Errors
    ///
    /// As [`map_private`](Self::map_private).
    pub fn map_shared(&self, offset: usize, len: usize) -> io::Result<()> {
        match &self.home {
            Home::Mapped { file, mapping } => mapping.remap(file, offset, len, true),
            Home::Heap { .. } => Err(io::ErrorKind::Unsupported.into()),
        }
    }

    /// Maps whole pages a second time, elsewhere, such that writes there stay there.
    ///
    /// # Errors
    ///
    /// As [`map_private`](Self::map_private).
    pub fn private_copy(&self, offset: usize, len: usize) -> io::Result<Mapping> {
        match &self.home {
            Home::Mapped { file, .. } => Mapping::private_copy(file, offset, len),
            Home::Heap { .. } => Err(io::ErrorKind::Unsupported.into()),
        }
    }

    /// Returns the address of `offset`.
    ///
    /// # Panics
    ///
    /// If `offset..offset + len` is not inside the region.
    #[inline]
    #[must_use]
    pub fn at(&self, offset: usize, len: usize) -> NonNull<u8> {
        assert!(
            offset <= self.len && len <= self.len - offset,
            "offset {offset} + {len} lies outside the arena of {} bytes",
            self.len
        );
        // SAFETY: the offset lies within the allocation (checked above).
        unsafe { self.base.add(offset) }
    }

    /// Returns the offset of an address, `None` if it lies outside.
    #[inline]
    #[must_use]
    pub fn offset_of(&self, address: *const u8) -> Option<usize> {
        let offset = (address as usize).checked_sub(self.base.as_ptr() as usize)?;
        (offset < self.len).then_some(offset)
    }

    /// Returns a reference to the `T` at `offset`.
    ///
    /// # Safety
    ///
    /// A `T` was placed at `offset` (or all-zero bytes are a valid `T`), it is changed only through its own interior
    /// mutability while the reference lives, and the memory is not given to another type before.
    ///
    /// # Panics
    ///
    /// If the range is outside the region or misaligned.
    #[inline]
    #[must_use]
    pub unsafe fn get<T>(&self, offset: usize) -> &T {
        let at = self.at(offset, size_of::<T>()).cast::<T>();
        assert!(at.is_aligned(), "offset {offset} is misaligned");
        // SAFETY: inside the region and aligned (checked); a valid `T` lives there (the caller's promise).
        unsafe { at.as_ref() }
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        if let Home::Heap { layout } = self.home {
            // SAFETY: allocated in `heap` with this layout; the owner of the region keeps no reference into it.
            unsafe { std::alloc::dealloc(self.base.as_ptr(), layout) };
        }
    }
}
