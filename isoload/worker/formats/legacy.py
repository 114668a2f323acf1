"""A file that torch wrote before 1.6 (a stream of pickles, then the storages' bytes), or a plain
pickle.

Both begin with a pickle; the first value of a legacy file is torch's magic number.
"""

# mypy: disallow-untyped-calls=False
from __future__ import annotations

import struct
from typing import Any, TypeGuard

import torch
from torch.storage import TypedStorage

from isoload import manifest

from ..full import load_full
from ..inert import Context, InertUnpickler
from ..ladder import Rung, climb
from ..persistent import storage_id, typed
from ..reading import FULL, INERT, WEIGHTS_ONLY, Damaged, Reading
from ..tags import Tags
from ..torch_source import WorkerSource
from ..weights_only import load_legacy, note_globals
from . import plain

_MAGIC = 0x1950A86A20F9469CFC6C
_PROTOCOL = 1001
_COUNT = struct.Struct("<q")
_MODULE_ID = 4
_PICKLES = 4
"""The magic number, the protocol, what machine wrote it, the object."""
_SMALL = 4 << 20
_FIRST_PICKLE = 64
"""The magic number's own pickle is shorter than this in every protocol."""


def read(source: WorkerSource, request: manifest.Request, reading: Reading) -> None:
    """A legacy file, or a plain pickle."""
    if not is_legacy(source):
        plain.read(source, request, reading)
        return
    reading.container = "legacy"

    def weights_only() -> object:
        tags = _start(source, reading)
        reading.mapping = None
        root = load_legacy(source, tags)
        if not request.tensors or source.size <= _SMALL:
            note_globals(source.file(), reading, _PICKLES)
        return root

    def inert() -> object:
        return read_inert(source, Context(reading, _start(source, reading)))

    climb(
        reading,
        request,
        Rung(WEIGHTS_ONLY, weights_only),
        Rung(INERT, inert),
        Rung(FULL, lambda: load_full(source, reading)),
    )


def _start(source: WorkerSource, reading: Reading) -> Tags:
    tags = Tags()
    reading.location = tags.location
    reading.mapping = source.mapping
    return tags


def is_legacy(source: WorkerSource) -> bool:
    """Whether the stream's first value is torch's magic number."""
    scratch = Context(Reading(), Tags())
    try:
        return bool(InertUnpickler(source.head(_FIRST_PICKLE), scratch).load() == _MAGIC)
    except Exception:  # not even a pickle: certainly not torch's magic number
        return False


def read_inert(source: WorkerSource, context: Context) -> object:
    """The object of a legacy file. Its pickle is read twice: the first time only for the storages'
    sizes, because they stand behind it and some tensors cannot be made without their data.
    """
    scratch = Context(Reading(), Tags(), context.depth)
    storages = _Storages(source, context.tags)
    first = _open(source, scratch, storages.measure)
    first.load()
    keys = first.load()
    end = storages.place(keys, first.position)
    root = _open(source, context, storages.find).load()
    if end < source.size:
        context.reading.warn(f"{source.size - end} bytes follow the last storage")
    return root


def _open(source: WorkerSource, context: Context, persistent: Any) -> InertUnpickler:
    """The unpickler, at the object's own pickle."""
    unpickler = InertUnpickler(source.data, context, persistent)
    if unpickler.load() != _MAGIC:
        raise Damaged("the magic number is wrong")
    protocol = unpickler.load()
    if protocol != _PROTOCOL:
        raise Damaged("the protocol version is not 1001, the only one that torch wrote")
    unpickler.load()  # what kind of machine wrote it
    return unpickler


class _Storages:
    """The storages of a legacy file: measured, then found in the file, then handed out."""

    def __init__(self, source: WorkerSource, tags: Tags) -> None:
        self._source = source
        self._tags = tags
        self._sizes: dict[str, tuple[torch.dtype, int]] = {}
        self._roots: dict[str, torch.UntypedStorage] = {}
        self._made: dict[str, TypedStorage] = {}
        self._zeros = source.zeros

    def measure(self, saved_id: object) -> object:
        """The first time: note the size, and give zeros that take no memory."""
        if _is_module(saved_id):
            return saved_id[1]
        wanted = storage_id(saved_id)
        if wanted.nbytes > self._source.size:
            raise Damaged(
                f"the file is cut off: storage {wanted.key!r} needs {wanted.nbytes} bytes,"
                f" the file has {self._source.size}"
            )
        self._sizes.setdefault(wanted.key, (wanted.dtype, wanted.nbytes))
        root = self._zeros[: self._sizes[wanted.key][1]]
        view = wanted.rest[0] if wanted.rest else None
        return typed(root, wanted.dtype) if view is None else self._view(root, view, wanted.dtype)

    def place(self, keys: Any, position: int) -> int:
        """Find each storage in the file; gives the offset after the last."""
        self._made.clear()
        if type(keys) is not list or not all(type(key) in (str, int, bytes) for key in keys):
            raise Damaged("the list of storages is not a list of names")
        view = self._source.view
        for name in keys:
            key = name.decode("ascii", "replace") if type(name) is bytes else str(name)
            if key not in self._sizes:
                raise Damaged(f"storage {key!r} is in the file, but no tensor names it")
            dtype, nbytes = self._sizes[key]
            start = position + _COUNT.size
            if start + nbytes > len(view):
                raise Damaged(
                    f"the file is cut off: storage {key!r} should end at byte {start + nbytes},"
                    f" the file at {len(view)}"
                )
            count = _COUNT.unpack_from(view, position)[0]
            if count * torch._utils._element_size(dtype) != nbytes:
                raise Damaged(
                    f"storage {key!r} has {count} elements at byte {position}, not what its id says"
                )
            self._roots[key] = self._lift(start, nbytes, dtype)
            position = start + nbytes
        return position

    def _lift(self, start: int, nbytes: int, dtype: torch.dtype) -> torch.UntypedStorage:
        if not nbytes:
            return torch.UntypedStorage(0)
        storage: torch.UntypedStorage = self._source.storage[start : start + nbytes]
        return storage.clone() if storage.data_ptr() % dtype.itemsize else storage

    def find(self, saved_id: object) -> object:
        """The second time: the storage, or the view of one."""
        if _is_module(saved_id):
            return saved_id[1]
        wanted = storage_id(saved_id)
        root = self._roots.get(wanted.key)
        if root is None:
            raise Damaged(f"the file has no bytes for storage {wanted.key!r}")
        if wanted.key not in self._made:
            self._tags.note(root, wanted.location)
            self._made[wanted.key] = typed(root, wanted.dtype)
        elif not root.nbytes():
            # torch tells its storages apart by address, and these have none: each is a new one,
            # of the type that its own id names.
            root = torch.UntypedStorage(0)
            self._tags.note(root, wanted.location)
            self._made[wanted.key] = typed(root, wanted.dtype)
        view = wanted.rest[0] if wanted.rest else None
        return self._made[wanted.key] if view is None else self._view(root, view, wanted.dtype)

    def _view(self, root: torch.UntypedStorage, view: Any, dtype: torch.dtype) -> TypedStorage:
        if type(view) is not tuple or len(view) != 3:
            raise Damaged("a storage's view is not three values")
        key, offset, count = view
        width = torch._utils._element_size(dtype)
        if type(key) not in (str, int) or type(offset) is not int or type(count) is not int:
            raise Damaged("a storage's view is not a name and two numbers")
        if not 0 <= offset <= offset + count <= root.nbytes() // width:
            raise Damaged("a storage's view reaches beyond it")
        name = str(key)
        if name not in self._made:
            self._made[name] = typed(root[offset * width : (offset + count) * width], dtype)
        return self._made[name]


def _is_module(saved_id: object) -> TypeGuard[tuple[Any, ...]]:
    """A class that was saved with its source: ("module", class, file, source)."""
    return (
        type(saved_id) is tuple
        and len(saved_id) == _MODULE_ID
        and saved_id[0] in ("module", b"module")
    )
