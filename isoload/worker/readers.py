"""Open one source: find out what it is, and climb the ladder of readers for that kind of file.

The order of things only; each kind of file has its own module in `formats`.
"""

from __future__ import annotations

from collections.abc import Callable

from isoload import manifest

from . import container
from .formats import legacy, zip_
from .reading import Reading
from .source import WorkerSource

Format = Callable[[WorkerSource, manifest.Request, Reading], None]

_FORMATS: dict[str, Format] = {
    container.ZIP: zip_.read,
    container.STREAM: legacy.read,
}


def read(
    source: WorkerSource, request: manifest.Request, reading: Reading | None = None
) -> Reading:
    """The object graph of a file and how it was read; raises a `Failure` that says why not."""
    reading = reading or Reading()
    kind = container.detect(source)
    reading.container = kind
    _FORMATS[kind](source, request, reading)
    return reading


__all__ = ["Reading", "WorkerSource", "read"]
