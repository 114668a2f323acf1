"""Tensors that are more than a view of a storage: quantized, sparse, nested, meta, and from other
devices.

torch's own functions make them, after the types and the bounds of their arguments were checked.
What the indices of a sparse tensor point at is checked by the parent.
"""

# mypy: disallow-untyped-calls=False
from __future__ import annotations

import math
from collections import OrderedDict

import numpy as np
import torch
from torch.storage import TypedStorage

from ..jagged import nested_tensor_class
from ..reading import Damaged
from .base import Args, Owner, Table, want
from .tensors import check_extent, drop_hooks, sizes_of

LAYOUTS = Table()

_JAGGED = frozenset(
    {"values", "offsets", "lengths", "_ragged_idx", "_metadata_cache", "requires_grad"}
)


@LAYOUTS("torch._utils._rebuild_qtensor")
def _rebuild_qtensor(owner: Owner, args: Args) -> object:
    want(len(args) == 7 and isinstance(args[0], TypedStorage) and type(args[5]) is bool)
    storage, offset, size, stride, params, _, hooks = args
    dims, steps = check_extent(storage, storage.dtype, offset, size, stride)
    want(math.prod(dims) <= storage._untyped_storage.nbytes() * 4)
    want(type(params) is tuple and bool(params) and isinstance(params[0], torch.qscheme))
    if len(params) == 3:
        want(type(params[1]) is float and type(params[2]) is int)
    else:
        want(len(params) == 4 and type(params[3]) is int)
        want(all(isinstance(part, (torch.Tensor, list)) for part in params[1:3]))
    drop_hooks(owner, hooks)
    return torch._utils._rebuild_qtensor(storage, offset, dims, steps, params, False, OrderedDict())


@LAYOUTS("torch._utils._rebuild_sparse_tensor")
def _rebuild_sparse_tensor(owner: Owner, args: Args) -> object:
    want(len(args) == 2 and isinstance(args[0], torch.layout) and type(args[1]) in (tuple, list))
    layout, parts = args[0], tuple(args[1])
    if layout is torch.sparse_coo:
        want(len(parts) in (3, 4))
        count, rest = 2, parts[3:]
        want(not rest or type(rest[0]) in (bool, type(None)))
    else:
        want(len(parts) == 4)
        count, rest = 3, ()
    want(all(isinstance(part, torch.Tensor) for part in parts[:count]))
    want(all(part.layout is torch.strided for part in parts[:count]))
    size = torch.Size(sizes_of(parts[count]))
    if layout is torch.sparse_coo:
        indices, held = parts[:2]
        want(indices.dim() == 2 and indices.dtype == torch.int64 and held.dim() >= 1)
        want(indices.shape[0] + held.dim() - 1 == len(size) and indices.shape[1] == held.shape[0])
    return torch._utils._rebuild_sparse_tensor(layout, (*parts[:count], size, *rest))


@LAYOUTS("torch._utils._rebuild_nested_tensor")
def _rebuild_nested_tensor(owner: Owner, args: Args) -> object:
    want(len(args) == 4 and all(isinstance(part, torch.Tensor) for part in args))
    buffer, sizes, strides, offsets = args
    want(buffer.dim() == 1 and sizes.dim() == 2 and offsets.dim() == 1)
    want(sizes.shape == strides.shape and sizes.shape[0] == offsets.shape[0])
    want(all(part.dtype == torch.int64 for part in (sizes, strides, offsets)))
    for size, stride, offset in zip(
        sizes.tolist(), strides.tolist(), offsets.tolist(), strict=True
    ):
        want(offset >= 0 and min(*size, *stride, 0) >= 0)
        last = offset + sum((count - 1) * step for count, step in zip(size, stride, strict=True))
        if math.prod(size) and last >= buffer.numel():
            raise Damaged("a nested tensor reaches beyond its buffer")
    return torch._utils._rebuild_nested_tensor(buffer, sizes, strides, offsets)


@LAYOUTS("torch._utils._rebuild_meta_tensor_no_storage")
def _rebuild_meta_tensor(owner: Owner, args: Args) -> object:
    want(len(args) == 4 and isinstance(args[0], torch.dtype) and type(args[3]) is bool)
    dims, steps = sizes_of(args[1]), sizes_of(args[2])
    want(len(dims) == len(steps))
    return torch._utils._rebuild_meta_tensor_no_storage(args[0], dims, steps, args[3])


@LAYOUTS(
    *("torch._utils._rebuild_device_tensor_from_numpy", "torch._utils._rebuild_xla_tensor"),
    "torch._utils._rebuild_device_tensor_from_cpu_tensor",
)
def _rebuild_device_tensor(owner: Owner, args: Args) -> object:
    want(len(args) == 4 and isinstance(args[1], torch.dtype) and type(args[3]) is bool)
    data, dtype, device, requires_grad = args
    want(isinstance(device, (str, torch.device)))
    if isinstance(data, np.ndarray):
        want(data.dtype.kind in "biufc" and data.dtype.isnative)
        data = torch.from_numpy(data.copy())
    want(isinstance(data, torch.Tensor))
    tensor = data.detach().to(dtype=dtype, copy=True)
    want(not requires_grad or dtype.is_floating_point or dtype.is_complex)
    tensor.requires_grad = requires_grad
    owner.note_device(tensor, str(device))
    return tensor


@LAYOUTS("torch.nested._internal.nested_tensor._rebuild_njt")
def _rebuild_jagged(owner: Owner, args: Args) -> object:
    want(len(args) == 1 and type(args[0]) is dict and set(args[0]) == _JAGGED)
    parts = args[0]
    cache = parts["_metadata_cache"]
    values, offsets, lengths = parts["values"], parts["offsets"], parts["lengths"]
    want(type(cache) is dict and set(cache) <= {"min_seqlen", "max_seqlen"})
    want(all(type(part) is torch.Tensor for part in (values, offsets, *cache.values())))
    want(lengths is None or type(lengths) is torch.Tensor)
    want(type(parts["_ragged_idx"]) is int and 1 <= parts["_ragged_idx"] < values.dim() + 1)
    want(offsets.dim() == 1 and offsets.dtype in (torch.int64, torch.int32))
    want(type(parts["requires_grad"]) is bool)
    return nested_tensor_class()(**parts)
