"""The direct reader gives what torch.load(weights_only=True) gives, or hands the file over."""

from __future__ import annotations

import random
import zipfile
from collections import Counter, OrderedDict
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from isoload import manifest
from isoload.worker import direct_graph, direct_nodes, direct_scan
from isoload.worker.direct_zip import Stored
from isoload.worker.vocabulary import own_vocabulary

from .graphs import Difference, build, compare
from .programs import (
    RECORDS,
    archive,
    direct,
    mutated,
    random_program,
    record,
    saved,
    segments,
    torch_load,
    torch_run,
)
from .test_direct_zip import agree, rezipped


def same(data: bytes) -> Any:
    """Read a file both ways and compare. Returns what the direct reader gave."""
    read = direct(data)
    assert read is not None
    built = build(read.graph, *segments(data, read))
    compare(torch_load(data), built)
    return built


def training_checkpoint() -> dict[str, Any]:
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.randn(5, 3)).sum().backward()
    optimizer.step()
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, [2, 2, 5])
    return {
        "epoch": 3,
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "scheduler": scheduler.state_dict(),
        "best": float("nan"),
        "name": "été \ud800",
    }


BASE = torch.arange(24, dtype=torch.float32)
SHARED = [1, "shared"]
CYCLE: list[Any] = [1]
CYCLE.append((CYCLE, {"self": CYCLE}))

ORDINARY = {
    "state dict": torch.nn.Linear(3, 4).state_dict(),
    "training": training_checkpoint(),
    "views": {"a": BASE.view(4, 6), "b": BASE.view(4, 6).t(), "c": BASE[5:9], "d": BASE[::3]},
    "tied": {"a": BASE, "b": BASE},
    "parameters": [torch.nn.Parameter(BASE), torch.nn.Parameter(BASE[2:], requires_grad=False)],
    "requires grad": torch.ones(2, requires_grad=True),
    "buffer": torch.nn.Buffer(torch.ones(2)).data,
    "empty": {"a": torch.empty(0), "b": torch.empty(0, 3), "c": torch.empty(2, 0).t()},
    "scalar": torch.tensor(3.5),
    "dtypes": [
        torch.ones(3, dtype=getattr(torch, name))
        for name in ("uint8", "int8", "int16", "int32", "int64", "bool", "float16", "bfloat16")
    ],
    "wide dtypes": [
        torch.ones(3, dtype=d) for d in (torch.float64, torch.complex64, torch.complex128)
    ],
    "new dtypes": [torch.ones(3).to(d) for d in (torch.float8_e4m3fn, torch.float8_e5m2)],
    "unsigned": [torch.ones(3).to(d) for d in (torch.uint16, torch.uint32, torch.uint64)],
    "scalars": [
        None,
        True,
        False,
        0,
        255,
        65535,
        -1,
        1 << 40,
        -(1 << 63),
        1 << 63,
        1 << 2000,
        -(1 << 70),
    ],
    "floats": [0.0, -0.0, float("inf"), float("nan"), 5e-324],
    "texts": ["", "a", "x" * 127, "x" * 128, "x" * 300, "\ud800", "日本", "\0"],
    "values": [torch.Size([1, 2]), torch.Size([]), torch.float32, torch.device("cuda", 1), 1 + 2j],
    "bytes": [b"abc", b"\xff\x00", bytearray(b"xyz"), bytearray()],
    "containers": [[], (), {}, [[]], ((),), {"a": {}}, {1, 2, 3}, set(), Counter("abca")],
    "keys": {1: "int", 2.5: "float", None: "none", (1, "a"): "tuple", True and "t": 0, b"b": 1},
    "identity": [SHARED, SHARED, (SHARED,), {"again": SHARED}],
    "cycle": CYCLE,
    "nested tuples": (1, (2, (3, (4, (5,)))), ((), ((),))),
}


ONLY_ZIP = ("new dtypes", "unsigned")
"""torch.load does not open legacy files of these."""


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("name", ORDINARY)
def test_gives_what_torch_gives(name: str, zipped: bool) -> None:
    if zipped or name not in ONLY_ZIP:
        same(saved(ORDINARY[name], _use_new_zipfile_serialization=zipped))


def test_module_metadata_comes_with_the_state_dict() -> None:
    read = same(saved(torch.nn.BatchNorm1d(3).state_dict()))
    assert read._metadata[""] == {"version": 2}


def test_a_long_state_dict_is_read_in_batches_as_torch_saves_it() -> None:
    same(saved(OrderedDict((f"layer.{i}.weight", torch.full((1,), i)) for i in range(2_500))))


@pytest.mark.parametrize("count", [999, 1000, 1001, 2000, 10_000])
def test_a_length_that_is_a_multiple_of_the_picklers_batch(count: int) -> None:
    # The pickler ends such a dict or list with an empty batch.
    same(saved({f"layer.{i}.weight": torch.full((1,), i) for i in range(count)}))
    same(saved([*range(count)]))


@pytest.mark.parametrize(
    "body", [b"K\x01(u", b"K\x01(e", b"](u", b"}(e", b"}(K\x01K\x02u(e", b"](K\x01e(u"]
)
def test_an_empty_batch_on_what_is_not_known_to_take_it_is_handed_over(body: bytes) -> None:
    assert direct(archive(b"\x80\x02" + body + b".")) is None


@pytest.mark.parametrize(
    "shape", [(), (1,), (300,), (70_000,), (2, 300), (2, 3, 4), (1, 2, 3, 4, 5)]
)
def test_every_shape_is_read(shape: tuple[int, ...]) -> None:
    same(saved([torch.zeros(shape), torch.zeros(shape)]))


def test_the_saved_location_is_kept() -> None:
    pickled = record(saved({"a": torch.ones(2)}))
    pickled = pickled.replace(b"X\x03\0\0\0cpu", b"X\x06\0\0\0cuda:3")
    read = direct(archive(pickled, {"data/0": bytes(8), "byteorder": b"little"}))
    assert read is not None
    assert [storage.location for storage in read.graph.storages] == ["cuda:3"]


def test_the_globals_are_listed_by_the_names_that_torch_gives_them() -> None:
    read = direct(saved({"a": torch.ones(2), "s": {1}}))
    assert read is not None
    assert read.globals == [
        "builtins.set",
        "collections.OrderedDict",
        "torch.FloatStorage",
        "torch._utils._rebuild_tensor_v2",
    ]


def test_no_bytes_cross_where_none_are_asked_for() -> None:
    read = direct(saved(torch.ones(2)), manifest.Request(fallback="none", tensors=False))
    assert read is not None
    assert read.graph.storages == [manifest.Storage(manifest.ABSENT, 0, 8, "cpu")]


def test_more_nodes_than_allowed_are_handed_over() -> None:
    data = saved([(i, i + 300) for i in range(50)])
    assert direct(data, manifest.Request(fallback="none", max_nodes=100)) is None
    assert direct(data, manifest.Request(fallback="none", max_nodes=300)) is not None


def test_deep_nesting_is_no_recursion() -> None:
    for opening, closing in ((b"]", b"a"), (b")", b"\x86"), (b"N", b"\x85")):
        depth = 200_000
        if closing == b"\x85":
            pickled = b"\x80\x02N" + b"\x85" * depth + b"."
        else:
            pickled = b"\x80\x02" + opening * depth + closing * (depth - 1) + b"."
        read = direct(archive(pickled))
        assert read is not None
        assert len(read.graph.nodes) >= depth - 1


def test_a_graph_that_is_huge_as_a_tree_stays_small() -> None:
    pickled = b"\x80\x02]" + b"".join(b"q%c](h%ch%ce" % (i, i, i) for i in range(100)) + b"."
    read = direct(archive(pickled))
    assert read is not None
    assert len(read.graph.nodes) == 101


# What is not ordinary is handed over.

TAIL = b"\x89ccollections\nOrderedDict\n)RtR"
TENSOR = (
    b"ctorch._utils\n_rebuild_tensor_v2\n((X\x07\0\0\0storagectorch\nFloatStorage\n"
    b"X\x01\0\0\x000X\x03\0\0\0cpuK\x04tQ%s" + TAIL
)
HANDED_OVER = {
    "no protocol": b"N.",
    "protocol 3": b"\x80\x03N.",
    "a second protocol": b"\x80\x02\x80\x02N.",
    "no stop": b"\x80\x02N",
    "truncated text": b"\x80\x02X\x05\0\0\0ab.",
    "truncated number": b"\x80\x02\x8a\x05ab.",
    "SETITEM on a list": b"\x80\x02](K\x01eK\x00Ns.",
    "SETITEMS on a list": b"\x80\x02](K\x01e(K\x00Nu.",
    "no items for a dict": b"\x80\x02}(e.",
    "no items for a list": b"\x80\x02](u.",
    "BUILD of None on a dict": b"\x80\x02}Nb.",
    "BUILD of a pair": b"\x80\x02ccollections\nOrderedDict\n)R}}\x86b.",
    "BUILD of None": b"\x80\x02ccollections\nOrderedDict\n)RNb.",
    "BUILD on a counter": b"\x80\x02ccollections\nCounter\n)R}b.",
    "BUILD on a dict": b"\x80\x02}}b.",
    "BUILD on a list": b"\x80\x02]}b.",
    "BUILD on a set": b"\x80\x02c__builtin__\nset\n)R}b.",
    "BUILD on a text": b"\x80\x02X\x01\0\0\0a}b.",
    "BUILD on a class": b"\x80\x02ccollections\nOrderedDict\n}b.",
    "BUILD on a size": b"\x80\x02ctorch\nSize\n)\x85R}b.",
    "BUILD on a tensor": b"\x80\x02" + TENSOR % b"K\x00K\x04\x85K\x01\x85" + b"}b.",
    "BUILD of an OrderedDict": b"\x80\x02ccollections\nOrderedDict\n)Rq\x00h\x00b.",
    "a storage of a bad key that is dropped": b"\x80\x02}K\x01"
    + TENSOR[TENSOR.index(b"(X") : -len(TAIL) - 2].replace(b"\x000X", b"\x007X")
    + b"sK\x01Ns.",
    "a storage of a bad size that is dropped": b"\x80\x02}K\x01"
    + TENSOR[TENSOR.index(b"(X") : -len(TAIL) - 2].replace(b"K\x04", b"K\x05")
    + b"sK\x01Ns.",
    "a persistent id of two": b"\x80\x02NN\x86Q.",
    "a persistent id that is a text": b"\x80\x02X\x01\0\0\0aQ.",
    "a memo index out of all proportion": b"\x80\x02Nr\0\0\0\x80.",
    "a memo index just too large": b"\x80\x02Nr\0\0\x01\0.",
    "an unknown memo index": b"\x80\x02h\x07.",
    "a global of no table": b"\x80\x02cos\nsystem\n.",
    "our own global": b"\x80\x02cisoload\nlist\n)R.",
    "our own marker": b"\x80\x02ccollections\nOrderedDict\n)R}\x86cisoload\nbuild\n\x86Q.",
    "a class as a value": b"\x80\x02ccollections\nOrderedDict\n.",
    "a storage as a value": b"\x80\x02" + TENSOR[TENSOR.index(b"(X") : -len(TAIL) - 2] + b".",
    "NEWOBJ": b"\x80\x02ccollections\nOrderedDict\n)\x81.",
    "DUP": b"\x80\x02N2\x86.",
    "POP": b"\x80\x02NN0.",
    "POP_MARK": b"\x80\x02N(N1.",
    "SHORT_BINUNICODE": b"\x80\x02\x8c\x01a.",
    "SHORT_BINBYTES": b"\x80\x02C\x01a.",
    "STACK_GLOBAL": b"\x80\x02\x8c\x0bcollections\x8c\x0bOrderedDict\x93.",
    "MEMOIZE": b"\x80\x02N\x94.",
    "ADDITEMS": b"\x80\x02\x8f(K\x01\x90.",
    "FRAME": b"\x80\x02\x95\x02\0\0\0\0\0\0\0N.",
    "INT": b"\x80\x02I1\n.",
    "LIST": b"\x80\x02(K\x01l.",
    "DICT": b"\x80\x02(K\x01K\x02d.",
    "INST": b"\x80\x02(icollections\nOrderedDict\n.",
    "OBJ": b"\x80\x02(ccollections\nOrderedDict\no.",
    "EXT1": b"\x80\x02\x82\x01.",
    "LONG4": b"\x80\x02\x8b\x01\0\0\0\x01.",
    "FLOAT": b"\x80\x02F1.5\n.",
    "PERSID": b"\x80\x02P1\n.",
    "NEXT_BUFFER": b"\x80\x02\x97.",
    "append to a bytearray": b"\x80\x02c__builtin__\nbytearray\n)RK\x01a.",
    "call a device": b"\x80\x02ctorch\ndevice\nX\x03\0\0\0cpu\x85R)R.",
    "an unhashable key that is dropped": b"\x80\x02}c__builtin__\nbytearray\n)RNsq\x00N.",
    "too small a storage": b"\x80\x02" + TENSOR % b"K\x00K\x05\x85K\x01\x85" + b".",
    "an offset too far": b"\x80\x02" + TENSOR % b"K\x03K\x02\x85K\x01\x85" + b".",
    "a negative stride": b"\x80\x02" + TENSOR % b"K\x03K\x02\x85J\xff\xff\xff\xff\x85" + b".",
    "a negative size": b"\x80\x02" + TENSOR % b"K\x00J\xff\xff\xff\xff\x85K\x01\x85" + b".",
    "a stride too few": b"\x80\x02" + TENSOR % b"K\x00K\x02K\x01\x86K\x01\x85" + b".",
    "a size that is a bool": b"\x80\x02" + TENSOR % b"K\x00\x88\x85K\x01\x85" + b".",
    "a bad tensor that is dropped": b"\x80\x02" + TENSOR % b"K\x00K\x05\x85K\x01\x85" + b"N.",
    "a record that is missing": b"\x80\x02"
    + TENSOR.replace(b"\x000X", b"\x007X") % b"K\x00))"
    + b".",
}


@pytest.mark.parametrize("name", HANDED_OVER)
def test_what_is_not_ordinary_is_handed_over(name: str) -> None:
    assert direct(archive(HANDED_OVER[name], {"data/0": bytes(16)})) is None


def test_the_programs_above_fail_only_for_what_they_name() -> None:
    same(archive(b"\x80\x02" + TENSOR % b"K\x00K\x04\x85K\x01\x85" + b".", {"data/0": bytes(16)}))
    same(archive(b"\x80\x02ccollections\nOrderedDict\n)R}K\x01K\x02sb."))
    same(archive(b"\x80\x02](K\x01e."))
    storage = TENSOR[TENSOR.index(b"(X") : -len(TAIL) - 2]
    same(archive(b"\x80\x02}K\x01" + storage + b"sK\x01Ns.", {"data/0": bytes(16)}))


@pytest.mark.parametrize(
    "value",
    [
        torch.ones(2).to_sparse(),
        torch.ones(2, device="meta"),
        torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8),
        torch.ones(2, dtype=torch.complex64).conj(),
        torch.ones(2).untyped_storage(),
        {torch.Size([1]): 1},
        {torch.float32: 1},
    ],
    ids=str,
)
def test_unusual_values_are_handed_over(value: object) -> None:
    assert direct(saved(value)) is None


def test_a_tensor_with_hooks_is_handed_over_also_when_they_come_later() -> None:
    tensor = TENSOR % b"K\x00K\x04\x85K\x01\x85"
    assert tensor.endswith(b")RtR")
    remembered = tensor[:-2] + b"q\x05tR"
    records = {"data/0": bytes(16)}
    same(archive(b"\x80\x02" + remembered + b".", records))
    filled = remembered + b"h\x05K\x01Ns\x86"
    assert direct(archive(b"\x80\x02" + filled + b".", records)) is None


def test_a_tensor_without_hooks_is_read() -> None:
    tensor = TENSOR.replace(TAIL, b"\x89NtR") % b"K\x00K\x04\x85K\x01\x85"
    same(archive(b"\x80\x02" + tensor + b".", {"data/0": bytes(16)}))


def test_programs_at_random_are_read_as_torch_reads_them() -> None:
    """Whatever the direct reader accepts, torch accepts, and gives the same."""
    accepted = differential(random.Random(2026), 20_000)
    assert accepted > 200


def differential(random_: random.Random, rounds: int) -> int:
    seeds = [
        record(saved({"a": BASE[:4].view(2, 2), "b": BASE[:4].view(2, 2).t()})),
        record(saved(torch.nn.Linear(2, 2, bias=False).state_dict())),
        record(saved([1, 2, (3, "x", [4.5, None, True]), {"k": {1: [2]}}])),
        record(saved({"s": {1, 2}, "c": Counter("abca"), "z": 1j, "b": bytearray(b"abc")})),
    ]
    records, data = lay_out(RECORDS)
    accepted = 0
    for _ in range(rounds):
        if random_.random() < 0.4:
            pickled = random_program(random_)
        else:
            pickled = mutated(random_, random_.choice(seeds))
        graph = run_direct(pickled, records)
        if graph is None:
            continue
        accepted += 1
        try:
            compare(torch_run(pickled, RECORDS), build(graph, data))
        except Exception as error:
            raise Difference(f"{pickled!r}: {error!r}") from error
    return accepted


def lay_out(records: dict[str, bytes]) -> tuple[dict[str, tuple[int, int]], memoryview]:
    data = bytearray()
    places = {}
    for name, content in records.items():
        data += bytes(-len(data) % 64)
        places[name] = (len(data), len(content))
        data += content
    return places, memoryview(bytes(data))


def run_direct(pickled: bytes, records: dict[str, tuple[int, int]]) -> manifest.Graph | None:
    program = direct_scan.scan(pickled, 0, own_vocabulary())
    if program is None:
        return None
    storages = Stored(records, crosses=True)
    try:
        root, nodes = direct_nodes.describe(
            direct_graph.execute(program.code, storages, own_vocabulary()), 100_000
        )
    except Exception:
        return None
    return manifest.Graph(root, nodes, storages.table)


tensors = st.builds(
    lambda start, rows, columns, flip, dtype: (
        BASE[start : start + rows * columns]
        .view(rows, columns)
        .to(dtype)
        .permute((1, 0) if flip else (0, 1))
    ),
    st.integers(0, 8),
    st.integers(0, 4),
    st.integers(1, 4),
    st.booleans(),
    st.sampled_from([torch.float32, torch.float16, torch.int64, torch.bool, torch.complex64]),
)
keys = st.one_of(
    st.text(max_size=4), st.integers(), st.floats(allow_nan=False), st.none(), st.booleans()
)
leaves = st.one_of(keys, tensors, st.complex_numbers(), st.binary(min_size=1, max_size=5))
graphs = st.recursive(
    leaves,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.lists(inner, max_size=4).map(tuple),
        st.dictionaries(keys, inner, max_size=4),
        st.dictionaries(keys, inner, max_size=4).map(OrderedDict),
        inner.map(lambda value: [value, value]),
        st.sets(st.integers(), max_size=3),
    ),
    max_leaves=12,
)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(graphs, st.booleans())
def test_any_graph_that_torch_saves_is_read(value: object, zipped: bool) -> None:
    data = saved(value, _use_new_zipfile_serialization=zipped)
    same(data)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("zipped", [True, False])
def test_only_the_pickles_that_torch_opens_are_read(protocol: int, zipped: bool) -> None:
    data = saved(
        {"a": torch.ones(2), "b": [1, "x"]},
        pickle_protocol=protocol,
        _use_new_zipfile_serialization=zipped,
    )
    read = direct(data)
    assert (read is not None) == (protocol == 2)


# The zip around it.


def test_the_records_are_where_torch_says() -> None:
    data = saved({f"k{i}": torch.zeros(i) for i in range(300)})
    assert agree(data)


@pytest.mark.parametrize(
    "data",
    [
        rezipped(saved(torch.ones(100)), zipfile.ZIP_DEFLATED),
        saved(torch.ones(2)) + b"junk",
        b"junk" + saved(torch.ones(2)),
        rezipped(saved(torch.ones(2)), more={"constants.pkl": b""}),
        rezipped(saved(torch.ones(2)), more={"DATA.pkl": b""}),
        saved(torch.ones(2))[:-1],
        b"",
        b"PK\3\4",
    ],
    ids=["deflated", "trailing", "leading", "torchscript", "two names", "cut", "empty", "head"],
)
def test_an_unusual_zip_is_handed_over(data: bytes) -> None:
    assert direct(data) is None


def test_a_flipped_byte_in_a_record_is_handed_over() -> None:
    data = bytearray(saved(torch.ones(100)))
    data[data.index(b"\x00\x00\x80\x3f" * 10)] ^= 1
    assert direct(bytes(data)) is None


def test_a_big_endian_file_is_handed_over() -> None:
    data = saved(torch.ones(2)).replace(b"little", b"big\0\0\0")
    assert direct(data) is None


def test_an_empty_source_is_handed_over() -> None:
    assert direct(b"") is None
