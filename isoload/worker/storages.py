"""The table of storages: one entry for each storage of the graph, and where its bytes lie.

A storage that lies in the mapped source as it is stays there; any other goes to the arena. Which it
is can be said only at the end, when the dtypes of all views of it are known.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch

from isoload import manifest as m
from isoload.check import MAX_TEXT

from .arena import Blob, lay_out, write_arena
from .reading import Reading, Unsupported


class _Entry:
    __slots__ = ("blob", "itemsize", "location", "nbytes")

    def __init__(self, blob: Blob | None, nbytes: int, location: str) -> None:
        self.blob = blob
        self.nbytes = nbytes
        self.location = location
        self.itemsize = 1


class StorageTable:
    """Entries in the order in which the walk met them. It keeps every storage alive."""

    def __init__(self, reading: Reading) -> None:
        self._reading = reading
        self._entries: list[_Entry] = []
        self._by_cdata: dict[int, int] = {}
        self._kept: list[Any] = []

    def index(self, storage: Any, itemsize: int) -> int:
        """The entry of a storage of which there is a view with items of that size."""
        cdata = storage._cdata
        index = self._by_cdata.get(cdata)
        if index is None:
            index = self._by_cdata[cdata] = len(self._entries)
            self._kept.append(storage)
            self._entries.append(self._entry(index, storage))
        entry = self._entries[index]
        if itemsize > entry.itemsize:
            entry.itemsize = itemsize
        return index

    def add_bytes(self, blob: Blob) -> int:
        """A new entry for bytes that are no torch storage."""
        index = len(self._entries)
        self._entries.append(_Entry(dataclasses.replace(blob, index=index), blob.nbytes, "cpu"))
        return index

    def add_absent(self, nbytes: int) -> int:
        """A new entry on the meta device."""
        self._entries.append(_Entry(None, nbytes, "meta"))
        return len(self._entries) - 1

    def _entry(self, index: int, storage: Any) -> _Entry:
        nbytes = storage.nbytes()
        kind = storage.device.type
        if kind == "meta":
            return _Entry(None, nbytes, "meta")
        if kind != "cpu":
            raise Unsupported(f"a tensor lies on the device {kind}")
        location = self._reading.location(storage)
        if type(location) is not str:
            location = str.__str__(location)
        if len(location) > MAX_TEXT or not location.isprintable():
            raise Unsupported("a storage's saved location is no printable name")
        if not nbytes:
            return _Entry(Blob(index, 0, 0, lambda: memoryview(b"")), 0, location)
        blob = Blob(index, storage.data_ptr(), nbytes, lambda: _bytes_of(storage))
        return _Entry(blob, nbytes, location)

    def finish(self, tensors: bool, max_bytes: int) -> tuple[list[m.Storage], int | None]:
        """The manifest's storages, and the arena's descriptor if there is one."""
        base, length = self._reading.mapping or (0, 0)
        if not self._reading.trusted_offsets:
            length = 0
        placed: list[m.Storage | None] = []
        copied: list[Blob] = []
        for entry in self._entries:
            blob = entry.blob
            if blob is None or not tensors:
                placed.append(m.Storage(m.ABSENT, 0, entry.nbytes, entry.location))
                continue
            offset = blob.address - base
            if not entry.nbytes:
                placed.append(m.Storage(m.SOURCE, 0, 0, entry.location))
            elif 0 <= offset <= length - entry.nbytes and offset % entry.itemsize == 0:
                placed.append(m.Storage(m.SOURCE, offset, entry.nbytes, entry.location))
            else:
                placed.append(None)
                copied.append(blob)
        if not copied:
            return [storage for storage in placed if storage is not None], None
        offsets = lay_out(copied, max_bytes)
        arena = write_arena(copied, offsets)
        return [
            storage or m.Storage(m.ARENA, offsets[index], entry.nbytes, entry.location)
            for index, (storage, entry) in enumerate(zip(placed, self._entries, strict=True))
        ], arena


def _bytes_of(storage: Any) -> memoryview:
    """A storage's bytes, without a copy."""
    return memoryview(torch.empty(0, dtype=torch.uint8).set_(storage).numpy())
