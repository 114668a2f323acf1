"""Private memory that a result may lie on: nobody else sees what is written to it.

Nothing here knows what the bytes mean.
"""

from __future__ import annotations

import ctypes
import mmap
import sys
from typing import Any

HUGE_PAGE = 2 << 20
"""Bytes. Where the kernel has others, it is only a step of this size."""

_WRITABLE = mmap.PROT_READ | mmap.PROT_WRITE
_MADV_HUGEPAGE = 14  # madvise(2)
_MADV_NOHUGEPAGE = 15
_MADV_POPULATE_WRITE = 23

_madvise = ctypes.CDLL(None).madvise
_madvise.argtypes = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int


def map_private(fd: int, size: int) -> mmap.mmap:
    """Map a descriptor copy on write: what is written stays in this process (mmap(2),
    MAP_PRIVATE)."""
    keep: dict[str, Any] = {"trackfd": False} if sys.version_info >= (3, 13) else {}
    return mmap.mmap(fd, size, flags=mmap.MAP_PRIVATE, prot=_WRITABLE, **keep)


class Anonymous:
    """Zeros, that take memory once they are written to. `view`: the bytes, from the start of a huge
    page on, as not every kernel places a mapping by itself. Raises OSError where there is no
    room."""

    def __init__(self, size: int) -> None:
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
        memory = mmap.mmap(-1, size + HUGE_PAGE, flags=flags, prot=_WRITABLE)
        address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
        start = -address % HUGE_PAGE
        self._address = address + start
        self.view = memoryview(memory)[start : start + size]
        self._advise(0, size, _MADV_NOHUGEPAGE)

    def use_huge_pages(self, start: int, end: int) -> None:
        """What has no page yet between these multiples of 2 MB should get huge ones: a page fault
        instead of 512. Nothing, where the kernel has none."""
        self._advise(start, end, _MADV_HUGEPAGE)

    def populate(self, start: int, end: int) -> None:
        """Take the pages from a multiple of 2 MB on, in one call. On a kernel before 5.14, none."""
        self._advise(start, end, _MADV_POPULATE_WRITE)

    def _advise(self, start: int, end: int, advice: int) -> None:
        # Not by mmap.madvise, which keeps the interpreter's lock.
        _madvise(self._address + start, end - start, advice)
