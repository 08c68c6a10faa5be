//! Memory that several processes see: an anonymous file and its mapping.
#![expect(unsafe_code, reason = "mmap and munmap")]

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::ptr::NonNull;

use rustix::fs::{FallocateFlags, MemfdFlags};
use rustix::io::Errno;
use rustix::mm::{Advice, MapFlags, ProtFlags};

/// An unnamed file in memory; the kernel frees it with the last descriptor and mapping, however its users went.
#[derive(Debug)]
pub struct SharedFile {
    fd: OwnedFd,
}

impl SharedFile {
    /// Makes a file of `len` bytes, all zero, none of them using memory yet. The descriptor closes on exec.
    ///
    /// # Errors
    ///
    /// When the system has no descriptor left, or `RLIMIT_FSIZE` is below `len`.
    pub fn create(label: &str, len: usize) -> io::Result<Self> {
        // Beyond the limit ftruncate would send SIGXFSZ, which kills: ask before.
        let limit = rustix::process::getrlimit(rustix::process::Resource::Fsize).current;
        if limit.is_some_and(|limit| (len as u64) > limit) {
            return Err(io::Error::new(
                io::ErrorKind::FileTooLarge,
                format!(
                    "RLIMIT_FSIZE allows {} bytes, {len} were asked for",
                    limit.unwrap_or(0)
                ),
            ));
        }
        let fd = rustix::fs::memfd_create(label, MemfdFlags::CLOEXEC)?;
        rustix::fs::ftruncate(&fd, len as u64)?;
        Ok(Self { fd })
    }

    /// Gives the file another size; new bytes are zero.
    ///
    /// # Errors
    ///
    /// When `RLIMIT_FSIZE` is below `len`.
    pub fn resize(&self, len: usize) -> io::Result<()> {
        Ok(rustix::fs::ftruncate(&self.fd, len as u64)?)
    }

    /// Takes over a descriptor that was inherited or received.
    #[must_use]
    pub fn from_fd(fd: OwnedFd) -> Self {
        Self { fd }
    }

    /// Returns the size of the file in bytes.
    ///
    /// # Errors
    ///
    /// When the descriptor is not a file.
    pub fn size(&self) -> io::Result<u64> {
        Ok(rustix::fs::fstat(&self.fd)?.st_size as u64)
    }

    /// Reads into `buffer` from `offset`, returning how many bytes there were.
    ///
    /// # Errors
    ///
    /// When the descriptor cannot be read.
    pub fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        Ok(rustix::io::pread(&self.fd, buffer, offset)?)
    }

    /// Gives `len` bytes from `offset` their memory now, so that touching them cannot fail later.
    ///
    /// # Errors
    ///
    /// [`io::ErrorKind::StorageFull`] or [`io::ErrorKind::OutOfMemory`] when there is none left.
    pub fn commit(&self, offset: usize, len: usize) -> io::Result<()> {
        if len == 0 {
            return Ok(());
        }
        loop {
            match rustix::fs::fallocate(
                &self.fd,
                FallocateFlags::empty(),
                offset as u64,
                len as u64,
            ) {
                Ok(()) => return Ok(()),
                // A large reservation is undone when a signal comes in between; nothing was reported yet.
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Gives the memory of `len` bytes from `offset` back to the system; they read as zero afterwards.
    ///
    /// # Errors
    ///
    /// When the descriptor does not allow it.
    pub fn release(&self, offset: usize, len: usize) -> io::Result<()> {
        if len == 0 {
            return Ok(());
        }
        let mode = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        Ok(rustix::fs::fallocate(
            &self.fd,
            mode,
            offset as u64,
            len as u64,
        )?)
    }

    /// Returns the bytes of memory the file uses now.
    ///
    /// # Errors
    ///
    /// When the descriptor is not a file.
    pub fn committed(&self) -> io::Result<u64> {
        Ok((rustix::fs::fstat(&self.fd)?.st_blocks as u64) * 512)
    }
}

impl AsFd for SharedFile {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl AsRawFd for SharedFile {
    fn as_raw_fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }
}

impl From<SharedFile> for OwnedFd {
    fn from(file: SharedFile) -> Self {
        file.fd
    }
}

impl From<File> for SharedFile {
    fn from(file: File) -> Self {
        Self { fd: file.into() }
    }
}

/// A mapping of a [`SharedFile`], unmapped on drop. Forked children inherit it.
#[derive(Debug)]
pub struct Mapping {
    base: NonNull<u8>,
    len: usize,
}

// SAFETY: the mapping is plain memory of this process; access to its bytes is for the user of `base` to order.
unsafe impl Send for Mapping {}
// SAFETY: as above; the methods only read the two fields.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps `len` bytes of `file` from its start, readable and writable, shared with every other mapping.
    ///
    /// Reserves addresses only; it is left out of core dumps.
    ///
    /// # Errors
    ///
    /// When the address space (or `RLIMIT_AS`) does not hold `len` more bytes.
    pub fn new(file: &SharedFile, len: usize) -> io::Result<Self> {
        // SAFETY: a null hint lets the kernel choose a free range, so no existing mapping is touched.
        let base = unsafe {
            rustix::mm::mmap(
                std::ptr::null_mut(),
                len,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::SHARED | MapFlags::NORESERVE,
                &file.fd,
                0,
            )
        }?;
        // SAFETY: `base..base + len` is the mapping made above; the advice changes no content.
        let advised = unsafe { rustix::mm::madvise(base, len, Advice::LinuxDontDump) };
        // Without it a core file is only larger.
        let _: Result<(), Errno> = advised;
        let base =
            NonNull::new(base.cast()).ok_or_else(|| io::Error::other("mmap returned null"))?;
        Ok(Self { base, len })
    }

    /// Maps `len` bytes of `file` from `offset` once more, so that writes through this mapping stay in it. What was not written
    /// yet is what the file has.
    ///
    /// # Errors
    ///
    /// When the address space does not hold `len` more bytes.
    pub fn private_copy(file: &SharedFile, offset: usize, len: usize) -> io::Result<Self> {
        // SAFETY: a null hint lets the kernel choose a free range, so no existing mapping is touched.
        let base = unsafe {
            rustix::mm::mmap(
                std::ptr::null_mut(),
                len,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::PRIVATE | MapFlags::NORESERVE,
                &file.fd,
                offset as u64,
            )
        }?;
        // Its pages are entered as they are touched: the kernel takes sixteen at a time then, which is three times as quick as
        // populating, and who looks at a part has no more than that part.
        let base =
            NonNull::new(base.cast()).ok_or_else(|| io::Error::other("mmap returned null"))?;
        Ok(Self { base, len })
    }

    /// Maps the pages of `offset..offset + len` again at their place: `shared` with every other mapping of the file, or such
    /// that writes stay in this process. What this process wrote while they were its own is lost when they are shared again.
    ///
    /// # Errors
    ///
    /// When the range is not made of whole pages inside the mapping, or the system allows no more mappings.
    pub fn remap(
        &self,
        file: &SharedFile,
        offset: usize,
        len: usize,
        shared: bool,
    ) -> io::Result<()> {
        let page = rustix::param::page_size();
        let inside = offset.checked_add(len).is_some_and(|end| end <= self.len);
        if !inside || len == 0 || !offset.is_multiple_of(page) || !len.is_multiple_of(page) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let how = if shared {
            MapFlags::SHARED
        } else {
            MapFlags::PRIVATE
        };
        // SAFETY: the range lies within the mapping (checked above).
        let at = unsafe { self.base.as_ptr().add(offset) };
        // SAFETY: the range is whole pages of this mapping, and is replaced by pages of the same bytes of the same file: who
        // refers to them still may, and sees what the file has.
        unsafe {
            rustix::mm::mmap(
                at.cast(),
                len,
                ProtFlags::READ | ProtFlags::WRITE,
                how | MapFlags::FIXED | MapFlags::NORESERVE,
                &file.fd,
                offset as u64,
            )
        }?;
        // SAFETY: the pages mapped above; the advice changes no content.
        let advised = unsafe { rustix::mm::madvise(at.cast(), len, Advice::LinuxDontDump) };
        let _: Result<(), Errno> = advised;
        Ok(())
    }

    /// Returns the address of the first byte.
    #[must_use]
    pub fn base(&self) -> NonNull<u8> {
        self.base
    }

    /// Returns the length in bytes.
    #[must_use]
    #[expect(clippy::len_without_is_empty, reason = "a mapping is never empty")]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Enters the pages of `offset..offset + len` into this process's page table in one call, so that touching them
    /// takes no fault each. Only advice: where the kernel does not know it (before 5.14) nothing happens.
    pub fn prefault(&self, offset: usize, len: usize) {
        if offset.saturating_add(len) > self.len {
            return;
        }
        // SAFETY: the range lies within the mapping (checked above).
        let at = unsafe { self.base.as_ptr().add(offset) };
        // SAFETY: the pages belong to the mapping; populating changes no content.
        let done = unsafe { rustix::mm::madvise(at.cast(), len, Advice::LinuxPopulateWrite) };
        let _: Result<(), Errno> = done;
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the range is the mapping this value owns; whoever handed out references into it keeps it alive.
        let unmapped = unsafe { rustix::mm::munmap(self.base.as_ptr().cast(), self.len) };
        debug_assert!(unmapped.is_ok(), "munmap of our own mapping failed");
    }
}
