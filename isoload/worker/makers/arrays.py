"""numpy's arrays, scalars and dtypes, by numpy's old names and its new ones.

numpy's own `__setstate__` is used only after every part of the state was checked here.
"""

from __future__ import annotations

import math
import re
from typing import Any

import numpy as np

from ..recorded import Recorded
from .base import Args, Decline, Owner, Table, raw, unpack, want

ARRAYS = Table()

_CODE = re.compile(r"[<>|=]?[?bBhHiIlLqQpPefdgFDGcSuUVOMm]\d{0,9}")
_MAX_ITEM = 1 << 30
_MAX_DIMS = 64
_POINTERS = 0x07
"""numpy's flags of items that are pointers: NPY_ITEM_REFCOUNT, LIST_PICKLE, ITEM_IS_POINTER."""


@ARRAYS("numpy.dtype")
def _dtype(owner: Owner, args: Args) -> object:
    want(1 <= len(args) <= 3 and all(type(flag) in (bool, int) for flag in args[1:]))
    code = args[0].decode("ascii") if type(args[0]) is bytes else args[0]
    want(type(code) is str and _CODE.fullmatch(code) is not None)
    want(int("".join(filter(str.isdigit, code)) or "0") <= _MAX_ITEM)
    return np.dtype(code, copy=True)


def build_dtype(dtype: np.dtype[Any], state: object) -> None:
    """What BUILD does to a dtype that `numpy.dtype(code, align, copy)` made."""
    want(type(state) is tuple and 8 <= len(state) <= 9)
    assert isinstance(state, tuple)
    version, order, subarray, names, fields, itemsize, alignment, flags = state[:8]
    order = order.decode("ascii") if type(order) is bytes else order
    want(version in (3, 4) and order in ("<", ">", "|", "="))
    want(all(type(number) is int for number in (itemsize, alignment, flags)))
    want(-1 <= itemsize <= _MAX_ITEM and -1 <= alignment <= 64 and 0 <= flags <= 255)
    rest = _unit(state[8]) if len(state) == 9 else ()
    if subarray is None and names is None and fields is None:
        want(itemsize in (-1, dtype.itemsize) or dtype.kind in "SUV")
        want(bool(flags & _POINTERS) == (dtype.kind == "O"))
        want(not rest or dtype.kind in "mM" or rest == (None,))
    else:
        want(dtype.kind == "V" and len(state) == 8 and not flags & _POINTERS)
        _check_record(subarray, names, fields, itemsize)
    # __setstate__ is what numpy's own pickles call; its stubs have none for a dtype, and another
    # shape for an array.
    dtype.__setstate__((version, order, subarray, names, fields, itemsize, alignment, flags, *rest))  # type: ignore[attr-defined]


def _unit(metadata: object) -> tuple[Any, ...]:
    """The ninth part of a dtype's state: None, or the unit of a datetime64 or timedelta64."""
    if metadata is None:
        return (None,)
    want(type(metadata) is tuple and len(metadata) == 2)
    assert isinstance(metadata, tuple)
    user, unit = metadata
    want(not user and type(user) in (dict, type(None)) and type(unit) is tuple and len(unit) == 4)
    name = unit[0].decode("ascii") if type(unit[0]) is bytes else unit[0]
    want(name in ("Y", "M", "W", "D", "h", "m", "s", "ms", "us", "ns", "ps", "fs", "as", "generic"))
    want(all(type(number) is int and 0 <= number < 1 << 31 for number in unit[1:]))
    return ((user, unit),)


def _check_record(subarray: Any, names: Any, fields: Any, itemsize: int) -> None:
    if subarray is not None:
        want(type(subarray) is tuple and len(subarray) == 2 and names is None and fields is None)
        base, shape = subarray
        dims = _shape(shape if type(shape) is tuple else (shape,))
        want(isinstance(base, np.dtype) and not base.hasobject)
        want(base.itemsize * math.prod(dims) == itemsize)
        return
    want(type(names) is tuple and type(fields) is dict)
    want(all(type(name) is str and name in fields for name in names))
    for field in fields.values():
        want(type(field) is tuple and len(field) in (2, 3))
        kind, offset = field[:2]
        want(field[2:] == () or type(field[2]) is str)
        want(isinstance(kind, np.dtype) and not kind.hasobject and type(offset) is int)
        want(0 <= offset <= itemsize - kind.itemsize)


def _shape(shape: Any) -> tuple[int, ...]:
    want(type(shape) is tuple and len(shape) <= _MAX_DIMS)
    want(all(type(size) is int and 0 <= size < 1 << 48 for size in shape))
    result: tuple[int, ...] = shape
    return result


@ARRAYS(
    *("numpy.core.multiarray._reconstruct", "numpy._core.multiarray._reconstruct"),
    *("numpy.core._multiarray_umath._reconstruct", "numpy._core._multiarray_umath._reconstruct"),
)
def _reconstruct(owner: Owner, args: Args) -> object:
    want(len(args) == 3)
    cls = args[0]
    if isinstance(cls, Recorded) and cls.name == "numpy.ndarray":
        return np.ndarray((0,), "b")  # its shape and its data follow as state
    raise Decline


def build_array(array: np.ndarray[Any, Any], state: object) -> None:
    """What BUILD does to an array that `_reconstruct` made."""
    want(type(state) is tuple and len(state) in (4, 5))
    assert isinstance(state, tuple)
    shape, dtype, fortran, data = state[-4:]
    dims = _shape(shape)
    want(isinstance(dtype, np.dtype) and type(fortran) in (bool, int))
    count = math.prod(dims)
    if dtype.hasobject:
        want(dtype.kind == "O" and type(data) is list and len(data) == count)
    else:
        data = raw(data, count * dtype.itemsize)
        want(len(data) == count * dtype.itemsize)
    array.__setstate__((1, dims, dtype, bool(fortran), data))  # type: ignore[arg-type]  # as above


@ARRAYS("numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar")
def _scalar(owner: Owner, args: Args) -> object:
    want(len(args) == 2 and isinstance(args[0], np.dtype))
    dtype = args[0]
    want(not dtype.hasobject)
    data = raw(args[1], dtype.itemsize)
    want(len(data) == dtype.itemsize)
    return np.frombuffer(data, dtype, 1)[0] if dtype.itemsize else dtype.type()


@ARRAYS("numpy.core.numeric._frombuffer", "numpy._core.numeric._frombuffer")
def _frombuffer(owner: Owner, args: Args) -> object:
    unpack(args[:1], (bytes, bytearray))
    want(len(args) == 4 and isinstance(args[1], np.dtype) and args[3] in ("C", "F"))
    buffer, dtype, shape, order = args
    dims = _shape(shape)
    want(not dtype.hasobject and len(buffer) == dtype.itemsize * math.prod(dims))
    array = np.frombuffer(buffer, dtype) if dtype.itemsize else np.empty(dims, dtype)
    return array.reshape(dims, order=order)
