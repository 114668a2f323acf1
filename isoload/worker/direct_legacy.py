"""The format from before torch 1.6, read directly: a stream of pickles, then the storages' bytes.

    magic number · protocol version · system information · the object · the keys of its storages
    then for each key: the number of elements (int64) · the elements

A storage lies in the stream wherever the pickles happened to end, seldom where its elements are
aligned. The parent may have its copy of the stream lie so that the end is aligned (`lead`), and
with it most storages: those are used where they lie. The others are copied to an arena by the
kernel (sendfile(2)), in runs as long as the alignment allows.

What torch would leave uninitialised (a storage without bytes in the stream) and views of storages
are not handled here.
"""

from __future__ import annotations

import mmap
import os
import struct
from dataclasses import dataclass

from isoload import manifest
from sandbox import create_memfd, seal

from .direct_graph import Column, execute
from .direct_nodes import describe
from .direct_scan import Program, scan
from .direct_zip import Source
from .reading import Reading
from .stand_ins import Bytes, Kind, Unusual
from .vocabulary import Vocabulary

MAGIC = manifest.LEGACY_MAGIC + b"\x80\x02M\xe9\x03."
"""torch.serialization's MAGIC_NUMBER and PROTOCOL_VERSION, as pickles."""

_ALIGNMENT = 64
_SENDFILE_MAX = 0x7FFFF000
"""What one sendfile(2) moves at most."""


@dataclass
class _Run:
    """Storages that follow each other in the stream and are copied in one piece."""

    source: int
    arena: int
    nbytes: int


class _Streamed:
    """The storages of a stream, as its object names them; where they lie is known only after it."""

    def __init__(self) -> None:
        self.table: list[Bytes] = []
        self.locations: list[str] = []
        self.by_key: dict[str, Bytes] = {}

    def __call__(
        self, kinds: Column, keys: Column, locations: Column, counts: Column
    ) -> list[Bytes]:
        if set(map(type, counts)) != {int} or min(counts) < 0:
            raise Unusual
        columns = zip(kinds, keys, locations, counts, strict=True)
        return [self._storage(*mention) for mention in columns]

    def _storage(self, kind: Kind, key: str, location: str, count: int) -> Bytes:
        known = self.by_key.get(key)
        if known is not None and known.nbytes:
            return known
        if known is not None and count:
            raise Unusual
        storage = Bytes(len(self.table), kind, 0, count * kind.itemsize)
        self.table.append(storage)
        self.locations.append(location)
        self.by_key.setdefault(key, storage)  # an empty one has no address: each is its own
        return storage


def read_legacy(
    source: Source, request: manifest.Request, vocabulary: Vocabulary, reading: Reading
) -> None:
    """Into `reading`. Raises `Unusual`, or what else stands in the way."""
    stream = source.data
    if stream[: len(MAGIC)] != MAGIC:
        raise Unusual
    system = _scan(stream, len(MAGIC), vocabulary)
    execute(system.code, _no_storage, vocabulary)
    program = _scan(stream, system.end, vocabulary)
    storages = _Streamed()
    made = execute(program.code, storages, vocabulary, legacy=True)
    last = _scan(stream, program.end, vocabulary)
    keys = execute(last.code, _no_storage, vocabulary).root
    _locate(source, storages, keys, last.end)
    placed, runs, size = _place(source, storages, request)
    root, nodes = describe(made, request.max_nodes)
    if runs:
        reading.arena = _copy(source, runs, size)
    reading.container = "legacy"
    reading.globals = program.globals
    reading.graph = manifest.Graph(root, nodes, placed)


def _scan(stream: mmap.mmap | bytes, start: int, vocabulary: Vocabulary) -> Program:
    program = scan(stream, start, vocabulary)
    if program is None:
        raise Unusual
    return program


def _no_storage(kinds: Column, keys: Column, locations: Column, counts: Column) -> list[Bytes]:
    raise Unusual


def _locate(source: Source, storages: _Streamed, keys: object, start: int) -> None:
    """Where in the stream each storage lies: every one once, each as long as the object says."""
    if not isinstance(keys, list) or set(map(type, keys)) - {str}:
        raise Unusual
    if len(keys) != len(storages.by_key) or set(keys) != storages.by_key.keys():
        raise Unusual
    at = start
    for key in keys:
        storage = storages.by_key[key]
        (count,) = struct.unpack_from("<q", source.view, at)
        at += 8
        if count * storage.kind.itemsize != storage.nbytes or at + storage.nbytes > source.size:
            raise Unusual
        storage.offset = at
        at += storage.nbytes


def _place(
    source: Source, storages: _Streamed, request: manifest.Request
) -> tuple[list[manifest.Storage], list[_Run], int]:
    """(storages, what to copy, bytes of the arena)."""
    if not request.tensors:
        absent = [
            manifest.Storage(manifest.ABSENT, 0, storage.nbytes, location)
            for storage, location in zip(storages.table, storages.locations, strict=True)
        ]
        return absent, [], 0
    segments = [manifest.SOURCE] * len(storages.table)
    runs: list[_Run] = []
    end = 0
    for storage in sorted(storages.table, key=lambda storage: storage.offset):
        if not storage.nbytes:
            continue
        if (source.lead + storage.offset) % storage.kind.itemsize == 0:
            storage.offset += source.lead
            continue
        run = runs[-1] if runs else None
        if run is None or not _continues(run, storage):
            run = _Run(storage.offset, -(-end // _ALIGNMENT) * _ALIGNMENT, 0)
            runs.append(run)
        run.nbytes = storage.offset + storage.nbytes - run.source
        end = run.arena + run.nbytes
        storage.offset += run.arena - run.source
        segments[storage.index] = manifest.ARENA
    if end > request.max_output > 0:
        raise Unusual
    placed = [
        manifest.Storage(segment, storage.offset, storage.nbytes, location)
        for segment, storage, location in zip(
            segments, storages.table, storages.locations, strict=True
        )
    ]
    return placed, runs, end


def _continues(run: _Run, storage: Bytes) -> bool:
    """Whether a storage is the next of the stream, and aligned where the run would put it."""
    aligned = (storage.offset + run.arena - run.source) % storage.kind.itemsize == 0
    return aligned and storage.offset - (run.source + run.nbytes) == 8


def _copy(source: Source, runs: list[_Run], size: int) -> int:
    arena = create_memfd("arena", size)
    try:
        for run in runs:
            os.lseek(arena, run.arena, os.SEEK_SET)
            at, end = run.source, run.source + run.nbytes
            while at < end:
                copied = os.sendfile(arena, source.fd, at, min(end - at, _SENDFILE_MAX))
                if not copied:
                    raise Unusual
                at += copied
        seal(arena)
    except BaseException:
        os.close(arena)
        raise
    return arena
