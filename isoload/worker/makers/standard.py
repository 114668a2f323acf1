"""Values of the standard library: they come back as themselves."""

from __future__ import annotations

import argparse
import collections
import datetime
import decimal
import fractions
import pathlib
import types
import uuid
from typing import Any

from ..recorded import Recorded
from .base import Args, Decline, Owner, Table, raw, unpack, want

STANDARD = Table()
_MAX_DIGITS = 5000
_MAX_DEPTH = 100

_NONE = type(None)


def hashable(key: Any) -> Any:
    """A key that can be hashed without deep recursion: a tuple's hash goes all the way down."""
    level = [key]
    for _ in range(_MAX_DEPTH):
        level = [item for value in level if type(value) is tuple for item in value]
        if not level:
            return key
        want(len(level) <= 10_000)
    raise Decline


def _is_short(number: int) -> bool:
    """Whether arithmetic on it is quick: what a Fraction or a Decimal does is quadratic."""
    return number.bit_length() <= 4 * _MAX_DIGITS


def _items(value: Any) -> list[Any]:
    want(type(value) in (list, tuple, set, frozenset, collections.deque, range))
    want(type(value) is not range or len(value) <= 1_000_000)
    return list(value)


def _pairs(value: Any) -> list[tuple[Any, Any]]:
    if isinstance(value, dict):
        return list(value.items())
    pairs = [tuple(pair) if type(pair) in (list, tuple) else () for pair in _items(value)]
    want(all(len(pair) == 2 for pair in pairs))
    return [(hashable(key), held) for key, held in pairs]


@STANDARD("builtins.list")
def _list(owner: Owner, args: Args) -> object:
    want(len(args) <= 1)
    return _items(args[0]) if args else []


@STANDARD("builtins.tuple")
def _tuple(owner: Owner, args: Args) -> object:
    want(len(args) <= 1)
    return tuple(_items(args[0])) if args else ()


@STANDARD("builtins.set")
def _set(owner: Owner, args: Args) -> object:
    want(len(args) <= 1)
    return {hashable(item) for item in _items(args[0])} if args else set()


@STANDARD("builtins.frozenset")
def _frozenset(owner: Owner, args: Args) -> object:
    want(len(args) <= 1)
    return frozenset(hashable(item) for item in _items(args[0])) if args else frozenset()


@STANDARD("builtins.dict")
def _dict(owner: Owner, args: Args) -> object:
    want(len(args) <= 1)
    return dict(_pairs(args[0])) if args else {}


@STANDARD("collections.OrderedDict")
def _ordered_dict(owner: Owner, args: Args) -> object:
    want(len(args) <= 1)
    return collections.OrderedDict(_pairs(args[0])) if args else collections.OrderedDict()


@STANDARD("collections.Counter")
def _counter(owner: Owner, args: Args) -> object:
    want(len(args) <= 1)
    counter: collections.Counter[Any] = collections.Counter()
    if args:
        want(isinstance(args[0], dict))
        dict.update(counter, args[0])
    return counter


@STANDARD("collections.defaultdict")
def _defaultdict(owner: Owner, args: Args) -> object:
    want(len(args) <= 2)
    factory = args[0] if args else None
    want(factory is None or isinstance(factory, (type, Recorded)))
    return collections.defaultdict(factory, _pairs(args[1]) if len(args) > 1 else ())


@STANDARD("collections.deque")
def _deque(owner: Owner, args: Args) -> object:
    unpack(args, (list, tuple), (int, _NONE), optional=2)
    return collections.deque(*args)


@STANDARD("types.SimpleNamespace")
def _namespace(owner: Owner, args: Args) -> object:
    unpack(args)
    return types.SimpleNamespace()


@STANDARD("argparse.Namespace")
def _arguments(owner: Owner, args: Args) -> object:
    unpack(args)
    return argparse.Namespace()


@STANDARD("_codecs.encode")
def _encode(owner: Owner, args: Args) -> object:
    unpack(args, str, str, optional=1)
    encoding = args[1] if len(args) > 1 else "utf-8"
    want(encoding.lower() in ("latin1", "latin-1", "utf-8", "utf8", "ascii"))
    try:
        return args[0].encode(encoding)
    except UnicodeEncodeError:
        raise Decline from None


@STANDARD("builtins.bytes")
def _bytes(owner: Owner, args: Args) -> object:
    return bytes(_byte_values(args))


@STANDARD("builtins.bytearray")
def _bytearray(owner: Owner, args: Args) -> object:
    return bytearray(_byte_values(args))


def _byte_values(args: Args) -> bytes:
    if not args:
        return b""
    if type(args[0]) is str:
        unpack(args, str, str)
        want(args[1].lower() in ("latin1", "latin-1", "utf-8", "ascii"))
        return bytes(args[0], args[1])
    want(len(args) == 1)
    if type(args[0]) in (bytes, bytearray):
        return bytes(args[0])
    values = _items(args[0])
    want(all(type(value) is int and 0 <= value <= 255 for value in values))
    return bytes(values)


@STANDARD("builtins.complex")
def _complex(owner: Owner, args: Args) -> object:
    return complex(*unpack(args, (float, int), (float, int), optional=2))


@STANDARD("builtins.range")
def _range(owner: Owner, args: Args) -> object:
    unpack(args, int, int, int, optional=2)
    want(len(args) < 3 or args[2] != 0)
    return range(*args)


@STANDARD("builtins.slice")
def _slice(owner: Owner, args: Args) -> object:
    kind = (int, _NONE, str, float)
    return slice(*unpack(args, kind, kind, kind, optional=2))


@STANDARD("datetime.datetime")
def _datetime(owner: Owner, args: Args) -> object:
    return _time_value(datetime.datetime, 10, args)


@STANDARD("datetime.date")
def _date(owner: Owner, args: Args) -> object:
    return _time_value(datetime.date, 4, args)


@STANDARD("datetime.time")
def _time(owner: Owner, args: Args) -> object:
    return _time_value(datetime.time, 6, args)


def _time_value(cls: Any, size: int, args: Args) -> object:
    """From the packed state that pickle writes, or from numbers."""
    want(bool(args))
    zone = args[-1] if isinstance(args[-1], datetime.timezone) else None
    plain = args[:-1] if zone or (args[-1] is None and len(args) > 1) else args
    if len(plain) == 1 and type(plain[0]) in (bytes, str):
        packed = raw(plain[0], size)
        want(len(packed) == size)
        return cls(packed, zone) if zone else cls(packed)
    want(all(type(value) is int for value in plain))
    return cls(*plain, tzinfo=zone) if zone else cls(*plain)


@STANDARD("datetime.timedelta")
def _timedelta(owner: Owner, args: Args) -> object:
    return datetime.timedelta(*unpack(args, int, int, int, optional=3))


@STANDARD("datetime.timezone")
def _timezone(owner: Owner, args: Args) -> object:
    return datetime.timezone(*unpack(args, datetime.timedelta, str, optional=1))


@STANDARD("decimal.Decimal")
def _decimal(owner: Owner, args: Args) -> object:
    unpack(args, (str, int))
    want(_is_short(args[0]) if type(args[0]) is int else len(args[0]) <= _MAX_DIGITS)
    try:
        return decimal.Decimal(args[0])
    except decimal.DecimalException:
        raise Decline from None


@STANDARD("fractions.Fraction")
def _fraction(owner: Owner, args: Args) -> object:
    if len(args) == 1 and type(args[0]) is str:
        numerator, _, denominator = args[0].partition("/")
        args = (int(numerator), int(denominator or "1"))
    unpack(args, int, int)
    want(args[1] != 0 and all(_is_short(number) for number in args))
    return fractions.Fraction(*args)


@STANDARD("uuid.UUID")
def _uuid(owner: Owner, args: Args) -> object:
    unpack(args)
    return uuid.UUID(int=0)  # its number follows as state


@STANDARD(*("pathlib.PosixPath", "pathlib._local.PosixPath", "pathlib.Path", "pathlib._local.Path"))
def _posix_path(owner: Owner, args: Args) -> object:
    return pathlib.PosixPath(*_parts(args))


@STANDARD(
    *("pathlib.PurePosixPath", "pathlib._local.PurePosixPath"),
    *("pathlib.PurePath", "pathlib._local.PurePath"),
)
def _pure_posix_path(owner: Owner, args: Args) -> object:
    return pathlib.PurePosixPath(*_parts(args))


@STANDARD(
    *("pathlib.WindowsPath", "pathlib._local.WindowsPath"),
    *("pathlib.PureWindowsPath", "pathlib._local.PureWindowsPath"),
)
def _windows_path(owner: Owner, args: Args) -> object:
    return pathlib.PureWindowsPath(*_parts(args))


def _parts(args: Args) -> tuple[str, ...]:
    want(all(type(part) is str for part in args))
    return args
