"""What the program made → manifest nodes.

Every view is checked, those too that the result does not reach: where torch would raise, and where
it is not certain that it would not, `Unusual` is raised and torch decides.

Nothing is walked by recursion, and nothing is executed here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from itertools import chain
from typing import Any, cast

from isoload import manifest
from isoload.manifest import PARAMETER, REQUIRES_GRAD, Node, Tensor

from .direct_graph import Made
from .stand_ins import (
    MAX_DIMS,
    Buffer,
    Bytes,
    Dtype,
    FileList,
    Kind,
    Mention,
    Ordered,
    Plain,
    Unusual,
    View,
)

_INT64 = range(-(1 << 63), 1 << 63)


def describe(made: Made, max_nodes: int) -> tuple[int, list[Node]]:
    """(root, nodes) of a graph. Raises `Unusual`."""
    if made.views:
        _check_views(made.views, made.storages)
    describer = _Describer(max_nodes)
    return describer.describe(made.root), describer.nodes


def _check_views(views: list[View], storages: list[Bytes]) -> None:
    """Give each view its node, checked as torch's own `set_` would check it."""
    mentions, offsets, sizes, strides, grads, hooks, named = zip(
        *[view.args for view in views], strict=True
    )
    expected = (
        (mentions, Mention),
        (offsets, int),
        (sizes, tuple),
        (strides, tuple),
        (grads, bool),
    )
    if any(set(map(type, column)) != {kind} for column, kind in expected):
        raise Unusual
    if not set(map(type, hooks)) <= {Ordered, type(None)} or any(hooks):
        raise Unusual
    if not set(map(type, chain(chain.from_iterable(sizes), chain.from_iterable(strides)))) <= {int}:
        raise Unusual
    held = [storages[mention.number] for mention in mentions]
    kinds = [storage.kind for storage in held]
    if any(named):
        kinds = [*map(_kind, kinds, named, held)]
    shapes = [*zip(sizes, strides, strict=True)]
    extents = {shape: _extent(*shape) for shape in set(shapes)}
    columns = zip(views, offsets, map(extents.__getitem__, shapes), kinds, held, strict=True)
    for view, offset, (extent, size, stride), kind, storage in columns:
        if offset < 0 or (offset + extent) * kind.itemsize > storage.nbytes:
            raise Unusual
        view.node = Tensor(storage.index, kind.dtype, offset, size, stride)
    if True in grads or any(view.parameter for view in views):
        for view, kind, grad in zip(views, kinds, grads, strict=True):
            if grad and not kind.trains:
                raise Unusual
            flags = PARAMETER * view.parameter | REQUIRES_GRAD * grad
            cast("Tensor", view.node).flags = flags


def _kind(kind: Kind, dtype: Dtype | None, storage: Bytes) -> Kind:
    """What a view sees its storage as, where it names a dtype of its own."""
    if dtype is None:
        return kind
    seen = dtype.kind
    if seen is None or storage.offset % seen.itemsize:
        raise Unusual
    return seen


def _extent(size: tuple[int, ...], stride: tuple[int, ...]) -> tuple[int, list[int], list[int]]:
    """The elements from the first to the last of a view (0 for an empty one), and its shape."""
    if len(size) != len(stride) or len(size) > MAX_DIMS or min(size + stride, default=0) < 0:
        raise Unusual
    shape = (list(size), list(stride))
    if 0 in size:
        return (0, *shape)
    return (1 + sum((count - 1) * step for count, step in zip(*shape, strict=True)), *shape)


class _Describer:
    """Containers and scalars → nodes. An object met twice is one node."""

    def __init__(self, max_nodes: int) -> None:
        self.nodes: list[Node] = []
        self._max_nodes = max_nodes
        self._known: dict[int, int] = {}
        self._open: list[tuple[Any, Any]] = []
        """Containers that have a node and no items yet."""
        self._kept: list[Any] = []
        """What was made on the way and must live, or its id would be another's."""

    def describe(self, root: Any) -> int:
        index = self._index(root)
        while self._open:
            made, node = self._open.pop()
            if type(node) is manifest.Dict:
                self._fill_dict(made, node)
            else:
                if type(made) is set and not set(map(type, made)) <= _SCALARS:
                    raise Unusual
                node.items.extend([self._index(item) for item in made])
            if len(self.nodes) > self._max_nodes:
                raise Unusual
        return index

    def _fill_dict(self, made: Any, node: manifest.Dict) -> None:
        keys, values = [*dict.keys(made)], [*dict.values(made)]
        known, nodes = self._known, self.nodes
        if set(map(type, keys)) == {str} and known.keys().isdisjoint(map(id, keys)):
            node.keys.extend(range(len(nodes), len(nodes) + len(keys)))
            known.update(zip(map(id, keys), node.keys, strict=True))
            nodes.extend(_texts(keys))
        else:
            node.keys.extend([self._key(key) for key in keys])
        if set(map(type, values)) == {View}:
            for view in values:
                if view.index < 0:
                    view.index = len(nodes)
                    nodes.append(view.node)
            node.values.extend([view.index for view in values])
        else:
            node.values.extend([self._index(value) for value in values])

    def _key(self, key: Any) -> int:
        kind = type(key)
        if kind not in _SCALARS and not (kind is tuple and set(map(type, key)) <= _SCALARS):
            raise Unusual
        return self._index(key)

    def _index(self, made: Any) -> int:
        if type(made) is View:
            if made.index < 0:
                made.index = len(self.nodes)
                self.nodes.append(made.node)
            return made.index
        found = self._known.get(id(made))
        if found is not None:
            return found
        return self._tuple(made) if type(made) is tuple else self._add(made)

    def _tuple(self, made: tuple[Any, ...]) -> int:
        """A node for a tuple, after those of its items: inner tuples are worked off from a
        stack."""
        waiting = [made]
        while waiting:
            top = waiting[-1]
            inner = [item for item in top if type(item) is tuple and id(item) not in self._known]
            if inner:
                waiting += inner
            else:
                waiting.pop()
                if id(top) not in self._known:
                    items = [self._index(item) for item in top]
                    self._known[id(top)] = len(self.nodes)
                    self.nodes.append(manifest.Tuple(items))
            if len(self.nodes) + len(waiting) > self._max_nodes:
                raise Unusual
        return self._known[id(made)]

    def _add(self, made: Any) -> int:
        convert = _CONVERTERS.get(type(made))
        if convert is None:
            raise Unusual
        node = convert(made)
        index = self._known[id(made)] = len(self.nodes)
        self.nodes.append(node)
        if type(made) in _CONTAINERS:
            self._open.append((made, node))
            if type(made) is Ordered or type(made) is Counter:
                self._attributes(made, index, node)
        return index

    def _attributes(self, made: Any, index: int, node: Any) -> None:
        attributes = made.__dict__
        if not attributes:
            return
        if type(made) is Counter:
            raise Unusual
        self._kept.append(attributes)
        shell = manifest.Dict(node.keys, node.values, node.kind, self._index(attributes))
        self.nodes[index] = shell


def _texts(made: list[str]) -> list[Any]:
    """Nodes of many: a text without lone surrogates is its own."""
    try:
        "".join(made).encode()
    except UnicodeEncodeError:
        return [*map(_text, made)]
    return made


def _text(made: str) -> Node:
    try:
        made.encode()
    except UnicodeEncodeError:
        return manifest.Text(made.encode("utf-8", "surrogatepass"))
    return made


def _integer(made: int) -> Node:
    if made in _INT64:
        return made
    return manifest.BigInt(made.to_bytes(made.bit_length() // 8 + 1, "little", signed=True))


def _itself(made: Any) -> Any:
    return made


_CONVERTERS: dict[type, Callable[[Any], Node]] = {
    type(None): _itself,
    bool: _itself,
    float: _itself,
    int: _integer,
    str: _text,
    bytes: manifest.Bytes,
    complex: lambda made: manifest.Complex(made.real, made.imag),
    Dtype: lambda made: manifest.Named("dtype", made.name),
    Plain: lambda made: made.node,
    Buffer: lambda made: made.node,
    FileList: lambda _: manifest.List([]),
    set: lambda _: manifest.Set([]),
    dict: lambda _: manifest.Dict([], []),
    Ordered: lambda _: manifest.Dict([], [], "OrderedDict"),
    Counter: lambda _: manifest.Dict([], [], "Counter"),
}
_SCALARS = {type(None), bool, int, float, str, bytes}
_CONTAINERS = {FileList, set, dict, Ordered, Counter}
