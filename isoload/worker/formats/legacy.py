"""A file that torch wrote before 1.6: a stream of pickles, then the storages' bytes."""

from __future__ import annotations

from isoload import manifest

from ..full import load_full
from ..ladder import FULL, WEIGHTS_ONLY, Rung, climb
from ..reading import Reading
from ..source import WorkerSource
from ..tags import Tags
from ..weights_only import load_legacy


def read(source: WorkerSource, request: manifest.Request, reading: Reading) -> None:
    """A legacy file."""
    reading.container = "legacy"

    def weights_only() -> object:
        tags = Tags()
        reading.location = tags.location
        reading.mapping = None
        return load_legacy(source, tags)

    climb(
        reading,
        request,
        Rung(WEIGHTS_ONLY, weights_only),
        Rung(FULL, lambda: load_full(source, reading)),
    )
