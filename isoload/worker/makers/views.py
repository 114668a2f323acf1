"""The value constructors for a file whose tensors are not made: a View stands for each, and torch
need not be there.

What is not an ordinary strided tensor over a record that lies open raises `Unusual`: a worker that
has torch looks at the file then.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from typing import Any, NoReturn, Protocol

from isoload.manifest import PARAMETER, REQUIRES_GRAD

from .. import stand_ins
from ..names import Names
from ..stand_ins import MAX_DIMS, Kind, Named, Unusual
from ..views import Span, View
from .arrays import ARRAYS
from .base import Args, Maker, Table
from .indirect import INDIRECT
from .standard import STANDARD

_LARGEST = 1 << 40
"""No size, stride or offset of a real tensor is more, and no arithmetic overflows below it."""

LEFT = frozenset((
    "torch._tensor._rebuild_from_type",
    "torch._tensor._rebuild_from_type_v2",
    "torch._utils._rebuild_device_tensor_from_cpu_tensor",
    "torch._utils._rebuild_device_tensor_from_numpy",
    "torch._utils._rebuild_meta_tensor_no_storage",
    "torch._utils._rebuild_nested_tensor",
    "torch._utils._rebuild_parameter_with_state",
    "torch._utils._rebuild_qtensor",
    "torch._utils._rebuild_sparse_tensor",
    "torch._utils._rebuild_xla_tensor",
    "torch.autograd.variable.Variable",
    "torch.jit._pickle.build_boollist",
    "torch.jit._pickle.build_doublelist",
    "torch.jit._pickle.build_intlist",
    "torch.jit._pickle.build_tensorlist",
    "torch.jit._pickle.restore_type_tag",
    "torch.nested._internal.nested_tensor._rebuild_njt",
    "torch.nn.Parameter",
    "torch.nn.parameter.Parameter",
    "torch.storage._load_from_bytes",
    "torch.tensor._rebuild_from_type",
    "torch.tensor._rebuild_from_type_v2",
))  # fmt: skip
"""What torch makes by these names is not made here: the other constructors of `tensors` and
`layouts`, but for those of empty tensors by type ("torch.FloatTensor")."""


class ViewOwner(Protocol):
    """The unpickler. `kinds`: the dtypes that tensors ordinarily have, by name."""

    names: Names
    kinds: dict[str, Kind]

    def warn(self, message: str) -> None: ...


VIEWS = Table()


def _certain(maker: Any) -> Maker:
    """What the maker cannot make is left, and not recorded."""

    def certain(owner: Any, args: Args) -> object:
        try:
            return maker(owner, args)
        except Exception:  # another worker meets it too, and says what it is
            raise Unusual from None

    return certain


def _leave(owner: Any, args: Args) -> NoReturn:
    raise Unusual


def _require(holds: object) -> None:
    if not holds:
        raise Unusual


def _rebuild_tensor(owner: ViewOwner, args: Args) -> View:
    _require(len(args) == 4 and type(args[0]) is Span)
    return _view(owner, (*args, False, None), args[0].kind)


def _rebuild_tensor_v2(owner: ViewOwner, args: Args) -> View:
    _require(len(args) in (6, 7) and type(args[0]) is Span and not any(args[6:]))
    return _view(owner, args[:6], args[0].kind)


def _rebuild_tensor_v3(owner: ViewOwner, args: Args) -> View:
    _require(len(args) in (7, 8) and type(args[6]) is Named and not any(args[7:]))
    _require(args[6].kind == "dtype")
    return _view(owner, args[:6], owner.kinds[args[6].name])


def _rebuild_parameter(owner: ViewOwner, args: Args) -> View:
    _require(len(args) == 3 and type(args[0]) is View)
    data, requires_grad, hooks = args
    _drop_hooks(owner, hooks)
    flags = PARAMETER | _grad(data.kind, requires_grad)
    return View(data.span, data.kind, data.offset, data.size, data.stride, flags)


def _view(owner: ViewOwner, args: Args, kind: Kind) -> View:
    span, offset, size, stride, requires_grad, hooks = args
    _require(type(span) is Span and type(offset) is int)
    _require(type(size) is tuple and type(stride) is tuple and len(size) == len(stride))
    _require(len(size) <= MAX_DIMS and set(map(type, (*size, *stride))) <= {int})
    numbers = (offset, *size, *stride)
    _require(min(numbers) >= 0 and max(numbers) < _LARGEST)
    _require(math.prod(count for count in size if count) < _LARGEST)
    if 0 not in size:
        last = offset + sum((count - 1) * step for count, step in zip(size, stride, strict=True))
        _require((last + 1) * kind.itemsize <= span.nbytes())
    _require(not span.data_ptr() % kind.itemsize)
    flags = _grad(kind, requires_grad)
    _drop_hooks(owner, hooks)
    return View(span, kind, offset, size, stride, flags)


def _grad(kind: Kind, requires_grad: object) -> int:
    _require(type(requires_grad) is bool)
    if not requires_grad:
        return 0
    _require(kind.trains)
    return REQUIRES_GRAD


def _drop_hooks(owner: ViewOwner, hooks: Any) -> None:
    if type(hooks) not in (OrderedDict, dict, type(None)) or hooks:
        owner.warn("a tensor's backward hooks were left out")


def _size(owner: ViewOwner, args: Args) -> stand_ins.Size:
    (dims,) = args
    _require(type(dims) in (tuple, list) and len(dims) <= MAX_DIMS)
    _require(all(type(dim) is int and 0 <= dim < 1 << 62 for dim in dims))
    return stand_ins.Size(dims)


def _device(owner: ViewOwner, args: Args) -> Named:
    return Named("device", stand_ins.device_name(*args), "<device>")


def _layout(owner: ViewOwner, args: Args) -> object:
    (name,) = args
    found = owner.names.find(name)
    _require(type(found) is Named and found.kind == "layout" and name == f"torch.{found.name}")
    return found


VIEWS.update({
    "torch._utils._rebuild_tensor": _certain(_rebuild_tensor),
    "torch._utils._rebuild_tensor_v2": _certain(_rebuild_tensor_v2),
    "torch._utils._rebuild_tensor_v3": _certain(_rebuild_tensor_v3),
    "torch._utils._rebuild_parameter": _certain(_rebuild_parameter),
    "torch.Size": _certain(_size),
    "torch.device": _certain(_device),
    "torch.serialization._get_layout": _certain(_layout),
})  # fmt: skip


def lean_makers(storages: dict[str, str]) -> dict[str, Maker]:
    """All constructors for such a file. `storages`: torch's storage classes → their dtypes."""
    empty = {
        f"{package}.{name.replace('Storage', 'Tensor')}"
        for name in storages
        for package in ("torch", "torch.cuda")
    }
    left = dict.fromkeys((*LEFT, *empty, "torch.Tensor"), _leave)
    return {**STANDARD, **ARRAYS, **INDIRECT, **left, **VIEWS}
