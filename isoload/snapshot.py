"""A snapshot: the bytes of a file in a sealed memfd, copied inside the kernel.

It is taken before anything reads it, or, of a file that is lent to the worker, while the worker
reads that file. Then the file must not have changed in between: what the worker says of the file is
to be true of the snapshot.
"""

from __future__ import annotations

import os
import threading

import psutil

from sandbox import create_memfd, seal

from .errors import CheckpointError, LimitError

_SENDFILE_MAX = 0x7FFFF000  # what one sendfile(2) moves at most
_STEP = 64 << 20  # bytes: between two looks at whether anybody still wants the copy


def take(fd: int, offset: int, size: int, name: str) -> tuple[int, int]:
    """Copy `size` bytes from `offset` of `fd`. Returns (memfd, bytes that there were)."""
    memfd = _room(size, name)
    try:
        done = 0
        while done < size:
            count = os.sendfile(memfd, fd, offset + done, min(size - done, _SENDFILE_MAX))
            if not count:  # the file became shorter: what was read is what there is
                break
            done += count
        _finish(memfd, done, name)
    except BaseException:
        os.close(memfd)
        raise
    return memfd, done


class Copying:
    """A snapshot of a whole file that is being taken by another thread."""

    def __init__(self, fd: int, size: int, name: str) -> None:
        self._fd, self._size, self._name = os.dup(fd), size, name
        self._cancelled = False
        self._done = 0
        self._error: OSError | None = None
        self._memfd = -1
        try:
            self._before = _state(self._fd)
            self._memfd = _room(size, name)
            self._thread = threading.Thread(target=self._run, name="isoload-copy", daemon=True)
            self._thread.start()
        except BaseException:
            self._close()
            raise

    def _run(self) -> None:
        try:
            while self._done < self._size and not self._cancelled:
                step = min(self._size - self._done, _STEP)
                count = os.sendfile(self._memfd, self._fd, self._done, step)
                if not count:
                    break
                self._done += count
        except OSError as error:
            self._error = error

    def finish(self) -> tuple[int, int, bool]:
        """Wait for it. Returns (memfd, which is the caller's, bytes, was the file as it is now all
        the time?). Raises OSError where the file could not be read.

        Where it was, no worker gets the memfd, and it is not sealed: that looks at every page.
        """
        self._thread.join()
        try:
            if self._error is not None:
                raise self._error
            same = _state(self._fd) == self._before and self._before[0] == self._size == self._done
            if not same:
                _finish(self._memfd, self._done, self._name)
            memfd, self._memfd = self._memfd, -1
        finally:
            self._close()
        return memfd, self._done, same

    def cancel(self) -> None:
        """Stop, and wait until the thread has let go of the descriptors."""
        self._cancelled = True
        self._thread.join()
        self._close()

    def _close(self) -> None:
        for fd in (self._fd, self._memfd):
            if fd >= 0:
                os.close(fd)
        self._fd = self._memfd = -1


def _state(fd: int) -> tuple[int, ...]:
    status = os.fstat(fd)
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns


def _room(size: int, name: str) -> int:
    available = psutil.virtual_memory().available
    if size > available:
        raise LimitError(
            f"{name}: a snapshot takes {size} bytes of memory and the host has {available} left; "
            "load it with mmap=True, which needs none",
            "memory",
            available,
        )
    return create_memfd("isoload-source")


def _finish(memfd: int, done: int, name: str) -> None:
    if not done:
        raise CheckpointError(f"{name}: is empty")
    seal(memfd)
