"""A checked graph becomes objects whatever the caller's process is set to, and without running
code."""

from __future__ import annotations

import gc
import os
import struct
import time
from collections import Counter, OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from isoload import manifest as m
from isoload.check import check_graph
from isoload.errors import CheckpointError
from isoload.memory import map_private
from isoload.opaque import Opaque
from isoload.placement import Placement
from isoload.rebuild import rebuild
from isoload.segments import Segments
from sandbox import create_memfd

FLOAT32, INT64 = m.DTYPES.index("float32"), m.DTYPES.index("int64")
FLOATS = struct.pack("<8f", *range(8))


def segments_of(data: bytes) -> Segments:
    fd = create_memfd("source")
    try:
        os.write(fd, data)
        return Segments(memoryview(map_private(fd, len(data)) if data else b""))
    finally:
        os.close(fd)


def build(*nodes: Any, data: bytes = FLOATS, storages: Any = None, root: int = 0) -> Any:
    table = [m.Storage(0, 0, len(data), "cpu")] if storages is None else storages
    graph = m.Graph(root, [*nodes], table)
    segments = segments_of(data)
    check_graph(graph, segments.sizes)
    return rebuild(graph, segments, Placement())


def tensor(*size: int, **fields: Any) -> m.Tensor:
    stride = [1] * len(size)
    return m.Tensor(**{"storage": 0, "dtype": FLOAT32, "offset": 0, "size": [*size],
                       "stride": stride, **fields})  # fmt: skip


class _Everything(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise RuntimeError(f"the caller's mode saw {func}")


class _Dispatched(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise RuntimeError(f"the caller's mode saw {func}")


@contextmanager
def _default_dtype() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize(
    "mode",
    [
        lambda: torch.device("meta"),
        _Everything,
        _Dispatched,
        torch.inference_mode,
        torch.no_grad,
        _default_dtype,
    ],
)
def test_the_callers_modes_do_not_reach_in(mode: Any) -> None:
    # One storage for both tensors, then one for each.
    for second, storages in ((0, None), (1, [m.Storage(0, 0, 32, "cpu")] * 2)):
        parameter = tensor(2, storage=second, flags=m.PARAMETER | m.REQUIRES_GRAD)
        with mode():
            made = build(m.List([1, 2]), tensor(8), parameter, storages=storages)
        plain, trained = made
        assert plain.device.type == "cpu"
        assert plain.dtype is torch.float32
        assert plain.tolist() == [*range(8)]
        assert type(trained) is torch.nn.Parameter
        assert trained.requires_grad
        assert plain.is_inference() is (mode is torch.inference_mode)


def test_tensors_lie_on_the_segment_and_outlive_everything_else() -> None:
    made = build(m.List([1, 2]), tensor(8), tensor(2, offset=2))
    gc.collect()
    whole, part = made
    whole[2] = 42.0
    assert part.tolist() == [42.0, 3.0]
    assert whole.untyped_storage().nbytes() == 32
    assert whole.untyped_storage()._cdata == part.untyped_storage()._cdata


VIEWS = {
    "all of it": ([8], [1], 0),
    "rows": ([2, 4], [4, 1], 0),
    "columns": ([4, 2], [1, 4], 0),
    "a part": ([3], [1], 2),
    "every other": ([4], [2], 0),
    "one": ([], [], 7),
    "one many times": ([5], [0], 3),
    "none": ([0, 3], [3, 1], 0),
}


@pytest.mark.parametrize("name", VIEWS)
def test_a_tensor_with_a_storage_for_itself_is_as_one_that_shares_it(name: str) -> None:
    size, stride, offset = VIEWS[name]
    node = tensor(size=size, stride=stride, offset=offset)
    storages = [m.Storage(0, 0, 32, "cpu")]
    single = build(node, storages=storages)
    other = build(node, m.StorageValue(0), storages=storages)
    for made in (single, other):
        assert (list(made.shape), list(made.stride())) == (size, stride)
        assert made.storage_offset() == offset
        assert made.untyped_storage().nbytes() == 32
        assert not made.untyped_storage().resizable()
        assert made.is_leaf
        assert not made._is_view()
    assert single.tolist() == other.tolist()


@pytest.mark.parametrize("dtype", range(len(m.DTYPES)))
def test_a_tensor_with_a_storage_for_itself_may_have_any_dtype(dtype: int) -> None:
    kind = getattr(torch, m.DTYPES[dtype], None)
    if kind is None or m.DTYPES[dtype] in ("qint8", "quint8", "qint32", "quint4x2", "quint2x4"):
        pytest.skip("no dtype of a plain tensor")
    node = tensor(1, dtype=dtype)
    single, other = build(node), build(node, m.StorageValue(0))
    for made in (single, other):
        assert made.dtype is kind
        assert made.shape == (1,)
        assert bytes(made.untyped_storage().tolist()) == FLOATS


def test_storages_of_odd_lengths_are_kept_whole() -> None:
    made = build(tensor(1), storages=[m.Storage(0, 4, 7, "cpu")])
    assert made.tolist() == [1.0]
    assert made.untyped_storage().nbytes() == 7


def test_each_storage_goes_through_the_callers_own_function() -> None:
    seen: list[tuple[int, str]] = []

    def place(storage: Any, tag: str) -> Any:
        seen.append((storage.nbytes(), tag))
        return storage

    graph = m.Graph(0, [tensor(2)], [m.Storage(0, 0, 8, "cpu")])
    segments = segments_of(FLOATS)
    assert rebuild(graph, segments, Placement(place)).tolist() == [0.0, 1.0]
    assert seen == [(8, "cpu")]
    assert rebuild(graph, segments, Placement("meta")).is_meta
    assert rebuild(graph, segments, Placement({"cpu": "meta"})).is_meta


def test_a_tensor_with_a_storage_for_itself_outlives_the_segments() -> None:
    made = build(tensor(8))
    gc.collect()
    made += 1
    assert made.tolist() == [*range(1, 9)]


def test_writing_to_a_tensor_does_not_reach_the_source() -> None:
    fd = create_memfd("source")
    os.write(fd, FLOATS)
    segments = Segments(memoryview(map_private(fd, len(FLOATS))))
    graph = m.Graph(0, [tensor(8)], [m.Storage(0, 0, 32, "cpu")])
    rebuild(graph, segments, Placement()).zero_()
    assert os.pread(fd, 32, 0) == FLOATS
    os.close(fd)


def test_the_garbage_collector_is_left_as_it_was() -> None:
    for collecting in (True, False):
        (gc.enable if collecting else gc.disable)()
        try:
            build(tensor(1))
            with pytest.raises(m.ManifestError):
                build(m.Named("global", "os.system"))
            assert gc.isenabled() is collecting
        finally:
            gc.enable()


@pytest.mark.parametrize(
    "node",
    [
        m.Named("global", "os.system"),
        m.Named("global", "builtins.eval"),
        m.Named("dtype", "float33"),
        m.Named("device", "cuda:-1"),
        m.Named("device", "../x"),
        m.Named("storage_type", "EvilStorage"),
        m.Named("constant", "None"),
        m.Value("os.system", []),
        m.Value("builtins.range", []),
        m.Text(b"\xff"),
    ],
)
def test_a_name_that_is_not_in_the_table_makes_nothing(node: Any) -> None:
    with pytest.raises(m.ManifestError):
        build(node)


def test_a_values_arguments_have_its_types() -> None:
    assert build(1, m.Value("builtins.range", [0, 0, 0]), root=1) == range(1, 1)
    with pytest.raises(m.ManifestError):
        build("1", m.Value("builtins.range", [0, 0, 0]), root=1)
    with pytest.raises(m.ManifestError):
        build("9" * 6000, m.Value("decimal.Decimal", [0]), root=1)
    with pytest.raises(m.ManifestError):
        build(2**62, m.Value("datetime.timedelta", [0, 0, 0]), root=1)


@pytest.mark.parametrize(
    "nodes",
    [
        [m.Dict([1, 1], [2, 3]), "k", 1, 2],
        [m.Dict([1, 2], [3, 3]), 1, True, 0],
        [m.Set([1, 2]), 1, 1.0],
        [m.Dict([1], [1]), m.List([])],
        [m.Set([1]), m.ByteArray(b"")],
    ],
)
def test_keys_are_hashable_and_differ(nodes: list[Any]) -> None:
    with pytest.raises(m.ManifestError):
        build(*nodes)


def test_keys_that_collide_are_refused_at_once() -> None:
    prime = 2**61 - 1
    count = 20_000
    keys = [m.BigInt((i * prime).to_bytes(16, "little")) for i in range(1, count + 1)]
    started = time.perf_counter()
    with pytest.raises(m.ManifestError, match="collide"):
        build(m.Dict([*range(1, count + 1)], [1] * count), *keys)
    with pytest.raises(m.ManifestError, match="collide"):
        build(m.Set([*range(1, count + 1)]), *keys)
    assert time.perf_counter() - started < 1.0


def test_keys_that_collide_without_the_same_hash_run_out_of_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = iter(range(0, 10**6, 2))
    monkeypatch.setattr(time, "thread_time", lambda: float(next(clock)))
    with pytest.raises(m.ManifestError, match="collide"):
        build(m.Dict([*range(1, 1_001)], [1] * 1_000), *range(1_000))


def test_many_ordinary_keys_are_no_collision() -> None:
    count = 50_000
    made = build(m.Dict([*range(1, count + 1)], [0] * count), *[i * 64 for i in range(count)])
    assert len(made) == count


def test_mappings_come_back_as_their_kind() -> None:
    made = build(
        m.List([1, 2]),
        m.Dict([4], [5], "OrderedDict", 3),
        m.Dict([4], [5], "Counter"),
        m.Dict([6], [1]),
        "k",
        7,
        "_metadata",
    )
    assert made == [OrderedDict(k=7), Counter(k=7)]
    assert made[0]._metadata is made[0]


def test_an_opaque_holds_what_it_was_given() -> None:
    made = build(
        1,
        m.Opaque("a.B", (0,), {"x": 0}, 2, (1, 0)),
        m.Dict([3], [1]),
        "self",
        m.Opaque("a.C", keys=(3,), values=(0,)),
        m.Opaque("a.D", reference=True),
        m.List([1, 4, 5]),
        root=6,
    )
    opaque, mapping, reference = made
    assert isinstance(opaque, Opaque)
    assert (opaque.name, opaque.args, opaque.kwargs) == ("a.B", (1,), {"x": 1})
    assert opaque.state == {"self": opaque}
    assert opaque.items == [opaque, 1]
    assert mapping.items == {"self": 1}
    assert reference.reference


def test_sparse_indices_beyond_the_shape_are_refused() -> None:
    data = struct.pack("<4q", 0, 9, 0, 0) + FLOATS
    storages = [m.Storage(0, 0, 32, "cpu"), m.Storage(0, 32, 32, "cpu")]
    indices = tensor(1, 2, dtype=INT64, stride=[2, 1])
    values = tensor(2, storage=1)
    with pytest.raises(CheckpointError, match="sparse"):
        build(indices, values, m.SparseCoo(0, 1, [3], False), data=data, storages=storages, root=2)
    compressed, plain = tensor(2, dtype=INT64), tensor(2, dtype=INT64, offset=1)
    node = m.SparseCompressed("sparse_csr", 0, 1, 2, [1, 3])
    with pytest.raises(CheckpointError, match="sparse"):
        build(compressed, plain, values, node, data=data, storages=storages, root=3)


def test_nested_components_beyond_the_buffer_are_refused() -> None:
    storages = [m.Storage(0, 0, 32, "cpu"), m.Storage(0, 32, 32, "cpu")]

    def nested(rows: int, columns: int, step: int, offset: int) -> Any:
        data = FLOATS + struct.pack("<4q", rows, columns, step, offset)
        buffer = tensor(8)
        sizes = tensor(1, 2, storage=1, dtype=INT64, stride=[2, 1])
        strides = tensor(1, 2, storage=1, dtype=INT64, stride=[2, 1], offset=1)
        offsets = tensor(1, storage=1, dtype=INT64, offset=3)
        node = m.NestedStrided(0, 1, 2, 3)
        return build(buffer, sizes, strides, offsets, node, data=data, storages=storages, root=4)

    assert nested(2, 3, 1, 0).is_nested
    for numbers in ((3, 3, 2, 1), (2**40, 3, 1, 0), (-1, 3, 1, 0), (2, 3, 1, 9), (2, 3, 1, -1)):
        with pytest.raises(CheckpointError, match="nested"):
            nested(*numbers)


def test_a_storage_whose_bytes_did_not_come_is_refused() -> None:
    with pytest.raises(m.ManifestError, match="did not come"):
        build(tensor(1), storages=[m.Storage(m.ABSENT, 0, 32, "cpu")])
    made = build(tensor(1), storages=[m.Storage(m.ABSENT, 0, 32, "meta")])
    assert made.is_meta


def test_ten_thousand_tensors_take_milliseconds() -> None:
    count = 10_000
    nodes = [m.List([*range(1, count + 1)]), *[tensor(8) for _ in range(count)]]
    graph = m.Graph(0, nodes, [m.Storage(0, 0, 32, "cpu")])
    segments = segments_of(FLOATS)
    started = time.process_time()
    check_graph(graph, segments.sizes)
    rebuild(graph, segments, Placement())
    assert time.process_time() - started < 0.5
