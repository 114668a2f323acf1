"""Whatever graph a reader made is described: each object once, in bounded steps, and nothing is
run."""

from __future__ import annotations

import os
import types
from collections import OrderedDict, defaultdict
from typing import Any

import pytest
import torch

import isoload.errors
from isoload import manifest as m
from isoload.worker.describe import describe
from isoload.worker.reading import Reading, TooMuch, Unsupported
from isoload.worker.recorded import Recorded
from sandbox import check_segment

BUDGET = m.Request(fallback="none", max_nodes=10_000, max_output=1 << 20)


def graph_of(root: Any, **options: Any) -> m.Graph:
    graph, arena = describe(Reading(root=root, **options), tensors=True, budget=BUDGET)
    if arena is not None:
        os.close(arena)
    return graph


def nodes_of(root: Any) -> list[Any]:
    return list(graph_of(root).nodes)


def test_a_shared_object_is_one_node() -> None:
    shared = ["x"]
    assert nodes_of([shared, shared, (shared,)])[0].items[:2] == [1, 1]


def test_a_graph_that_explodes_as_a_tree_is_as_small_as_it_is() -> None:
    graph: Any = ()
    for _ in range(200):
        graph = (graph, graph)
    assert len(nodes_of(graph)) == 201


def test_nesting_is_no_recursion() -> None:
    deep: Any = []
    for _ in range(5_000):
        deep = [deep]
    assert len(nodes_of(deep)) == 5_001


def test_a_cycle_through_a_tuple_keeps_its_identity() -> None:
    inner: list[Any] = []
    outer = (inner,)
    inner.append(outer)
    nodes = nodes_of(outer)
    assert sum(type(node) is m.Tuple for node in nodes) == 1


def test_a_budget_ends_the_walk() -> None:
    with pytest.raises(TooMuch) as caught:
        nodes_of([[] for _ in range(10_001)])
    assert caught.value.kind == "limit:nodes"
    with pytest.raises(TooMuch):
        nodes_of([None] * 50_000)
    with pytest.raises(TooMuch) as caught:
        nodes_of(torch.zeros(1 << 20))
    assert caught.value.kind == "limit:output"


def test_views_of_one_storage_share_an_entry_and_views_of_views_overlap() -> None:
    base = torch.arange(8.0)
    part = base.untyped_storage()[8:24]
    view = torch.empty(0).set_(part)
    graph, arena = describe(Reading(root=[base, base[2:], view]), tensors=True, budget=BUDGET)
    assert arena is not None
    whole, inner = graph.storages
    assert (whole.segment, whole.nbytes) == (m.ARENA, 32)
    assert (inner.offset - whole.offset, inner.nbytes) == (8, 16)
    assert os.pread(arena, 32, whole.offset) == bytes(base.numpy())
    assert check_segment(arena, 1 << 20) == 32
    os.close(arena)


def test_the_arena_is_sealed_aligned_and_without_holes() -> None:
    tensors = [torch.full((n,), n % 256, dtype=torch.uint8) for n in (1, 100, 5000, 3)]
    graph, arena = describe(Reading(root=tensors), tensors=True, budget=BUDGET)
    assert arena is not None
    check_segment(arena, 1 << 20)
    for tensor, storage in zip(tensors, graph.storages, strict=True):
        assert storage.offset % 64 == tensor.data_ptr() % 64
        assert os.pread(arena, storage.nbytes, storage.offset) == bytes(tensor.numpy())
    os.close(arena)


def test_a_storage_in_the_source_stays_there_unless_it_is_not_aligned_or_not_trusted() -> None:
    source = torch.zeros(64, dtype=torch.uint8)
    mapping = (source.data_ptr(), 64)
    aligned = torch.empty(0).set_(source.untyped_storage()[8:16])
    shifted = torch.empty(0).set_(source.untyped_storage()[17:25])
    graph = graph_of([aligned, shifted], mapping=mapping)
    assert graph.storages[0] == m.Storage(m.SOURCE, 8, 8, "cpu")
    assert graph.storages[1].segment == m.ARENA
    untrusted = graph_of([aligned], mapping=mapping, trusted_offsets=False)
    assert untrusted.storages[0].segment == m.ARENA


def test_no_bytes_cross_for_an_inspection() -> None:
    graph, arena = describe(Reading(root=torch.zeros(4)), tensors=False, budget=BUDGET)
    assert arena is None
    assert graph.storages == [m.Storage(m.ABSENT, 0, 16, "cpu")]


def test_hooks_and_attributes_that_hide_methods_are_dropped_and_named() -> None:
    tensor = torch.zeros(1, requires_grad=True)
    tensor.register_hook(print)
    vars(tensor).update(size=1, __class__=2, tag=3)
    reading = Reading(root=tensor)
    graph, arena = describe(reading, tensors=True, budget=BUDGET)
    assert arena is not None
    os.close(arena)
    node: Any = graph.nodes[0]
    attrs: Any = graph.nodes[node.attrs]
    assert [graph.nodes[key] for key in attrs.keys] == ["tag"]
    assert len(reading.warnings) == 3


def test_a_class_that_lies_about_its_instances_is_not_asked() -> None:
    class Liar(dict):  # type: ignore[type-arg]
        ran = False

        def __getattribute__(self, name: str) -> Any:
            type(self).ran = True
            raise RuntimeError(name)

        def items(self) -> Any:
            type(self).ran = True
            return super().items()

        __iter__ = __len__ = __repr__ = __hash__ = items  # type: ignore[assignment]

    liar = Liar(a=1)
    node = nodes_of(liar)[0]
    assert type(node) is m.Opaque
    assert node.name.endswith("Liar")
    assert len(node.keys) == len(node.values) == 1
    assert not type(liar).ran


def test_live_objects_are_only_named() -> None:
    nodes = nodes_of([os.system, os, isoload.errors.IsoloadError, len, types.SimpleNamespace])
    references = [node for node in nodes if type(node) is m.Opaque]
    assert len(references) == 5
    assert all(node.reference and node.state == m.NONE for node in references)
    assert [node.name for node in references][1:3] == ["os", "isoload.errors.IsoloadError"]


def test_a_module_keeps_its_weights_and_settings() -> None:
    node, *rest = nodes_of(torch.nn.Linear(2, 3))
    assert node.name == "torch.nn.modules.linear.Linear"
    assert sum(type(node) is m.Tensor for node in rest) == 2
    assert {"in_features", "_parameters", "weight"} <= {n for n in rest if type(n) is str}


def test_a_recorded_object_has_its_arguments_before_it_and_its_state_after() -> None:
    recorded = Recorded("a.B", (1, [2]), {"k": 3})
    recorded.state = {"me": recorded}
    recorded.items = ["i"]
    recorded.pairs = [("key", "value")]
    graph = graph_of(recorded)
    node: Any = graph.nodes[graph.root]
    assert all(index < graph.root for index in (*node.args, *node.kwargs.values()))
    assert graph.nodes[node.args[0]] == 1
    state: Any = graph.nodes[node.state]
    assert state.values == [graph.root]
    assert [graph.nodes[index] for index in (*node.items, *node.keys, *node.values)] == [
        *("i", "key", "value")
    ]


def test_slots_are_state() -> None:
    class Slotted:
        __slots__ = ("a", "b")

    slotted = Slotted()
    slotted.a = 1
    graph = graph_of(slotted)
    node: Any = graph.nodes[0]
    pair: Any = graph.nodes[node.state]
    slots: Any = graph.nodes[pair.items[1]]
    assert [graph.nodes[key] for key in slots.keys] == ["a"]


def test_a_subclass_of_a_tensor_is_the_tensor_and_its_name() -> None:
    class Custom(torch.Tensor):
        pass

    graph = graph_of(torch.zeros(2).as_subclass(Custom))
    node = graph.nodes[graph.root]
    assert type(node) is m.Subclass
    assert type(graph.nodes[node.tensor]) is m.Tensor
    assert node.name.endswith("Custom")


def test_a_factory_is_kept_only_if_it_is_a_plain_one() -> None:
    kept = graph_of(defaultdict(list))
    assert kept.nodes[kept.root].factory != m.NONE  # type: ignore[union-attr]
    reading = Reading(root=defaultdict(os.getcwd))
    graph, _ = describe(reading, tensors=True, budget=BUDGET)
    node: Any = graph.nodes[0]
    assert node.factory == m.NONE
    assert reading.warnings


def test_the_attributes_of_an_ordered_dict_are_kept() -> None:
    root: Any = OrderedDict(a=1)
    root._metadata = {"version": root}
    graph = graph_of(root)
    node: Any = graph.nodes[0]
    attrs: Any = graph.nodes[node.attrs]
    assert [graph.nodes[key] for key in attrs.keys] == ["_metadata"]


def test_a_location_that_is_no_name_is_refused() -> None:
    with pytest.raises(Unsupported):
        graph_of(torch.zeros(1), location=lambda storage: "\x1b]52;c")
