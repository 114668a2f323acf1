"""A zip that torch wrote: state dicts and whole objects (torch.save since 1.6)."""

from __future__ import annotations

from isoload import manifest

from ..archive import ZipArchive
from ..full import load_full
from ..ladder import FULL, WEIGHTS_ONLY, Rung, climb
from ..reading import Reading
from ..source import WorkerSource
from ..tags import Tags
from ..weights_only import SCANNED, load_zip, note_globals


def read(source: WorkerSource, request: manifest.Request, reading: Reading) -> None:
    """Any zip: the records say which kind it is."""
    archive = ZipArchive(source, reading)

    def weights_only() -> object:
        tags = Tags()
        reading.location = tags.location
        reading.mapping = source.mapping
        root = load_zip(archive, tags)
        if not request.tensors or archive.get_record_size("data.pkl") <= SCANNED:
            note_globals(archive.get_record("data.pkl"), reading)
        return root

    climb(
        reading,
        request,
        Rung(WEIGHTS_ONLY, weights_only),
        Rung(FULL, lambda: load_full(source, reading)),
    )
