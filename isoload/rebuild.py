"""A checked graph and its segments, as the object that the caller gets.

Two passes: every node is made in order, containers as empty shells; then the shells are filled. No
tensor's bytes are copied, no class is looked up but those that the caller allowed, and what does
not fit is the worker's fault: ManifestError.
"""

from __future__ import annotations

import functools
import time
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch.utils._python_dispatch import _disable_current_modes

from . import allowed, collector, rebuild_tensors
from . import manifest as m
from .check import make_dtype
from .manifest import NONE, ManifestError
from .opaque import Opaque
from .placement import Placement
from .rebuild_tensors import DTYPES, Storages, with_flags
from .segments import Segments
from .torch_values import make_named
from .values import FACTORIES, NAMESPACES, make_value

PLAIN: frozenset[type] = frozenset((type(None), bool, int, float, str))
_FEW = 64
"""Keys of a mapping or set that are never too many."""
_CHUNK = 512
_SLOWEST = 50e-6
"""Seconds of this thread that an insertion may take on average. int, float and tuple have known
hashes, so that a file can choose keys that all collide."""
_PATIENCE = 1.0


def rebuild(
    graph: m.Graph,
    segments: Segments,
    placement: Placement,
    allow: Mapping[str, type] | None = None,
) -> Any:
    """The object that a graph describes. `check` must have passed.

    `allow`: by full name, the classes that are rebuilt instead of becoming an Opaque: by the rule
    of `isoload.allowed`. Raises ManifestError where the graph makes no object, CheckpointError
    where the file's own bytes do not (sparse indices, an allowed class), and whatever placement
    raises; where the caller placed storages off the CPU, also what torch raises for a kind of
    tensor that the device does not have.
    """
    with _calm():
        storages = Storages(graph, segments, placement)
        with torch._C.DisableTorchFunction():
            return _Builder(graph, storages, allow or {}).build()


allowed_classes = allowed.allowed_classes


@contextmanager
def _calm() -> Iterator[None]:
    """The garbage collector would walk a half-made graph many times; a dispatch mode would answer
    for torch."""
    with collector.paused():
        if torch._C._len_torch_dispatch_stack():
            with _disable_current_modes():
                yield
        else:
            yield


class _Builder:
    def __init__(self, graph: m.Graph, storages: Storages, allow: Mapping[str, type]) -> None:
        self.graph = graph
        self.storages = storages
        self.allow = allow
        self.objects: list[Any] = []
        self.unfilled: list[tuple[Any, Any]] = []
        self.attributed: list[tuple[Any, int]] = []
        self.started = 0.0
        self.inserted = 0

    def build(self) -> Any:
        try:
            self.make_all()
            self.fill_all()
        except (TypeError, ValueError, ArithmeticError, LookupError, AssertionError) as error:
            raise ManifestError(f"the graph makes no object: {error}") from error
        except RuntimeError as error:
            if self.storages.moved:
                raise  # torch's own: the device that the caller asked for has no such tensors
            raise ManifestError(f"the graph makes no object: {error}") from error
        return self.objects[self.graph.root]

    def make_all(self) -> None:
        """Every node in order. Plain values and strided tensors are most of them, and go first."""
        objects = self.objects
        append = objects.append
        makers = {kind: getattr(self, name) for kind, name in _MAKERS.items()}
        placed = self.storages.placed
        devices = [None if storage is None else storage.device for storage in placed]
        alone, tensor_alone = self.storages.alone, self.storages.tensor
        place, tensor_kind = torch.Tensor.set_, m.Tensor
        empties: dict[tuple[int, Any], Any] = {}
        nodes: list[Any] = self.graph.nodes
        for node in nodes:
            kind = type(node)
            if kind in PLAIN:
                append(node)
            elif kind is tensor_kind:
                index = node.storage
                if alone[index]:
                    tensor = tensor_alone(node)
                else:
                    form = (node.dtype, devices[index])
                    new = empties.get(form)
                    if new is None:
                        # An empty tensor makes another of its form faster than torch.empty does.
                        dtype, device = DTYPES[node.dtype], devices[index]
                        new = empties[form] = torch.empty((0,), dtype=dtype, device=device).new
                    tensor = place(new(), placed[index], node.offset, node.size, node.stride)
                if node.flags:
                    tensor = with_flags(tensor, node.flags)
                if node.attrs != NONE:
                    self.attributed.append((tensor, node.attrs))
                append(tensor)
            else:
                made = makers[kind](node)
                if kind in _ATTRIBUTED and node.attrs != NONE:
                    self.attributed.append((made, node.attrs))
                append(made)

    def pick(self, indices: Sequence[int]) -> list[Any]:
        objects = self.objects
        return [objects[index] for index in indices]

    def shell(self, obj: Any, node: Any) -> Any:
        self.unfilled.append((obj, node))
        return obj

    def bytes_(self, node: m.Bytes) -> Any:
        return node.data

    def byte_array(self, node: m.ByteArray) -> Any:
        return bytearray(node.data)

    def text(self, node: m.Text) -> Any:
        return node.utf8.decode("utf-8", "surrogatepass")

    def big_int(self, node: m.BigInt) -> Any:
        return int.from_bytes(node.data, "little", signed=True)

    def complex_(self, node: m.Complex) -> Any:
        return complex(node.real, node.imag)

    def named(self, node: m.Named) -> Any:
        return make_named(node.kind, node.name)

    def size(self, node: m.Size) -> Any:
        return torch.Size(node.dims)

    def list_(self, node: m.List) -> Any:
        return self.shell([], node)

    def dict_(self, node: m.Dict) -> Any:
        made: dict[Any, Any]
        if node.kind == "":
            made = {}
        elif node.kind == "defaultdict":
            made = defaultdict(self.factory(node.factory))
        else:
            made = OrderedDict() if node.kind == "OrderedDict" else Counter()
        # Half of what a pickled module is made of holds nothing.
        return self.shell(made, node) if node.keys or node.values else made

    def factory(self, index: int) -> Any:
        if index == NONE:
            return None
        node = self.graph.nodes[index]
        if type(node) is not m.Named or node.kind != "global" or node.name not in FACTORIES:
            raise ManifestError("a defaultdict of an unknown factory")
        return make_named(node.kind, node.name)

    def set_(self, node: m.Set) -> Any:
        if not node.frozen:
            return self.shell(set(), node)
        items: set[Any] = set()
        self.insert(items.update, self.pick(node.items))
        if len(items) != len(node.items):
            raise ManifestError("a set that holds a value twice")
        return frozenset(items)

    def tuple_(self, node: m.Tuple) -> Any:
        return tuple(self.pick(node.items))

    def deque_(self, node: m.Deque) -> Any:
        return self.shell(deque(maxlen=node.maxlen), node)

    def value(self, node: m.Value) -> Any:
        return make_value(node.kind, self.pick(node.args))

    def namespace(self, node: m.Namespace) -> Any:
        return NAMESPACES[node.kind]()

    def opaque(self, node: m.Opaque) -> Any:
        cls = self.allow.get(node.name)
        if cls is not None and node.reference:
            return cls
        args = tuple(self.pick(node.args))
        kwargs = {name: self.objects[index] for name, index in node.kwargs.items()}
        if cls is None:
            return self.shell(Opaque(node.name, args, kwargs, reference=node.reference), node)
        fixed = [index for index in node.items if index < len(self.objects)]
        return self.shell(allowed.make(cls, args, kwargs, self.pick(fixed)), node)

    def storage_value(self, node: m.StorageValue) -> Any:
        storage = self.storages.placed[node.storage]
        if node.dtype == NONE:
            return storage
        dtype = DTYPES[node.dtype]
        typed: Any = torch.storage.TypedStorage
        return typed(wrap_storage=storage, dtype=dtype, _internal=True)

    def numpy_dtype(self, node: m.NumpyDtype) -> Any:
        return make_dtype(node, self.pick(node.fields))

    def numpy_scalar(self, node: m.NumpyScalar) -> Any:
        dtype = self.objects[node.dtype]
        return np.frombuffer(node.data, dtype, 1)[0] if node.data else np.zeros((), dtype)[()]

    def ndarray(self, node: m.NdArray) -> Any:
        data = self.storages.bytes(node.storage)
        return rebuild_tensors.ndarray(node, self.objects[node.dtype], data)

    def object_array(self, node: m.ObjectArray) -> Any:
        return self.shell(rebuild_tensors.object_array(node), node)

    def quantized(self, node: m.Quantized) -> Any:
        return rebuild_tensors.quantized(node, self.storages.placed[node.storage], self.objects)

    def subclass(self, node: m.Subclass) -> Any:
        tensor = self.objects[node.tensor]
        cls = self.allow.get(node.name)
        return Opaque(node.name, (tensor,)) if cls is None else allowed.make(cls, (tensor,))

    def composite(self, node: Any) -> Any:
        return _COMPOSITES[type(node)](node, self.objects)

    def fill_all(self) -> None:
        """Objects get their attributes first: a set or dict of them may need these to hash them."""
        fillers = {kind: getattr(self, name) for kind, name in _FILLERS.items()}
        self.started = time.thread_time()
        for obj, attrs in self.attributed:
            node: Any = self.graph.nodes[attrs]
            names: list[Any] = self.pick(node.keys)
            pairs = zip(names, self.pick(node.values), strict=True)
            if type(obj) is Opaque:
                obj.state = dict(pairs)
            else:
                obj.__dict__.update(pairs)  # never setattr: it would reach what the class defines
        if self.allow:
            self.unfilled.sort(key=lambda pair: type(pair[1]) is not m.Opaque)
        for obj, node in self.unfilled:
            fillers[type(node)](obj, node)

    def fill_list(self, obj: list[Any], node: m.List) -> None:
        obj.extend(self.pick(node.items))

    def fill_deque(self, obj: deque[Any], node: m.Deque) -> None:
        obj.extend(self.pick(node.items))

    def fill_array(self, obj: Any, node: m.ObjectArray) -> None:
        if not node.items:
            return  # ndindex writes each dimension out, and beside one of 0 they are not bounded
        for position, index in zip(np.ndindex(*node.shape), node.items, strict=True):
            obj[position] = self.objects[index]

    def fill_dict(self, obj: dict[Any, Any], node: m.Dict) -> None:
        keys = self.pick(node.keys)
        pairs = [*zip(keys, self.pick(node.values), strict=True)]
        update: Any = OrderedDict.update if node.kind == "OrderedDict" else dict.update
        self.insert(functools.partial(update, obj), pairs, keys)
        if len(obj) != len(keys):
            raise ManifestError("a mapping that holds a key twice")

    def fill_set(self, obj: set[Any], node: m.Set) -> None:
        items = self.pick(node.items)
        self.insert(obj.update, items)
        if len(obj) != len(items):
            raise ManifestError("a set that holds a value twice")

    def insert(
        self, update: Callable[[list[Any]], Any], entries: list[Any], keys: list[Any] | None = None
    ) -> None:
        """Insert what is hashed, unless its hashes were chosen to collide."""
        hashed = entries if keys is None else keys
        self.inserted += len(hashed)
        if len(hashed) <= _FEW or set(map(type, hashed)) <= {str, bytes}:
            update(entries)
            return
        if len({hash(key) for key in hashed}) * 8 < len(hashed):
            raise ManifestError("keys whose hashes collide")
        for start in range(0, len(entries), _CHUNK):
            update(entries[start : start + _CHUNK])
            if time.thread_time() - self.started > _PATIENCE + self.inserted * _SLOWEST:
                raise ManifestError("keys whose hashes collide")

    def fill_opaque(self, obj: Any, node: m.Opaque) -> None:
        items, keys = self.pick(node.items), self.pick(node.keys)
        pairs = [*zip(keys, self.pick(node.values), strict=True)]
        if type(obj) is not Opaque:
            if not node.reference:
                allowed.fill(obj, self.plain_state(node.state), items, pairs)
            return
        if node.state != NONE:
            obj.state = self.objects[node.state]
        if pairs:
            obj.items = self.mapping(pairs, keys)
        elif items:
            obj.items = items

    def mapping(self, pairs: list[Any], keys: list[Any]) -> Any:
        """What an Opaque maps; the pairs themselves where a key cannot be hashed."""
        held: dict[Any, Any] = {}
        try:
            self.insert(held.update, pairs, keys)
        except TypeError:
            return pairs
        return held

    def plain_state(self, index: int) -> Any:
        """The state of an allowed object, whether or not its dicts are filled yet."""
        if index == NONE:
            return None
        node = self.graph.nodes[index]
        if type(node) is m.Dict and node.kind == "":
            return dict(zip(self.pick(node.keys), self.pick(node.values), strict=True))
        if type(node) is m.Tuple and len(node.items) == 2:
            return tuple(self.plain_state(item) for item in node.items)
        return self.objects[index]


_MAKERS: dict[type, str] = {
    m.Bytes: "bytes_",
    m.Tuple: "tuple_",
    m.Size: "size",
    m.List: "list_",
    m.Dict: "dict_",
    m.Set: "set_",
    m.Deque: "deque_",
    m.Text: "text",
    m.BigInt: "big_int",
    m.Complex: "complex_",
    m.ByteArray: "byte_array",
    m.Named: "named",
    m.Value: "value",
    m.Opaque: "opaque",
    m.StorageValue: "storage_value",
    m.Namespace: "namespace",
    m.NumpyDtype: "numpy_dtype",
    m.NumpyScalar: "numpy_scalar",
    m.NdArray: "ndarray",
    m.ObjectArray: "object_array",
    m.Quantized: "quantized",
    m.SparseCoo: "composite",
    m.SparseCompressed: "composite",
    m.NestedStrided: "composite",
    m.NestedJagged: "composite",
    m.Subclass: "subclass",
}
_COMPOSITES: dict[type, Callable[[Any, Sequence[Any]], Any]] = {
    m.SparseCoo: rebuild_tensors.sparse_coo,
    m.SparseCompressed: rebuild_tensors.sparse_compressed,
    m.NestedStrided: rebuild_tensors.nested_strided,
    m.NestedJagged: rebuild_tensors.nested_jagged,
}
_FILLERS: dict[type, str] = {
    m.List: "fill_list",
    m.Dict: "fill_dict",
    m.Set: "fill_set",
    m.Deque: "fill_deque",
    m.Opaque: "fill_opaque",
    m.ObjectArray: "fill_array",
}
_ATTRIBUTED: frozenset[type] = frozenset(
    (m.Dict, m.Namespace, m.Quantized, m.Subclass, *_COMPOSITES)
)
