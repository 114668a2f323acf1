"""Where the records of an ordinary checkpoint lie: the offset and size of ten thousand at a time.

torch's own reader opens the archive and says which names it finds; the central directory is read
here as arrays, and every way in which a zip can say two things at once ends in None: another
reader, which asks torch for each record, has a look at it then. What is left has one reading only:

- the end record stands at the very end; the 64-bit one, if any, directly before it, and they agree;
- the entries follow each other from the directory's start to its end, as many as the end record
  says;
- their names are those that torch's reader lists, in its order, and no two differ only in case;
- each record is stored, of the same size packed and unpacked, and without encryption;
- each record's own header names it the same, and its data lie in the file and overlap no other's;
- the CRCs hold, where the records are small enough to check.

No pickle is opened here, and nothing is copied but the headers.
"""

from __future__ import annotations

import re
import struct
import sys
import zlib
from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np
import torch

from isoload import manifest

from .direct_graph import Bytes, Column, Unusual

if TYPE_CHECKING:
    import mmap
    from typing import IO

CRC_LIMIT = 32 << 20
"""CRCs are checked where all records together have no more bytes than this: at 2 GB/s, 16 ms."""

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
_FLAGS = (0, _DESCRIPTOR, 0x800, 0x808)
"""No flag, a data descriptor, UTF-8 names: what torch and zip programs write for stored records."""
_DIRECTORY = 0x10
"""The attribute of MS-DOS: torch's reader leaves the memory for such a record as it found it."""
_MAX32 = 0xFFFFFFFF
_MAX16 = 0xFFFF

Records = dict[str, tuple[int, int]]
"""Name in the archive, without its folder: (offset in the file, bytes)."""


class Source(Protocol):
    """The file's bytes, as the readers of the worker see them."""

    fd: int
    size: int

    @property
    def data(self) -> mmap.mmap | bytes: ...

    @property
    def view(self) -> memoryview: ...

    def file(self) -> IO[bytes]: ...


class Archive(NamedTuple):
    """Every record of an archive, and their CRCs where they are few enough bytes to check."""

    records: Records
    sums: list[int]

    def is_intact(self, view: memoryview) -> bool:
        """Whether the CRCs hold. Last of all: it takes longer than all else in a small file."""
        crc32 = zlib.crc32
        pairs = zip(self.records.values(), self.sums, strict=False)
        return all(crc32(view[at : at + size]) == known for (at, size), known in pairs)


def read_archive(source: Source) -> Archive | None:
    """Where everything lies, or None where torch should be asked for each record."""
    try:
        reader = torch._C.PyTorchFileReader(source.file())
        names: list[str] = reader.get_all_records()
        reader.serialization_id()
        archive = _archive(source.view, names)
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
        _require(not (disk or disk64 or first64) and disks in (0, 1))
        limits = (_MAX16, _MAX32, _MAX32)
        pairs = zip(short, (count, size, offset), limits, strict=True)
        _require(all(value in (limit, wide) for value, wide, limit in pairs))
    else:
        _require(count < _MAX16 and size < _MAX32 and offset < _MAX32)
    _require(offset + size == end)
    return offset, size, count


def _structs(data: np.ndarray, at: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """The structs that start at each of the offsets."""
    _require(at.size and int(at.min()) >= 0 and int(at.max()) + dtype.itemsize <= data.size)
    windows = np.lib.stride_tricks.sliding_window_view(data, dtype.itemsize)
    rows: np.ndarray = windows[at].view(dtype)[:, 0]
    return rows


def _archive(view: memoryview, names: list[str]) -> Archive:
    offset, size, count = _directory(view)
    data = np.frombuffer(view, dtype=np.uint8)
    directory = data[offset : offset + size]
    entries, starts = _entries(directory, count)
    _require(len(names) == count)
    at = entries["header"].astype(np.int64)
    sizes = entries["size"].astype(np.int64)
    for index in np.flatnonzero(
        (entries["header"] == _MAX32) | (entries["size"] == _MAX32)
    ).tolist():
        at[index], sizes[index] = _wide(directory, entries[index], int(starts[index]))
    local = _structs(data, at, _LOCAL)
    lengths = entries["name"].astype(np.int64)
    begins = at + _LOCAL.itemsize + lengths + local["extra"]
    _require(np.all(local["signature"] == b"PK\3\4") and np.all(local["name"] == entries["name"]))
    _require(np.all(local["method"] == 0) and np.all(np.isin(local["flags"], _FLAGS)))
    described = (local["flags"] & _DESCRIPTOR) != 0
    _require(np.all(described | (local["crc"] == entries["crc"])))
    order = np.argsort(begins, kind="stable")
    ends = begins + sizes
    _require(np.all(ends[order][:-1] <= at[order][1:]) and int(ends.max()) <= offset)

    spelled = _spelled(directory, starts + _ENTRY.itemsize, lengths)
    _require(np.array_equal(spelled, _spelled(data, at + _LOCAL.itemsize, lengths)))
    text = spelled.tobytes().decode("ascii")
    folder = text.partition("/")[0] + "/"
    _require("".join([folder + name for name in names]) == text)
    _require(np.array_equal(lengths, [len(name) + len(folder) for name in names]))
    _require(
        len({name.lower() for name in names}) == count and not any(n[-1:] == "/" for n in names)
    )
    places = zip(begins.tolist(), sizes.tolist(), strict=True)
    sums = entries["crc"].tolist() if int(sizes.sum()) <= CRC_LIMIT else []
    return Archive(dict(zip(names, places, strict=True)), sums)


def _entries(directory: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The central directory's entries, and the offset of each in it: one chain without a gap."""
    words = directory[: directory.size // 2 * 2]
    even = np.flatnonzero(words.view("<u2") == 0x4B50) * 2
    words = directory[1 : 1 + (directory.size - 1) // 2 * 2]
    odd = np.flatnonzero(words.view("<u2") == 0x4B50) * 2 + 1
    starts = np.sort(np.concatenate((even, odd)))
    starts = starts[starts + _ENTRY.itemsize <= directory.size]
    entries = _structs(directory, starts, _ENTRY)
    real = entries["signature"] == b"PK\1\2"
    starts, entries = starts[real], entries[real]
    _require(len(entries) == count)
    lengths = (
        _ENTRY.itemsize + entries["name"].astype(np.int64) + entries["extra"] + entries["comment"]
    )
    _require(starts[0] == 0 and np.array_equal(starts[1:], (starts + lengths)[:-1]))
    _require(starts[-1] + lengths[-1] == directory.size)
    _require(not entries["method"].any() and np.array_equal(entries["packed"], entries["size"]))
    _require(not entries["disk"].any() and np.all(np.isin(entries["flags"], _FLAGS)))
    _require(not (entries["outer"] & _DIRECTORY).any())
    return entries, starts


def _wide(directory: np.ndarray, entry: np.ndarray, start: int) -> tuple[int, int]:
    """(header offset, bytes) of an entry with 64-bit values: its extra field holds nothing else."""
    begin = start + _ENTRY.itemsize + int(entry["name"])
    extra = directory[begin : begin + int(entry["extra"])].tobytes()
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


def _spelled(data: np.ndarray, starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """The bytes of all names, one after the other."""
    ends = np.cumsum(lengths)
    return data[np.repeat(starts - (ends - lengths), lengths) + np.arange(int(ends[-1]))]
