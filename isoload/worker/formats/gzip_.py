"""A file compressed by gzip: unpacked into memory within a bound, then read as what it is."""

from __future__ import annotations

import os
import zlib
from collections.abc import Callable

from isoload import manifest

from ..reading import Damaged, Reading, TooMuch
from ..source import WorkerSource

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
    written, position = 0, 0
    view = source.view
    inflater = zlib.decompressobj(wbits=31)
    while position < source.size or inflater.unconsumed_tail:
        if inflater.eof:  # gzip files may stand one behind another
            rest = inflater.unused_data
            position -= len(rest)
            if bytes(view[position : position + 2]) != b"\x1f\x8b":
                if any(view[position : position + _CHUNK]):
                    reading.warn(
                        "bytes that are not gzip follow the compressed data: they were left"
                    )
                return
            inflater = zlib.decompressobj(wbits=31)
        data = inflater.unconsumed_tail or bytes(view[position : position + _CHUNK])
        if not inflater.unconsumed_tail:
            position += len(data)
        try:
            plain = inflater.decompress(data, _CHUNK)
        except zlib.error as error:
            raise Damaged(f"the gzip data are damaged before byte {position}: {error}") from None
        written += len(plain)
        if written > limit:
            raise TooMuch("output", f"the gzip file unpacks to more than {limit} bytes")
        os.write(fd, plain)
    if not inflater.eof:
        raise Damaged(f"the gzip file is cut off at byte {source.size}")
