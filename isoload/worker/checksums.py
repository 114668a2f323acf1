"""The CRCs of an archive's records."""

from __future__ import annotations

import os
from collections.abc import Iterable

try:
    from isal.isal_zlib import crc32  # six times as fast as zlib's
except ImportError:  # no wheel for this kind of machine
    from zlib import crc32

_CHUNK = 1 << 18
"""Bytes that are read at a time: they stay in the processor's cache. To map the file and look at
all of it takes twice as long, half of it when the worker ends and its pages are unmapped."""


def are_right(fd: int, records: Iterable[tuple[tuple[int, int], int]]) -> bool:
    """Whether each ((offset, bytes), CRC) of the file holds. They overlap nowhere."""
    buffer = memoryview(bytearray(_CHUNK))
    start = end = 0  # what of the file is in the buffer
    for (begin, size), known in sorted(records):
        crc, at, stop = 0, begin, begin + size
        while at < stop:
            if at >= end:
                start, end = at, at + os.preadv(fd, [buffer], at)
                if end == start:
                    return False
            upto = min(stop, end)
            crc = crc32(buffer[at - start : upto - start], crc)
            at = upto
        if crc != known:
            return False
    return True


__all__ = ["are_right", "crc32"]
