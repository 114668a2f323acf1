"""Storages by their persistent ids: what a pickle within a torch archive refers to.

An id is ("storage", type, key, location, count), where the type is torch's name for a dtype.
"""

# mypy: disallow-untyped-calls=False
from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch.storage import TypedStorage

from .archive import ZipArchive
from .reading import Damaged
from .tags import Tags

_MAX_BYTES = 1 << 62


class StorageId(NamedTuple):
    """A storage as an id names it; `rest` is what only some formats have."""

    dtype: torch.dtype
    key: str
    location: str
    nbytes: int
    rest: tuple[Any, ...]


def storage_id(saved_id: object) -> StorageId:
    """The parts of a storage's id, checked."""
    if type(saved_id) is not tuple or len(saved_id) < 5 or _text(saved_id[0]) != "storage":
        raise Damaged("a persistent id is not that of a storage")
    _, kind, key, location, count, *rest = saved_id
    dtype = torch.uint8 if kind is torch.UntypedStorage else getattr(kind, "dtype", None)
    if not isinstance(dtype, torch.dtype) or type(count) is not int:
        raise Damaged("a storage's id has no type or no size")
    nbytes = count * torch._utils._element_size(dtype)
    if not 0 <= nbytes < _MAX_BYTES:
        raise Damaged(f"a storage claims to have {count} elements")
    return StorageId(dtype, str(_text(key)), str(_text(location)), nbytes, tuple(rest))


def _text(value: object) -> object:
    if type(value) is bytes:
        return value.decode("ascii", "replace")
    if type(value) is int:
        return str(value)
    if type(value) is not str:
        raise Damaged(f"a storage's id has a {type(value).__name__} where a string should be")
    return value


def typed(storage: torch.UntypedStorage, dtype: torch.dtype) -> TypedStorage:
    """A storage as torch's loaders hand it to a pickle."""
    return TypedStorage(wrap_storage=storage, dtype=dtype, _internal=True)


class RecordStorages:
    """The storages of an archive, each in a record of its own: `record` gives its name from the
    key.
    """

    def __init__(self, archive: ZipArchive, tags: Tags, record: Callable[[str], str]) -> None:
        self._archive = archive
        self._tags = tags
        self._record = record
        self._loaded: dict[str, TypedStorage] = {}

    def __call__(self, saved_id: object) -> TypedStorage:
        wanted = storage_id(saved_id)
        if wanted.key in self._loaded:
            return self._loaded[wanted.key]
        storage = self._archive.storage(self._record(wanted.key), wanted.nbytes)
        if self._archive.swapped and wanted.nbytes:
            storage.byteswap(wanted.dtype)
        self._tags.note(storage, wanted.location)
        made = typed(storage, wanted.dtype)
        if wanted.nbytes:
            self._loaded[wanted.key] = made
        return made
