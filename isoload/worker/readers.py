"""Open one source: find out what it is, and climb the ladder of readers for that kind of file.

The order of things only; each kind of file has its own module in `formats`.
"""

from __future__ import annotations

from collections.abc import Callable

from isoload import manifest

from . import container
from .formats import gzip_, legacy, numpy_, safetensors_, tar_, zip_
from .reading import Reading
from .torch_source import WorkerSource

Format = Callable[[WorkerSource, manifest.Request, Reading], None]

_FORMATS: dict[str, Format] = {
    container.ZIP: zip_.read,
    container.STREAM: legacy.read,
    container.TAR: tar_.read,
    container.SAFETENSORS: safetensors_.read,
    container.NPY: numpy_.read,
}


def read(
    source: WorkerSource, request: manifest.Request, reading: Reading | None = None
) -> Reading:
    """The object graph of a file and how it was read; raises a `Failure` that says why not."""
    reading = reading or Reading()
    kind = container.detect(source)
    reading.container = kind
    if kind == container.GZIP:
        gzip_.unpack(source, request, reading, _read_format)
    else:
        _read_format(source, request, reading)
    return reading


def _read_format(source: WorkerSource, request: manifest.Request, reading: Reading) -> None:
    kind = container.detect(source)
    reading.container = kind
    if kind not in _FORMATS:
        raise container.nested(kind)
    _FORMATS[kind](source, request, reading)


__all__ = ["Reading", "WorkerSource", "read"]
