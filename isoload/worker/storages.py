"""The table of storages: one entry for each storage of the graph, and where its bytes lie.

A storage that lies in the mapped source as it is stays there; any other goes to the arena. Which it
is can be said only at the end, when the dtypes of all views of it are known.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from isoload import manifest as m
from isoload.bounds import MAX_TEXT

from .arena import Blob, lay_out, write_arena
from .reading import Reading, Unsupported


class _Entry:
    """A storage, or (`blob`) bytes that are none; `address` is None on the meta device."""

    __slots__ = ("address", "blob", "itemsize", "location", "nbytes", "storage")

    def __init__(
        self,
        storage: Any,
        address: int | None,
        nbytes: int,
        location: str,
        blob: Blob | None = None,
    ) -> None:
        self.storage = storage
        self.address = address
        self.nbytes = nbytes
        self.location = location
        self.blob = blob
        self.itemsize = 1


class StorageTable:
    """Entries in the order in which the walk met them. It keeps every storage alive. `read`: a
    storage's bytes, without a copy."""

    def __init__(self, reading: Reading, read: Callable[[Any], memoryview]) -> None:
        self._reading = reading
        self._read = read
        self._entries: list[_Entry] = []
        self._by_cdata: dict[int, int] = {}

    def index(self, storage: Any, itemsize: int) -> int:
        """The entry of a storage of which there is a view with items of that size."""
        cdata = storage._cdata
        index = self._by_cdata.get(cdata)
        if index is None:
            index = self._by_cdata[cdata] = len(self._entries)
            self._entries.append(self._entry(storage))
        entry = self._entries[index]
        if itemsize > entry.itemsize:
            entry.itemsize = itemsize
        return index

    def add_bytes(self, blob: Blob) -> int:
        """A new entry for bytes that are no torch storage."""
        index = len(self._entries)
        blob = dataclasses.replace(blob, index=index)
        self._entries.append(_Entry(None, blob.address, blob.nbytes, "cpu", blob))
        return index

    def _entry(self, storage: Any) -> _Entry:
        nbytes = storage.nbytes()
        device = storage.device.type
        if device != "cpu":
            if device != "meta":
                raise Unsupported(f"a tensor lies on the device {device}")
            return _Entry(storage, None, nbytes, "meta")
        location = self._reading.location(storage)
        if location != "cpu" and (len(location) > MAX_TEXT or not location.isprintable()):
            raise Unsupported("a storage's saved location is no printable name")
        return _Entry(storage, storage.data_ptr(), nbytes, location)

    def finish(self, tensors: bool, max_bytes: int) -> tuple[list[m.Storage], int | None]:
        """The manifest's storages, and the arena's descriptor if there is one."""
        base, length = self._reading.mapping or (0, 0)
        if not self._reading.trusted_offsets:
            length = 0
        placed: list[m.Storage | None] = []
        copied: list[Blob] = []
        for index, entry in enumerate(self._entries):
            address, nbytes = entry.address, entry.nbytes
            if address is None or not tensors:
                placed.append(m.Storage(m.ABSENT, 0, nbytes, entry.location))
            elif not nbytes:
                placed.append(m.Storage(m.SOURCE, 0, 0, entry.location))
            elif 0 <= address - base <= length - nbytes and not (address - base) % entry.itemsize:
                placed.append(m.Storage(m.SOURCE, address - base, nbytes, entry.location))
            else:
                placed.append(None)
                copied.append(entry.blob or self._blob(index, address, entry))
        if not copied:
            return [storage for storage in placed if storage is not None], None
        offsets = lay_out(copied, max_bytes)
        arena = write_arena(copied, offsets)
        return [
            storage or m.Storage(m.ARENA, offsets[index], entry.nbytes, entry.location)
            for index, (storage, entry) in enumerate(zip(placed, self._entries, strict=True))
        ], arena

    def _blob(self, index: int, address: int, entry: _Entry) -> Blob:
        return Blob(index, address, entry.nbytes, lambda: self._read(entry.storage))
