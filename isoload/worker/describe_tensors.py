"""Tensors of every layout, as manifest nodes.

What a tensor says of itself is read through the base class: an entry in its `__dict__` cannot stand
in the way. Its `__dict__` itself is the walk's affair.
"""

from __future__ import annotations

from typing import Any

import torch

from isoload import manifest as m
from sandbox import printable

from .reading import Reading, Unsupported
from .storages import StorageTable

_DTYPE_INDEX = {
    getattr(torch, name): index for index, name in enumerate(m.DTYPES) if hasattr(torch, name)
}
_ITEMSIZE = {index: dtype.itemsize for dtype, index in _DTYPE_INDEX.items()}
_COMPLEX = {index for dtype, index in _DTYPE_INDEX.items() if dtype.is_complex}
_T: Any = torch.Tensor
_Parameter = torch.nn.Parameter
_strided = torch.strided
_COMPRESSED: dict[Any, tuple[str, Any, Any]] = {
    torch.sparse_csr: ("sparse_csr", _T.crow_indices, _T.col_indices),
    torch.sparse_csc: ("sparse_csc", _T.ccol_indices, _T.row_indices),
    torch.sparse_bsr: ("sparse_bsr", _T.crow_indices, _T.col_indices),
    torch.sparse_bsc: ("sparse_bsc", _T.ccol_indices, _T.row_indices),
}


class TensorWriter:
    """Appends to `nodes`; the tensors that a composite one is made of come before it."""

    def __init__(self, reading: Reading, nodes: list[Any], storages: StorageTable) -> None:
        self.storages = storages
        self._reading = reading
        self._nodes = nodes
        self._kept: list[Any] = []
        self._parts: dict[int, int] = {}

    def tensor(self, value: Any) -> int:
        """The node of a plain tensor or Parameter, without its attributes."""
        if value._backward_hooks:
            self._reading.warn("the backward hooks of a tensor were dropped")
        if value.grad is not None:
            self._reading.warn("the gradient of a tensor was dropped: torch.save never writes one")
        if value.layout is not _strided or value.is_nested:
            return self._composite(value)
        if value.is_quantized:
            return self._quantized(value)
        return self._add(m.Tensor(*self._view(value)))

    def _add(self, node: Any) -> int:
        self._nodes.append(node)
        return len(self._nodes) - 1

    def _view(self, value: Any) -> tuple[int, int, int, list[int], Any, int]:
        dtype = value.dtype
        index = _DTYPE_INDEX.get(dtype)
        if index is None or not torch._C._has_storage(value):
            raise Unsupported(f"a tensor of {dtype} on {value.device}")
        flags = m.PARAMETER if type(value) is _Parameter else 0
        if value.requires_grad:
            flags |= m.REQUIRES_GRAD
        if value.__dict__:
            value = _T.detach(value)  # without the attributes that could hide a method
        if index in _COMPLEX and value.is_conj():
            flags |= m.CONJ
        if value.is_neg():
            flags |= m.NEG
        storage = self.storages.index(value.untyped_storage(), _ITEMSIZE[index])
        return storage, index, value.storage_offset(), list(value.shape), value.stride(), flags

    def _part(self, value: Any) -> int:
        """A tensor that the one at hand is made of."""
        known = self._parts.get(id(value))
        if known is not None:
            return known
        self._kept.append(value)
        index = self._add(m.Tensor(*self._view(_T.detach(value))))
        self._parts[id(value)] = index
        return index

    def _quantized(self, value: Any) -> int:
        view = self._view(value)
        scheme = _T.qscheme(value)
        if scheme == torch.per_tensor_affine:
            return self._add(
                m.Quantized(*view, scale=_T.q_scale(value), zero_point=_T.q_zero_point(value))
            )
        if scheme not in (torch.per_channel_affine, torch.per_channel_affine_float_qparams):
            raise Unsupported(f"a tensor quantized by {scheme}")
        scales = self._part(_T.q_per_channel_scales(value))
        zero_points = self._part(_T.q_per_channel_zero_points(value))
        axis = _T.q_per_channel_axis(value)
        return self._add(m.Quantized(*view, axis=axis, scales=scales, zero_points=zero_points))

    def _composite(self, value: Any) -> int:
        flags = m.PARAMETER if type(value) is _Parameter else 0
        if value.requires_grad:
            flags |= m.REQUIRES_GRAD
        value = _T.detach(value)
        layout = value.layout
        if layout == torch.sparse_coo:
            indices, values = self._part(_T._indices(value)), self._part(_T._values(value))
            coalesced = _T.is_coalesced(value)
            return self._add(m.SparseCoo(indices, values, [*value.size()], coalesced, flags))
        if layout in _COMPRESSED:
            name, compressed, plain = _COMPRESSED[layout]
            parts = [self._part(part(value)) for part in (compressed, plain, _T.values)]
            return self._add(
                m.SparseCompressed(name, parts[0], parts[1], parts[2], [*value.size()], flags)
            )
        if layout is _strided and value.is_nested:
            parts = [
                self._part(part(value))
                for part in (
                    _T.values,
                    _T._nested_tensor_size,
                    _T._nested_tensor_strides,
                    _T._nested_tensor_storage_offsets,
                )
            ]
            return self._add(m.NestedStrided(parts[0], parts[1], parts[2], parts[3], flags))
        raise Unsupported(f"a tensor of the layout {printable(str(layout), 100)}")

    def jagged(self, value: Any, kind: type) -> tuple[int, dict[str, Any]] | None:
        """The node of a jagged nested tensor and its other attributes; None if it is not one."""
        if (kind.__module__, kind.__name__) != (
            "torch.nested._internal.nested_tensor",
            "NestedTensor",
        ):
            return None
        own = dict(object.__getattribute__(value, "__dict__"))
        cache = own.pop("_metadata_cache")
        lengths = own.pop("_lengths")
        min_seqlen, max_seqlen = cache.get("min_seqlen"), cache.get("max_seqlen")
        values, offsets = self._part(own.pop("_values")), self._part(own.pop("_offsets"))
        node = m.NestedJagged(
            values,
            offsets,
            m.NONE if lengths is None else self._part(lengths),
            own.pop("_ragged_idx"),
            m.NONE if min_seqlen is None else self._part(min_seqlen),
            m.NONE if max_seqlen is None else self._part(max_seqlen),
            m.REQUIRES_GRAD if value.requires_grad else 0,
        )
        made_by_torch = ("_size", "_strides", "_dynamo_propagated_dynamic_indices")
        return self._add(node), {k: v for k, v in own.items() if k not in made_by_torch}

    def underneath(self, value: Any) -> int | None:
        """The node of the plain tensor that a subclass's instance is; None if it is none."""
        try:
            with torch._C.DisableTorchFunction():
                plain = torch.Tensor.as_subclass(value.detach(), torch.Tensor)
            if type(plain) is not torch.Tensor or not torch._C._has_storage(plain):
                return None
            plain.requires_grad_(bool(value.requires_grad))
            self._kept.append(plain)
            return self.tensor(plain)
        except (RuntimeError, TypeError, NotImplementedError):  # a subclass that torch cannot undo
            return None

    def typed_storage(self, value: Any) -> m.StorageValue:
        dtype = value.dtype
        storage = self.storages.index(value._untyped_storage, dtype.itemsize)
        return m.StorageValue(storage, _DTYPE_INDEX[dtype])

    def untyped_storage(self, value: Any) -> m.StorageValue:
        return m.StorageValue(self.storages.index(value, 1))


def bytes_of(storage: Any) -> memoryview:
    """A storage's bytes, without a copy."""
    array: Any = torch.empty(0, dtype=torch.uint8).set_(storage).numpy()
    return memoryview(array)
