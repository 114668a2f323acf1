"""Values that cross as a name and plain arguments: of the standard library, and of numpy.

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


def _standard_globals() -> dict[str, Any]:
    classes = (
        *(bool, int, float, complex, str, bytes, bytearray, object),
        *(list, tuple, dict, set, frozenset, range, slice),
        *(collections.OrderedDict, collections.Counter, collections.defaultdict),
        collections.deque,
    )
    found: dict[str, Any] = {f"{cls.__module__}.{cls.__qualname__}": cls for cls in classes}
    found["_codecs.encode"] = encode
    return found


GLOBALS: dict[str, Any] = _standard_globals()
"""Classes and functions that may stand in a result as values. torch's: `isoload.torch_values`."""

CONSTANTS: dict[str, Any] = {"Ellipsis": Ellipsis, "NotImplemented": NotImplemented}

FACTORIES = frozenset(
    f"builtins.{name}"
    for name in ("list", "dict", "set", "int", "float", "str", "tuple", "bool", "complex")
) | {"collections.OrderedDict", "collections.Counter", "collections.deque"}
"""The globals that a defaultdict may have as its factory."""


def simple_dtype(code: str) -> np.dtype[Any]:
    """The numpy dtype of a typestr. Raises ValueError or TypeError for any other text."""
    if not _DTYPE_CODE.fullmatch(code):
        raise ValueError(f"no numpy dtype {code!r}")
    return np.dtype(code)
