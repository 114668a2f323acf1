"""The arithmetic that a graph must pass before anything is built of it.

Every index is in range, every number is held against the real sizes of the segments, in Python's
own integers; a node that cannot be changed refers only to nodes before it; what will be hashed as a
key is cheap to hash. Nothing is made here but numpy dtypes, and no segment's bytes are read.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from . import manifest as m
from .bounds import (
    MAX_BIG_INT,
    MAX_DIMS,
    MAX_INT,
    MAX_KEY_WEIGHT,
    MAX_NAME,
    MAX_TEXT,
    hidden_by,
)
from .manifest import NONE, ManifestError
from .values import NAMESPACES, simple_dtype

_DTYPES = [getattr(torch, name, None) for name in m.DTYPES]
_ITEMSIZE = [0 if dtype is None else dtype.itemsize for dtype in _DTYPES]
_FLOATING = [dtype is not None and dtype.is_floating_point for dtype in _DTYPES]
_COMPLEX = [dtype is not None and dtype.is_complex for dtype in _DTYPES]
_QUANTIZED = {
    index: {"quint4x2": 2, "quint2x4": 4}.get(name, 1)
    for index, name in enumerate(m.DTYPES)
    if name in ("qint8", "quint8", "qint32", "quint4x2", "quint2x4")
}
"""Quantized dtypes, and how many of their elements share an item."""
_DIFFERENTIABLE = [f or c for f, c in zip(_FLOATING, _COMPLEX, strict=True)]
_NOT_BOOL = [name != "bool" for name in m.DTYPES]
_LAYOUTS = ("sparse_csr", "sparse_csc", "sparse_bsr", "sparse_bsc")
_KINDS = {"": dict, "OrderedDict": OrderedDict, "Counter": Counter, "defaultdict": dict}
_ALL_FLAGS = m.REQUIRES_GRAD | m.CONJ | m.NEG | m.PARAMETER


def check_graph(
    graph: m.Graph, segment_sizes: Sequence[int], *, max_nodes: int = m.MAX_NODES
) -> None:
    """Raise ManifestError unless the graph may be built over segments of these sizes (bytes)."""
    if len(graph.nodes) > max_nodes:
        raise ManifestError(f"more than {max_nodes} nodes")
    for storage in graph.storages:
        _check_storage(storage, segment_sizes)
    _Checker(graph).run()


def _check_storage(storage: m.Storage, sizes: Sequence[int]) -> None:
    segment, offset, nbytes = storage.segment, storage.offset, storage.nbytes
    if not 0 <= offset <= MAX_INT or not 0 <= nbytes <= MAX_INT:
        raise ManifestError(f"a storage of {nbytes} bytes at {offset}")
    if segment != m.ABSENT and (not 0 <= segment < len(sizes) or offset + nbytes > sizes[segment]):
        raise ManifestError(f"a storage of {nbytes} bytes at {offset} of segment {segment}")
    if len(storage.location) > MAX_TEXT or not storage.location.isprintable():
        raise ManifestError("a storage's location is no printable name")


class _Checker:
    def __init__(self, graph: m.Graph) -> None:
        self.nodes = graph.nodes
        self.storages = graph.storages
        self.count = len(graph.nodes)
        self.root = graph.root
        self.weights: dict[int, int] = {}
        self.dtypes: dict[int, np.dtype[Any]] = {}

    def run(self) -> None:
        if not 0 <= self.root < self.count:
            raise ManifestError("the root is not a node")
        checks = {kind: getattr(self, name) for kind, name in _CHECKS.items()}
        for index, node in enumerate(self.nodes):
            check = checks.get(type(node))
            if check is not None:
                check(node, index)
        if self.weights:
            self.check_keys()

    def any(self, indices: Sequence[int]) -> None:
        if indices and (min(indices) < 0 or max(indices) >= self.count):
            raise ManifestError("a reference to no node")

    def before(self, indices: Sequence[int], index: int) -> None:
        if indices and (min(indices) < 0 or max(indices) >= index):
            raise ManifestError("a node that cannot change refers to one after it")

    def optional(self, index: int) -> None:
        if index != NONE and not 0 <= index < self.count:
            raise ManifestError("a reference to no node")

    def attrs(self, index: int, owner: type) -> None:
        """Attributes are data under names of their own: they never hide what the class defines."""
        self.optional(index)
        if index == NONE:
            return
        attrs = self.nodes[index]
        if type(attrs) is not m.Dict or attrs.kind:
            raise ManifestError("attributes are not in a dict")
        self.any(attrs.keys)
        for key in attrs.keys:
            name = self.nodes[key]
            if type(name) is not str or hidden_by(owner, name):
                raise ManifestError(f"an attribute that {owner.__name__} defines itself")

    def tuple_(self, node: Any, index: int) -> None:
        self.before(node.items, index)
        weights = self.weights
        self.weights[index] = 1 + sum([weights.get(item, 1) for item in node.items])

    def list_(self, node: Any, index: int) -> None:
        self.any(node.items)

    def set_(self, node: m.Set, index: int) -> None:
        if node.frozen:
            self.tuple_(node, index)
        else:
            self.any(node.items)

    def deque(self, node: m.Deque, index: int) -> None:
        self.any(node.items)
        if node.maxlen is not None and not len(node.items) <= node.maxlen <= MAX_INT:
            raise ManifestError("a deque longer than its bound")

    def dict_(self, node: m.Dict, index: int) -> None:
        if node.kind not in _KINDS or len(node.keys) != len(node.values):
            raise ManifestError("a mapping of no known form")
        self.any(node.keys)
        self.any(node.values)
        self.optional(node.factory)
        if node.attrs != NONE:
            if node.kind not in ("OrderedDict", "Counter"):
                raise ManifestError(f"attributes on a {node.kind or 'dict'}")
            self.attrs(node.attrs, _KINDS[node.kind])

    def size(self, node: m.Size, index: int) -> None:
        if any(abs(dim) > MAX_INT for dim in node.dims):
            raise ManifestError("a torch.Size beyond 64 bits")

    def big_int(self, node: m.BigInt, index: int) -> None:
        if len(node.data) > MAX_BIG_INT:
            raise ManifestError(f"an int of {len(node.data)} bytes")

    def value(self, node: m.Value, index: int) -> None:
        self.before(node.args, index)
        if len(node.args) > 16:
            raise ManifestError(f"a value of {len(node.args)} arguments")

    def named(self, node: m.Named, index: int) -> None:
        if len(node.name) > MAX_TEXT or len(node.kind) > MAX_TEXT:
            raise ManifestError("a named value of a long name")

    def opaque(self, node: m.Opaque, index: int) -> None:
        if len(node.name) > MAX_NAME:
            raise ManifestError("a class of a long name")
        self.before(node.args, index)
        self.before(tuple(node.kwargs.values()), index)
        self.optional(node.state)
        self.any(node.items)
        self.any(node.keys)
        self.any(node.values)
        if len(node.keys) != len(node.values):
            raise ManifestError("keys without values")

    def namespace(self, node: m.Namespace, index: int) -> None:
        if node.kind not in NAMESPACES:
            raise ManifestError("a namespace of no known kind")
        self.attrs(node.attrs, object)

    def storage(self, index: int) -> m.Storage:
        if not 0 <= index < len(self.storages):
            raise ManifestError("a reference to no storage")
        return self.storages[index]

    def storage_value(self, node: m.StorageValue, index: int) -> None:
        storage = self.storage(node.storage)
        if node.dtype == NONE:
            return
        itemsize = self.itemsize(node.dtype)
        if storage.offset % itemsize or storage.nbytes % itemsize:
            raise ManifestError("a storage that is no multiple of its items")

    def itemsize(self, dtype: int) -> int:
        if not 0 <= dtype < len(_DTYPES) or not _ITEMSIZE[dtype]:
            raise ManifestError("a dtype that is not in the table")
        return _ITEMSIZE[dtype]

    def tensor(self, node: m.Tensor, index: int) -> None:
        if node.dtype in _QUANTIZED:
            raise ManifestError("a quantized dtype without its parameters")
        self.strided(node, 1)

    def strided(self, node: m.Tensor | m.Quantized, packed: int) -> None:
        """The view lies within its storage; `packed` elements share an item."""
        storage = self.storage(node.storage)
        dtype = node.dtype
        itemsize = self.itemsize(dtype)
        last = node.offset
        numel = 1
        empty = False
        if len(node.size) != len(node.stride) or len(node.size) > MAX_DIMS or last < 0:
            raise ManifestError("a tensor of no possible shape")
        for dim, stride in zip(node.size, node.stride):  # noqa: B905 - the lengths are equal
            if dim < 0 or not 0 <= stride <= MAX_INT:
                raise ManifestError("a tensor of no possible shape")
            if dim:
                numel *= dim
                last += (dim - 1) * stride
            else:
                empty = True
        if numel * itemsize > MAX_INT or last * itemsize > MAX_INT:
            raise ManifestError("a tensor beyond 64 bits")
        if not empty and (last // packed + 1) * itemsize > storage.nbytes:
            raise ManifestError("a tensor that reaches beyond its storage")
        if storage.offset % itemsize and storage.nbytes:
            raise ManifestError("a tensor whose storage is not aligned")
        if node.flags:
            self.flags(node.flags, dtype)
        if node.attrs != NONE:
            self.attrs(node.attrs, torch.Tensor)

    def flags(self, flags: int, dtype: int) -> None:
        if (
            flags & ~_ALL_FLAGS
            or (flags & m.REQUIRES_GRAD and not _DIFFERENTIABLE[dtype])
            or (flags & m.CONJ and not _COMPLEX[dtype])
            or (flags & m.NEG and not _NOT_BOOL[dtype])
        ):
            raise ManifestError("a tensor with flags that its dtype cannot have")

    def quantized(self, node: m.Quantized, index: int) -> None:
        if node.dtype not in _QUANTIZED:
            raise ManifestError("quantization parameters without a quantized dtype")
        self.strided(node, _QUANTIZED[node.dtype])
        if node.flags & (m.CONJ | m.NEG):  # torch crashes over a quantized tensor with either
            raise ManifestError("a quantized tensor with the flags of another")
        if abs(node.zero_point) > MAX_INT:
            raise ManifestError("a zero point beyond 64 bits")
        if node.axis == NONE:
            return
        if not 0 <= node.axis < len(node.size):
            raise ManifestError("a quantization axis beyond the dimensions")
        for part in (node.scales, node.zero_points):
            if self.part(part, index).size != [node.size[node.axis]]:
                raise ManifestError("quantization parameters of the wrong length")
        for part in (node.scales, node.zero_points):
            if self.part(part, index).flags:
                raise ManifestError("quantization parameters are plain tensors")

    def part(self, part: int, index: int) -> m.Tensor:
        """A tensor that another is made of."""
        self.before((part,), index)
        node = self.nodes[part]
        if type(node) is not m.Tensor:
            raise ManifestError("a tensor is made of what is none")
        return node

    def composite(self, node: Any, index: int, *parts: int) -> list[m.Tensor]:
        """A tensor of other tensors: the first of `parts` are its values."""
        found = [self.part(part, index) for part in parts]
        if node.flags:
            self.flags(node.flags & ~m.PARAMETER, found[0].dtype)
        if node.flags & (m.CONJ | m.NEG):
            raise ManifestError("a composite tensor with the flags of a plain one")
        self.attrs(node.attrs, torch.Tensor)
        return found

    def extents(self, size: Sequence[int]) -> None:
        numel = 1
        for dim in size:
            if not 0 <= dim <= MAX_INT:
                raise ManifestError("a tensor of no possible shape")
            numel *= dim or 1
        if len(size) > MAX_DIMS or numel > MAX_INT:
            raise ManifestError("a tensor beyond 64 bits")

    def sparse_coo(self, node: m.SparseCoo, index: int) -> None:
        self.composite(node, index, node.values, node.indices)
        self.extents(node.size)

    def sparse_compressed(self, node: m.SparseCompressed, index: int) -> None:
        if node.layout not in _LAYOUTS:
            raise ManifestError("a sparse layout of no known name")
        self.composite(node, index, node.values, node.compressed, node.plain)
        self.extents(node.size)

    def nested_strided(self, node: m.NestedStrided, index: int) -> None:
        parts = self.composite(node, index, node.buffer, node.sizes, node.strides, node.offsets)
        buffer, sizes, strides, offsets = parts
        count = sizes.size[0] if sizes.size else 0
        if (
            len(buffer.size) != 1
            or buffer.stride != [1]
            or len(sizes.size) not in (1, 2)
            or sizes.size != strides.size
            or offsets.size != [count]
            or any(m.DTYPES[part.dtype] != "int64" for part in (sizes, strides, offsets))
        ):
            raise ManifestError("a nested tensor of no possible form")

    def nested_jagged(self, node: m.NestedJagged, index: int) -> None:
        values, offsets = self.composite(node, index, node.values, node.offsets)
        optional = [
            self.part(part, index)
            for part in (node.lengths, node.min_seqlen, node.max_seqlen)
            if part != NONE
        ]
        lengths = [self.part(node.lengths, index)] if node.lengths != NONE else []
        if (
            len(offsets.size) != 1
            or offsets.size[0] < 1
            or any(part.size != [offsets.size[0] - 1] for part in lengths)
            or any(m.DTYPES[part.dtype] not in ("int32", "int64") for part in (offsets, *lengths))
            or not 1 <= node.ragged <= len(values.size)
            or any(part.flags for part in (values, offsets, *optional))
        ):
            raise ManifestError("a jagged tensor of no possible form")

    def subclass(self, node: m.Subclass, index: int) -> None:
        if len(node.name) > MAX_NAME:
            raise ManifestError("a class of a long name")
        self.before((node.tensor,), index)
        if type(self.nodes[node.tensor]) not in TENSORS:
            raise ManifestError("a tensor subclass of what is no tensor")
        self.attrs(node.attrs, torch.Tensor)

    def numpy_dtype(self, node: m.NumpyDtype, index: int) -> None:
        self.before(node.fields, index)
        try:
            fields = [self.dtypes[field] for field in node.fields]
            self.dtypes[index] = make_dtype(node, fields)
        except (KeyError, ValueError, TypeError, OverflowError) as error:
            raise ManifestError(f"no such numpy dtype: {error}") from None

    def numpy_scalar(self, node: m.NumpyScalar, index: int) -> None:
        if len(node.data) != self.numpy_item(node.dtype, index):
            raise ManifestError("a numpy scalar of the wrong length")

    def numpy_item(self, dtype: int, index: int) -> int:
        self.before((dtype,), index)
        found = self.dtypes.get(dtype)
        if found is None:
            raise ManifestError("an array of what is no dtype")
        return found.itemsize

    def ndarray(self, node: m.NdArray, index: int) -> None:
        storage = self.storage(node.storage)
        itemsize = self.numpy_item(node.dtype, index)
        self.extents(node.shape)
        needed = itemsize
        for dim in node.shape:
            needed *= dim
        if needed > storage.nbytes:
            raise ManifestError("an array that reaches beyond its storage")

    def object_array(self, node: m.ObjectArray, index: int) -> None:
        self.any(node.items)
        self.extents(node.shape)
        count = 1
        for dim in node.shape:
            count *= dim
        if count != len(node.items):
            raise ManifestError("an array of objects that are not all there")

    def check_keys(self) -> None:
        """Tuples among the keys cost what they hold."""
        weights = self.weights
        total = 0
        for node in self.nodes:
            keys: Sequence[int] = ()
            if type(node) is m.Dict or type(node) is m.Opaque:
                keys = node.keys
            elif type(node) is m.Set:
                keys = node.items
            if not keys:
                continue
            cost = [weights.get(key, 1) for key in keys]
            total += sum(cost)
            if max(cost) > MAX_KEY_WEIGHT or total > 10 * m.MAX_NODES:
                raise ManifestError("keys that take too long to hash")


_CHECKS: dict[type, str] = {
    m.Tuple: "tuple_",
    m.Size: "size",
    m.List: "list_",
    m.Dict: "dict_",
    m.Set: "set_",
    m.Deque: "deque",
    m.BigInt: "big_int",
    m.Value: "value",
    m.Named: "named",
    m.Opaque: "opaque",
    m.StorageValue: "storage_value",
    m.Namespace: "namespace",
    m.NumpyDtype: "numpy_dtype",
    m.NumpyScalar: "numpy_scalar",
    m.NdArray: "ndarray",
    m.ObjectArray: "object_array",
    m.Tensor: "tensor",
    m.Quantized: "quantized",
    m.SparseCoo: "sparse_coo",
    m.SparseCompressed: "sparse_compressed",
    m.NestedStrided: "nested_strided",
    m.NestedJagged: "nested_jagged",
    m.Subclass: "subclass",
}

TENSORS: frozenset[type] = frozenset(
    (m.Tensor, m.Quantized, m.SparseCoo, m.SparseCompressed, m.NestedStrided, m.NestedJagged)
)


def make_dtype(node: m.NumpyDtype, fields: Sequence[np.dtype[Any]]) -> np.dtype[Any]:
    """The numpy dtype of a node. Raises ValueError or TypeError if there is none such."""
    if node.names:
        if not len(node.names) == len(fields) == len(node.offsets):
            raise ValueError("a record whose fields are not all there")
        if not 0 < node.itemsize < 2**31 or any(not 0 <= o < 2**31 for o in node.offsets):
            raise ValueError("a record of no possible size")
        form = {
            "names": list(node.names),
            "formats": list(fields),
            "offsets": list(node.offsets),
            "itemsize": node.itemsize,
        }
        # numpy's stubs do not know this form of a dtype.
        return np.dtype(form, align=node.aligned)  # type: ignore[call-overload,no-any-return]
    if fields:
        count = 1
        for dim in node.shape:
            count *= dim if dim > 0 else 2**31
        if len(fields) != 1 or count * fields[0].itemsize >= 2**31:
            raise ValueError("a subarray of no possible size")
        return np.dtype((fields[0], node.shape))
    return simple_dtype(node.code)
