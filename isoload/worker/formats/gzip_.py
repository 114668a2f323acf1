"""A file compressed by gzip: unpacked into memory within a bound, then read as what it is."""

from __future__ import annotations

import os
import zlib
from collections.abc import Callable

from isoload import manifest

from ..reading import Damaged, Reading, TooMuch
from ..torch_source import WorkerSource

_CHUNK = 1 << 20
_LEAST = 256 << 20
_RATIO = 100
"""Weights pack to a half at best; a file that unpacks to more than 100 times its size is a bomb."""


def unpack(
    source: WorkerSource,
    request: manifest.Request,
    reading: Reading,
    read: Callable[[WorkerSource, manifest.Request, Reading], object],
) -> None:
    """Read what lies inside, by `read`."""
    fd = os.memfd_create("unpacked", os.MFD_CLOEXEC)
    limit = max(source.size * _RATIO, _LEAST)
    if request.max_output:
        limit = min(limit, request.max_output)
    _inflate(source, fd, limit, reading)
    inner = WorkerSource(fd)
    read(inner, request, reading)
    reading.container = f"gzip/{reading.container}"
    reading.mapping = None  # nothing lies in the source as it is


def _inflate(source: WorkerSource, fd: int, limit: int, reading: Reading) -> None:
    """Every gzip member of the file, one behind another, into `fd`."""
    written, position = 0, 0
    while bytes(source.view[position : position + 2]) == b"\x1f\x8b":
        inflater = zlib.decompressobj(wbits=31)
        while not inflater.eof:
            packed = inflater.unconsumed_tail or bytes(source.view[position : position + _CHUNK])
            if not packed:
                raise Damaged(f"the gzip file is cut off at byte {source.size}")
            if not inflater.unconsumed_tail:
                position += len(packed)
            try:
                plain = inflater.decompress(packed, _CHUNK)
            except zlib.error as error:
                raise Damaged(f"the gzip data break before byte {position}: {error}") from None
            written += len(plain)
            if written > limit:
                raise TooMuch("output", f"the gzip file unpacks to more than {limit} bytes")
            os.write(fd, plain)
        position -= len(inflater.unused_data)
    if any(source.view[position : position + _CHUNK]):
        reading.warn(
            f"{source.size - position} bytes follow the compressed data: they were left out"
        )
