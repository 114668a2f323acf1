"""Whether two object graphs are the same: node by node, storage by storage, alias by alias."""

from __future__ import annotations

import struct
from collections import Counter, OrderedDict, defaultdict, deque
from typing import Any

import numpy as np
import torch

_SHARED = (list, dict, set, OrderedDict, Counter, defaultdict, deque, bytearray, tuple, str, bytes)
"""Types whose identity a pickle's memo keeps."""


def assert_same(actual: Any, expected: Any) -> None:
    """Raise AssertionError, with the place, where the graphs differ."""
    _Comparison().run(actual, expected)


def bits(storage: Any) -> bytes:
    """A CPU storage's bytes."""
    return bytes(torch.empty(0, dtype=torch.uint8).set_(storage).numpy())


class _Comparison:
    def __init__(self) -> None:
        self.twins: dict[int, Any] = {}
        self.reverse: dict[int, int] = {}
        self.storages: dict[int, int] = {}
        self.kept: list[Any] = []
        self.place = "root"

    def run(self, actual: Any, expected: Any) -> None:
        stack = [("root", actual, expected)]
        while stack:
            self.place, a, b = stack.pop()
            self.same(type(a), type(b), "type")
            if self.known(a, b):
                continue
            children = list(self.children(a, b))
            stack += [(f"{self.place}{where}", x, y) for where, x, y in reversed(children)]

    def same(self, a: Any, b: Any, what: str) -> None:
        assert a == b, f"{self.place}: {what} is {a!r}, and should be {b!r}"

    def known(self, a: Any, b: Any) -> bool:
        """Whether the pair was met before; a shared object must be shared with the same twin."""
        if not isinstance(b, (*_SHARED, torch.Tensor, torch.storage.TypedStorage, np.ndarray)):
            return False
        if isinstance(b, (tuple, str, bytes)) and len(b) < 2:
            return False  # these may be one object whatever the file says
        self.kept += [a, b]
        if id(b) in self.twins:
            assert self.twins[id(b)] is a, f"{self.place}: is no longer the object it was"
            return True
        assert id(a) not in self.reverse, f"{self.place}: two objects became one"
        self.twins[id(b)] = a
        self.reverse[id(a)] = id(b)
        return False

    def children(self, a: Any, b: Any) -> Any:
        if isinstance(b, torch.Tensor):
            yield from self.tensor(a, b)
        elif isinstance(b, torch.storage.TypedStorage):
            self.same(a.dtype, b.dtype, "dtype")
            self.storage(a._untyped_storage, b._untyped_storage)
        elif isinstance(b, torch.UntypedStorage):
            self.storage(a, b)
        elif isinstance(b, float):
            self.same(struct.pack("<d", a), struct.pack("<d", b), "bits")
        elif isinstance(b, complex):
            for x, y in ((a.real, b.real), (a.imag, b.imag)):
                self.same(struct.pack("<d", x), struct.pack("<d", y), "bits")
        elif isinstance(b, dict):
            self.same(len(a), len(b), "length")
            pairs = zip(a.items(), b.items(), strict=True)
            for (key_a, value_a), (key_b, value_b) in pairs:
                yield f"<key {key_b!r}>", key_a, key_b
                yield f"[{key_b!r}]", value_a, value_b
            if hasattr(b, "__dict__"):
                yield ".__dict__", vars(a), vars(b)
            if isinstance(b, defaultdict):
                self.same(a.default_factory, b.default_factory, "factory")
        elif isinstance(b, (list, tuple, deque)):
            self.same(len(a), len(b), "length")
            yield from ((f"[{i}]", x, y) for i, (x, y) in enumerate(zip(a, b, strict=True)))
        elif isinstance(b, (set, frozenset)):
            self.same(sorted(map(_key, a)), sorted(map(_key, b)), "content")
        elif isinstance(b, np.ndarray):
            self.same((a.shape, a.dtype), (b.shape, b.dtype), "form")
            if b.size:
                self.same(a.strides, b.strides, "strides")
            if b.dtype == object:
                yield ".tolist()", a.tolist(), b.tolist()
            else:
                self.same(a.tobytes(), b.tobytes(), "bytes")
        elif isinstance(b, np.generic):
            self.same((a.dtype, a.tobytes()), (b.dtype, b.tobytes()), "value")
        elif isinstance(b, torch.serialization.StorageType):
            self.same(a.dtype, b.dtype, "dtype")
        elif hasattr(b, "__dict__") and type(b).__module__ in ("types", "argparse"):
            yield ".__dict__", vars(a), vars(b)
        else:
            self.same(a, b, "value")

    def storage(self, a: Any, b: Any) -> None:
        self.same(a.nbytes(), b.nbytes(), "storage's bytes")
        self.same(a.device, b.device, "storage's device")
        if not b.nbytes() or b.device.type == "meta":
            return
        self.kept += [a, b]
        address = self.storages.get(b.data_ptr())
        if address is None:
            apart = a.data_ptr() not in self.storages.values()
            assert apart, f"{self.place}: two storages fell together"
            self.storages[b.data_ptr()] = a.data_ptr()
            self.same(bits(a), bits(b), "content")
        else:
            self.same(a.data_ptr(), address, "storage's address")

    def tensor(self, a: Any, b: Any) -> Any:
        for what in ("dtype", "device", "layout", "requires_grad", "is_nested", "is_quantized"):
            self.same(getattr(a, what), getattr(b, what), what)
        self.same(a.is_leaf, b.is_leaf, "is_leaf")
        self.same(a.is_inference(), b.is_inference(), "is_inference")
        if b.layout is torch.jagged:
            yield from self.jagged(a, b)
            return
        if not b.is_nested:
            self.same(a.shape, b.shape, "shape")
        if b.__dict__ or a.__dict__:
            yield ".__dict__", a.__dict__, b.__dict__
        if b.layout is torch.sparse_coo:
            self.same(a.is_coalesced(), b.is_coalesced(), "is_coalesced")
            parts = ("_indices", "_values")
        elif b.layout in (torch.sparse_csr, torch.sparse_bsr):
            parts = ("crow_indices", "col_indices", "values")
        elif b.layout in (torch.sparse_csc, torch.sparse_bsc):
            parts = ("ccol_indices", "row_indices", "values")
        elif b.is_nested:
            parts = (
                *("values", "_nested_tensor_size", "_nested_tensor_strides"),
                "_nested_tensor_storage_offsets",
            )
        else:
            yield from self.strided(a, b)
            return
        for part in parts:
            x, y = getattr(a.detach(), part)(), getattr(b.detach(), part)()
            yield f".{part}()", x, y

    def jagged(self, a: Any, b: Any) -> Any:
        for part in ("_values", "_offsets", "_lengths"):
            yield f".{part}", getattr(a, part), getattr(b, part)
        self.same(a._ragged_idx, b._ragged_idx, "ragged dimension")
        cache_a, cache_b = a._metadata_cache, b._metadata_cache
        self.same(sorted(cache_a), sorted(cache_b), "cache")
        for name in cache_b:
            yield f".{name}", cache_a[name], cache_b[name]

    def strided(self, a: Any, b: Any) -> Any:
        self.same(a.stride(), b.stride(), "stride")
        self.same(a.storage_offset(), b.storage_offset(), "storage_offset")
        self.same((a.is_conj(), a.is_neg()), (b.is_conj(), b.is_neg()), "conj and neg bits")
        if b.is_quantized:
            self.same(a.qscheme(), b.qscheme(), "qscheme")
            if b.qscheme() == torch.per_tensor_affine:
                self.same((a.q_scale(), a.q_zero_point()), (b.q_scale(), b.q_zero_point()), "q")
            else:
                self.same(a.q_per_channel_axis(), b.q_per_channel_axis(), "axis")
                yield ".scales", a.q_per_channel_scales(), b.q_per_channel_scales()
                yield ".zero_points", a.q_per_channel_zero_points(), b.q_per_channel_zero_points()
        if b.device.type != "meta":
            self.storage(a.untyped_storage(), b.untyped_storage())


def _key(value: Any) -> str:
    if isinstance(value, float):
        return f"float {struct.pack('<d', value).hex()}"
    if isinstance(value, (tuple, frozenset)):
        return f"{type(value).__name__}({','.join(sorted(map(_key, value)))})"
    return f"{type(value).__name__} {value!r}"
