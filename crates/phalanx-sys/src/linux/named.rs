//! Shared memory with a name that unrelated programs can open.

use std::io;

use rustix::fs::Mode;
use rustix::shm::OFlags;

use super::map::SharedFile;

fn path(name: &str) -> io::Result<String> {
    let bare = name.strip_prefix('/').unwrap_or(name);
    if bare.is_empty() || bare.contains('/') || bare.len() > 250 {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            format!("{name:?} is not a name for shared memory: 1 to 250 bytes without a slash"),
        ));
    }
    Ok(format!("/{bare}"))
}

/// Makes a named file of `len` zero bytes with all its memory reserved, readable and writable by this user.
///
/// # Errors
///
/// When the name is taken or there is no memory; nothing is left of the name then.
pub fn create(name: &str, len: usize) -> io::Result<SharedFile> {
    let path = path(name)?;
    let fd = rustix::shm::open(
        &path,
        OFlags::CREATE | OFlags::EXCL | OFlags::RDWR,
        Mode::RUSR | Mode::WUSR,
    )?;
    let file = SharedFile::from_fd(fd);
    let sized = file.resize(len).and_then(|()| file.commit(0, len));
    if let Err(error) = sized {
        let _ = rustix::shm::unlink(&path);
        return Err(error);
    }
    Ok(file)
}

/// Opens a named file that exists.
///
/// # Errors
///
/// When there is none, or this user may not.
pub fn open(name: &str) -> io::Result<SharedFile> {
    Ok(SharedFile::from_fd(rustix::shm::open(
        path(name)?,
        OFlags::RDWR,
        Mode::empty(),
    )?))
}

/// Removes the name; the memory lives on until its last user is gone.
///
/// # Errors
///
/// When there is no such name.
pub fn unlink(name: &str) -> io::Result<()> {
    Ok(rustix::shm::unlink(path(name)?)?)
}
