"""A snapshot of a whole file that other threads make, in memory of this process that no worker
sees, while a worker reads the file itself.
"""

from __future__ import annotations

import errno
import os
import threading
import time
from abc import ABC, abstractmethod
from collections import deque

from sandbox import create_memfd

from .memory import HUGE_PAGE, Anonymous, map_private
from .snapshot import check_room, check_some, no_room

_LARGE = 64 << 20
"""Bytes from which it is worth finding out which pages are the faster, and having another thread
for each as many."""

_PIECE = HUGE_PAGE  # bytes that a thread copies before it looks what else there is to do
_MOST_THREADS = 4
_ALIGNMENT = 64
_FIRST = 8  # pieces in which another thread has tried the other kind of pages, if there is one
_SEEN_ENOUGH = 64  # pieces that a thread copies to one kind before it tries the other again


def copying(fd: int, size: int, name: str, *, at_end: bool = False) -> Copying:
    """A copy to be made of a file of that size.

    `at_end`: what is aligned is its end, not its start, which comes after `lead` bytes: for a file
    that ends with its last tensor, wherever the first one begins. Raises LimitError where there is
    no room.
    """
    lead = -size % _ALIGNMENT if at_end else 0
    kind = ByThreads if size >= _LARGE else ByKernel
    return kind(fd, size, name, lead)


class Copying(ABC):
    """A private copy of a whole file, from how it is now on; made from `start` on. `lead`: bytes
    before the file's first."""

    def __init__(self, fd: int, size: int, name: str, lead: int) -> None:
        check_room(lead + size, name)
        self.lead = lead
        self._size, self._name = size, name
        self._end = lead + size
        self._cancelled = False
        self._error: BaseException | None = None
        self._threads: list[threading.Thread] = []
        self._fd = os.dup(fd)
        try:
            self._before = _state(self._fd)
            self._make_room()
        except BaseException:
            self._close()
            raise

    @property
    def large(self) -> bool:
        """Whether it takes longer than all else of a load."""
        return self._size >= _LARGE

    @abstractmethod
    def _make_room(self) -> None:
        """What the bytes are copied to. Raises LimitError where it cannot be had."""

    @abstractmethod
    def _copy(self, number: int) -> None:
        """In a thread, the first of which has the number 0."""

    @abstractmethod
    def _copied(self) -> memoryview:
        """From the start of `lead` to where the file was found to end."""

    def start(self) -> None:
        """Begin, where that has not been done. Raises RuntimeError where no thread may run."""
        if self._threads:
            return
        for number in range(
            min(len(os.sched_getaffinity(0)), 1 + self._size // _LARGE, _MOST_THREADS)
        ):
            thread = threading.Thread(
                target=self._run, args=(number,), name="isoload-copy", daemon=True
            )
            try:
                thread.start()
            except RuntimeError:  # no more of them: those that there are do it all
                if not self._threads:
                    raise
                break
            self._threads.append(thread)

    def _run(self, number: int) -> None:
        try:
            self._copy(number)
        except BaseException as error:
            self._error = error  # for `finish` to raise

    def finish(self) -> tuple[memoryview, bool]:
        """See it through. Returns (the memory, `lead` bytes before the file's first; was the file
        as it is now all the time?). Raises OSError where the file could not be read."""
        try:
            self.start()
            self._join()
            if self._error is not None:
                raise self._error
            copied = self._copied()
            check_some(copied.nbytes - self.lead, self._name)
            whole = self._before[0] == self._size and copied.nbytes == self._end
            return copied, whole and _state(self._fd) == self._before
        finally:
            self._close()

    def cancel(self) -> None:
        """Stop, and wait until the threads have let go of the file."""
        self._cancelled = True
        self._join()
        self._close()

    def _join(self) -> None:
        for thread in self._threads:
            thread.join()

    def _close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


class ByKernel(Copying):
    """To a memfd that is then mapped: by sendfile(2), which clears no page before it fills it."""

    _memfd = -1

    def _make_room(self) -> None:
        self._memfd = create_memfd("isoload-source")
        os.lseek(self._memfd, self.lead, os.SEEK_SET)
        self._done = self.lead

    def _copy(self, number: int) -> None:
        del number
        while self._done < self._end and not self._cancelled:
            left = min(self._end - self._done, _PIECE)
            count = os.sendfile(self._memfd, self._fd, self._done - self.lead, left)
            if not count:
                return
            self._done += count

    def _copied(self) -> memoryview:
        return memoryview(map_private(self._memfd, self._done) if self._done else b"")

    def _close(self) -> None:
        super()._close()
        if self._memfd >= 0:
            os.close(self._memfd)
            self._memfd = -1


class ByThreads(Copying):
    """To anonymous memory, piece by piece, to the pages that take the least time: see `_Pages`."""

    def _make_room(self) -> None:
        try:
            self._memory = Anonymous(self._end)
        except OSError as error:  # a limit of this process's own, or no overcommitment
            if error.errno != errno.ENOMEM:
                raise
            raise no_room(self._end, 0, self._name) from None
        self._left = deque(range(0, self._end, _PIECE))
        self._ends = [self._end]  # where the file was found to end
        self._pages = _Pages()

    def _copy(self, number: int) -> None:
        huge = number % 2 == 0
        copied = 0
        try:
            while not self._cancelled:
                # Each kind of pages at one end: fewer mappings.
                start = self._left.pop() if huge else self._left.popleft()
                end = min(start + _PIECE, self._end)
                before = time.thread_time_ns()
                if huge:
                    self._memory.use_huge_pages(start, end)
                self._memory.populate(start, end)
                self._read(start, end)
                if end - start == _PIECE:
                    self._pages.note(huge, time.thread_time_ns() - before)
                copied += 1
                huge = self._pages.next(huge, copied)
        except IndexError:
            return  # all is copied, or being copied

    def _read(self, start: int, end: int) -> None:
        """What the file has for these offsets in the memory."""
        start = max(start, self.lead)
        while start < end:
            count = os.preadv(self._fd, [self._memory.view[start:end]], start - self.lead)
            if not count:
                self._ends.append(start)
                return
            start += count

    def _copied(self) -> memoryview:
        self._memory.use_huge_pages(0, self._end)  # khugepaged may make them later
        return self._memory.view[: min(self._ends)]


class _Pages:
    """Which kind of pages to copy to: those that took less of the processor's time so far.

    Huge ones take a quarter of what small ones take; or several times as much, where the kernel has
    to make them first, or the host of a virtual machine has taken back what lay free. Which it is
    shows only when they are written to.
    """

    def __init__(self) -> None:
        self._costs: dict[bool, int] = {}  # nanoseconds for a piece; True: huge

    def note(self, huge: bool, cost: int) -> None:
        self._costs[huge] = (self._costs.get(huge, cost) + cost) // 2

    def next(self, huge: bool, copied: int) -> bool:
        """What a thread uses after `copied` pieces. The other kind is tried now and then."""
        own, other = self._costs.get(huge), self._costs.get(not huge)
        if own is None:
            return huge
        if other is None:
            return huge if copied < _FIRST else not huge
        if copied % _SEEN_ENOUGH == 0:
            return not huge
        return huge if own <= other else not huge


def _state(fd: int) -> tuple[int, ...]:
    status = os.fstat(fd)
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns
