"""A zip as torch reads it, with everything checked that torch does not check.

torch's own reader decides which record a name means and where its data starts. What the central
directory says of that record (how it is stored, its size, its CRC) is then held against the bytes.
A storage whose bytes lie in the file as they are is a slice of the mapping; any other is unpacked
into memory of its own.
"""

# mypy: disallow-untyped-calls=False
from __future__ import annotations

import contextlib
import sys
from collections import Counter
from collections.abc import Iterator
from typing import Any

import torch

from .checksums import crc32
from .directory import DATA_DESCRIPTOR, ENCRYPTED, STORED, Entry, read_directory, read_local
from .reading import Damaged, Reading, TooMuch, is_out_of_memory
from .torch_source import WorkerSource

CRC_LIMIT = 32 << 20
"""CRCs are checked where all records together have no more bytes than this: at 2 GB/s, 16 ms."""

MAX_RATIO = 1_100
"""DEFLATE cannot pack better than 1032 to 1: more is a lie."""


_NOTABLE = (".pkl", *"0123456789")
"""The records that hold the checkpoint itself, by how their names end."""


class _Storage:
    """What torch's loader takes from a record reader, without the tensor around it."""

    __slots__ = ("_untyped_storage",)

    def __init__(self, storage: torch.UntypedStorage) -> None:
        self._untyped_storage = storage

    def _typed_storage(self) -> _Storage:
        return self


class ZipArchive:
    """Stands in for torch's PyTorchFileReader: the same methods, and the same records.

    Raises `Damaged` where torch's reader finds no archive."""

    def __init__(self, source: WorkerSource, reading: Reading) -> None:
        self._source = source
        self._reading = reading
        with _torch_reads("the zip archive"):
            self._reader: Any = torch._C.PyTorchFileReader(source.file())
            self._names: list[str] = self._reader.get_all_records()
        self._entries: dict[int, Entry | None] = {}
        entries = read_directory(source.view)
        for entry in entries:
            known = self._entries.get(entry.header, entry)
            self._entries[entry.header] = entry if known == entry else None
        self._checks_crc = sum(entry.size for entry in entries) <= CRC_LIMIT
        self._told_packed = False
        self._warn_of_duplicates(entries)
        self.swapped = self._byte_order() != sys.byteorder

    def get_all_records(self) -> list[str]:
        return self._names

    def has_record(self, name: str) -> bool:
        with _torch_reads(name):
            return bool(self._reader.has_record(name))

    def _byte_order(self) -> str:
        order = self.get_record("byteorder") if self.has_record("byteorder") else b"little"
        if order not in (b"little", b"big"):
            raise Damaged(f"the archive's byte order is {order[:20]!r}")
        return order.decode()

    def serialization_id(self) -> str:
        return str(self._reader.serialization_id())

    def get_record_size(self, name: str) -> int:
        with _torch_reads(name):
            return int(self._reader.get_record_size(name))

    def get_record_offset(self, name: str) -> int:
        with _torch_reads(name):
            return int(self._reader.get_record_offset(name))

    def get_record(self, name: str) -> bytes:
        """One record's bytes, unpacked."""
        entry = self._checked(name)
        with _torch_reads(name):
            data = bytes(self._reader.get_record(name))
        if entry is not None and self._checks_crc and crc32(data) != entry.crc:
            self._warn_of_crc(name)
        return data

    def get_storage_from_record(self, name: str, count: int, dtype: object) -> _Storage:
        """torch's name for `storage`; it only ever asks for bytes."""
        del dtype
        return _Storage(self.storage(name, count))

    def storage(self, name: str, nbytes: int) -> torch.UntypedStorage:
        """One record as a storage of exactly `nbytes`: a slice of the mapping where that is
        possible.
        """
        entry = self._checked(name)
        size = self.get_record_size(name)
        if size != nbytes:
            raise Damaged(f"record {name!r} has {size} bytes, where its tensor needs {nbytes}")
        if not nbytes:
            return torch.UntypedStorage(0)
        if entry is None or self.swapped or not self._lies_open(name, entry):
            storage = self._unpacked(name, nbytes)
        else:
            offset = self.get_record_offset(name)
            storage = self._source.storage[offset : offset + nbytes]
        if entry is not None and self._checks_crc:
            held: Any = torch.empty(0, dtype=torch.uint8).set_(storage).numpy()
            if crc32(held) != entry.crc:
                self._warn_of_crc(name)
        return storage

    def _unpacked(self, name: str, nbytes: int) -> torch.UntypedStorage:
        with _torch_reads(name):
            tensor = self._reader.get_storage_from_record(name, nbytes, torch.UntypedStorage)
        storage: torch.UntypedStorage = tensor._typed_storage()._untyped_storage
        return storage

    def _checked(self, name: str) -> Entry | None:
        """The directory's entry for the record that torch means; None where that is uncertain."""
        with _torch_reads(name):
            header = int(self._reader.get_record_header_offset(name))
        entry = self._entries.get(header)
        if entry is None:
            self._reading.warn(
                f"record {name!r}: the zip's central directory does not say how it is stored"
            )
            return None
        if entry.flags & ENCRYPTED:
            raise Damaged(f"record {name!r} is encrypted")
        if entry.size > max(entry.packed, 1) * MAX_RATIO:
            raise TooMuch(
                "output", f"record {name!r} claims to unpack {entry.packed} bytes to {entry.size}"
            )
        if entry.method != STORED and name.endswith(_NOTABLE) and not self._told_packed:
            self._told_packed = True
            self._reading.warn(f"compressed records, {name!r} for one: unpacked into memory")
        return entry

    def _lies_open(self, name: str, entry: Entry) -> bool:
        """Whether the record's data stand in the file as they are, by both of its headers."""
        local = read_local(self._source.view, entry.header)
        if local is None or local.data != self.get_record_offset(name):
            return False
        agree = local.method == entry.method and local.name == entry.name
        if not local.flags & DATA_DESCRIPTOR:
            agree = agree and local.crc == entry.crc
        if not agree:
            self._reading.warn(
                f"record {name!r}: its own header and the zip's central directory disagree"
            )
        return (
            agree
            and entry.method == STORED
            and entry.packed == entry.size
            and local.data + entry.size <= self._source.size
        )

    def _warn_of_crc(self, name: str) -> None:
        self._reading.warn(
            f"record {name!r} does not match its CRC: its data were changed or damaged"
        )

    def _warn_of_duplicates(self, entries: list[Entry]) -> None:
        names = Counter(entry.name.lower() for entry in entries)
        for name, count in names.items():
            if count > 1:
                shown = name.decode("utf-8", "replace")
                self._reading.warn(
                    f"the archive has {count} records named {shown!r}: torch's choice was read"
                )


@contextlib.contextmanager
def _torch_reads(what: str) -> Iterator[None]:
    """What torch's reader raises means that the archive is damaged, unless memory ran out."""
    try:
        yield
    except (RuntimeError, UnicodeError) as error:
        if is_out_of_memory(error):
            raise
        raise Damaged(f"{what} cannot be read: {first_line(error)}") from None


def first_line(error: BaseException) -> str:
    """The first line of an error's text, bounded."""
    lines = str(error).strip().splitlines()
    return lines[0][:300] if lines else type(error).__name__
