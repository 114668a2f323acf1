"""Where the records of an ordinary checkpoint lie: the offset and size of ten thousand at a time.

The central directory is read here as arrays, and every way in which a zip can say two things at
once ends in None: another reader, which asks torch for each record, has a look at it then. What is
left has one reading only, and torch's own reader need not be asked for it:

- the end record stands at the very end; the 64-bit one, if any, directly before it, and they agree;
- the entries follow each other from the directory's start to its end, as many as the end record
  says;
- their names are in one folder and plain text, and no two differ only in case, nor does one from
  what torch looks for;
- each record is stored, of the same size packed and unpacked, and without encryption;
- each record's own header names it the same, and its data lie in the file and overlap no other's;
- the CRCs hold, where the records are small enough to check.

No pickle is opened here, and nothing is copied but the headers.
"""

from __future__ import annotations

import re
import struct
import sys
from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np

from isoload import manifest

from .checksums import are_right
from .direct_graph import Column
from .stand_ins import Bytes, Unusual

if TYPE_CHECKING:
    import mmap

CRC_LIMIT = 64 << 20
"""CRCs are checked where all records together have no more bytes than this."""

_END = struct.Struct("<4sHHHHIIH")
_END64_LOCATOR = struct.Struct("<4sIQI")
_END64 = struct.Struct("<4sQHHIIQQQQ")
_SIZES = [("crc", "<u4"), ("packed", "<u4"), ("size", "<u4"), ("name", "<u2"), ("extra", "<u2")]
_ENTRY = np.dtype([
    *(("signature", "S4"), ("versions", "<u4"), ("flags", "<u2"), ("method", "<u2")),
    ("time", "<u4"),
    *_SIZES,
    *(("comment", "<u2"), ("disk", "<u2"), ("inner", "<u2"), ("outer", "<u4"), ("header", "<u4")),
])  # fmt: skip
_LOCAL = np.dtype([
    *(("signature", "S4"), ("version", "<u2"), ("flags", "<u2"), ("method", "<u2")),
    ("time", "<u4"),
    *_SIZES,
])  # fmt: skip
_DESCRIPTOR = 0x8
_OTHER_FLAGS = 0xFFFF & ~(_DESCRIPTOR | 0x800)
"""All but a data descriptor and UTF-8 names: what torch and zip programs write for stored
records."""
_DIRECTORY = 0x10
"""The attribute of MS-DOS: torch's reader leaves the memory for such a record as it found it."""
_ENTRY_SIGNATURE = b"PK\1\2"
_MAX_NAME = 300
_SETTINGS = (
    b".data/serialization_id",
    b".data/version",
    b".format_version",
    b".storage_alignment",
    b"byteorder",
    b"constants.pkl",
    b"version",
)
_PLAIN = bytes(range(0x20, 0x7F)) + b"\n"
_MAX32 = 0xFFFFFFFF
_MAX16 = 0xFFFF

Records = dict[str, tuple[int, int]]
"""Name in the archive, without its folder: (offset in the file, bytes)."""


class Source(Protocol):
    """The file's bytes, as the readers of the worker see them."""

    fd: int
    size: int
    lead: int

    @property
    def data(self) -> mmap.mmap | bytes: ...

    @property
    def view(self) -> memoryview: ...


class Archive(NamedTuple):
    """Every record of an archive, and their CRCs where they are few enough bytes to check."""

    records: Records
    sums: list[int]

    def is_intact(self, source: Source) -> bool:
        """Whether the CRCs hold. Last of all: it takes longer than all else in a small file."""
        pairs = zip(self.records.values(), self.sums, strict=False)
        return are_right(source.fd, pairs)


def read_archive(source: Source) -> Archive | None:
    """Where everything lies, or None where torch should be asked for each record."""
    try:
        archive = _archive(source)
        _check_settings(source.view, archive.records)
    except (Unusual, RuntimeError, ValueError, UnicodeError, struct.error):
        return None
    return archive


class Stored:
    """The storages of a zip: each a record, where it lies."""

    def __init__(self, records: Records, *, crosses: bool) -> None:
        self._records = records
        self._segment = manifest.SOURCE if crosses else manifest.ABSENT
        self._known: dict[str, Bytes] = {}
        self.table: list[manifest.Storage] = []

    def __call__(
        self, kinds: Column, keys: Column, locations: Column, counts: Column
    ) -> list[Bytes]:
        if set(map(type, counts)) != {int}:
            raise Unusual
        records, known, table = self._records, self._known, self.table
        crosses = self._segment == manifest.SOURCE
        found: list[Bytes] = []
        for kind, key, location, count in zip(kinds, keys, locations, counts, strict=True):
            storage = known.get(key)
            if storage is None:
                offset, nbytes = records["data/" + key]
                if nbytes != count * kind.itemsize or offset % kind.itemsize:
                    raise Unusual
                storage = Bytes(len(table), kind, offset, nbytes)
                at = offset if crosses else 0
                table.append(manifest.Storage(self._segment, at, nbytes, location))
                if nbytes:  # torch does not remember one that has no address: each is its own
                    known[key] = storage
            found.append(storage)
        return found


def _require(holds: object) -> None:
    if not holds:
        raise Unusual


def _check_settings(view: memoryview, records: Records) -> None:
    """What torch.load looks at before the pickle. `constants.pkl` tells a TorchScript archive."""
    _require("constants.pkl" not in records and "data.pkl" in records and sys.byteorder == "little")
    byteorder = records.get("byteorder")
    _require(byteorder is None or _bytes(view, byteorder) == b"little")
    alignment = records.get(".storage_alignment")
    _require(alignment is None or re.fullmatch(rb"\d{1,9}", _bytes(view, alignment)))
    version = records.get(".data/version", records.get("version"))
    _require(version is not None and re.fullmatch(rb"([1-9]|10)\n?", _bytes(view, version)))
    identity = records.get(".data/serialization_id")
    _require(identity is None or _bytes(view, identity).isascii())


def _bytes(view: memoryview, record: tuple[int, int]) -> bytes:
    offset, size = record
    return bytes(view[offset : offset + size])


def _directory(view: memoryview) -> tuple[int, int, int]:
    """(offset, bytes, entries) of the central directory."""
    _require(bytes(view[:4]) == b"PK\3\4")
    end = len(view) - _END.size
    signature, disk, first, here, count, size, offset, comment = _END.unpack_from(view, end)
    _require(signature == b"PK\5\6" and not (disk or first or comment) and here == count)
    locator = end - _END64_LOCATOR.size
    if bytes(view[locator : locator + 4]) == b"PK\6\7":
        end = locator - _END64.size
        short = (count, size, offset)
        _, disk, at, disks = _END64_LOCATOR.unpack_from(view, locator)
        signature, length, _, _, disk64, first64, here, count, size, offset = _END64.unpack_from(
            view, end
        )
        _require(
            signature == b"PK\6\6" and length == _END64.size - 12 and at == end and here == count
        )
        _require(not (disk or disk64 or first64) and disks == 1)
        limits = (_MAX16, _MAX32, _MAX32)
        pairs = zip(short, (count, size, offset), limits, strict=True)
        _require(all(value in (limit, wide) for value, wide, limit in pairs))
    else:
        _require(count < _MAX16 and size < _MAX32 and offset < _MAX32)
    _require(offset + size == end)
    return offset, size, count


def _archive(source: Source) -> Archive:
    data = source.data
    offset, size, count = _directory(source.view)
    directory = data[offset : offset + size]
    entries, starts = _entries(directory, count)
    at, sizes = entries["header"].astype(np.int64), entries["size"].astype(np.int64)
    wide = np.flatnonzero((entries["header"] == _MAX32) | (entries["size"] == _MAX32))
    for index in wide.tolist():
        at[index], sizes[index] = _wide(directory, entries[index], int(starts[index]))
    local = _structs(data, at, _LOCAL)
    lengths = entries["name"]
    _require((local["signature"] == b"PK\3\4").all() and (local["name"] == lengths).all())
    _require(not local["method"].any() and not (local["flags"] & _OTHER_FLAGS).any())
    described = (local["flags"] & _DESCRIPTOR) != 0
    _require((described | (local["crc"] == entries["crc"])).all())
    begins = at + _LOCAL.itemsize + lengths + local["extra"]
    order = np.argsort(begins, kind="stable")
    ends = begins + sizes
    _require((ends[order][:-1] <= at[order][1:]).all() and int(ends.max()) <= offset)

    spelled = _spelled(directory, starts + _ENTRY.itemsize, lengths)
    _require(spelled == _spelled(data, at + _LOCAL.itemsize, lengths))
    names = _names(spelled)
    places = zip(begins.tolist(), sizes.tolist(), strict=True)
    sums = entries["crc"].tolist() if int(sizes.sum()) <= CRC_LIMIT else []
    return Archive(dict(zip(names, places, strict=True)), sums)


def _entries(directory: bytes, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The central directory's entries, one chain without a gap, and the offset of each in it."""
    before, *spans = map(len, directory.split(_ENTRY_SIGNATURE))
    _require(before == 0 and len(spans) == count > 0)
    lengths = np.array(spans) + len(_ENTRY_SIGNATURE)
    starts = np.cumsum(lengths) - lengths
    entries = _structs(directory, starts, _ENTRY)
    texts = entries["name"].astype(np.int64) + entries["extra"] + entries["comment"]
    _require(np.array_equal(lengths, _ENTRY.itemsize + texts))
    _require(int(entries["name"].max()) <= _MAX_NAME)
    _require(not entries["method"].any() and np.array_equal(entries["packed"], entries["size"]))
    _require(not entries["disk"].any() and not (entries["flags"] & _OTHER_FLAGS).any())
    _require(not (entries["outer"] & _DIRECTORY).any())
    return entries, starts


def _structs(data: bytes | mmap.mmap, at: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """The structs that start at each of the offsets, of which there is one at least."""
    last = len(data) - dtype.itemsize
    _require(int(at.min()) >= 0 and int(at.max()) <= last)
    windows: np.ndarray = np.ndarray((last + 1, dtype.itemsize), np.uint8, data, 0, (1, 1))
    rows: np.ndarray = windows[at].view(dtype)[:, 0]
    return rows


def _spelled(data: bytes | mmap.mmap, starts: np.ndarray, lengths: np.ndarray) -> list[bytes]:
    """The names that stand at the offsets."""
    ends = (starts + lengths).tolist()
    return [data[start:end] for start, end in zip(starts.tolist(), ends, strict=True)]


def _names(spelled: list[bytes]) -> list[str]:
    """The records' names within the archive's one folder, which is the first name's. No two differ
    only in case, none is a folder's, and all are what torch's C strings can hold."""
    lines = b"\n".join(spelled)
    _require(lines.count(b"\n") == len(spelled) - 1 and not lines.translate(None, _PLAIN))
    _require(b"/\n" not in lines + b"\n")
    lowered = set(lines.lower().split(b"\n"))
    _require(len(lowered) == len(spelled))
    folder, slash, _ = spelled[0].partition(b"/")
    for setting in _SETTINGS:  # torch finds them also in capitals
        name = folder + b"/" + setting
        _require(name.lower() not in lowered or name in spelled)
    before, *names = f"\n{lines.decode('ascii')}".split(f"\n{folder.decode('ascii')}/")
    _require(slash and not before and len(names) == len(spelled))
    return names


def _wide(directory: bytes, entry: np.ndarray, start: int) -> tuple[int, int]:
    """(header offset, bytes) of an entry with 64-bit values: its extra field holds nothing else."""
    begin = start + _ENTRY.itemsize + int(entry["name"])
    extra = directory[begin : begin + int(entry["extra"])]
    kind, length = struct.unpack_from("<HH", extra)
    _require(kind == 1 and length == len(extra) - 4 and length % 8 == 0)
    values = list(struct.unpack(f"<{length // 8}Q", extra[4:]))
    size = packed = int(entry["size"])
    header = int(entry["header"])
    if size == _MAX32:
        _require(len(values) >= 2)
        size, packed = values.pop(0), values.pop(0)
    if header == _MAX32:
        _require(values)
        header = values.pop(0)
    _require(not values and size == packed and size < 1 << 62 and header < 1 << 62)
    return header, size
