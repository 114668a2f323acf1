"""The checkpoint's bytes, as the worker sees them: one descriptor, mapped read-only and private.

Readers take bytes from here and from nowhere else. The descriptor's own offset is shared with the
parent and is therefore never moved: files handed to torch read from the mapping.
"""

from __future__ import annotations

import io
import mmap
import os
from contextlib import suppress
from functools import cached_property
from typing import BinaryIO, TypeVar, cast

import numpy as np

from .direct_zip import Archive, read_archive

_MADV_POPULATE_READ = 22
"""One call instead of a page fault every 64 KB. madvise(2)"""

_READ_WHOLE = 4 << 20
"""Bytes of a file that has a page of headers in nearly every page."""


class MappedFile(io.RawIOBase):
    """A seekable read-only file over bytes in memory. It has no descriptor to seek."""

    def __init__(self, view: memoryview) -> None:
        super().__init__()
        self._view = view
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        start = (0, self._position, len(self._view))[whence]
        if start + offset < 0:
            raise ValueError("negative seek position")
        self._position = start + offset
        return self._position

    def read(self, size: int | None = -1) -> bytes:
        start = self._position
        left = max(len(self._view) - start, 0)
        count = left if size is None or size < 0 else min(size, left)
        self._position = start + count
        return bytes(self._view[start : start + count])

    # torch reads by it. The stub takes any buffer: so does `memoryview` below.
    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        target = memoryview(buffer).cast("B")
        start = self._position
        count = min(len(target), max(len(self._view) - start, 0))
        target[:count] = self._view[start : start + count]
        self._position = start + count
        return count


_S = TypeVar("_S", bound="Source")


class Source:
    """The bytes of one checkpoint: a descriptor's, or (`held`) in memory. `size` in bytes.

    `lead`: the bytes that come before the first in the segment on which the parent lays tensors."""

    def __init__(self, fd: int, held: bytes | None = None, *, lead: int = 0) -> None:
        self.fd = fd
        self.lead = lead
        self.size = os.fstat(fd).st_size if held is None else len(held)
        self._held = held

    @classmethod
    def of_bytes(cls: type[_S], held: bytes) -> _S:
        """A file within a file: it has no descriptor, and nothing may point into it."""
        return cls(-1, held)

    @cached_property
    def data(self) -> mmap.mmap | bytes:
        """The whole file: indexing gives an int, slicing a copy, and it has `find`."""
        if self._held is not None or not self.size:
            return self._held or b""
        data = mmap.mmap(self.fd, self.size, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ)
        if self.size <= _READ_WHOLE:
            with suppress(OSError):  # a kernel before 5.14
                data.madvise(_MADV_POPULATE_READ)
        return data

    @cached_property
    def view(self) -> memoryview:
        """The whole file, without a copy."""
        return memoryview(self.data)

    @property
    def mapping(self) -> tuple[int, int]:
        """Where the source segment lies, as this process maps it: (address, bytes)."""
        return (self.address - self.lead, self.lead + self.size) if self.size else (0, 0)

    @property
    def address(self) -> int:
        """Where the first byte lies in this process."""
        array = np.frombuffer(self.view, np.uint8)
        return int(array.__array_interface__["data"][0])

    @cached_property
    def archive(self) -> Archive | None:
        """Where the records of an ordinary zip lie; None where only torch can say it."""
        return read_archive(self)

    def file(self) -> BinaryIO:
        """A fresh file object at the start of the bytes."""
        return cast("BinaryIO", MappedFile(self.view))

    def head(self, count: int) -> bytes:
        """The first bytes."""
        return self.data[:count]
