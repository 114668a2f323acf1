"""The arena: a sealed memfd with the bytes of storages that do not lie in the source as they are.

Storages that overlap in memory overlap in the arena in the same way, so that views of views stay
views. Every byte up to the end is written: a segment with holes is refused by the parent.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass

from sandbox import create_memfd, seal

from .reading import TooMuch

ALIGNMENT = 64
_BATCH = 512
"""Buffers that one writev takes; IOV_MAX is 1024 (writev(2))."""
_LARGE = 1 << 20
_ZEROS = memoryview(bytes(ALIGNMENT))


@dataclass(frozen=True)
class Blob:
    """`nbytes` at an address of this process; `view` gives them as bytes. `index`: the storage's
    entry."""

    index: int
    address: int
    nbytes: int
    view: Callable[[], memoryview]


def lay_out(blobs: list[Blob], max_bytes: int) -> dict[int, int]:
    """Where each blob goes: its offset, by index."""
    offsets: dict[int, int] = {}
    end = shift = reach = 0
    for blob in sorted(blobs, key=lambda blob: (blob.address, -blob.nbytes)):
        if blob.address >= reach:
            shift = end + (blob.address - end) % ALIGNMENT - blob.address
        offsets[blob.index] = shift + blob.address
        end = max(end, offsets[blob.index] + blob.nbytes)
        reach = max(reach, blob.address + blob.nbytes)
    if max_bytes and end > max_bytes:
        raise TooMuch(
            "output", f"the tensors need {end} bytes beside the file, more than {max_bytes}"
        )
    return offsets


def write_arena(blobs: list[Blob], offsets: dict[int, int]) -> int:
    """Write the blobs where `lay_out` says, seal the memfd, and return its descriptor.

    It is written from start to end; what an overlapping blob has already put there is left out."""
    fd = create_memfd("arena")
    buffers: list[memoryview] = []
    end = pending = 0
    for blob in sorted(blobs, key=lambda blob: offsets[blob.index]):
        offset = offsets[blob.index]
        if offset > end:
            buffers.append(_ZEROS[: offset - end])
            end = offset
        fresh = blob.view()[end - offset :]
        if len(fresh):
            buffers.append(fresh)
            end += len(fresh)
            pending += len(fresh)
        if len(buffers) >= _BATCH or pending >= _LARGE:
            _write(fd, buffers)
            buffers, pending = [], 0
    _write(fd, buffers)
    seal(fd)
    return fd


def _write(fd: int, buffers: list[memoryview]) -> None:
    """All of the buffers: writev may stop short, and takes at most 0x7ffff000 bytes (write(2))."""
    while buffers:
        written = os.writev(fd, buffers)
        while buffers and written >= len(buffers[0]):
            written -= len(buffers.pop(0))
        if written:
            buffers[0] = buffers[0][written:]
