"""torch.load(weights_only=True) on a zip or a legacy file that is already in memory.

The private loaders behind torch.load are called as torch.load itself calls them, so that a record
reader can be given that checks what torch does not, and no file name is needed.
"""

# mypy: disallow-untyped-calls=False
from __future__ import annotations

import pickle
import re
import warnings
from collections.abc import Callable
from typing import Any, BinaryIO

import torch
from torch import _weights_only_unpickler

from .archive import ZipArchive, first_line
from .jagged import nested_tensor_class
from .reading import Reading
from .tags import Tags
from .torch_source import WorkerSource

_GLOBAL = re.compile(r"GLOBAL (\S+) was not an allowed global")
_NEEDS_IMPORT = "must be imported to load nested jagged tensors"
SCANNED = 1 << 18
"""Pickles up to this many bytes are read once more for the globals they name: some milliseconds."""


def load_zip(archive: ZipArchive, tags: Tags) -> object:
    """What torch.load makes of the archive's data.pkl."""
    return _with_nested(lambda: _load(archive, tags))


def load_legacy(source: WorkerSource, tags: Tags) -> object:
    """What torch.load makes of a file from before torch 1.6."""
    return _with_nested(
        lambda: torch.serialization._legacy_load(
            source.file(), tags, _weights_only_unpickler, encoding="utf-8"
        )
    )


def _load(archive: ZipArchive, tags: Tags) -> object:
    return torch.serialization._load(archive, tags, _weights_only_unpickler, encoding="utf-8")


def _with_nested(load: Callable[[], Any]) -> object:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return load()
        except pickle.UnpicklingError as error:
            if _NEEDS_IMPORT not in str(error):
                raise
        nested_tensor_class()
        return load()


def refused_globals(error: BaseException) -> list[str]:
    """The global over which weights_only stumbled, if it was one."""
    return _GLOBAL.findall(str(error))[:1]


def refusal(error: BaseException) -> str:
    """torch's reason in one line, without its advice."""
    names = refused_globals(error)
    if names:
        return f"{names[0]} is not among the globals that it allows"
    text = str(error)
    for marker in ("WeightsUnpickler error:", "Weights only load failed."):
        if marker in text:
            text = text.split(marker, 1)[1]
    text = text.split("Please file an issue", 1)[0].split("Check the documentation", 1)[0]
    return first_line(ValueError(text)) if text.strip() else type(error).__name__


def note_globals(file: BinaryIO, reading: Reading, pickles: int = 1) -> None:
    """List the globals of the pickles that weights_only opened: the first ones of the file."""
    try:
        found: set[str] = set()
        for _ in range(pickles):
            found |= _weights_only_unpickler.get_globals_in_pkl(file)
        reading.globals = sorted(found)
    except Exception as error:
        reading.warn(f"the globals could not be listed: {first_line(error)}")
