"""Shared memory with a name: the standard library's, without the harm its tracker does.

Only who created a segment has it tracked: a process that attaches to one and exits leaves it alone. Memory is had from the
system when the segment is created, so that writing to it later cannot be fatal.
"""

import errno
import mmap
import os
from multiprocessing import process, resource_tracker, util
from multiprocessing import shared_memory as _stock

import _posixshmem

__all__ = ["SharedMemory", "ShareableList"]

ShareableList = _stock.ShareableList

# Segments that this process created and nobody unlinked through it, for when it exits.
_created = {}


class SharedMemory(_stock.SharedMemory):
    """A segment of shared memory with a name. ``track`` is accepted; who attaches never has the segment tracked."""

    _track = False

    def __init__(self, name=None, create=False, size=0, *, track=True):
        if size < 0:
            raise ValueError("'size' must be a positive integer")
        if create:
            self._flags = os.O_CREAT | os.O_EXCL | os.O_RDWR
            if size == 0:
                raise ValueError("'size' must be a positive number different from zero")
        if name is None and not self._flags & os.O_EXCL:
            raise ValueError("'name' can only be None if create=True")
        made = bool(self._flags & os.O_EXCL)
        if name is None:
            self._open_new()
        else:
            self._open("/" + name if self._prepend_leading_slash else name)
        try:
            if create:
                _allocate(self._fd, size)
            self._size = os.fstat(self._fd).st_size
            self._mmap = mmap.mmap(self._fd, self._size)
        except OSError:
            if made:
                _posixshmem.shm_unlink(self._name)
            raise
        self._buf = memoryview(self._mmap)
        if made and track:
            self._track = True
            resource_tracker.register(self._name, "shared_memory")
            _note(self._name)

    def _open(self, name):
        self._fd = _posixshmem.shm_open(name, self._flags, mode=self._mode)
        self._name = name

    def _open_new(self):
        while True:
            try:
                return self._open(_stock._make_filename())
            except FileExistsError:
                continue

    def unlink(self):
        """Remove the name. The memory goes with the last process that has it open."""
        if not self._name:
            return
        _posixshmem.shm_unlink(self._name)
        _created.pop(self._name, None)
        if not self._track:
            # Whoever created it may have the same tracker: without this it would be told of the end of a name that it
            # does not know.
            resource_tracker.register(self._name, "shared_memory")
        resource_tracker.unregister(self._name, "shared_memory")


def _note(name):
    pid = os.getpid()
    if pid not in _created.values():
        # After the children were joined.
        util.Finalize(None, _unlink_all, (pid,), exitpriority=-50)
    _created[name] = pid


def _allocate(fd, size):
    try:
        os.posix_fallocate(fd, 0, size)
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS):
            raise
        # A system that cannot promise memory: as the standard library.
        os.ftruncate(fd, size)


def _unlink_all(pid):
    """Unlink at exit what this process created and nobody unlinked: the tracker would, and complain."""
    for name, creator in list(_created.items()):
        # A child's may be on its way to others; those stay the tracker's.
        if creator != pid or process.parent_process() is not None:
            continue
        try:
            _posixshmem.shm_unlink(name)
        except FileNotFoundError:
            # Unlinked by another process, a manager's for instance, perhaps with the same tracker: see `unlink`.
            resource_tracker.register(name, "shared_memory")
        resource_tracker.unregister(name, "shared_memory")
    _created.clear()


PATCHES = [("multiprocessing.shared_memory", "SharedMemory", SharedMemory)]
