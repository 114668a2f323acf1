"""A snapshot: the bytes of a file, as they were at one time.

Either it is a sealed memfd, copied inside the kernel before anything reads it. Or, of a file that
is lent to the worker, it is memory of this process, which no worker sees, filled while the worker
reads that file. Then the file must not have changed in between: what the worker says of the file is
to be true of the snapshot.
"""

from __future__ import annotations

import errno
import mmap
import os
import threading
import time
from collections import deque

import psutil

from sandbox import create_memfd, seal

from .errors import CheckpointError, LimitError
from .memory import HUGE_PAGE, anonymous, use_huge_pages

_SENDFILE_MAX = 0x7FFFF000  # what one sendfile(2) moves at most
_BLOCK = 16 << 20  # bytes that a thread copies before it looks whether anybody still wants them
_SHARE = 64 << 20  # bytes that are worth a thread
_MOST_THREADS = 4
_SLOW = 800_000  # nanoseconds of CPU for a huge page: more than for as many bytes in small ones
_BLOCKS_WITHOUT = 8  # that are copied to small pages before huge ones are tried again
_ALIGNMENT = 64


def take(fd: int, offset: int, size: int, name: str) -> tuple[int, int]:
    """Copy `size` bytes from `offset` of `fd`. Returns (sealed memfd, bytes that there were)."""
    _check_room(size, name)
    memfd = create_memfd("isoload-source")
    try:
        done = 0
        while done < size:
            count = os.sendfile(memfd, fd, offset + done, min(size - done, _SENDFILE_MAX))
            if not count:  # the file became shorter: what was read is what there is
                break
            done += count
        _check_some(done, name)
        seal(memfd)
    except BaseException:
        os.close(memfd)
        raise
    return memfd, done


class Copying:
    """A private copy of a whole file that is being made by other threads.

    `at_end`: what is aligned is its end, not its start, which comes after `lead` bytes: for a file
    that ends with its last tensor, wherever the first one begins.
    """

    def __init__(self, fd: int, size: int, name: str, *, at_end: bool = False) -> None:
        self.lead = -size % _ALIGNMENT if at_end else 0
        self._fd, self._size, self._name = fd, size, name
        self._before = _state(fd)
        self._end = self.lead + size
        self._memory = _room(self._end, name)
        self._view = memoryview(self._memory)
        self._left = deque(range(0, self._end, _BLOCK))
        self._without_huge = 0  # blocks
        self._ends = [self._end]  # where the file was found to end
        self._cancelled = False
        self._error: OSError | None = None
        self._threads: list[threading.Thread] = []
        for _ in range(min(len(os.sched_getaffinity(0)), 1 + size // _SHARE, _MOST_THREADS)):
            thread = threading.Thread(target=self._run, name="isoload-copy", daemon=True)
            try:
                thread.start()
            except RuntimeError:  # no more of them: those that there are do it all
                if not self._threads:
                    raise
                break
            self._threads.append(thread)

    def _run(self) -> None:
        try:
            while not self._cancelled:
                try:
                    start = self._left.popleft()
                except IndexError:
                    return
                self._copy_block(start, min(start + _BLOCK, self._end))
        except OSError as error:
            self._error = error

    def _copy_block(self, start: int, end: int) -> None:
        """To huge pages, which take a quarter of the time of small ones; but several times as much
        where the kernel has to make them, or where the host of a virtual machine has taken back
        what lay free: then to small ones."""
        if self._without_huge:
            self._without_huge -= 1
        else:
            use_huge_pages(self._memory, start, end, huge=True)
            slow = 0
            while start < end and slow < 2:
                before = time.thread_time_ns()
                step = min(end, start + HUGE_PAGE)
                self._copy(start, step)
                start = step
                slow = slow + 1 if time.thread_time_ns() - before > _SLOW else 0
            if start == end:
                return
            self._without_huge = _BLOCKS_WITHOUT
        use_huge_pages(self._memory, start, end, huge=False)
        self._copy(start, end)

    def _copy(self, start: int, end: int) -> None:
        """What the file has for these offsets in the memory."""
        start = max(start, self.lead)
        while start < end:
            count = os.preadv(self._fd, [self._view[start:end]], start - self.lead)
            if not count:
                self._ends.append(start)
                return
            start += count

    def finish(self) -> tuple[memoryview, bool]:
        """Wait for it. Returns (the memory, `lead` bytes before the file's first; was the file as
        it is now all the time?). Raises OSError where the file could not be read."""
        self._join()
        if self._error is not None:
            raise self._error
        end = min(self._ends)
        _check_some(end - self.lead, self._name)
        use_huge_pages(self._memory, 0, self._end, huge=True)  # khugepaged may make them later
        whole = self._before[0] == self._size and end == self._end
        return self._view[:end], whole and _state(self._fd) == self._before

    def cancel(self) -> None:
        """Stop, and wait until the threads have let go of the descriptor."""
        self._cancelled = True
        self._join()

    def _join(self) -> None:
        for thread in self._threads:
            thread.join()


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


def _state(fd: int) -> tuple[int, ...]:
    status = os.fstat(fd)
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns


def _check_room(nbytes: int, name: str) -> None:
    available = psutil.virtual_memory().available
    if nbytes > available:
        raise _no_room(nbytes, available, name)


def _no_room(nbytes: int, available: int, name: str) -> LimitError:
    return LimitError(
        f"{name}: a snapshot takes {nbytes} bytes of memory and the host has {available} left; "
        "load it with mmap=True, which needs none",
        "memory",
        available,
    )


def _room(nbytes: int, name: str) -> mmap.mmap:
    _check_room(nbytes, name)
    try:
        return anonymous(nbytes)
    except OSError as error:  # a limit of this process's own: of address space, or overcommitment
        if error.errno != errno.ENOMEM:
            raise
        raise _no_room(nbytes, 0, name) from None


def _check_some(nbytes: int, name: str) -> None:
    if not nbytes:
        raise CheckpointError(f"{name}: is empty")
