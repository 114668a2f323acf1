"""What stands for a storage and for a tensor where neither has to be made: where the bytes lie, and
how they are looked at.

A Span answers what `describe` asks of a storage. A View is no tensor: it has no methods, and
nothing of it can be called.
"""

from __future__ import annotations

import torch

_CPU = torch.device("cpu")


class Span:
    """A storage that lies in the source as it is: `nbytes()` bytes from `data_ptr()`."""

    __slots__ = ("_address", "_nbytes", "dtype", "location")

    device = _CPU

    def __init__(self, address: int, nbytes: int, dtype: torch.dtype, location: str) -> None:
        self._address = address
        self._nbytes = nbytes
        self.dtype = dtype
        self.location = location

    @property
    def _cdata(self) -> int:
        return id(self)

    @property
    def _untyped_storage(self) -> Span:
        return self

    def nbytes(self) -> int:
        """As torch.UntypedStorage says it."""
        return self._nbytes

    def data_ptr(self) -> int:
        """Where in this process it lies."""
        return self._address


class View:
    """A strided tensor, as the file asked for it: checked, and not made."""

    __slots__ = ("dtype", "flags", "offset", "size", "span", "stride")

    def __init__(
        self,
        span: Span,
        dtype: torch.dtype,
        offset: int,
        size: tuple[int, ...],
        stride: tuple[int, ...],
        flags: int,
    ) -> None:
        self.span = span
        self.dtype = dtype
        self.offset = offset
        self.size = size
        self.stride = stride
        self.flags = flags
