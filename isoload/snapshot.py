"""A snapshot: the bytes of a file, as they were at one time, in a sealed memfd.

It is copied inside the kernel, before anything reads it. `copying` has the snapshot of a file that
is lent to the worker.
"""

from __future__ import annotations

import os

import psutil

from sandbox import create_memfd, seal

from .errors import CheckpointError, LimitError

_SENDFILE_MAX = 0x7FFFF000  # what one sendfile(2) moves at most


def take(fd: int, offset: int, size: int, name: str) -> tuple[int, int]:
    """Copy `size` bytes from `offset` of `fd`. Returns (sealed memfd, bytes that there were)."""
    check_room(size, name)
    memfd = create_memfd("isoload-source")
    try:
        done = 0
        while done < size:
            count = os.sendfile(memfd, fd, offset + done, min(size - done, _SENDFILE_MAX))
            if not count:  # the file became shorter: what was read is what there is
                break
            done += count
        check_some(done, name)
        seal(memfd)
    except BaseException:
        os.close(memfd)
        raise
    return memfd, done


def sealed(data: memoryview) -> int:
    """A sealed memfd of these bytes: for a worker to read."""
    memfd = create_memfd("isoload-source")
    try:
        write_all(memfd, data)
        seal(memfd)
    except BaseException:
        os.close(memfd)
        raise
    return memfd


def write_all(fd: int, data: memoryview) -> None:
    """write(2) may write less than it is given."""
    done = 0
    while done < data.nbytes:
        done += os.write(fd, data[done:])


def check_room(nbytes: int, name: str) -> None:
    """Raise LimitError where the host has no memory for a snapshot."""
    available = psutil.virtual_memory().available
    if nbytes > available:
        raise no_room(nbytes, available, name)


def no_room(nbytes: int, available: int, name: str) -> LimitError:
    """What `check_room` raises."""
    return LimitError(
        f"{name}: a snapshot takes {nbytes} bytes of memory and the host has {available} left; "
        "load it with mmap=True, which needs none",
        "memory",
        available,
    )


def check_some(nbytes: int, name: str) -> None:
    """Raise CheckpointError where there was nothing to copy."""
    if not nbytes:
        raise CheckpointError(f"{name}: is empty")
