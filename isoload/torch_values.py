"""Values of torch's that cross as a kind and a name: `manifest.Named`.

Both sides use these tables: the worker to name a value, the parent to make it. A name that is not
here cannot be made. Nothing here may import by name, or call what is not written out below.
"""

from __future__ import annotations

import re
from typing import Any

import torch

from . import values
from .values import CONSTANTS

_DEVICE = re.compile(r"[a-z][a-z0-9_]{0,30}(:\d{1,3})?")
_STORAGE_TYPE = re.compile(r"[A-Z][A-Za-z0-9]{0,30}Storage")


_KINDS: dict[type, str] = {
    torch.dtype: "dtype",
    torch.layout: "layout",
    torch.qscheme: "qscheme",
    torch.memory_format: "memory_format",
}


def _named_torch_objects() -> dict[Any, tuple[str, str]]:
    return {
        value: (_KINDS[type(value)], str(value).removeprefix("torch."))
        for value in vars(torch).values()
        if type(value) in _KINDS
    }


_REBUILD_FUNCTIONS = (
    "_rebuild_parameter",
    "_rebuild_parameter_with_state",
    "_rebuild_qtensor",
    "_rebuild_tensor",
    "_rebuild_tensor_v2",
    "_rebuild_tensor_v3",
    "_rebuild_sparse_tensor",
    "_rebuild_meta_tensor_no_storage",
    "_rebuild_nested_tensor",
    "_rebuild_wrapper_subclass",
    "_rebuild_device_tensor_from_numpy",
    "_rebuild_device_tensor_from_cpu_tensor",
)


def _torch_globals() -> dict[str, Any]:
    """Those that weights_only knows."""
    found: dict[str, Any] = {}
    for made in (
        *(torch.nn.Parameter, torch.serialization._get_layout),
        torch._tensor._rebuild_from_type_v2,
    ):
        found[f"{made.__module__}.{made.__qualname__}"] = made
    for name in ("Size", "Tensor", "device", "dtype", "layout"):
        found[f"torch.{name}"] = getattr(torch, name)
    found["torch.storage.TypedStorage"] = torch.storage.TypedStorage
    found["torch.storage.UntypedStorage"] = torch.storage.UntypedStorage
    for tensor_class in torch._tensor_classes:
        found[f"{tensor_class.__module__}.{tensor_class.__name__}"] = tensor_class
    for name in _REBUILD_FUNCTIONS:
        if hasattr(torch._utils, name):
            found[f"torch._utils.{name}"] = getattr(torch._utils, name)
    return found


def torch_constants() -> dict[str, tuple[str, str]]:
    """The full name of each dtype, layout, qscheme and memory format → its kind and name."""
    return {
        f"torch.{name}": _TORCH_NAMES[value]
        for name, value in vars(torch).items()
        if type(value) in _KINDS
    }


TORCH_GLOBALS: dict[str, Any] = _torch_globals()
GLOBALS: dict[str, Any] = {**values.GLOBALS, **TORCH_GLOBALS}
_TORCH_NAMES = _named_torch_objects()
_TORCH_OBJECTS = {name: value for value, name in _TORCH_NAMES.items()}
_GLOBAL_NAMES = {id(value): name for name, value in GLOBALS.items()}
NAMED_TYPES: frozenset[type] = frozenset(
    {
        *{type(value) for value in _TORCH_NAMES},
        torch.device,
        torch.serialization.StorageType,
        type(Ellipsis),
        type(NotImplemented),
    }
)
"""The types all of whose values have a name."""


def name_of(value: Any) -> tuple[str, str] | None:
    """The kind and name by which the table knows a value; None if it does not."""
    kind = type(value)
    if kind is torch.device:
        return "device", str(value)
    if kind is torch.serialization.StorageType:
        return "storage_type", _storage_type_name(value)
    if kind in NAMED_TYPES:
        named = _TORCH_NAMES.get(value)
        return named if named is not None else ("constant", repr(value))
    name = _GLOBAL_NAMES.get(id(value))
    return None if name is None else ("global", name)


def make_named(kind: str, name: str) -> Any:
    """The value of that kind and name. Raises ValueError if there is none."""
    if kind == "device" and _DEVICE.fullmatch(name):
        try:
            return torch.device(name)
        except RuntimeError:
            raise ValueError(f"no device {name!r}") from None
    if kind == "storage_type" and _STORAGE_TYPE.fullmatch(name):
        storage_type: Any = torch.serialization.StorageType
        try:
            return storage_type(name)
        except KeyError:
            raise ValueError(f"no storage type {name!r}") from None
    table = {"constant": CONSTANTS, "global": GLOBALS}.get(kind)
    found = table.get(name) if table is not None else _TORCH_OBJECTS.get((kind, name))
    if found is None:
        raise ValueError(f"no {kind!r} is called {name!r}")
    return found


def _storage_type_name(value: Any) -> str:
    for name, dtype in torch.storage._storage_type_to_dtype_map().items():
        if dtype == value.dtype:
            return str(name)
    raise ValueError(f"no storage type of {value.dtype}")
