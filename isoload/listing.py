"""The tensors of a graph as a table: name, dtype, shape, bytes. It reads nodes, and makes no
tensor."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from sandbox import printable

from . import manifest as m

_MAX_NAME = 300  # characters
MAX_PATH = 500
"""Characters of a tensor's name: a graph may nest as deep as it has nodes."""
MAX_LISTED = 1_000_000
"""Tensors in one table: a list may hold the same one as often as its bytes allow."""


@dataclass(frozen=True)
class TensorInfo:
    """A tensor: where it lies in the object ("state_dict.fc.weight"), dtype, shape, and bytes as
    indexed."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    nbytes: int
    location: str

    def to_dict(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "dtype": self.dtype,
            "shape": [*self.shape],
            "bytes": self.nbytes,
            "location": self.location,
        }


def list_tensors(graph: m.Graph) -> Iterator[TensorInfo]:
    """Every tensor under every name that a container gives it: tied weights under each of theirs.

    A container that is met again is not gone through again, so that a graph whose paths are without
    number still makes a short table. A sparse or nested tensor is listed as its parts. The graph
    has been checked.
    """
    seen: set[int] = set()
    listed = 0
    stack = [iter([("", graph.root)])]
    while stack and listed < MAX_LISTED:
        name, index = next(stack[-1], ("", m.NONE))
        if index == m.NONE:
            stack.pop()
            continue
        node = graph.nodes[index]
        if isinstance(node, (m.Tensor, m.Quantized)):
            listed += 1
            yield _info(graph, name, node)
        if index not in seen:
            seen.add(index)
            stack.append(_below(name, _children(graph, node)))


def _below(name: str, children: Iterator[tuple[str, int]]) -> Iterator[tuple[str, int]]:
    """The children under the name of what holds them: a path, cut where it becomes too long."""
    for label, child in children:
        path = f"{name}.{label}" if name else label
        yield (path if len(path) <= MAX_PATH else path[: MAX_PATH - 1] + "…"), child


def _info(graph: m.Graph, name: str, node: m.Tensor | m.Quantized) -> TensorInfo:
    dtype = m.DTYPES[node.dtype]
    nbytes = math.prod(node.size) * getattr(torch, dtype).itemsize
    location = graph.storages[node.storage].location
    return TensorInfo(name, dtype, tuple(node.size), nbytes, printable(location, _MAX_NAME))


def _children(graph: m.Graph, node: m.Node) -> Iterator[tuple[str, int]]:
    if isinstance(node, (m.List, m.Tuple, m.Set, m.Deque)):
        yield from ((str(position), child) for position, child in enumerate(node.items))
    elif isinstance(node, m.Dict):
        yield from _pairs(graph, node.keys, node.values)
    elif isinstance(node, m.Opaque):
        if node.state != m.NONE:
            # An object's attributes read as its own: "model.conv.weight", not
            # "model.state.conv.weight".
            state = graph.nodes[node.state]
            if isinstance(state, m.Dict):
                yield from _pairs(graph, state.keys, state.values)
            else:
                yield "state", node.state
        yield from ((f"args.{position}", child) for position, child in enumerate(node.args))
        yield from ((printable(name, _MAX_NAME), child) for name, child in node.kwargs.items())
        yield from ((str(position), child) for position, child in enumerate(node.items))
        yield from _pairs(graph, node.keys, node.values)
    else:
        yield from m.parts(node)


def _pairs(graph: m.Graph, keys: Sequence[int], values: Sequence[int]) -> Iterator[tuple[str, int]]:
    for key, value in zip(keys, values, strict=True):
        name = graph.nodes[key]
        plain = isinstance(name, (str, int, float))
        yield (printable(str(name), _MAX_NAME) if plain else f"[{key}]"), value
