"""Values that cross as a name and plain arguments: of the standard library, of torch, of numpy.

Both sides use these tables: the worker to take a value apart, the parent to make it. A name that is
not here cannot be made, and every argument's type is checked before a constructor sees it. Nothing
here may import by name, open a file, or call what is not written out below.
"""

from __future__ import annotations

import argparse
import collections
import datetime
import decimal
import fractions
import pathlib
import re
import types
import uuid
from _codecs import encode
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

_DEVICE = re.compile(r"[a-z][a-z0-9_]{0,30}(:\d{1,3})?")
_STORAGE_TYPE = re.compile(r"[A-Z][A-Za-z0-9]{0,30}Storage")
_DTYPE_CODE = re.compile(
    r"[<>|=][biufcSUVmM]\d{1,9}(\[\d{0,9}(Y|M|W|D|h|m|s|ms|us|ns|ps|fs|as|generic)\])?"
)
_MAX_DIGITS = 5000

NAMESPACES: dict[str, type] = {
    "types.SimpleNamespace": types.SimpleNamespace,
    "argparse.Namespace": argparse.Namespace,
}


@dataclass(frozen=True)
class Spec:
    """How one kind of value is taken apart and made: `types` are those that each argument may
    have."""

    cls: type
    take: Callable[[Any], tuple[Any, ...]]
    make: Callable[..., Any]
    types: tuple[tuple[type, ...], ...]


_NONE = type(None)
_INT = (int,)
_STR = (str,)


def _decimal(text: str) -> decimal.Decimal:
    if len(text) > _MAX_DIGITS:
        raise ValueError("a Decimal of too many digits")
    return decimal.Decimal(text)


def _pure(cls: type[pathlib.PurePath]) -> Spec:
    return Spec(cls, lambda path: (str(path),), cls, (_STR,))


def _zone(offset: datetime.timedelta, name: str | None) -> datetime.timezone:
    return datetime.timezone(offset) if name is None else datetime.timezone(offset, name)


def _zone_name(zone: datetime.timezone) -> tuple[Any, ...]:
    args: Any = zone.__getinitargs__()  # type: ignore[attr-defined]  # its pickle's, in no stub
    return (args[0], args[1] if len(args) > 1 else None)


def _clock(*args: Any) -> datetime.time:
    return datetime.time(*args[:-1], fold=args[-1])


def _moment(*args: Any) -> datetime.datetime:
    return datetime.datetime(*args[:-1], fold=args[-1])


_ZONE = (_NONE, datetime.timezone)

VALUES: dict[str, Spec] = {
    "builtins.range": Spec(range, lambda r: (r.start, r.stop, r.step), range, (_INT,) * 3),
    "builtins.slice": Spec(
        slice, lambda s: (s.start, s.stop, s.step), slice, ((_NONE, int, str, float),) * 3
    ),
    "datetime.date": Spec(
        datetime.date, lambda d: (d.year, d.month, d.day), datetime.date, (_INT,) * 3
    ),
    "datetime.time": Spec(
        datetime.time,
        lambda t: (t.hour, t.minute, t.second, t.microsecond, t.tzinfo, t.fold),
        _clock,
        (*(_INT,) * 4, _ZONE, _INT),
    ),
    "datetime.datetime": Spec(
        datetime.datetime,
        lambda t: (
            t.year,
            t.month,
            t.day,
            t.hour,
            t.minute,
            t.second,
            t.microsecond,
            t.tzinfo,
            t.fold,
        ),
        _moment,
        (*(_INT,) * 7, _ZONE, _INT),
    ),
    "datetime.timedelta": Spec(
        datetime.timedelta,
        lambda d: (d.days, d.seconds, d.microseconds),
        datetime.timedelta,
        (_INT,) * 3,
    ),
    "datetime.timezone": Spec(
        datetime.timezone, _zone_name, _zone, ((datetime.timedelta,), (_NONE, str))
    ),
    "decimal.Decimal": Spec(decimal.Decimal, lambda d: (str(d),), _decimal, (_STR,)),
    "fractions.Fraction": Spec(
        fractions.Fraction,
        lambda f: (f.numerator, f.denominator),
        fractions.Fraction,
        (_INT, _INT),
    ),
    "uuid.UUID": Spec(uuid.UUID, lambda u: (u.bytes,), lambda b: uuid.UUID(bytes=b), ((bytes,),)),
    "pathlib.PurePosixPath": _pure(pathlib.PurePosixPath),
    "pathlib.PureWindowsPath": _pure(pathlib.PureWindowsPath),
    "pathlib.PosixPath": _pure(pathlib.PosixPath),
}
"""By the name that `manifest.Value.kind` carries."""

VALUE_NAMES: dict[type, str] = {spec.cls: name for name, spec in VALUES.items()}


def take_value(value: Any) -> tuple[str, tuple[Any, ...]] | None:
    """The name and the arguments that make this value again; None if the table has none."""
    name = VALUE_NAMES.get(type(value))
    if name is None:
        return None
    spec = VALUES[name]
    args = spec.take(value)
    fits = all(type(arg) in allowed for arg, allowed in zip(args, spec.types, strict=True))
    return (name, args) if fits else None


def make_value(kind: str, args: Sequence[Any]) -> Any:
    """The value `kind` of `args`. Raises ValueError or TypeError if there is no such value."""
    spec = VALUES.get(kind)
    if spec is None:
        raise ValueError(f"no value of kind {kind!r}")
    if len(args) != len(spec.types):
        raise TypeError(f"{kind} takes {len(spec.types)} arguments, not {len(args)}")
    for arg, allowed in zip(args, spec.types, strict=True):
        if type(arg) not in allowed:
            raise TypeError(f"{kind} takes no {type(arg).__name__}")
    return spec.make(*args)


def _named_torch_objects() -> dict[Any, tuple[str, str]]:
    kinds: dict[type, str] = {
        torch.dtype: "dtype",
        torch.layout: "layout",
        torch.qscheme: "qscheme",
        torch.memory_format: "memory_format",
    }
    return {
        value: (kinds[type(value)], str(value).removeprefix("torch."))
        for value in vars(torch).values()
        if type(value) in kinds
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


def _global_objects() -> dict[str, Any]:
    """Classes and functions that may stand in a result as values: those that weights_only knows,
    the builtin containers, and the factories of a defaultdict."""
    found: dict[str, Any] = {
        f"builtins.{cls.__name__}": cls
        for cls in (
            *(bool, int, float, complex, str, bytes, bytearray, object),
            *(list, tuple, dict, set, frozenset, range, slice),
        )
    }
    for cls in (
        *(collections.OrderedDict, collections.Counter, collections.defaultdict),
        *(collections.deque, torch.nn.Parameter, torch.serialization._get_layout),
        torch._tensor._rebuild_from_type_v2,
    ):
        found[f"{cls.__module__}.{cls.__qualname__}"] = cls
    found["_codecs.encode"] = encode
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


CONSTANTS: dict[str, Any] = {"Ellipsis": Ellipsis, "NotImplemented": NotImplemented}
GLOBALS: dict[str, Any] = _global_objects()
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

FACTORIES = frozenset(
    f"builtins.{name}"
    for name in ("list", "dict", "set", "int", "float", "str", "tuple", "bool", "complex")
) | {"collections.OrderedDict", "collections.Counter", "collections.deque"}
"""The globals that a defaultdict may have as its factory."""


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


def simple_dtype(code: str) -> np.dtype[Any]:
    """The numpy dtype of a typestr. Raises ValueError or TypeError for any other text."""
    if not _DTYPE_CODE.fullmatch(code):
        raise ValueError(f"no numpy dtype {code!r}")
    return np.dtype(code)
