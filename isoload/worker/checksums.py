"""The CRCs of an archive's records."""

from __future__ import annotations

from collections.abc import Iterable

try:
    from isal.isal_zlib import crc32  # six times as fast as zlib's
except ImportError:  # no wheel for this kind of machine
    from zlib import crc32


def are_right(view: memoryview, records: Iterable[tuple[tuple[int, int], int]]) -> bool:
    """Whether each ((offset, bytes), CRC) holds."""
    return all(crc32(view[at : at + size]) == known for (at, size), known in records)


__all__ = ["are_right", "crc32"]
