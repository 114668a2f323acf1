"""A torch file within a pickle: the bytes of `torch.storage._load_from_bytes`. Only ever read
inertly.
"""

from __future__ import annotations

from .. import container
from ..archive import ZipArchive
from ..inert import Context, InertUnpickler
from ..persistent import RecordStorages
from ..reading import Damaged
from ..torch_source import WorkerSource
from .legacy import read_inert


def read_within(data: bytes, outer: Context) -> object:
    """The object that the bytes hold; its calls and globals go into the outer file's report."""
    source = WorkerSource.of_bytes(data)
    kind = container.detect(source)
    outer.depth += 1
    try:
        if kind == container.ZIP:
            archive = ZipArchive(source, outer.reading)
            storages = RecordStorages(archive, outer.tags, lambda key: f"data/{key}")
            return InertUnpickler(archive.get_record("data.pkl"), outer, storages).load()
        if kind == container.STREAM:
            return read_inert(source, outer)
        raise Damaged(f"a pickle holds a {kind} file where a torch file should be")
    finally:
        outer.depth -= 1
