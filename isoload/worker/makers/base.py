"""What all value constructors share: how they decline, and what they may ask of their unpickler."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

from ..names import Names

if TYPE_CHECKING:
    import torch

Args = tuple[Any, ...]


class Decline(Exception):
    """These arguments make no value: the call is recorded instead."""


class Owner(Protocol):
    """The inert unpickler, as the constructors see it."""

    names: Names

    def call(self, function: object, args: object, kwargs: object = None) -> object: ...

    def record(self, name: str, args: Args, kwargs: dict[str, object] | None = None) -> object: ...

    def reference(self, name: str) -> object: ...

    def nested(self, data: bytes) -> object: ...

    def note_device(self, tensor: torch.Tensor, device: str) -> None: ...

    def warn(self, message: str) -> None: ...


Maker = Callable[[Owner, Args], object]


class Table(dict[str, Maker]):
    """Constructors by the name that files use for them."""

    def __call__(self, *names: str) -> Callable[[Maker], Maker]:
        """Enter a constructor under each of the names."""

        def enter(maker: Maker) -> Maker:
            for name in names:
                self[name] = maker
            return maker

        return enter


def want(condition: bool) -> None:
    """Decline unless the condition holds."""
    if not condition:
        raise Decline


def unpack(args: Args, *kinds: type | tuple[type, ...], optional: int = 0) -> Args:
    """The arguments, of exactly these types, the last `optional` of them left out or not."""
    want(len(kinds) - optional <= len(args) <= len(kinds))
    for arg, kind in zip(args, kinds, strict=False):
        want(type(arg) in kind if isinstance(kind, tuple) else type(arg) is kind)
    return args


def raw(value: object, size: int | None = None) -> bytes:
    """Bytes, or the bytes that a Python 2 string was decoded from (`size`: how many there should
    be).
    """
    if type(value) is bytes or type(value) is bytearray:
        return bytes(value)
    want(type(value) is str)
    text = str(value)
    for encoding in ("latin-1", "utf-8"):
        try:
            data = text.encode(encoding)
        except UnicodeEncodeError:
            continue
        if size is None or len(data) == size:
            return data
    raise Decline
