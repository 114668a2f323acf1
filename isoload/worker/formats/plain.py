"""A plain pickle: no torch in its frame. It is only ever read inertly."""

from __future__ import annotations

from isoload import manifest

from ..inert import Context, InertUnpickler
from ..ladder import Rung, climb
from ..reading import INERT, Damaged, Failure, Reading, Unsupported
from ..tags import Tags
from ..torch_source import WorkerSource

_PROTO = 0x80
_MAX_STREAMS = 100


def read(source: WorkerSource, request: manifest.Request, reading: Reading) -> None:
    """The first pickle. Those that follow it are read for the report only."""
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
        _note_the_rest(unpickler, reading)
        return root

    climb(reading, request, Rung(INERT, inert))


def _note_the_rest(unpickler: InertUnpickler, reading: Reading) -> None:
    """Payloads hide behind the first pickle: what the others ask for belongs in the report."""
    left = unpickler.size - unpickler.position
    if not left:
        return
    reading.warn(f"{left} bytes follow the first pickle: what they hold was left out")
    for _ in range(_MAX_STREAMS):
        try:
            unpickler.load()
        except Failure:
            return
