"""What the names in a file stand for, by torch's own objects."""

from __future__ import annotations

from typing import Any

import torch

from isoload.torch_values import GLOBALS, NAMED_TYPES, name_of, torch_constants

from .names import Names

_CONSTANTS = {name: getattr(torch, name.removeprefix("torch.")) for name in torch_constants()}


def _find(name: str) -> object:
    known = _CONSTANTS.get(name, GLOBALS.get(name))
    if known is not None:
        return known
    module, _, last = name.rpartition(".")
    if module.startswith("torch") and last.endswith("Storage"):
        storage_type: Any = torch.serialization.StorageType
        try:
            return storage_type(last)
        except KeyError:
            pass
    return None


TORCH_NAMES = Names(_find, name_of, NAMED_TYPES)
