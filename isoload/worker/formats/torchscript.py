"""TorchScript: modules, their parameters, buffers and attributes as data. No code of it is parsed
or run.

Since torch 1.4 the modules are a pickle (data.pkl); before that they are JSON (model.json).
"""

# mypy: disallow-untyped-calls=False
from __future__ import annotations

import json
import math
from typing import Any

import torch

from isoload import manifest

from ..archive import ZipArchive
from ..inert import Context, InertUnpickler
from ..ladder import Rung, climb
from ..persistent import RecordStorages, typed
from ..reading import INERT, Damaged, Reading
from ..recorded import Recorded
from ..tags import Tags
from ..torch_source import WorkerSource

_JSON_DTYPES = {
    "FLOAT": torch.float32, "DOUBLE": torch.float64, "FLOAT16": torch.float16,
    "UINT8": torch.uint8, "INT8": torch.int8, "INT16": torch.int16, "INT32": torch.int32,
    "INT64": torch.int64, "BOOL": torch.bool, "BFLOAT16": torch.bfloat16,
}  # fmt: skip
_MAX_DEPTH = 500


def read(
    source: WorkerSource, request: manifest.Request, reading: Reading, archive: ZipArchive
) -> None:
    """The module at the root, as a record: its state holds attributes and submodules by name."""
    reading.container = "torchscript"

    def inert() -> object:
        tags = Tags()
        reading.location = tags.location
        reading.mapping = source.mapping
        context = Context(reading, tags)
        if archive.has_record("model.json") and not archive.has_record("data.pkl"):
            return _OldModule(archive, tags).root()
        root = _unpickle(archive, context, "data")
        constants = _unpickle(archive, context, "constants")
        if isinstance(root, Recorded) and isinstance(constants, tuple) and constants:
            root.kwargs["constants"] = constants
        return root

    climb(reading, request, Rung(INERT, inert))


def _unpickle(archive: ZipArchive, context: Context, name: str) -> object:
    if not archive.has_record(f"{name}.pkl"):
        return None
    storages = RecordStorages(archive, context.tags, lambda key: _record(archive, name, key))
    return InertUnpickler(archive.get_record(f"{name}.pkl"), context, storages).load()


def _record(archive: ZipArchive, folder: str, key: str) -> str:
    """Where a tensor's bytes are: beside the pickle, or (torch 2 may) among the constants."""
    own = f"{folder}/{key}"
    return own if archive.has_record(own) or not archive.has_record(key) else key


class _OldModule:
    """The format of torch 1.0 to 1.3: modules in JSON, tensors in records of their own."""

    def __init__(self, archive: ZipArchive, tags: Tags) -> None:
        self._archive = archive
        self._tags = tags
        self._storages: dict[str, torch.storage.TypedStorage] = {}
        try:
            self._model: Any = json.loads(archive.get_record("model.json"))
        except (ValueError, RecursionError):
            raise Damaged("model.json is no JSON") from None

    def root(self) -> object:
        try:
            self._tensors = [self._tensor(entry) for entry in self._model.get("tensors", [])]
            return self._module(self._model["mainModule"], 0)
        except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
            raise Damaged(f"model.json is not as torch writes it: {type(error).__name__}") from None

    def _tensor(self, entry: dict[str, Any]) -> torch.Tensor:
        dtype = _JSON_DTYPES[entry["dataType"]]
        dims = [int(size) for size in entry.get("dims", [])]
        strides = [int(step) for step in entry.get("strides", [])]
        offset = int(entry.get("offset", 0))
        key = str(entry["data"]["key"])
        storage = self._storages.get(key)
        if storage is None:
            nbytes = self._archive.get_record_size(key)
            untyped = self._archive.storage(key, nbytes)
            self._tags.note(untyped, str(entry.get("device", "cpu")))
            storage = self._storages[key] = typed(untyped, dtype)
        if min(*dims, *strides, offset, 0) < 0 or len(dims) != len(strides):
            raise ValueError(key)
        last = offset + sum((size - 1) * step for size, step in zip(dims, strides, strict=True))
        if math.prod(dims) and (last + 1) * dtype.itemsize > storage._untyped_storage.nbytes():
            raise Damaged(f"a tensor reaches beyond its record {key!r}")
        tensor = torch.empty(0, dtype=dtype).set_(storage._untyped_storage, offset, dims, strides)
        tensor.requires_grad = bool(entry.get("requiresGrad")) and dtype.is_floating_point
        return tensor

    def _module(self, entry: dict[str, Any], depth: int) -> Recorded:
        if depth > _MAX_DEPTH:
            raise Damaged("model.json nests its modules too deep")
        module = Recorded("torch.jit.ScriptModule")
        state: dict[str, object] = {}
        for parameter in entry.get("parameters", []):
            state[str(parameter["name"])] = self._tensors[int(parameter["tensorId"])]
        for attribute in entry.get("attributes", []):
            if str(attribute.get("type")) == "Tensor" and "id" in attribute:
                state[str(attribute["name"])] = self._tensors[int(attribute["id"])]
        for child in entry.get("submodules", []):
            state[str(child["name"])] = self._module(child, depth + 1)
        module.state = state
        return module
