"""The fast way through an ordinary checkpoint: from its pickle straight to manifest nodes.

torch.load(weights_only=True) spends most of its time on a tensor in a Python opcode loop, and in
making a storage and a tensor that the worker would only take apart again. Here neither is made.
What is read counts as read by `weights_only`, so this accepts a part of what torch accepts and
gives exactly what torch gives; for anything else `read_direct` returns None, and torch itself has a
look.

    direct_zip      where each record lies, and that the zip says so in one way only
    direct_scan     the pickle's opcodes against torch's
    direct_graph    the C unpickler, with inert stand-ins
    direct_nodes    what it made → nodes
    direct_legacy   the format from before torch 1.6

Nothing here raises for a file: an error is a None.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from isoload import manifest

from .direct_graph import ALLOWED, Bytes, Kind, Unusual, execute
from .direct_nodes import describe
from .direct_scan import scan
from .direct_zip import Records, Source, read_records


@dataclass(frozen=True)
class Direct:
    """A graph whose storages lie in the source as they are. `globals`: the names in its pickle."""

    graph: manifest.Graph
    container: str
    globals: list[str]


def read_direct(source: Source, request: manifest.Request) -> Direct | None:
    """Read an ordinary checkpoint, or return None: for torch.load to read."""
    with _no_garbage_collection():
        try:
            return _read_zip(source, request)
        except Exception:
            return None


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _read_zip(source: Source, request: manifest.Request) -> Direct | None:
    records = read_records(source)
    if records is None:
        return None
    offset, size = records["data.pkl"]
    program = scan(bytes(source.view[offset : offset + size]), 0, ALLOWED)
    if program is None:
        return None
    storages = _Stored(records, crosses=request.tensors)
    root, nodes = describe(execute(program.code, storages), request.max_nodes)
    return Direct(manifest.Graph(root, nodes, storages.table), "zip", program.globals)


class _Stored:
    """The storages of a zip: each a record, where it lies."""

    def __init__(self, records: Records, *, crosses: bool) -> None:
        self._records = records
        self._segment = manifest.SOURCE if crosses else manifest.ABSENT
        self._known: dict[str, Bytes] = {}
        self.table: list[manifest.Storage] = []

    def __call__(self, kind: Kind, key: str, location: str, count: object) -> Bytes:
        known = self._known.get(key)
        if known is not None:
            return known
        offset, nbytes = self._records[f"data/{key}"]
        if type(count) is not int or nbytes != count * kind.itemsize or offset % kind.itemsize:
            raise Unusual
        if location == "meta" or not location.isascii():
            raise Unusual
        storage = Bytes(len(self.table), kind, offset, nbytes)
        at = offset if self._segment == manifest.SOURCE else 0
        self.table.append(manifest.Storage(self._segment, at, nbytes, location))
        if nbytes:  # torch does not remember a storage that has no address: each is its own
            self._known[key] = storage
        return storage
