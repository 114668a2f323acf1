"""The table of value constructors for a file whose tensors are not made: a View stands for each.

What is not an ordinary strided tensor over a record that lies open raises `Unusual`: the reader
that makes tensors has a look at it then.
"""

from __future__ import annotations

import math
from typing import Any, NoReturn

import torch

from isoload.manifest import PARAMETER, REQUIRES_GRAD

from ..stand_ins import MAX_DIMS, Unusual
from ..views import Span, View
from ..vocabulary import own_vocabulary
from .arrays import ARRAYS
from .base import Args, Maker, Owner, Table
from .indirect import INDIRECT
from .layouts import LAYOUTS
from .standard import STANDARD
from .tensors import TENSORS, check_extent, drop_hooks

_KINDS = {getattr(torch, name): kind for name, kind in own_vocabulary().kinds.items()}
_LARGEST = 1 << 40
"""No size, stride or offset of a real tensor is more, and no arithmetic overflows below it."""

_VALUES = ("torch.Size", "torch.device", "torch.serialization._get_layout")
"""The constructors in the tensors' table that make no tensor."""

VIEWS = Table()


def _certain(maker: Maker) -> Maker:
    """What the maker cannot make is left, and not recorded."""

    def certain(owner: Owner, args: Args) -> object:
        try:
            return maker(owner, args)
        except Exception:  # the machine meets it too, and says what it is
            raise Unusual from None

    return certain


def _leave(owner: Owner, args: Args) -> NoReturn:
    raise Unusual


def _require(holds: object) -> None:
    if not holds:
        raise Unusual


@VIEWS("torch._utils._rebuild_tensor")
def _rebuild_tensor(owner: Owner, args: Args) -> View:
    _require(len(args) == 4 and type(args[0]) is Span)
    return _view(owner, (*args, False, None), args[0].dtype)


@VIEWS("torch._utils._rebuild_tensor_v2")
def _rebuild_tensor_v2(owner: Owner, args: Args) -> View:
    _require(len(args) in (6, 7) and type(args[0]) is Span and not any(args[6:]))
    return _view(owner, args[:6], args[0].dtype)


@VIEWS("torch._utils._rebuild_tensor_v3")
def _rebuild_tensor_v3(owner: Owner, args: Args) -> View:
    _require(len(args) in (7, 8) and type(args[6]) is torch.dtype and not any(args[7:]))
    return _view(owner, args[:6], args[6])


@VIEWS("torch._utils._rebuild_parameter")
def _rebuild_parameter(owner: Owner, args: Args) -> View:
    _require(len(args) == 3 and type(args[0]) is View)
    data, requires_grad, hooks = args
    drop_hooks(owner, hooks)
    flags = PARAMETER | _grad(data.dtype, requires_grad)
    return View(data.span, data.dtype, data.offset, data.size, data.stride, flags)


def _view(owner: Owner, args: Args, dtype: torch.dtype) -> View:
    span, offset, size, stride, requires_grad, hooks = args
    _require(type(span) is Span and dtype in _KINDS and type(offset) is int)
    _require(type(size) is tuple and type(stride) is tuple and len(size) <= MAX_DIMS)
    dims, steps = check_extent(_storage(span), dtype, offset, size, stride)
    _require(max((offset, *dims, *steps)) < _LARGEST)
    _require(math.prod(size for size in dims if size) < _LARGEST)
    _require(not span.data_ptr() % dtype.itemsize)
    flags = _grad(dtype, requires_grad)
    drop_hooks(owner, hooks)
    return View(span, dtype, offset, dims, steps, flags)


def _storage(span: Span) -> Any:
    return span


def _grad(dtype: torch.dtype, requires_grad: object) -> int:
    _require(type(requires_grad) is bool)
    if not requires_grad:
        return 0
    _require(_KINDS[dtype].trains)
    return REQUIRES_GRAD


LEAN: dict[str, Maker] = {
    **STANDARD,
    **ARRAYS,
    **INDIRECT,
    **dict.fromkeys((*TENSORS, *LAYOUTS), _leave),
    **{name: TENSORS[name] for name in _VALUES},
    **{name: _certain(maker) for name, maker in VIEWS.items()},
}
