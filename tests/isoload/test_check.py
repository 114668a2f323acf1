"""Every number that a worker sends is held against what is really there."""

from __future__ import annotations

from typing import Any

import pytest

from isoload import manifest as m
from isoload.check import check_graph

FLOAT32, INT64, BOOL, QINT8 = (
    m.DTYPES.index(name) for name in ("float32", "int64", "bool", "qint8")
)
COMPLEX64 = m.DTYPES.index("complex64")
SIZES = (1000, 1000)
STORAGES = (m.Storage(0, 0, 400, "cpu"), m.Storage(1, 64, 64, "cpu"), m.Storage(0, 2, 8, "cpu"))
HUGE = 2**63


def check(*nodes: Any, storages: Any = STORAGES, root: int = 0) -> None:
    check_graph(m.Graph(root, [*nodes], [*storages]), SIZES)


def tensor(*size: int, stride: Any = None, offset: int = 0, **fields: Any) -> m.Tensor:
    values = {"storage": 0, "dtype": FLOAT32, **fields}
    strides = [1] * len(size) if stride is None else stride
    return m.Tensor(offset=offset, size=[*size], stride=strides, **values)


@pytest.mark.parametrize(
    "node",
    [
        tensor(100),
        tensor(),
        tensor(0, 5),
        tensor(2, 50, stride=[50, 1]),
        tensor(10**6, stride=[0]),
        tensor(1, offset=99),
        tensor(0, offset=5000),
        tensor(3, flags=m.REQUIRES_GRAD | m.PARAMETER),
        m.StorageValue(0, FLOAT32),
        m.Size([-1, 2]),
    ],
)
def test_what_fits_passes(node: Any) -> None:
    check(node)


@pytest.mark.parametrize(
    "storage",
    [
        m.Storage(2, 0, 1, "cpu"),
        m.Storage(-2, 0, 1, "cpu"),
        m.Storage(0, -1, 1, "cpu"),
        m.Storage(0, 0, -1, "cpu"),
        m.Storage(0, 0, 1001, "cpu"),
        m.Storage(0, 1000, 1, "cpu"),
        m.Storage(0, HUGE, 1, "cpu"),
        m.Storage(0, HUGE - 1, HUGE - 1, "cpu"),
        m.Storage(-1, 0, HUGE, "meta"),
        m.Storage(0, 0, 1, "\x1b[31m"),
        m.Storage(0, 0, 1, "x" * 301),
    ],
)
def test_a_storage_outside_its_segment_is_refused(storage: m.Storage) -> None:
    with pytest.raises(m.ManifestError):
        check(None, storages=[storage])


@pytest.mark.parametrize(
    "node",
    [
        tensor(101),
        tensor(1, offset=100),
        tensor(1, offset=-1),
        tensor(1, offset=HUGE),
        tensor(1, offset=2**62),
        tensor(-1),
        tensor(2, stride=[-1]),
        tensor(2, stride=[HUGE - 1]),
        tensor(2, stride=[100]),
        tensor(1, stride=[HUGE]),
        tensor(2**32, 2**32, stride=[0, 0]),
        tensor(2**62, 2**62, 0, stride=[0, 0, 0]),
        tensor(2, stride=[1, 1]),
        tensor(*[1] * 257),
        tensor(1, storage=3),
        tensor(1, storage=-1),
        tensor(1, dtype=-1),
        tensor(1, dtype=len(m.DTYPES)),
        tensor(1, dtype=QINT8),
        tensor(1, storage=2),
        tensor(1, flags=16),
        tensor(1, flags=-1),
        tensor(1, dtype=INT64, flags=m.REQUIRES_GRAD),
        tensor(1, flags=m.CONJ),
        tensor(1, dtype=BOOL, flags=m.NEG),
        tensor(1, attrs=0),
        tensor(1, attrs=7),
        m.StorageValue(2, FLOAT32),
        m.StorageValue(5),
        m.Size([HUGE]),
    ],
)
def test_a_tensor_that_does_not_fit_is_refused(node: Any) -> None:
    with pytest.raises(m.ManifestError):
        check(node)


@pytest.mark.parametrize(
    "node",
    [
        m.List([1]),
        m.List([-1]),
        m.List([2**64 - 1]),
        m.Tuple([0]),
        m.Tuple([-1]),
        m.Set([0], True),
        m.Set([9]),
        m.Dict([0], []),
        m.Dict([], [], "ChainMap"),
        m.Dict([], [], "", 0),
        m.Dict([], [], "defaultdict", m.NONE, 3),
        m.Deque([0, 0], 1),
        m.Deque([], -1),
        m.Value("builtins.range", [0]),
        m.Opaque("x", (0,)),
        m.Opaque("x", kwargs={"a": 0}),
        m.Opaque("x", state=1),
        m.Opaque("x", keys=(0,)),
        m.Opaque("x" * 2001),
        m.BigInt(bytes(1 << 17)),
        m.Namespace("types.ModuleType", 0),
        m.NumpyDtype("|O"),
        m.NumpyDtype("<f4,<f4"),
        m.NumpyDtype("<f4", shape=(2,), fields=(0,)),
        m.NumpyScalar(0, b""),
        m.NdArray(0, 0, [1]),
        m.ObjectArray([2], [0]),
        m.ObjectArray([-1], []),
        m.SparseCoo(0, 0, [1], True),
        m.SparseCompressed("sparse_xyz", 0, 0, 0, [1]),
        m.NestedStrided(0, 0, 0, 0),
        m.NestedJagged(0, 0),
        m.Subclass(0, "x"),
    ],
)
def test_a_reference_that_leads_nowhere_is_refused(node: Any) -> None:
    with pytest.raises(m.ManifestError):
        check(node)


@pytest.mark.parametrize("root", [-1, 1, 2**64 - 1])
def test_the_root_is_a_node(root: int) -> None:
    with pytest.raises(m.ManifestError):
        check(None, root=root)


@pytest.mark.parametrize("name", ["size", "__class__", "grad", "_backward_hooks", "__deepcopy__"])
def test_an_attribute_never_hides_what_a_tensor_defines(name: str) -> None:
    with pytest.raises(m.ManifestError):
        check(tensor(1, attrs=1), m.Dict([2], [3]), name, 1)
    check(tensor(1, attrs=1), m.Dict([2], [3]), "tag", 1)


def test_an_array_lies_within_its_storage() -> None:
    check(m.NumpyDtype("<f4"), m.NdArray(0, 0, [10, 10]))
    for shape in ([101], [10, 11], [2**62, 4], [-1], [2**40, 0, 2**40]):
        with pytest.raises(m.ManifestError):
            check(m.NumpyDtype("<f4"), m.NdArray(0, 0, shape))
    record = m.NumpyDtype("", ("a", "b"), (0, 0), (0, 4), 8)
    check(m.NumpyDtype("<f4"), record, m.NdArray(0, 1, [50]))
    with pytest.raises(m.ManifestError):
        check(m.NumpyDtype("<f4"), record, m.NdArray(0, 1, [51]))
    with pytest.raises(m.ManifestError):
        check(m.NumpyDtype("<f4"), m.NumpyDtype("", ("a",), (0,), (6,), 8))


def test_quantization_parameters_fit_their_axis() -> None:
    scales, zero_points = tensor(3, dtype=m.DTYPES.index("float64")), tensor(3, dtype=INT64)

    def per_channel(**fields: Any) -> m.Quantized:
        values = {"axis": 0, "scales": 0, "zero_points": 1, **fields}
        return m.Quantized(1, QINT8, 0, [3, 4], [4, 1], **values)

    check(scales, zero_points, per_channel(), root=2)
    for wrong in ({"axis": 1}, {"axis": 2}, {"axis": -2}, {"scales": 2}, {"zero_points": m.NONE}):
        with pytest.raises(m.ManifestError):
            check(scales, zero_points, per_channel(**wrong), root=2)
    packed = m.DTYPES.index("quint4x2")
    check(m.Quantized(1, packed, 0, [128], [1]))
    with pytest.raises(m.ManifestError):
        check(m.Quantized(1, packed, 0, [129], [1]))
    with pytest.raises(m.ManifestError):
        check(m.Quantized(1, FLOAT32, 0, [1], [1]))


def test_a_key_that_explodes_when_it_is_hashed_is_refused() -> None:
    nodes: list[Any] = [1]
    nodes += [m.Tuple([index, index]) for index in range(60)]
    nodes.append(m.Dict([60], [0]))
    with pytest.raises(m.ManifestError, match="too long to hash"):
        check(*nodes, root=61)
    check(*nodes[:10], m.List([9]), root=10)


def test_more_nodes_than_the_budget_are_refused() -> None:
    graph = m.Graph(0, [None] * 11, [])
    with pytest.raises(m.ManifestError, match="more than 10"):
        check_graph(graph, SIZES, max_nodes=10)
