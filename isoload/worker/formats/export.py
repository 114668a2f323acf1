""".pt2 files of torch.export: weights as raw records, described by JSON. The program itself is left
alone.

Since torch 2.7 torch's own archive with an `archive_format` record; before that a plain zip of
torch.save files.
"""

# mypy: disallow-untyped-calls=False
from __future__ import annotations

import json
from typing import Any

import torch

from isoload import manifest

from ..archive import ZipArchive
from ..inert import Context
from ..ladder import Rung, climb
from ..makers import Decline
from ..makers.tensors import check_extent
from ..persistent import typed
from ..reading import INERT, Damaged, Reading, Unsupported
from ..tags import Tags
from ..torch_source import WorkerSource
from .members import Members
from .within import read_within

MARK = "archive_format"
OLD_MARK = "serialized_exported_program.json"
_OLD_PARTS = {
    "serialized_state_dict": "state_dict",
    "serialized_constants": "constants",
    "serialized_example_inputs": "sample_inputs",
}
_FOLDERS = {
    "data/weights/": ("_weights_config.json", "state_dict"),
    "data/constants/": ("_constants_config.json", "constants"),
}
_SAMPLES = "data/sample_inputs/"
_DTYPES = {
    1: torch.uint8, 2: torch.int8, 3: torch.int16, 4: torch.int32, 5: torch.int64,
    6: torch.float16, 7: torch.float32, 8: torch.float64,
    9: torch.complex32, 10: torch.complex64, 11: torch.complex128,
    12: torch.bool, 13: torch.bfloat16, 28: torch.uint16,
    29: torch.float8_e4m3fn, 30: torch.float8_e5m2,
    31: torch.float8_e4m3fnuz, 32: torch.float8_e5m2fnuz,
    33: getattr(torch, "float8_e8m0fnu", None), 34: torch.uint32, 35: torch.uint64,
}  # fmt: skip
"""torch._export.serde.schema.ScalarType."""
_STRIDED = 7
"""torch._export.serde.schema.Layout.Strided."""


def read(
    source: WorkerSource, request: manifest.Request, reading: Reading, archive: ZipArchive
) -> None:
    """A dict with state_dict, constants and sample_inputs; of several models, a dict of those."""
    reading.container = "pt2"

    def inert() -> object:
        tags = Tags()
        reading.location = tags.location
        reading.mapping = source.mapping
        return _Archive(archive, Context(reading, tags)).models()

    climb(reading, request, Rung(INERT, inert))


def read_old(members: Members, request: manifest.Request, reading: Reading) -> None:
    """The plain zip of torch 2.1 to 2.6."""
    reading.container = "pt2"

    def inert() -> object:
        tags = Tags()
        reading.location = tags.location
        context = Context(reading, tags)
        parts: dict[str, object] = {}
        for name in members.names:
            part = _OLD_PARTS.get(name.rsplit(".", 1)[0])
            if part is not None and name.endswith(".pt"):
                data = members.read(name)
                parts[part] = read_within(data, context) if data else {}
        return parts

    climb(reading, request, Rung(INERT, inert))


class _Archive:
    def __init__(self, archive: ZipArchive, context: Context) -> None:
        self._archive = archive
        self._context = context
        self._records = archive.get_all_records()
        self._storages: dict[str, torch.UntypedStorage] = {}

    def models(self) -> object:
        models: dict[str, dict[str, object]] = {}
        for folder, (suffix, part) in _FOLDERS.items():
            for record in self._records:
                if record.startswith(folder) and record.endswith(suffix):
                    name = record[len(folder) : -len(suffix)]
                    models.setdefault(name, {})[part] = self._tensors(folder, record)
        for record in self._records:
            if record.startswith(_SAMPLES) and record.endswith(".pt"):
                held = read_within(self._archive.get_record(record), self._context)
                models.setdefault(record[len(_SAMPLES) : -3], {})["sample_inputs"] = held
        if not models:
            raise Unsupported("a .pt2 archive without weights")
        return next(iter(models.values())) if len(models) == 1 else models

    def _tensors(self, folder: str, record: str) -> dict[str, object]:
        try:
            config = json.loads(self._archive.get_record(record))["config"]
            return {str(name): self._value(folder, entry) for name, entry in config.items()}
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError, Decline) as error:
            raise Damaged(f"{record} is not as torch writes it: {type(error).__name__}") from None

    def _value(self, folder: str, entry: dict[str, Any]) -> object:
        name = folder + str(entry["path_name"])
        if entry.get("use_pickle"):
            return read_within(self._archive.get_record(name), self._context)
        meta = entry.get("tensor_meta")
        if not meta:  # a custom object, in a form of its own
            return self._archive.get_record(name)
        dtype = _DTYPES.get(meta["dtype"])
        if dtype is None or meta["layout"] != _STRIDED:
            raise Unsupported(f"{name} is of a dtype or layout that is not known here")
        storage = self._storage(name, meta["device"])
        view = check_extent(
            typed(storage, dtype),
            dtype,
            _int(meta["storage_offset"]),
            [_int(size) for size in meta["sizes"]],
            [_int(step) for step in meta["strides"]],
        )
        tensor = torch.empty(0, dtype=dtype).set_(storage, _int(meta["storage_offset"]), *view)
        grad = bool(meta.get("requires_grad")) and (dtype.is_floating_point or dtype.is_complex)
        return torch.nn.Parameter(tensor, grad) if entry.get("is_param") else tensor

    def _storage(self, name: str, device: dict[str, Any]) -> torch.UntypedStorage:
        if name not in self._storages:
            storage = self._archive.storage(name, self._archive.get_record_size(name))
            kind, index = str(device["type"]), device.get("index")
            self._context.tags.note(storage, kind if index is None else f"{kind}:{int(index)}")
            self._storages[name] = storage
        return self._storages[name]


def _int(value: dict[str, int]) -> int:
    return value["as_int"]
