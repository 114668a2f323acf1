"""The tar files of torch 0.1: storages, tensors and the pickle are members of their own.

They are read in memory. (torch itself unpacks them into a temporary folder.)
"""

# mypy: disallow-untyped-calls=False
from __future__ import annotations

import struct
import tarfile
from typing import Any

import torch
from torch.storage import TypedStorage

from isoload import manifest

from ..archive import first_line
from ..inert import Context, InertUnpickler
from ..ladder import Rung, climb
from ..makers import Decline
from ..makers.tensors import check_extent
from ..persistent import typed
from ..reading import INERT, Damaged, Reading, Unsupported
from ..tags import Tags
from ..torch_source import WorkerSource

_MEMBERS = ("storages", "tensors", "pickle")
_MAX_DIMS = 64


def read(source: WorkerSource, request: manifest.Request, reading: Reading) -> None:
    """A tar file."""
    members = _members(source)

    def inert() -> object:
        tags = Tags()
        reading.location = tags.location
        reading.mapping = source.mapping
        context = Context(reading, tags)
        storages = _storages(*members["storages"], source, context)
        tensors = _tensors(*members["tensors"], source, context, storages)

        def persistent(saved_id: object) -> object:
            if type(saved_id) is tuple and saved_id:  # a class, with its source
                return saved_id[0]
            key = _number(saved_id)
            held = tensors.get(key, storages.get(key))
            if held is None:
                raise Damaged(f"the pickle refers to tensor {key}, which the file does not have")
            return held

        start, end = members["pickle"]
        return InertUnpickler(source.data[start:end], context, persistent).load()

    climb(reading, request, Rung(INERT, inert))


def _members(source: WorkerSource) -> dict[str, tuple[int, int]]:
    """Where each of the three members lies in the file: (start, end)."""
    found: dict[str, tuple[int, int]] = {}
    names = []
    try:
        with tarfile.open(fileobj=source.file(), mode="r:") as archive:
            for member in archive:
                names.append(member.name)
                name = member.name.removeprefix("./")
                if name in _MEMBERS and member.isreg() and not member.issparse():
                    found[name] = (member.offset_data, member.offset_data + member.size)
    except (tarfile.TarError, OSError, ValueError) as error:
        raise Damaged(f"a damaged tar file: {first_line(error)}") from None
    if len(found) < len(_MEMBERS):
        shown = ", ".join(names[:6])
        raise Unsupported(f"a tar file, but none that torch wrote: it holds {shown or 'nothing'}")
    for name, (_, end) in found.items():
        if end > source.size:
            raise Damaged(
                f"the file is cut off: {name} should end at byte {end}, the file at {source.size}"
            )
    return found


def _storages(
    start: int, end: int, source: WorkerSource, context: Context
) -> dict[int, TypedStorage]:
    unpickler = InertUnpickler(source.data[start:end], context)
    made: dict[int, TypedStorage] = {}
    for _ in range(_count(unpickler.load())):
        entry = unpickler.load()
        if type(entry) is not tuple or len(entry) != 3:
            raise Damaged("a storage's entry is not three values")
        key, location, kind = entry
        dtype = getattr(kind, "dtype", None)
        if not isinstance(dtype, torch.dtype) or type(location) is not str:
            raise Damaged("a storage's entry has no type or no location")
        count = struct.unpack("<q", unpickler.take(8))[0]
        offset = start + unpickler.position
        nbytes = _count(count) * dtype.itemsize
        if unpickler.position + nbytes > unpickler.size:
            raise Damaged(
                f"storage {key} should end at byte {offset + nbytes}, after its member does"
            )
        unpickler.position += nbytes
        storage = source.storage[offset : offset + nbytes] if nbytes else torch.UntypedStorage(0)
        if storage.data_ptr() % dtype.itemsize:
            storage = storage.clone()
        context.tags.note(storage, location)
        made[_number(key)] = typed(storage, dtype)
    views = unpickler.load()
    if type(views) is not list:
        raise Damaged("the list of views is no list")
    for view in views:
        _add_view(made, view)
    return made


def _add_view(made: dict[int, TypedStorage], view: Any) -> None:
    if type(view) is not tuple or len(view) != 4:
        raise Damaged("a storage's view is not four values")
    key, root_key, offset, count = map(_number, view)
    root = made.get(root_key)
    if root is None or not 0 <= offset <= offset + count <= root._size():
        raise Damaged("a storage's view reaches beyond its storage")
    width = root.dtype.itemsize
    part = root._untyped_storage[offset * width : (offset + count) * width]
    made[key] = typed(part, root.dtype)


def _tensors(
    start: int,
    end: int,
    source: WorkerSource,
    context: Context,
    storages: dict[int, TypedStorage],
) -> dict[int, torch.Tensor]:
    unpickler = InertUnpickler(source.data[start:end], context)
    made = {}
    for _ in range(_count(unpickler.load())):
        entry = unpickler.load()
        if type(entry) is not tuple or len(entry) != 3:
            raise Damaged("a tensor's entry is not three values")
        key, storage_key = _number(entry[0]), _number(entry[1])
        storage = storages.get(storage_key)
        if storage is None:
            raise Damaged(f"a tensor refers to storage {storage_key}, which the file does not have")
        dims = struct.unpack("<ixxxx", unpickler.take(8))[0]
        if not 0 <= dims <= _MAX_DIMS:
            raise Damaged(f"a tensor claims to have {dims} dimensions")
        size = struct.unpack(f"<{dims}q", unpickler.take(8 * dims))
        stride = struct.unpack(f"<{dims}q", unpickler.take(8 * dims))
        offset = struct.unpack("<q", unpickler.take(8))[0]
        try:
            check_extent(storage, storage.dtype, offset, size, stride)
        except Decline:
            raise Damaged("a tensor's size or stride is negative") from None
        tensor = torch.empty((0,), dtype=storage.dtype)
        made[key] = tensor.set_(storage._untyped_storage, offset, size, stride)
    return made


def _count(value: object) -> int:
    if type(value) is not int or not 0 <= value < 1 << 48:
        raise Damaged("a count is no number")
    return value


def _number(value: object) -> int:
    if type(value) is str and value.isdecimal():
        return int(value)
    if type(value) is not int:
        raise Damaged(f"a {type(value).__name__} stands where a number should be")
    return value
