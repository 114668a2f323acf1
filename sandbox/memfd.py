"""Sealed segments: how large data crosses between a worker and the parent.

A segment that a worker made is only used once it is a memfd that nobody can write, shrink or grow
any more (memfd_create(2), fcntl(2) F_ADD_SEALS): else it could change after it was checked, or
raise SIGBUS in the reader. And it must have the blocks that its size claims: reading a hole
allocates it in the reader.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import stat

from sandbox.errors import WorkerError

# fcntl(2): F_SEAL_SEAL, F_SEAL_SHRINK, F_SEAL_GROW, F_SEAL_WRITE. By number, for this module is
# imported on other systems too, where calling anything of it then fails.
SEALS = 0x1 | 0x2 | 0x4 | 0x8

_BLOCK = 512  # unit of st_blocks; stat(2)
_PAGE = mmap.PAGESIZE


def create_memfd(name: str, size: int | None = None) -> int:
    """A new sealable memfd, close-on-exec, of `size` bytes. The caller owns the descriptor."""
    fd = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    if size:
        try:
            os.ftruncate(fd, size)
        except BaseException:
            os.close(fd)
            raise
    return fd


def create_filled(name: str, data: bytes) -> int:
    """A new sealed memfd that holds `data`. The caller owns the descriptor."""
    fd = create_memfd(name)
    try:
        with open(fd, "wb", closefd=False) as file:
            file.write(data)
        seal(fd)
    except BaseException:
        os.close(fd)
        raise
    return fd


def seal(fd: int) -> None:
    """All four seals: from here nobody can change it. OSError EBUSY while a writable shared
    mapping of it lives anywhere."""
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, SEALS)


def check_segment(fd: int, max_bytes: int) -> int:
    """The size in bytes of a segment that a worker sent, once it is safe to map.

    Raises WorkerError unless `fd` is a regular memfd with all four seals, at most `max_bytes`
    large, and no sparser than its pages.
    """
    try:
        seals = fcntl.fcntl(fd, fcntl.F_GET_SEALS)
    except OSError as error:
        raise WorkerError("the worker sent a descriptor that is no memfd") from error
    if seals & SEALS != SEALS:
        raise WorkerError("the worker sent a segment that is not sealed")
    status = os.fstat(fd)  # after the seals: only now it stays true
    if not stat.S_ISREG(status.st_mode):
        raise WorkerError("the worker sent a descriptor that is no regular file")
    if status.st_blksize > _PAGE and os.fstatvfs(fd).f_bsize > _PAGE:
        raise WorkerError("the worker sent a segment of huge pages")
    if status.st_size > max_bytes:
        raise WorkerError(
            f"the worker sent a segment of {status.st_size} bytes where {max_bytes} are allowed"
        )
    if status.st_blocks * _BLOCK < status.st_size:
        raise WorkerError("the worker sent a segment with holes")
    return status.st_size


def map_segment(fd: int, size: int) -> mmap.mmap:
    """The segment in memory: private, so writable, and no one else sees the writes. Not for an
    empty one: mmap(2) maps no zero bytes. Use `check_segment` first."""
    return mmap.mmap(fd, size, mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_WRITE)
