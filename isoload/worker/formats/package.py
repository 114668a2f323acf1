"""torch.package: pickles among Python sources. The pickles are read inertly; the sources are left
alone.
"""

from __future__ import annotations

from typing import Any

from isoload import manifest

from ..archive import ZipArchive
from ..inert import Context, InertUnpickler
from ..ladder import Rung, climb
from ..persistent import RecordStorages
from ..reading import INERT, Damaged, Reading
from ..tags import Tags
from ..torch_source import WorkerSource

MARK = ".data/extern_modules"
"""Every package has this record."""


def read(
    source: WorkerSource, request: manifest.Request, reading: Reading, archive: ZipArchive
) -> None:
    """A dict of resource name → object; of a package with one pickle, that object."""
    reading.container = "package"

    def inert() -> object:
        tags = Tags()
        reading.location = tags.location
        reading.mapping = source.mapping
        unpacked = _Package(archive, Context(reading, tags))
        names = [name for name in archive.get_all_records() if name.endswith(".pkl")]
        if not names:
            raise Damaged("the package holds no pickle")
        objects = {name: unpacked.load(name) for name in names}
        return objects[names[0]] if len(objects) == 1 else objects

    climb(reading, request, Rung(INERT, inert))


class _Package:
    def __init__(self, archive: ZipArchive, context: Context) -> None:
        self._archive = archive
        self._context = context
        self._storages = RecordStorages(archive, context.tags, lambda key: f".data/{key}.storage")
        self._reduced: dict[object, object] = {}

    def load(self, name: str) -> object:
        """The object in one pickle of the package."""
        unpickler = InertUnpickler(
            self._archive.get_record(name),
            self._context,
            lambda saved: self._find(unpickler, saved),
        )
        return unpickler.load()

    def _find(self, unpickler: InertUnpickler, saved_id: Any) -> object:
        """A storage, or an object made by a call: ("reduce_package", id, function, arguments)."""
        if type(saved_id) is not tuple or not saved_id or saved_id[0] != "reduce_package":
            return self._storages(saved_id)
        key = saved_id[1] if len(saved_id) == 4 and type(saved_id[1]) in (int, str) else None
        if key is not None and key in self._reduced:
            return self._reduced[key]
        made = unpickler.call(*saved_id[-2:])
        if key is not None:
            self._reduced[key] = made
        return made
