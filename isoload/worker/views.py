"""What stands for a storage and for a tensor where the inert reader makes neither: where the bytes
lie, and how they are looked at.

A View is no tensor: it has no methods, and nothing of it can be called.
"""

from __future__ import annotations

from .stand_ins import Kind


class _Cpu:
    type = "cpu"


class Span:
    """A storage that lies in the source as it is: `nbytes()` bytes from `data_ptr()`. It answers
    what `StorageTable` asks of a storage."""

    __slots__ = ("_address", "_nbytes", "kind", "location")

    device = _Cpu

    def __init__(self, address: int, nbytes: int, kind: Kind, location: str) -> None:
        self._address = address
        self._nbytes = nbytes
        self.kind = kind
        self.location = location

    @property
    def _cdata(self) -> int:
        return id(self)

    def nbytes(self) -> int:
        """As torch.UntypedStorage says it."""
        return self._nbytes

    def data_ptr(self) -> int:
        """Where in this process it lies."""
        return self._address


class View:
    """A strided tensor, as the file asked for it: checked, and not made."""

    __slots__ = ("flags", "kind", "offset", "size", "span", "stride")

    def __init__(
        self,
        span: Span,
        kind: Kind,
        offset: int,
        size: tuple[int, ...],
        stride: tuple[int, ...],
        flags: int,
    ) -> None:
        self.span = span
        self.kind = kind
        self.offset = offset
        self.size = size
        self.stride = stride
        self.flags = flags
