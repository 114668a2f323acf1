"""A plain pickle: no torch in its frame. It is only ever read inertly."""

from __future__ import annotations

from isoload import manifest

from ..inert import Context, InertUnpickler
from ..ladder import INERT, Rung, climb
from ..reading import Damaged, Reading, Unsupported
from ..source import WorkerSource
from ..tags import Tags

_PROTO = 0x80


def read(source: WorkerSource, request: manifest.Request, reading: Reading) -> None:
    """One pickle; what follows it is left alone, and said."""
    reading.container = "pickle"

    def inert() -> object:
        tags = Tags()
        reading.location = tags.location
        reading.mapping = None
        unpickler = InertUnpickler(source.data, Context(reading, tags))
        try:
            root = unpickler.load()
        except Damaged:
            if source.head(1)[0] != _PROTO and not reading.globals:
                raise Unsupported("not a checkpoint: no kind of file that is known here") from None
            raise
        if unpickler.position < source.size:
            reading.warn(
                f"{source.size - unpickler.position} bytes follow the pickle: they were not read"
            )
        return root

    climb(reading, request, Rung(INERT, inert))
