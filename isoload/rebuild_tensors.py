"""Storages and tensors of every layout, over the segments and without a copy.

The numbers have passed `isoload.check`. What depends on a tensor's own bytes (sparse indices, the
places of nested components) is checked here, because torch would follow them anywhere.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from . import manifest as m
from .errors import CheckpointError
from .manifest import NONE, ManifestError
from .placement import Placement
from .segments import Segments

_torch: Any = torch
DTYPES: list[Any] = [getattr(torch, name, None) for name in m.DTYPES]
_LAYOUTS = {
    "sparse_csr": torch.sparse_csr,
    "sparse_csc": torch.sparse_csc,
    "sparse_bsr": torch.sparse_bsr,
    "sparse_bsc": torch.sparse_bsc,
}
_MAX_ELEMENTS = (1 << 63) // 16  # of the widest dtype, in 64 bits of bytes

_from_buffer: Any = _torch._C._VariableFunctions.frombuffer
_SHARED = -2


def _seen(graph: m.Graph) -> tuple[list[int], set[int]]:
    """The dtype of the one strided tensor that sees each storage, _SHARED where there is more, NONE
    where nothing does; and the storages of arrays."""
    dtypes = [NONE] * len(graph.storages)
    arrays = set()
    for node in graph.nodes:
        if type(node) is m.Tensor:
            index = node.storage
            dtypes[index] = node.dtype if dtypes[index] == NONE else _SHARED
        elif isinstance(node, (m.NdArray, m.Quantized, m.StorageValue)):
            dtypes[node.storage] = _SHARED
            if type(node) is m.NdArray:
                arrays.add(node.storage)
    return dtypes, arrays


def _alone(graph: m.Graph, dtypes: list[int], placement: Placement) -> list[bool]:
    """For each storage: whether one strided tensor is all that sees it, and it stays as it is."""
    keeps = {tag: placement.keeps(tag) for tag in {entry.location for entry in graph.storages}}
    return [
        dtype >= 0
        and entry.nbytes > 0
        and entry.segment != m.ABSENT
        and entry.nbytes % DTYPES[dtype].itemsize == 0
        and keeps[entry.location]
        for entry, dtype in zip(graph.storages, dtypes, strict=True)
    ]


class Storages:
    """The storages of a graph, each made once and placed once.

    Where the caller leaves them on the CPU, and a storage is seen by one tensor only, both are made
    in one call, when it is that tensor's turn: such an entry of `placed` stays None."""

    def __init__(self, graph: m.Graph, segments: Segments, placement: Placement) -> None:
        self._segments = segments
        self._entries = graph.storages
        dtypes, arrays = _seen(graph)
        self.alone = _alone(graph, dtypes, placement)
        left = [
            None if alone or index in arrays else entry
            for index, (alone, entry) in enumerate(zip(self.alone, graph.storages, strict=True))
        ]
        with torch._C.DisableTorchFunction():
            parts = [None if entry is None else self._part(entry) for entry in left]
        self.placed: list[Any] = []
        self.moved = False  # did the caller have one put elsewhere than on the CPU?
        for part, entry in zip(parts, left, strict=True):
            if entry is None or entry.segment == m.ABSENT:
                self.placed.append(part)
            else:
                # With the caller's own modes: `device` may be a callable of the caller's.
                moved = placement.storage(part, entry.location)
                self.moved = self.moved or moved.device.type != "cpu"
                self.placed.append(moved)

    def tensor(self, node: m.Tensor) -> Any:
        """A tensor over a storage that it has for itself."""
        entry = self._entries[node.storage]
        dtype = DTYPES[node.dtype]
        count = entry.nbytes // dtype.itemsize
        memory = self._segments.memory(entry.segment)
        made = _from_buffer(memory, dtype=dtype, count=count, offset=entry.offset)
        if node.offset or node.size != [count] or node.stride != [1]:
            made.as_strided_(node.size, node.stride, node.offset)
        return made

    def _part(self, entry: m.Storage) -> Any:
        """A storage as it is in its segment."""
        if entry.segment == m.ABSENT:
            if entry.location != "meta":
                raise ManifestError("a storage whose bytes did not come")
            return _torch.UntypedStorage(entry.nbytes, device="meta")
        if not entry.nbytes:
            return _torch.UntypedStorage(0, device="cpu")
        whole = self._segments.whole(entry.segment)
        return whole[entry.offset : entry.offset + entry.nbytes]

    def bytes(self, index: int) -> memoryview:
        """The storage's memory as it is in its segment, writable."""
        entry = self._entries[index]
        if entry.segment == m.ABSENT:
            raise ManifestError("an array whose bytes did not come over")
        if not entry.nbytes:
            return memoryview(bytearray())
        memory = self._segments.memory(entry.segment)
        return memory[entry.offset : entry.offset + entry.nbytes]


def with_flags(tensor: Any, flags: int) -> Any:
    """The tensor with its bits set; a Parameter over it where it is one."""
    if flags & (m.CONJ | m.NEG):
        bits = {"conj": True} if flags & m.CONJ else {}
        if flags & m.NEG:
            bits["neg"] = True
        _torch._utils.set_tensor_metadata(tensor, bits)
    requires_grad = bool(flags & m.REQUIRES_GRAD)
    if flags & m.PARAMETER:
        return torch.Tensor._make_subclass(torch.nn.Parameter, tensor, requires_grad)
    if requires_grad:
        tensor.requires_grad_(True)
    return tensor


def quantized(node: m.Quantized, storage: Any, objects: Sequence[Any]) -> Any:
    typed = _torch.storage.TypedStorage(
        wrap_storage=storage, dtype=DTYPES[node.dtype], _internal=True
    )
    params: tuple[Any, ...] = (torch.per_tensor_affine, node.scale, node.zero_point)
    if node.axis != NONE:
        scales, zero_points = objects[node.scales], objects[node.zero_points]
        params = (torch.per_channel_affine, scales, zero_points, node.axis)
    made = _torch._utils._rebuild_qtensor(
        typed, node.offset, tuple(node.size), tuple(node.stride), params, False, None
    )
    return with_flags(made, node.flags)


def sparse_coo(node: m.SparseCoo, objects: Sequence[Any]) -> Any:
    indices, values = objects[node.indices], objects[node.values]
    try:
        made = torch.sparse_coo_tensor(
            indices,
            values,
            node.size,
            is_coalesced=node.coalesced or None,
            check_invariants=not values.is_meta,
        )
    except RuntimeError as error:
        raise CheckpointError(f"a sparse tensor whose indices are not valid: {error}") from None
    return with_flags(made, node.flags)


def sparse_compressed(node: m.SparseCompressed, objects: Sequence[Any]) -> Any:
    values = objects[node.values]
    try:
        made = torch.sparse_compressed_tensor(
            objects[node.compressed],
            objects[node.plain],
            values,
            node.size,
            layout=_LAYOUTS[node.layout],
            check_invariants=not values.is_meta,
        )
    except RuntimeError as error:
        raise CheckpointError(f"a sparse tensor whose indices are not valid: {error}") from None
    return with_flags(made, node.flags)


def nested_strided(node: m.NestedStrided, objects: Sequence[Any]) -> Any:
    """torch follows the three index tensors unchecked: they are copied, so that they stay as
    checked."""
    buffer = objects[node.buffer]
    parts = [objects[part] for part in (node.sizes, node.strides, node.offsets)]
    if not all(part.is_meta for part in (buffer, *parts)):
        parts = [part.detach().to("cpu", copy=True) for part in parts]
        _check_nested(buffer.numel(), *parts)
    return with_flags(torch._nested_view_from_buffer(buffer, *parts), node.flags)


def _check_nested(total: int, sizes: Any, strides: Any, offsets: Any) -> None:
    rows = zip(sizes.tolist(), strides.tolist(), offsets.tolist(), strict=True)
    elements = 0
    for size, stride, offset in rows if sizes.dim() == 2 else ():
        if any(dim < 0 for dim in size) or any(step < 0 for step in stride) or offset < 0:
            raise CheckpointError("a nested tensor of negative extents")
        reach = sum((dim - 1) * step for dim, step in zip(size, stride, strict=True))
        if all(size) and offset + reach >= total:
            raise CheckpointError("a nested tensor that reaches beyond its buffer")
        if offset > total:
            raise CheckpointError("a nested tensor that reaches beyond its buffer")
        elements += math.prod(dim or 1 for dim in size)
        if elements > _MAX_ELEMENTS:  # with strides of 0 they need no bytes
            raise CheckpointError("a nested tensor beyond 64 bits")


def nested_jagged(node: m.NestedJagged, objects: Sequence[Any]) -> Any:
    import torch._dynamo  # noqa: F401, PLC0415 - its constructor needs it; it takes seconds
    import torch.nested._internal.nested_tensor as nested  # noqa: PLC0415 - the same

    values, offsets = objects[node.values], objects[node.offsets]
    lengths = None if node.lengths == NONE else objects[node.lengths]
    _check_jagged(values.shape[node.ragged - 1], offsets, lengths)
    cache = {
        name: objects[part]
        for name, part in (("min_seqlen", node.min_seqlen), ("max_seqlen", node.max_seqlen))
        if part != NONE
    }
    return nested.NestedTensor(
        values,
        offsets,
        lengths=lengths,
        _ragged_idx=node.ragged,
        _metadata_cache=cache,
        requires_grad=bool(node.flags & m.REQUIRES_GRAD),
    )


def _check_jagged(total: int, offsets: Any, lengths: Any) -> None:
    if offsets.is_meta:
        return
    places = offsets.tolist()
    ends = places[1:]
    if lengths is not None:
        ends = [a + b for a, b in zip(places, lengths.tolist(), strict=False)]
    rows = zip(places, ends, strict=False)
    if places[0] < 0 or any(not 0 <= start <= end <= total for start, end in rows):
        raise CheckpointError("a jagged tensor whose offsets are not valid")


def ndarray(node: m.NdArray, dtype: np.dtype[Any], data: memoryview) -> Any:
    order: Any = "F" if node.fortran else "C"
    return np.ndarray(tuple(node.shape), dtype, data, order=order)


def object_array(node: m.ObjectArray) -> Any:
    return np.empty(tuple(node.shape), dtype=object, order="F" if node.fortran else "C")
