"""map_location: on which device each storage ends up. Only the parent places, and only here.

The meanings are torch.load's own (torch/serialization.py, `_get_restore_location`), storage by
storage, with torch's own registry of devices and torch's own errors.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import torch

from .staging import LARGE, copy_to_cuda

Device: TypeAlias = "str | torch.device | Mapping[str, str] | Callable[[Any, str], Any] | None"
"""Whatever torch.load takes as map_location."""

_torch: Any = torch.serialization
_CPU = _torch._cpu_deserialize
_CUDA = re.compile(r"cuda(:\d+)?")


class Placement:
    """Where storages go, for one `device` argument.

    None: the saved device. str and torch.device: that device. dict: the saved tag's value, else the
    tag. Callable: given (CPU storage, tag); returns a storage, or None for the saved device. Raises
    TypeError for anything else.
    """

    def __init__(self, device: Device = None) -> None:
        if device is not None and not (
            isinstance(device, str | bytes | torch.device | dict) or callable(device)
        ):
            raise TypeError(
                "device must be None, a str, a torch.device, a dict or a callable, "
                f"not {type(device).__name__}"
            )
        self._device: Any = device

    def storage(self, storage: Any, location: str) -> Any:
        """The storage on its device; `location` is the tag that the file saved.

        Raises what torch.load raises: RuntimeError for a device that is not there, and whatever the
        caller's own callable raises."""
        device = self._device
        if device is None:
            return self._restore(storage, location)
        if isinstance(device, dict):
            return self._restore(storage, device.get(location, location))
        if isinstance(device, str | bytes):
            return self._restore(storage, device)
        if isinstance(device, torch.device):
            return self._restore(storage, str(device))
        placed = device(storage, location)
        return self._restore(storage, location) if placed is None else _untyped(placed)

    def keeps(self, location: str) -> bool:
        """Whether `storage` would give back any CPU storage of that tag as it is."""
        device = self._device
        if device is not None and type(device) not in (str, torch.device):
            return False
        return str(location if device is None else device) == "cpu" and _untouched()

    def _restore(self, storage: Any, location: Any) -> Any:
        if location == "cpu" and _untouched():
            return storage
        large = storage.nbytes() >= LARGE
        if large and isinstance(location, str) and _CUDA.fullmatch(location) and _untouched():
            index = _torch.validate_cuda_device(location)
            return copy_to_cuda(storage, torch.device("cuda", index))
        return _untyped(_torch.default_restore_location(storage, location))


def _untouched() -> bool:
    """Whether torch's own restorers come first in its registry, for the CPU and for CUDA."""
    (_, _, cpu), (_, _, cuda) = _torch._package_registry[:2]
    return cpu is _CPU and getattr(cuda, "args", None) == ("cuda",)


def _untyped(placed: Any) -> Any:
    """What a restorer gave, held to what torch.load itself accepts."""
    typed: Any = torch.storage.TypedStorage
    wrapped = typed(wrap_storage=placed, dtype=torch.uint8, _internal=True)
    return wrapped._untyped_storage
