"""What stands for torch's objects where a checkpoint is read without them: inert, and not torch's.

A stand-in says what the file asked for. It is no tensor, storage or dtype, has no methods, and
torch need not be there.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from typing import Any

import msgspec

from isoload import manifest
from isoload.manifest import Node, Tensor

MAX_DIMS = 16
_MAX_LOCATION = 300
_DEVICE = re.compile(r"(?:cpu|cuda|mps|meta|xpu)(:(?:0|[1-9]\d?))?")


class Unusual(Exception):
    """Not what an ordinary checkpoint holds: for torch to decide."""


class Kind(msgspec.Struct, eq=False, gc=False):
    """A dtype as that of a storage: its number in `manifest.DTYPES`, the bytes of an element, and
    whether a tensor of it may require a gradient."""

    dtype: int
    itemsize: int
    trains: bool


class Dtype(msgspec.Struct, eq=False, gc=False):
    """A torch.dtype. `kind`: where tensors of it are ordinary."""

    name: str
    kind: Kind | None


class Named(msgspec.Struct, frozen=True, gc=False):
    """Any value of torch's that crosses as its kind and name, where the inert reader meets it.
    Equal to another of that name. `shown`: the word for it in a report."""

    kind: str
    name: str
    shown: str


class Size(tuple[int, ...]):
    """A torch.Size, where the inert reader meets it."""

    __slots__ = ()


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


BUILD = object()
"""What a rewritten BUILD hands over beside the state."""


class Ordered(OrderedDict[Any, Any]):
    """The file's OrderedDict. What a rewritten BUILD hands over here, other objects refuse."""

    __slots__ = ()

    def __setstate__(self, pair: Any) -> None:
        state, marker = pair
        if marker is not BUILD or type(state) is not dict:
            raise Unusual
        self.__dict__.update(state)


def check_location(location: str) -> None:
    """A tag that may cross: short and printable. What is on the meta device has no bytes at all."""
    if len(location) > _MAX_LOCATION or not location.isprintable() or location == "meta":
        raise Unusual


def size(*args: Any) -> Plain:
    """torch.Size"""
    (dims,) = args
    if type(dims) is not tuple or not set(map(type, dims)) <= {int} or len(dims) > MAX_DIMS:
        raise Unusual
    if not all(0 <= dim < 1 << 63 for dim in dims):
        raise Unusual
    return Plain(manifest.Size(list(dims)))


def device(*args: Any) -> Plain:
    """torch.device"""
    return Plain(manifest.Named("device", device_name(*args)))


def device_name(*args: Any) -> str:
    """That of a torch.device, of the kinds whose names are written in one way only."""
    name, *rest = args
    found = _DEVICE.fullmatch(name) if type(name) is str else None
    if found is None or len(rest) > 1 or (rest and found[1]):
        raise Unusual
    for index in rest:
        if type(index) is not int or not 0 <= index < 100:
            raise Unusual
        name = f"{name}:{index}"
    return str(name)


def encoded(*args: Any) -> bytes:
    """_codecs.encode: how protocol 2 writes bytes."""
    text, encoding = args
    if type(text) is not str or encoding != "latin1":
        raise Unusual
    return text.encode("latin1")


def byte_array(*args: Any) -> Buffer:
    """bytearray"""
    kinds = tuple(map(type, args))
    if kinds == (str, str) and args[1] == "latin-1":
        args = (args[0].encode("latin-1"),)
    elif kinds not in ((), (bytes,)):
        raise Unusual
    return Buffer(manifest.ByteArray(*args or (b"",)))
