"""The central directory of a zip, as it stands in the file.

It says how each record is stored and what its CRC should be. It never says which record torch
reads: that is asked of torch, and the answer is looked up here by the offset of the record's local
header.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from .reading import Damaged

_END = struct.Struct("<4sHHHHIIH")
_END64_LOCATOR = struct.Struct("<4sIQI")
_END64 = struct.Struct("<4sQHHIIQQQQ")
_ENTRY = struct.Struct("<4s4B4H3I5H2I")
_LOCAL = struct.Struct("<4s5H3I2H")
_MAX_COMMENT = 0xFFFF
_MAX32 = 0xFFFFFFFF
_ZIP64_EXTRA = 1

ENCRYPTED = 0x1
DATA_DESCRIPTOR = 0x8
STORED = 0


class Entry(NamedTuple):
    """One record: `packed` and `size` in bytes, `header` the offset of its local header."""

    name: bytes
    flags: int
    method: int
    crc: int
    packed: int
    size: int
    header: int


class Local(NamedTuple):
    """A record's local header, with the offset at which its data starts."""

    flags: int
    method: int
    crc: int
    packed: int
    size: int
    name: bytes
    data: int


def read_directory(view: memoryview) -> list[Entry]:
    """Every entry of the central directory, in its order."""
    tail = bytes(view[max(len(view) - _END.size - _MAX_COMMENT, 0) :])
    at = tail.rfind(b"PK\x05\x06")
    if at < 0 or len(tail) - at < _END.size:
        raise Damaged("the zip has no central directory: it is truncated")
    end = len(view) - len(tail) + at
    (_, _, _, _, count, size, offset, _) = _END.unpack_from(view, end)
    locator = end - _END64_LOCATOR.size
    if locator >= 0 and bytes(view[locator : locator + 4]) == b"PK\x06\x07":
        end64 = _END64_LOCATOR.unpack_from(view, locator)[2]
        if end64 + _END64.size <= len(view) and bytes(view[end64 : end64 + 4]) == b"PK\x06\x06":
            *_, count, size, offset = _END64.unpack_from(view, end64)
    if offset + size > len(view):
        raise Damaged(
            f"the zip's central directory should end at byte {offset + size}, after the file does"
        )
    return _entries(view[offset : offset + size], count)


def _entries(directory: memoryview, count: int) -> list[Entry]:
    entries: list[Entry] = []
    at = 0
    for _ in range(count):
        if at + _ENTRY.size > len(directory):
            raise Damaged(
                f"the zip's central directory ends after {len(entries)} of {count} entries"
            )
        fields = _ENTRY.unpack_from(directory, at)
        if fields[0] != b"PK\x01\x02":
            raise Damaged(
                f"entry {len(entries)} of the zip's central directory has a wrong signature"
            )
        flags, method, crc, packed, size = fields[5], fields[6], fields[9], fields[10], fields[11]
        name_length, extra_length, comment_length = fields[12:15]
        header = fields[18]
        at += _ENTRY.size
        name = bytes(directory[at : at + name_length])
        extra = bytes(directory[at + name_length : at + name_length + extra_length])
        at += name_length + extra_length + comment_length
        size, packed, header = _zip64(extra, size, packed, header)
        entries.append(Entry(name, flags, method, crc, packed, size, header))
    return entries


def _zip64(extra: bytes, size: int, packed: int, header: int) -> tuple[int, int, int]:
    at = 0
    while at + 4 <= len(extra):
        kind, length = struct.unpack_from("<HH", extra, at)
        body = extra[at + 4 : at + 4 + length]
        at += 4 + length
        if kind != _ZIP64_EXTRA:
            continue
        values = iter(struct.unpack_from(f"<{len(body) // 8}Q", body))
        size, packed, header = (
            next(values, value) if value == _MAX32 else value for value in (size, packed, header)
        )
    return size, packed, header


def read_local(view: memoryview, header: int) -> Local | None:
    """The local header at an offset, or None where there is none."""
    if header + _LOCAL.size > len(view):
        return None
    fields = _LOCAL.unpack_from(view, header)
    if fields[0] != b"PK\x03\x04":
        return None
    _, _, flags, method, _, _, crc, packed, size, name_length, extra_length = fields
    start = header + _LOCAL.size
    name = bytes(view[start : start + name_length])
    return Local(flags, method, crc, packed, size, name, start + name_length + extra_length)
