"""Any zip: its records say what it is. What torch.save wrote is read here, the rest by modules of
their own.
"""

from __future__ import annotations

import io

from isoload import manifest

from ..archive import ZipArchive
from ..directory import read_directory
from ..full import load_full
from ..inert import Context, InertUnpickler
from ..ladder import Rung, climb
from ..persistent import RecordStorages
from ..reading import FULL, INERT, WEIGHTS_ONLY, Damaged, Reading, Unsupported
from ..tags import Tags
from ..torch_source import WorkerSource
from ..weights_only import SCANNED, load_zip, note_globals
from . import export, numpy_, package, torchscript
from .members import Members

_SHOWN = 6


def read(source: WorkerSource, request: manifest.Request, reading: Reading) -> None:
    """A zip of any kind."""
    if _read_plain(source, request, reading):
        return
    try:
        archive = ZipArchive(source, reading)
    except Damaged as error:
        raise _what_it_is(source, error) from None
    if archive.has_record("constants.pkl") or archive.has_record("model.json"):
        torchscript.read(source, request, reading, archive)
    elif archive.has_record("data.pkl"):
        _read_saved(source, request, reading, archive)
    elif archive.has_record(export.MARK):
        export.read(source, request, reading, archive)
    elif archive.has_record(package.MARK):
        package.read(source, request, reading, archive)
    else:
        raise _foreign(archive.get_all_records())


def _read_plain(source: WorkerSource, request: manifest.Request, reading: Reading) -> bool:
    """The zips that torch's own reader does not open; False if this is none of them."""
    names = [entry.name for entry in read_directory(source.view)]
    if names and all(name.endswith(b".npy") for name in names):
        numpy_.read_npz(Members(source), reading)
    elif export.OLD_MARK.encode() in names:
        export.read_old(Members(source), request, reading)
    else:
        return False
    return True


def _what_it_is(source: WorkerSource, error: Damaged) -> Damaged | Unsupported:
    """torch finds no archive: because it is damaged, or because torch never wrote it."""
    names = [entry.name.decode("utf-8", "replace") for entry in read_directory(source.view)]
    folders = {name.split("/", 1)[0] for name in names if "/" in name}
    if len(folders) == 1 and any(name.endswith("/version") for name in names):
        return error
    return _foreign(names)


def _foreign(names: list[str]) -> Unsupported:
    shown = ", ".join(names[:_SHOWN]) + (", …" if len(names) > _SHOWN else "")
    return Unsupported(f"a zip archive, but none that torch wrote: it holds {shown or 'nothing'}")


def _read_saved(
    source: WorkerSource, request: manifest.Request, reading: Reading, archive: ZipArchive
) -> None:
    """What torch.save has written since 1.6."""

    def start() -> Tags:
        tags = Tags()
        reading.location = tags.location
        reading.mapping = source.mapping
        return tags

    def weights_only() -> object:
        root = load_zip(archive, start())
        if not request.tensors or archive.get_record_size("data.pkl") <= SCANNED:
            note_globals(io.BytesIO(archive.get_record("data.pkl")), reading)
        return root

    def inert() -> object:
        tags = start()
        storages = RecordStorages(archive, tags, lambda key: f"data/{key}")
        return InertUnpickler(
            archive.get_record("data.pkl"), Context(reading, tags), storages
        ).load()

    climb(
        reading,
        request,
        Rung(WEIGHTS_ONLY, weights_only),
        Rung(INERT, inert),
        Rung(FULL, lambda: load_full(source, reading)),
    )
