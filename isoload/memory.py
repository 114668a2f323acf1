"""Private memory that a result may lie on: nobody else sees what is written to it.

Nothing here knows what the bytes mean.
"""

from __future__ import annotations

import mmap
import sys
from contextlib import suppress
from typing import Any

HUGE_PAGE = 2 << 20
"""Bytes. Where the kernel has others, it is only a step of this size."""

_WRITABLE = mmap.PROT_READ | mmap.PROT_WRITE
_MADV_HUGEPAGE = 14  # madvise(2)
_MADV_NOHUGEPAGE = 15


def map_private(fd: int, size: int) -> mmap.mmap:
    """Map a descriptor copy on write: what is written stays in this process (mmap(2),
    MAP_PRIVATE)."""
    keep: dict[str, Any] = {"trackfd": False} if sys.version_info >= (3, 13) else {}
    return mmap.mmap(fd, size, flags=mmap.MAP_PRIVATE, prot=_WRITABLE, **keep)


def anonymous(size: int) -> mmap.mmap:
    """Zeros, that take memory once they are written to. Raises OSError where there is no room."""
    return mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, prot=_WRITABLE)


def use_huge_pages(memory: mmap.mmap, start: int, end: int, *, huge: bool) -> None:
    """Whether what has no page yet should get huge ones: a page fault for 2 MB instead of 512."""
    with suppress(OSError):  # a kernel without them
        memory.madvise(_MADV_HUGEPAGE if huge else _MADV_NOHUGEPAGE, start, end - start)
