"""A scanned pickle, executed by the C unpickler: no tensor, storage or class of the file is made.

`direct_scan` says why the C unpickler may run the program. The globals that it finds are the inert
stand-ins below, and plain containers of Python where torch's own table holds those too. Nothing
that can be on its stack has `append`, `extend` or `__setitem__` but what torch's unpickler takes
for that, and nothing but the table's own functions and classes can be called.

No offset into the file is computed here (storages are given by whoever knows the container), and no
node of the graph is made but for values.
"""

from __future__ import annotations

import _pickle
import io
from collections import Counter, OrderedDict
from collections.abc import Callable, Sequence
from itertools import chain
from typing import Any, NamedTuple

import msgspec
import torch
from torch import _weights_only_unpickler

from isoload import manifest
from isoload.manifest import Node, Tensor

from .direct_scan import MODULE, full_name

MAX_DIMS = 16
_MAX_LOCATION = 300
_TRAINABLE = ("float32", "float64", "float16", "bfloat16", "complex64", "complex128")


class Unusual(Exception):
    """Not what an ordinary checkpoint holds: for torch to decide."""


class Kind(msgspec.Struct, eq=False, gc=False):
    """What stands for a storage class: the dtype that its name says."""

    dtype: int
    itemsize: int


class Mention(msgspec.Struct, eq=False, gc=False):
    """A storage where the file names it: the number of its persistent id. Two may be of one."""

    number: int


class Bytes(msgspec.Struct, eq=False, gc=False):
    """A storage: its place in the manifest, and the dtype under which the file first named it."""

    index: int
    kind: Kind
    offset: int
    nbytes: int


class View(msgspec.Struct, eq=False, gc=False):
    """A tensor, as the file asked for it.

    `args`: (mention of a storage, offset, size, stride, requires_grad, hooks, dtype)."""

    args: tuple[Any, ...]
    parameter: bool = False
    node: Tensor | None = None
    index: int = manifest.NONE


class Plain(msgspec.Struct, eq=False, gc=False):
    """A value whose node is known at once, and that cannot be called: torch.Size, torch.device."""

    node: Node


class Buffer(msgspec.Struct, eq=False):
    """A bytearray: no key of a dict, as in Python."""

    node: Node
    __hash__ = None  # type: ignore[assignment]  # as Python's own reference says it is done


class FileList(list[Any]):
    """A list that takes no item by index: torch's unpickler refuses SETITEM on lists."""

    __slots__ = ()

    def __setitem__(self, key: Any, value: Any) -> None:
        raise Unusual


class Ordered(OrderedDict[Any, Any]):
    """The file's OrderedDict. What a rewritten BUILD hands over here, other objects refuse."""

    __slots__ = ()

    def __setstate__(self, pair: Any) -> None:
        state, marker = pair
        if marker is not _BUILD or type(state) is not dict:
            raise Unusual
        self.__dict__.update(state)


_DTYPES = {
    name: (getattr(torch, name), index)
    for index, name in enumerate(manifest.DTYPES)
    if isinstance(getattr(torch, name, None), torch.dtype)
}
_ORDINARY = (
    *(*_TRAINABLE, "uint8", "int8", "int16", "int32", "int64", "bool"),
    *(
        "uint16",
        "uint32",
        "uint64",
        "float8_e4m3fn",
        "float8_e5m2",
        "float8_e4m3fnuz",
        "float8_e5m2fnuz",
    ),
)
KINDS = {
    dtype: Kind(index, dtype.itemsize)
    for dtype, index in (_DTYPES[name] for name in _ORDINARY if name in _DTYPES)
}
MAY_TRAIN = frozenset(_DTYPES[name][1] for name in _TRAINABLE)
_STORAGES = {
    f"torch.{name}": KINDS[dtype]
    for name, dtype in torch.storage._storage_type_to_dtype_map().items()
    if dtype in KINDS
}
_UNTYPED = Kind(manifest.DTYPES.index("uint8"), 1)
_BUILD = object()

Column = Sequence[Any]
Storages = Callable[[Column, Column, Column, Column], list[Bytes]]
"""(storage classes, keys, locations, numbers of elements), an item for each time that the program
names a storage → the storages. Raises `Unusual`. The numbers may be anything."""


def check_location(location: str) -> None:
    """A tag that may cross: short and printable. What is on the meta device has no bytes at all."""
    if len(location) > _MAX_LOCATION or not location.isprintable() or location == "meta":
        raise Unusual


def _size(*args: Any) -> Plain:
    (dims,) = args
    if type(dims) is not tuple or not set(map(type, dims)) <= {int} or len(dims) > MAX_DIMS:
        raise Unusual
    if not all(0 <= dim < 1 << 63 for dim in dims):
        raise Unusual
    return Plain(manifest.Size(list(dims)))


def _encoded(*args: Any) -> bytes:
    text, encoding = args
    if type(text) is not str or encoding != "latin1":
        raise Unusual
    return text.encode("latin1")


def _bytearray(*args: Any) -> Buffer:
    kinds = tuple(map(type, args))
    if kinds == (str, str) and args[1] == "latin-1":
        args = (args[0].encode("latin-1"),)
    elif kinds not in ((), (bytes,)):
        raise Unusual
    return Buffer(manifest.ByteArray(*args or (b"",)))


def _device(*args: Any) -> Plain:
    if not args or type(args[0]) is not str or not set(map(type, args[1:])) <= {int}:
        raise Unusual
    return Plain(manifest.Named("device", str(torch.device(*args))))


_SHARED: dict[str, Any] = {
    "collections.OrderedDict": Ordered,
    "collections.Counter": Counter,
    "builtins.set": set,
    "builtins.complex": complex,
    "builtins.bytearray": _bytearray,
    "_codecs.encode": _encoded,
    "torch.Size": _size,
    "torch.device": _device,
    "torch.storage.UntypedStorage": _UNTYPED,
    **_STORAGES,
    **{f"torch.{name}": dtype for name, (dtype, _) in _DTYPES.items()},
}
_REBUILD = (
    "torch._utils._rebuild_tensor",
    "torch._utils._rebuild_tensor_v2",
    "torch._utils._rebuild_tensor_v3",
    "torch._utils._rebuild_parameter",
)
_TORCHS = _weights_only_unpickler._get_allowed_globals()

ALLOWED = frozenset(name for name in (*_SHARED, *_REBUILD) if name in _TORCHS)
"""The globals that are read here: a part of torch's own table, under the names they have there."""


class Made(NamedTuple):
    """What the program made, before any of it is a node. `storages`: by the number of a mention."""

    root: Any
    views: list[View]
    storages: list[Bytes]


def execute(code: bytes, storages: Storages, *, legacy: bool = False) -> Made:
    """Run a scanned program. Raises `Unusual`, and whatever the C unpickler has to say of it.

    A storage's persistent id is ("storage", class, key, location, elements); in legacy files a
    sixth item says that it is a view of another, which is not handled here, and a class without a
    dtype is refused, as by torch. They are looked at when the program has ended: all at once."""
    views: list[View] = []
    ids: list[Any] = []
    add_view, add_id = views.append, ids.append
    no_hooks = Ordered()

    def tensor(storage: Any, offset: Any, size: Any, stride: Any) -> View:
        return tensor_v2(storage, offset, size, stride, False, no_hooks)

    def tensor_v2(
        storage: Any, offset: Any, size: Any, stride: Any, requires_grad: Any, hooks: Any
    ) -> View:
        view = View((storage, offset, size, stride, requires_grad, hooks, None))
        add_view(view)
        return view

    def tensor_v3(*args: Any) -> View:
        if type(args[6]) is not torch.dtype or len(args) != 7:
            raise Unusual
        view = View(args)
        add_view(view)
        return view

    def parameter(*args: Any) -> View:
        data, requires_grad, hooks = args
        if type(data) is not View or data.parameter:
            raise Unusual
        view = View((*data.args[:4], requires_grad, hooks, data.args[6]), parameter=True)
        add_view(view)
        return view

    def mention(pid: Any) -> Mention:
        number = len(ids)
        add_id(pid)
        return Mention(number)

    table = {name: _SHARED[name] for name in ALLOWED if name in _SHARED}
    table |= dict(zip(_REBUILD, (tensor, tensor_v2, tensor_v3, parameter), strict=True))

    class Unpickler(_pickle.Unpickler):
        persistent_load = staticmethod(mention)

        def find_class(self, module: str, name: str) -> Any:
            if module == MODULE:
                return {"list": FileList, "build": _BUILD}[name]
            return table[full_name(module, name)]

    root = Unpickler(io.BytesIO(code), encoding="utf-8").load()
    return Made(root, views, _find(ids, storages, legacy) if ids else [])


def _find(ids: list[Any], storages: Storages, legacy: bool) -> list[Bytes]:
    """The storage of each persistent id, in the order in which the program named them."""
    if set(map(type, ids)) != {tuple} or set(map(len, ids)) != {6 if legacy else 5}:
        raise Unusual
    words, kinds, keys, locations, counts, *rest = zip(*ids, strict=True)
    if set(map(type, chain(words, keys, locations))) != {str} or set(words) != {"storage"}:
        raise Unusual
    if set(map(type, kinds)) != {Kind}:
        raise Unusual
    if legacy and (_UNTYPED in set(kinds) or any(view is not None for view in rest[0])):
        raise Unusual
    for location in set(locations):
        check_location(location)
    return storages(kinds, keys, locations, counts)
