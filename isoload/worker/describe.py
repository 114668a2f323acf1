"""The object graph that a reader made, as manifest nodes and an arena."""

from __future__ import annotations

from typing import Any, Protocol

import torch

from isoload import manifest as m

from .anatomy import full_name
from .describe_tensors import TensorWriter, bytes_of
from .reading import Reading
from .torch_names import TORCH_NAMES
from .walk import Frame, Walk


class Budget(Protocol):
    """`max_nodes` objects, and `max_output` bytes of arena (0: as many as it takes)."""

    max_nodes: int
    max_output: int


def describe(reading: Reading, *, tensors: bool, budget: Budget) -> tuple[m.Graph, int | None]:
    """The nodes of `reading.root`, and the descriptor of the arena if it needs one.

    `tensors` False: no bytes of tensors cross, their storages are ABSENT.
    Raises Unsupported for what no node stands for, TooMuch beyond the budget.
    """
    walk = _TorchWalk(reading, budget.max_nodes)
    root = walk.describe(reading.root)
    storages, arena = walk.storages.finish(tensors, budget.max_output)
    return m.Graph(root, walk.nodes, storages), arena


class _TorchWalk(Walk):
    def __init__(self, reading: Reading, max_nodes: int) -> None:
        super().__init__(reading, max_nodes, TORCH_NAMES, bytes_of)
        self.tensors = TensorWriter(reading, self.nodes, self.storages)
        self.tensor_kinds = frozenset({torch.Tensor, torch.nn.Parameter})
        self.leaves |= {
            torch.Size: lambda value: m.Size(list(value)),
            torch.storage.TypedStorage: self.tensors.typed_storage,
            torch.UntypedStorage: self.tensors.untyped_storage,
        }

    def tensor(self, value: Any) -> int:
        index = self.tensors.tensor(value)
        if value.__dict__:
            self.add_attrs(index, value.__dict__, torch.Tensor)
        return index

    def open_tensor(self, value: Any, kind: type) -> Frame | int | None:
        """A subclass: the tensor that it is underneath, with the class's name beside it."""
        if not issubclass(kind, torch.Tensor):
            return None
        own = object.__getattribute__(value, "__dict__")
        jagged = self.tensors.jagged(value, kind)
        if jagged is not None:
            self.add_attrs(jagged[0], jagged[1], torch.Tensor)
            return jagged[0]
        base = self.tensors.underneath(value)
        if base is None:
            return self.open_instance(value, kind)
        index = self.add(m.Subclass(base, full_name(kind)))
        if own:
            self.add_attrs(index, own, torch.Tensor)
        return index
