"""Tensors of every kind: torch's rebuild functions, called only with arguments that were checked.

A tensor that does not fit its storage means a damaged file; arguments of other types mean that this
is no tensor at all, and the call is recorded.
"""

# mypy: disallow-untyped-calls=False
from __future__ import annotations

import math
from collections import OrderedDict
from typing import Any

import torch
from torch.storage import TypedStorage

from ..reading import Damaged
from ..recorded import Recorded
from .base import Args, Decline, Owner, Table, unpack, want

TENSORS = Table()

_MAX_DIMS = 64
_PACKED = {torch.quint4x2: 2, torch.quint2x4: 4}
_OWN_TYPES = (
    *("torch.Tensor", "torch.nn.parameter.Parameter"),
    "torch.nested._internal.nested_tensor.NestedTensor",
)
"""The types that torch's own tensors have; any other is a subclass of somebody's."""

_HOOKS = (OrderedDict, dict, type(None))
_FLAGS = frozenset({"conj", "neg"})


def sizes_of(value: Any) -> tuple[int, ...]:
    """A size or a stride: a tuple of ints that are not negative."""
    want(type(value) in (tuple, list, torch.Size) and len(value) <= _MAX_DIMS)
    want(all(type(size) is int and 0 <= size < 1 << 62 for size in value))
    return tuple(value)


def check_extent(
    storage: TypedStorage, dtype: torch.dtype, offset: Any, size: Any, stride: Any
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The size and stride of a view that lies within its storage."""
    dims, steps = sizes_of(size), sizes_of(stride)
    want(type(offset) is int and 0 <= offset < 1 << 62 and len(dims) == len(steps))
    if math.prod(dims):
        last = offset + sum((count - 1) * step for count, step in zip(dims, steps, strict=True))
        needed = -(-(last + 1) // _PACKED.get(dtype, 1)) * dtype.itemsize
        nbytes = storage._untyped_storage.nbytes()
        if needed > nbytes:
            raise Damaged(
                f"a tensor of shape {list(dims)} needs {needed} bytes, its storage has {nbytes}"
            )
    return dims, steps


def _strided(owner: Owner, args: Args, dtype: torch.dtype, metadata: Any) -> torch.Tensor:
    storage, offset, size, stride, requires_grad, hooks = args
    want(isinstance(storage, TypedStorage) and type(requires_grad) is bool)
    dims, steps = check_extent(storage, dtype, offset, size, stride)
    untyped = storage._untyped_storage
    tensor = torch.empty((0,), dtype=dtype, device=untyped.device)
    tensor.set_(untyped, offset, dims, steps)
    if requires_grad:
        want(dtype.is_floating_point or dtype.is_complex)
        tensor.requires_grad = True
    if metadata:
        want(type(metadata) is dict and _FLAGS.issuperset(metadata))
        want(all(type(flag) is bool for flag in metadata.values()))
        torch._utils.set_tensor_metadata(tensor, metadata)
    drop_hooks(owner, hooks)
    return tensor


def drop_hooks(owner: Owner, hooks: Any) -> None:
    if type(hooks) not in _HOOKS or hooks:
        owner.warn("a tensor's backward hooks were left out")


@TENSORS("torch._utils._rebuild_tensor")
def _rebuild_tensor(owner: Owner, args: Args) -> object:
    want(len(args) == 4 and isinstance(args[0], TypedStorage))
    return _strided(owner, (*args, False, None), args[0].dtype, None)


@TENSORS("torch._utils._rebuild_tensor_v2")
def _rebuild_tensor_v2(owner: Owner, args: Args) -> object:
    want(len(args) in (6, 7) and isinstance(args[0], TypedStorage))
    return _strided(owner, args[:6], args[0].dtype, args[6] if len(args) == 7 else None)


@TENSORS("torch._utils._rebuild_tensor_v3")
def _rebuild_tensor_v3(owner: Owner, args: Args) -> object:
    want(len(args) in (7, 8) and isinstance(args[6], torch.dtype))
    return _strided(owner, args[:6], args[6], args[7] if len(args) == 8 else None)


@TENSORS("torch._utils._rebuild_parameter")
def _rebuild_parameter(owner: Owner, args: Args) -> object:
    want(len(args) == 3 and type(args[1]) is bool)
    drop_hooks(owner, args[2])
    return _parameter(args[0], args[1])


@TENSORS("torch._utils._rebuild_parameter_with_state")
def _rebuild_parameter_with_state(owner: Owner, args: Args) -> object:
    want(len(args) == 4 and type(args[1]) is bool)
    drop_hooks(owner, args[2])
    parameter = _parameter(args[0], args[1])
    set_attributes(parameter, args[3])
    return parameter


def _parameter(data: Any, requires_grad: bool) -> torch.nn.Parameter:
    want(isinstance(data, torch.Tensor))
    want(not requires_grad or data.is_floating_point() or data.is_complex())
    return torch.nn.Parameter(data, requires_grad)


@TENSORS("torch.nn.parameter.Parameter", "torch.nn.Parameter", "torch.autograd.variable.Variable")
def _new_parameter(owner: Owner, args: Args) -> object:
    want(len(args) <= 2 and (len(args) < 2 or type(args[1]) is bool))
    if not args:
        return torch.nn.Parameter(torch.empty(0))
    want(isinstance(args[0], torch.Tensor))
    grad = args[0].is_floating_point() or args[0].is_complex()
    return _parameter(args[0], args[1] if len(args) == 2 else grad)


@TENSORS("torch._tensor._rebuild_from_type_v2", "torch.tensor._rebuild_from_type_v2")
def _rebuild_from_type_v2(owner: Owner, args: Args) -> object:
    want(len(args) == 4)
    function, kind, inner, state = args
    made = owner.call(function, inner)
    name = kind.name if isinstance(kind, Recorded) else (owner.names.name_of(kind) or ("", ""))[1]
    if isinstance(made, torch.Tensor) and name in _OWN_TYPES:
        if name.endswith("Parameter") and type(made) is not torch.nn.Parameter:
            made = _parameter(made, made.requires_grad)
        set_attributes(made, state)
        return made
    want(isinstance(kind, Recorded))
    subclass = owner.record(name, (made,))
    assert isinstance(subclass, Recorded)
    subclass.state = state
    return subclass


@TENSORS("torch._tensor._rebuild_from_type", "torch.tensor._rebuild_from_type")
def _rebuild_from_type(owner: Owner, args: Args) -> object:
    return _rebuild_from_type_v2(owner, args)


def set_attributes(tensor: torch.Tensor, state: Any) -> None:
    """Put attributes into a tensor's dict, never by setattr: a name may be that of a property."""
    parts = state if type(state) is tuple else (state,)
    for part in parts:
        want(part is None or isinstance(part, dict))
        if part:
            want(all(type(key) is str for key in part))
            vars(tensor).update(part)


def _typed_tensor_names() -> dict[str, torch.dtype]:
    names = {}
    for storage, dtype in torch.storage._storage_type_to_dtype_map().items():
        for package in ("torch", "torch.cuda"):
            names[f"{package}.{storage.replace('Storage', 'Tensor')}"] = dtype
    names["torch.Tensor"] = torch.float32
    return names


def _empty(dtype: torch.dtype) -> Any:
    def maker(owner: Owner, args: Args) -> object:
        unpack(args)
        return torch.empty(0, dtype=dtype)  # its storage follows as state

    return maker


for _name, _dtype in _typed_tensor_names().items():
    TENSORS[_name] = _empty(_dtype)


def build_tensor(owner: Owner, tensor: torch.Tensor, state: Any) -> None:
    """What BUILD does to a tensor: the forms that torch has written since 0.1."""
    if isinstance(state, dict) or state is None:
        set_attributes(tensor, state)
        return
    want(type(state) is tuple)
    if len(state) == 4:
        storage, offset, size, stride = state
        want(isinstance(storage, TypedStorage) and storage.dtype == tensor.dtype)
        dims, steps = check_extent(storage, tensor.dtype, offset, size, stride)
        with torch.no_grad():
            tensor.set_(storage._untyped_storage, offset, dims, steps)
        return
    if len(state) == 5:
        want(isinstance(state[0], torch.Tensor) and state[0].dtype == tensor.dtype)
        tensor.data = state[0]
        state = (state[3], state[4], state[2])
    if len(state) == 2:
        set_attributes(tensor, state)
        return
    want(len(state) == 3 and type(state[0]) is bool)
    want(not state[0] or tensor.is_floating_point() or tensor.is_complex())
    tensor.requires_grad = state[0]
    drop_hooks(owner, state[2])


@TENSORS("torch.Size")
def _size(owner: Owner, args: Args) -> object:
    want(len(args) == 1)
    return torch.Size(sizes_of(args[0]))


@TENSORS("torch.device")
def _device(owner: Owner, args: Args) -> object:
    unpack(args, str, int, optional=1)
    try:
        return torch.device(*args)
    except RuntimeError:
        raise Decline from None


@TENSORS("torch.serialization._get_layout")
def _layout(owner: Owner, args: Args) -> object:
    unpack(args, str)
    try:
        return torch.serialization._get_layout(args[0])
    except KeyError:
        raise Decline from None


@TENSORS("torch.storage._load_from_bytes")
def _load_from_bytes(owner: Owner, args: Args) -> object:
    unpack(args, (bytes, bytearray))
    return owner.nested(bytes(args[0]))


@TENSORS(
    *("torch.jit._pickle.build_intlist", "torch.jit._pickle.build_tensorlist"),
    *("torch.jit._pickle.build_doublelist", "torch.jit._pickle.build_boollist"),
)
def _build_list(owner: Owner, args: Args) -> object:
    want(len(args) == 1 and type(args[0]) in (list, tuple))
    return list(args[0])


@TENSORS("torch.jit._pickle.restore_type_tag")
def _restore_type_tag(owner: Owner, args: Args) -> object:
    want(len(args) == 2)
    return args[0]
