"""The inert reader's fast way gives what its machine gives, or leaves the file to it."""

from __future__ import annotations

import argparse
import collections
import contextlib
import datetime
import decimal
import enum
import io
import os
import pickletools
import random
import struct
import sys
import threading
import uuid
import zipfile
from collections.abc import Callable, Iterator
from pathlib import PurePosixPath
from typing import Any

import msgspec
import numpy as np
import pytest
import torch

from isoload import manifest
from isoload.torch_facts import gather
from isoload.worker import describe, inert_scan, main, readers
from isoload.worker.inert_direct import Lexicon, read_inert
from isoload.worker.makers.layouts import LAYOUTS
from isoload.worker.makers.table import MAKERS
from isoload.worker.makers.tensors import TENSORS as TENSORS_MADE
from isoload.worker.makers.views import VIEWS
from isoload.worker.reading import Failure, Reading
from isoload.worker.stand_ins import Unusual
from isoload.worker.vocabulary import own_vocabulary
from tests.fidelity.graphs import Maker

from .files import corpus
from .programs import FRAGMENTS, RECORDS, archive, mutated, record, saved, source_of

POLICIES = [
    manifest.Request(fallback="inert", max_output=1 << 30),
    manifest.Request(fallback="inert", max_output=1 << 30, tensors=False),
]


class Plain:
    """What no reader knows."""

    def __init__(self, **state: Any) -> None:
        self.__dict__.update(state)


class Slotted:
    __slots__ = ("a", "b")

    class Inner:
        pass

    def __init__(self) -> None:
        self.a, self.b = 1, [self]


class ListOf(list[Any]):
    pass


class DictOf(dict[Any, Any]):
    pass


class SetOf(set[Any]):
    pass


class Level(enum.Enum):
    LOW = 1


Point = collections.namedtuple("Point", "x y")


class Stateful:
    def __init__(self, state: Any) -> None:
        self.state = state

    def __reduce__(self) -> Any:
        return Stateful, (1, "two"), self.state, iter([1, 2]), iter([("k", "v")])


LEXICON = Lexicon(gather(), own_vocabulary())


def _answer(data: bytes, request: manifest.Request) -> Any:
    """All that the parent would be told of it by a worker with torch."""
    reading = Reading()
    try:
        readers.read(source_of(data), request, reading)
        graph, arena = describe.describe(reading, tensors=request.tensors, budget=request)
    except Failure as error:
        return error.kind, error.message, reading.report()
    return _told(reading, graph, arena)


def _told(reading: Reading, graph: manifest.Graph, arena: int | None) -> Any:
    held = b""
    if arena is not None:
        held = os.pread(arena, 1 << 26, 0)
        os.close(arena)
    storages = [_placed(storage, held) for storage in graph.storages]
    return graph.root, _nodes(graph), storages, reading.report()


def _nodes(graph: manifest.Graph) -> Any:
    """All of them. A set is in the order of its hashes, and those of torch's values and of recorded
    names are not the same each time: of a graph with such a set, what its nodes hold but indices.
    """
    sets = [node for node in graph.nodes if isinstance(node, manifest.Set)]
    hashed = manifest.Named | manifest.Opaque
    if any(isinstance(graph.nodes[i], hashed) for node in sets for i in node.items):
        return sorted(msgspec.msgpack.encode(_bare(node)) for node in graph.nodes)
    return msgspec.msgpack.encode(graph.nodes)


def _bare(node: Any) -> Any:
    """A node without the indices of others."""
    if isinstance(node, manifest.Opaque):
        return node.name, node.reference
    if isinstance(node, manifest.Tensor):
        return msgspec.structs.replace(node, attrs=manifest.NONE)
    if isinstance(node, (manifest.List, manifest.Tuple, manifest.Set, manifest.Dict)):
        return type(node).__name__
    return node


def _placed(storage: manifest.Storage, arena: bytes) -> Any:
    """Where in the arena a storage lies depends on the address that it had."""
    if storage.segment != manifest.ARENA:
        return storage
    held = arena[storage.offset : storage.offset + storage.nbytes]
    return storage.nbytes, storage.location, held


def same(data: bytes, *policies: manifest.Request) -> bool:
    """Hold both ways against each other. Whether the fast one read it."""
    read = False
    for request in policies or POLICIES:
        reading = Reading()
        if read_inert(source_of(data), request, LEXICON, reading):
            read = True
            assert reading.graph is not None
            assert _told(reading, reading.graph, reading.arena) == _answer(data, request)
    return read


def _fast(data: bytes) -> Reading | None:
    reading = Reading()
    if not read_inert(source_of(data), POLICIES[0], LEXICON, reading):
        return None
    if reading.arena is not None:
        os.close(reading.arena)
    return reading


def network() -> torch.nn.Module:
    return torch.nn.Sequential(
        torch.nn.Conv2d(2, 3, 1),
        torch.nn.BatchNorm2d(3),
        torch.nn.LSTM(3, 4),
        torch.nn.Embedding(5, 2, padding_idx=0),
        torch.nn.MultiheadAttention(4, 2),
    )


def trained() -> dict[str, Any]:
    model = torch.nn.Linear(2, 3)
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    return {"optimizer": optimizer.state_dict(), "epoch": 3, "model": model, "raw": optimizer}


SHARED = Plain(tensor=torch.arange(6.0))
SHARED.itself = SHARED  # type: ignore[attr-defined]
BASE = torch.arange(24, dtype=torch.float32)
OBJECTS = np.empty(2, dtype=object)
OBJECTS[0] = torch.ones(2)

READ = {
    "module": network(),
    "checkpoint": {"epoch": 1, "model": network(), "lr": 1e-3},
    "trained": trained(),
    "plain": Plain(a=1, b="two", c=[1.5, None, True], d=(1, (2, (3,)))),
    "cycle": [SHARED, SHARED, {"again": SHARED}],
    "slots": Slotted(),
    "nested class": [Slotted.Inner(), Slotted.Inner],
    "subclasses": [ListOf([1, 2]), DictOf(a=1), SetOf("a")],
    "enum": [Level.LOW, Level.LOW],
    "named tuple": Point(1, torch.ones(2)),
    "reduce": Stateful({"a": torch.ones(1)}),
    "reduce, slots": Stateful((None, {"a": 1})),
    "reduce, no dict": Stateful([1]),
    "views": Plain(a=BASE.view(4, 6), b=BASE.view(4, 6).t(), c=BASE[5:9], d=BASE[::3], e=BASE),
    "parameters": Plain(
        a=torch.nn.Parameter(BASE), b=torch.nn.Parameter(BASE[2:], requires_grad=False)
    ),
    "empty tensors": Plain(a=torch.empty(0), b=torch.empty(0, 3), c=torch.empty(2, 0).t()),
    "scalar": Plain(a=torch.tensor(3.5), b=torch.ones(2, requires_grad=True)),
    "dtypes": Plain(
        a=[
            torch.ones(3, dtype=getattr(torch, name))
            for name in ("uint8", "int16", "int64", "bool", "float16", "bfloat16", "complex64")
        ]
    ),
    "new dtypes": Plain(a=[torch.ones(3).to(d) for d in (torch.float8_e4m3fn, torch.uint16)]),
    "storage": Plain(a=torch.ones(2).untyped_storage(), b=torch.ones(2).storage()),
    "values": Plain(
        a=[torch.Size([1, 2]), torch.float32, torch.device("cuda", 1), 1 + 2j, range(3), slice(2)],
        b=[b"abc", bytearray(b"x"), {1, 2}, frozenset("a"), collections.deque([1], 3)],
        c=[datetime.datetime(2020, 1, 2), decimal.Decimal("1.5"), uuid.UUID(int=5)],
        d=[PurePosixPath("a/b"), argparse.Namespace(a=1), collections.Counter("aab")],
        e=collections.defaultdict(list, a=[1]),
        f=collections.defaultdict(Plain),
        g=[1 << 40, 1 << 2000, -1, 0.0, float("nan"), "", "é", "\ud800", "x" * 127, "x" * 300],
    ),
    "arrays": Plain(
        a=np.arange(6).reshape(2, 3), b=np.float32(1.5), c=np.array([1, "a", None], dtype=object)
    ),
    "an array of objects": Plain(a=OBJECTS),
    "classes": [Plain, torch.nn.Linear, len, torch.nn.Parameter, collections.OrderedDict],
    "keys": {(1, ("a", 2)): Plain(), Plain: 1, 2.5: Plain()},
    "many": [Plain(i=i, t=torch.full((1,), i)) for i in range(1_200)],
    "lists": [[Plain()], [[]], [[], [1]], {"a": {}, "b": [{}]}],
}

LEFT = {
    "quantized": torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8),
    "sparse": torch.eye(2).to_sparse(),
    "conj": torch.ones(2, dtype=torch.complex64).conj(),
    "meta": torch.ones(2, device="meta"),
    "attributes": torch.nn.Buffer(torch.ones(1)),
    "new, without autograd": torch.ones(2, dtype=torch.complex32),
}
"""Tensors that only the machine's makers make."""


@pytest.mark.parametrize("name", READ)
def test_gives_what_the_machine_gives(name: str) -> None:
    value = READ[name]
    assert same(saved({"first": Plain(), "value": value}))
    assert same(saved([value, Plain()])) or name in ("values", "classes")
    assert same(saved([BASE, value, Plain()])) or name in ("values", "classes")


@pytest.mark.parametrize("name", LEFT)
def test_leaves_other_tensors_to_the_machine(name: str) -> None:
    assert not same(saved([Plain(), LEFT[name]]))


@pytest.mark.parametrize("options", [{"pickle_protocol": 4}, {"pickle_protocol": 0}])
def test_leaves_other_protocols_to_the_machine(options: dict[str, Any]) -> None:
    assert not same(saved([Plain(a=torch.ones(2))], **options))


def test_a_file_that_weights_only_opens_is_not_read_inertly() -> None:
    assert _fast(saved({"a": torch.ones(2), "b": torch.eye(2).to_sparse()})) is None


@pytest.mark.parametrize("before", [1, [torch.ones(1)], {"a": [2, {"b": torch.ones(3)[1:]}]}])
def test_the_first_refused_global_is_known_without_asking_torch(before: Any) -> None:
    data = saved([before, Plain()])
    assert same(data)
    fast = _fast(data)
    assert fast is not None
    assert [attempt.globals for attempt in fast.attempts] == [[f"{__name__}.Plain"]]


def test_where_torch_would_stumble_before_the_refused_global_it_is_asked() -> None:
    call = b"ctorch._utils\n_rebuild_tensor_v2\n)R"
    assert not same(archive(b"\x80\x02" + call + NET + b"\x86.", RECORDS))


def test_of_blocked_modules_and_of_torchs_own_nobody_answers_for_torch() -> None:
    for name in (b"os\nsystem", b"torch.nested._internal.nested_tensor\nNestedTensor"):
        assert _fast(archive(b"\x80\x02c" + name + b"\n.", RECORDS)) is None
        assert _fast(archive(b"\x80\x02" + NET + b"c" + name + b"\n\x86.", RECORDS)) is not None


def test_what_is_left_is_all_that_torch_makes_and_a_view_is_not() -> None:
    """The light reader knows by name which calls make a tensor."""
    made = {*TENSORS_MADE, *LAYOUTS}
    assert {name for name in made if name not in LEXICON.makers} == set()
    for name in made - VIEWS.keys():
        with pytest.raises(Unusual):
            LEXICON.makers[name](None, ())  # type: ignore[arg-type]  # they ask nothing of it
    assert LEXICON.makers.keys() == MAKERS.keys()


@pytest.mark.parametrize("seed", range(30))
def test_random_graphs(seed: int) -> None:
    value = Maker(seed, 60).graph()
    same(saved([Plain(), value]), POLICIES[0])
    same(saved([value, Plain()]), POLICIES[0])


FOREIGN = [
    *(b"cos\nsystem\n", b"c__builtin__\neval\n", b"c__main__\nNet\n", b"ccopy_reg\n__newobj__\n"),
    *(b"ccopy_reg\n_reconstructor\n", b"cfunctools\npartial\n", b"c__builtin__\ngetattr\n"),
    *(b"ctypes\nSimpleNamespace\n", b"ccollections\ndeque\n", b"c__builtin__\ndict\n"),
    *(b"c__builtin__\nlist\n", b"c__builtin__\nfrozenset\n", b"cnumpy\ndtype\n"),
    *(b"ctorch._tensor\n_rebuild_from_type_v2\n", b"c__main__\nNet\n)\x81", b"c__main__\nNet\n)R"),
    *(
        b"c__main__\nNet\n)\x81}X\x01\0\0\0aK\x01sb",
        b"U\x02f2",
        b"cuuid\nUUID\n)R",
        b"X\x80\0\0\0" + b"y" * 128,
    ),
]


def _random(random_: random.Random) -> bytes:
    pieces = FRAGMENTS + FOREIGN
    body = b"".join(random_.choices(pieces, k=random_.randint(1, 12)))
    return b"\x80\x02" + random_.choice([b"c__main__\nNet\n)\x81", b""]) + body + b"."


def test_each_mention_of_a_storage_is_checked_and_not_only_the_first() -> None:
    def mention(kind: bytes, count: bytes = b"K\x04") -> bytes:
        texts = [b"X%c\0\0\0%s" % (len(text), text) for text in (b"storage", b"0", b"cpu")]
        return b"(" + texts[0] + b"c" + kind + b"\n" + texts[1] + texts[2] + count + b"tQ"

    whole = b"torch\nFloatStorage"
    for second, read in (
        (mention(whole), True),
        (mention(b"torch\nFloatStoratStorage"), False),
        (mention(b"os\nsystem"), False),
        (mention(whole, b"N"), False),
        (mention(whole, b"J\xff\xff\xff\xff"), False),
    ):
        program = b"\x80\x02(c__main__\nNet\n)\x81" + mention(whole) + second + b"t."
        assert same(archive(program, {"data/0": bytes(16)}), POLICIES[0]) is read


@pytest.mark.parametrize("seed", range(4))
def test_random_programs(seed: int) -> None:
    random_ = random.Random(seed)
    read = sum(same(archive(_random(random_), RECORDS), POLICIES[0]) for _ in range(250))
    assert read


@pytest.mark.parametrize("seed", range(4))
def test_mutated_programs(seed: int) -> None:
    random_ = random.Random(seed)
    value = Plain(a=torch.arange(4.0), b=[torch.nn.Parameter(torch.ones(2)), {"k": (1, 2)}])
    original = saved([value, torch.nn.Linear(1, 2), collections.OrderedDict(a=1)])
    pickled = record(original)
    with zipfile.ZipFile(io.BytesIO(original)) as zipped:
        records = {
            name.partition("/")[2]: zipped.read(name)
            for name in zipped.namelist()
            if "/data/" in name
        }
    read = 0
    for _ in range(250):
        data = bytearray(mutated(random_, pickled))
        if random_.random() < 0.3:
            at = random_.randrange(2, len(data))
            data[at:at] = random_.choice(FOREIGN)
        read += same(archive(bytes(data), records), POLICIES[0])
    assert read


def test_the_corpus() -> None:
    read = 0
    for folder in ("hostile", "real"):
        for path in sorted(corpus(folder).rglob("*")):
            if path.is_file() and path.suffix != ".tsv" and path.stat().st_size < 1 << 26:
                data = path.read_bytes()
                read += same(data, POLICIES[0])
                read += same(archive(data, RECORDS), POLICIES[0])
    assert read


def test_damaged_files() -> None:
    original = saved([Plain(a=torch.arange(1000.0)), torch.ones(3)])
    random_ = random.Random(0)
    for _ in range(150):
        data = bytearray(original)
        for _ in range(random_.randint(1, 3)):
            data[random_.randrange(len(data))] = random_.randrange(256)
        same(bytes(data), POLICIES[0])
    for cut in range(0, len(original), 97):
        same(original[:cut], POLICIES[0])


@pytest.mark.parametrize("change", ["data", "data.pkl", "version"])
def test_a_record_that_does_not_match_its_crc_is_left_to_the_machine(change: str) -> None:
    data = bytearray(saved([Plain(a=torch.arange(100_000.0)), torch.ones(3)]))
    with zipfile.ZipFile(io.BytesIO(bytes(data))) as zipped:
        name = {"data": "data/0"}.get(change, change)
        info = next(info for info in zipped.infolist() if info.filename.endswith("/" + name))
        held = zipped.read(info)
    at = data.index(held[:64] if change == "data" else held, info.header_offset)
    if change == "data.pkl":
        at = data.index(b"first", at) if b"first" in held else data.index(b"FloatStorage", at) - 1
        at = data.index(b"cpu", at)
    data[at + 1] ^= 1
    assert not same(bytes(data))


def test_crcs_are_checked_without_a_thread_where_none_may_run(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    data = saved([Plain(a=torch.arange(100_000.0)), torch.ones(3)])
    monkeypatch.setattr(threading.Thread, "start", refuse)
    assert same(data)
    damaged = bytearray(data)
    damaged[damaged.index(torch.arange(10.0).numpy().tobytes()) + 1] ^= 1
    assert not same(bytes(damaged))


# What a hostile pickle tries on a C unpickler. Each is the machine's to judge, or the machine's own
# methods judge it: never does the C unpickler touch an object.

NET = b"c__main__\nNet\n)\x81"
ATTACKS = {
    "call": b"cos\nsystem\nX\x02\0\0\0id\x85R",
    "call, no tuple": b"cos\nsystem\n]R",
    "new": b"csubprocess\nPopen\nX\x02\0\0\0id\x85\x81",
    "new of a real class": b"ccollections\nOrderedDict\n)\x81}X\x01\0\0\0aK\x01sb",
    "call of a real function": b"ctorch._utils\n_rebuild_parameter\nK\x01K\x02K\x03\x87R",
    "call of a real class": b"ctorch\nTensor\n)R",
    "call of a value": b"K\x01)R",
    "call of a persistent id": b"K\x01K\x02K\x00\x87Q",
    "an id like ours": b"cos\nsystem\n)K\x00\x87Q",
    "a pair like ours": b"cos\nsystem\nN\x86Q",
    "state of a real class": b"ccollections\nOrderedDict\n}X\x0c\0\0\0__setstate__Nsb",
    "state of a function": b"c_codecs\nencode\n}X\x01\0\0\0aK\x01sb",
    "state of a dict": b"}}X\x08\0\0\0__dict__Nsb",
    "state of a list": b"]}X\x01\0\0\0aK\x01sb",
    "state of None": b"N}X\x01\0\0\0aK\x01sb",
    "attributes of an OrderedDict": b"ccollections\nOrderedDict\n)R}(X\x05\0\0\0itemsK\x01"
    b"X\x09\0\0\0__class__K\x02ub",
    "attributes that are no names": b"ccollections\nOrderedDict\n)R}K\x01K\x02sb",
    "state of a tensor's function": b"ctorch._utils\n_rebuild_tensor_v2\n}b",
    "items of a class": b"ccollections\nOrderedDict\nK\x01K\x02s",
    "items of a list": b"]K\x00K\x01s",
    "items of a list, by mark": b"](K\x00K\x01u",
    "half an item": b"}(K\x00K\x01K\x02u",
    "append to a dict": b"}K\x00a",
    "append to a class": b"ccollections\ndeque\nK\x00a",
    "extend a dict": b"}(K\x00e",
    "extend nothing": b"(e",
    "an unhashable key": b"}]K\x00s",
    "a deep key": b"})" + b"\x85" * 5_000 + b"K\x00s",
    "a deep tuple": b")" + b"\x85" * 100_000,
    "deep lists": b"]" + b"]" * 3_000 + b"a" * 3_000,
    "reconstructor": b"ccopy_reg\n_reconstructor\ncos\nsystem\nc__builtin__\nobject\nN\x87R",
    "new with keywords, in other words": b"ccopy_reg\n__newobj_ex__\nccollections\nOrderedDict\n"
    b")}X\x01\0\0\0aK\x01s\x87R",
    "getattr": b"c__builtin__\ngetattr\ncos\nX\nX\x06\0\0\0system\x86R",
    "getattr of a real class": b"c__builtin__\ngetattr\nccollections\nOrderedDict\n"
    b"X\x0b\0\0\0__class__aa\x86R",
    "partial": b"cfunctools\npartial\ncos\nsystem\n\x85R(cos\nsystem\n)}NtbX\x01\0\0\0a\x85R",
    "extension": b"\x82\x01",
    "extension, 2 bytes": b"\x83\x01\0",
    "extension, 4 bytes": b"\x84\x01\0\0\0",
    "stack global": b"X\x02\0\0\0osX\x06\0\0\0system\x93",
    "inst": b"(ios\nsystem\n",
    "obj": b"(cos\nsystem\no",
    "new with keywords": b"cos\nsystem\n)}\x92",
    "text id": b"Pid\n",
    "a large memo": b"r\xff\xff\xff\x7f",
    "a memo as large as allowed": b"r\xff\xff\0\0j\xff\xff\0\0",
    "a memo beyond": b"r\0\0\x01\0",
    "nothing in the memo": b"h\x77",
    "protocol again": b"\x80\x02",
    "another protocol": b"\x80\x04",
    "frame": b"\x95\xff\xff\xff\xff\xff\xff\xff\x7f",
    "a buffer": b"\x97",
    "pop": b"0",
    "dup": b"2",
    "a mark too many": b"(",
    "a tuple across a mark": b"K\x01(\x86",
    "a call across a mark": b"cos\nsystem\n()R",
    "more text than there is": b"X\xff\xff\xff\x7fa",
    "long text": b"X\0\1\0\0" + b"\x81R.Q" * 64,
    "text of opcodes": b"X\x06\0\0\0)RbQ.u",
    "a name of another module": b"cisoload\nlist\n)R",
    "a long name": b"c" + b"a" * 2_000 + b"\nb\n",
    "an empty name": b"c\n\n",
    "a dotted name": b"cos\npath.join\n)R",
    "a name with a space": b"cos \nsystem\n)R",
    "uuid": b"cuuid\nUUID\n)R}X\x03\0\0\0intJ\xff\xff\xff\xffsb",
    "a number": b"\x8a\xff" + b"\x7f" * 255,
    "a storage of another size": b"(X\x07\0\0\0storagectorch\nFloatStorage\nX\x01\0\0\x000"
    b"X\x03\0\0\0cpuK\x05tQ",
    "a storage that is not there": b"(X\x07\0\0\0storagectorch\nFloatStorage\n"
    b"X\x0b\0\0\0../data.pklX\x03\0\0\0cpuK\x04tQ",
    "a storage with a strange tag": b"(X\x07\0\0\0storagectorch\nFloatStorage\nX\x01\0\0\x000"
    b"X\x03\0\0\0\x1b[mK\x04tQ",
}

STORAGE = b"(X\x07\0\0\0storagectorch\nFloatStorage\nX\x01\0\0\x000X\x03\0\0\0cpuK\x04tQ"
HOOKS = b"ccollections\nOrderedDict\n)R"
TENSOR = b"ctorch._utils\n_rebuild_tensor_v2\n("
TENSORS = {
    "too large": TENSOR + STORAGE + b"K\x00K\x05\x85K\x01\x85\x89" + HOOKS + b"tR",
    "offset": TENSOR + STORAGE + b"K\x03K\x02\x85K\x01\x85\x89" + HOOKS + b"tR",
    "negative": TENSOR + STORAGE + b"J\xff\xff\xff\xffK\x02\x85K\x01\x85\x89" + HOOKS + b"tR",
    "negative stride": TENSOR
    + STORAGE
    + b"K\x03K\x02\x85J\xff\xff\xff\xff\x85\x89"
    + HOOKS
    + b"tR",
    "overflow": TENSOR
    + STORAGE
    + b"K\x00\x8a\x08"
    + b"\xff" * 7
    + b"\x3f"
    + b"K\x00\x86K\x01K\x01\x86\x89"
    + HOOKS
    + b"tR",
    "bool size": TENSOR + STORAGE + b"K\x00\x88\x85K\x01\x85\x89" + HOOKS + b"tR",
    "list size": TENSOR + STORAGE + b"K\x00]K\x02a]K\x01a\x89" + HOOKS + b"tR",
    "hooks": TENSOR + STORAGE + b"K\x00K\x02\x85K\x01\x85\x89}K\x00cos\nsystem\nstR",
    "no storage": TENSOR + b"K\x01K\x00K\x02\x85K\x01\x85\x89" + HOOKS + b"tR",
    "a tensor for a storage": TENSOR * 2
    + STORAGE
    + b"K\x00)"
    + b")\x89"
    + HOOKS
    + b"tRK\x00))\x89NtR",
    "state": TENSOR + STORAGE + b"K\x00))\x89" + HOOKS + b"tR}X\x04\0\0\0gradNsb",
    "items": TENSOR + STORAGE + b"K\x00))\x89" + HOOKS + b"tRK\x00K\x01s",
    "appended to": TENSOR + STORAGE + b"K\x00))\x89" + HOOKS + b"tRK\x00a",
    "called": TENSOR + STORAGE + b"K\x00))\x89" + HOOKS + b"tR)R",
    "an argument": b"cos\nsystem\n" + TENSOR + STORAGE + b"K\x00))\x89" + HOOKS + b"tR\x85R",
    "its class": b"c__builtin__\ngetattr\n"
    + TENSOR
    + STORAGE
    + b"K\x00))\x89"
    + HOOKS
    + b"tRX\x05\0\0\0shape\x86R",
    "a key": b"}" + TENSOR + STORAGE + b"K\x00))\x89" + HOOKS + b"tRK\x00s",
    "integers that train": TENSOR
    + STORAGE.replace(b"FloatS", b"IntS")
    + b"K\x00))\x88"
    + HOOKS
    + b"tR",
    "a storage as an argument": b"cos\nsystem\n" + STORAGE + b"\x85R",
    "a storage that is called": STORAGE + b")R",
    "a storage with state": STORAGE + b"}b",
}


@pytest.mark.parametrize("name", ATTACKS)
def test_attacks(name: str, nothing: Callable[[], Any]) -> None:
    for before, after in ((NET, b"\x86"), (b"", NET + b"\x86"), (b"]", NET + b"\x87")):
        data = archive(b"\x80\x02" + before + ATTACKS[name] + after + b".", RECORDS)
        with nothing():
            _fast(data)
        same(data, POLICIES[0])


@pytest.mark.parametrize("name", TENSORS)
def test_tensors_that_are_none(name: str, nothing: Callable[[], Any]) -> None:
    for before, after in ((NET, b"\x86"), (b"", NET + b"\x86")):
        data = archive(b"\x80\x02" + before + TENSORS[name] + after + b".", RECORDS)
        with nothing():
            _fast(data)
        same(data, POLICIES[0])


@pytest.mark.parametrize("opcode", [bytes([code]) for code in range(256)])
def test_only_known_opcodes_reach_the_c_unpickler(opcode: bytes) -> None:
    values = b"N]K\x01\x86(K\x02"
    program = inert_scan.scan(b"\x80\x02" + values + opcode + bytes(9) + b".")
    kept = b"()]}\x8fN\x88\x89KMJGXcUhjqrt\x85\x86\x87\x8a"
    handed = b"QR\x81baesu"
    if program is not None:
        assert opcode in kept + handed + b"."
    for name in handed:
        rewritten = inert_scan.scan(b"\x80\x02" + bytes([name]) + b".")
        assert rewritten is not None
        opcodes = pickletools.genops(b"\x80\x02N" + rewritten.code[2:])
        assert {opcode.name for opcode, _, _ in opcodes} <= {
            *("PROTO", "NONE", "BININT1", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3"),
            *("BINPERSID", "STOP"),
        }


def test_the_memo_is_bounded_by_the_program() -> None:
    for size, largest in (
        (100, 1 << 16),
        (1 << 17, 1 << 20),
        (1 << 21, 1 << 22),
        (1 << 23, 1 << 24),
    ):
        padding = b"X" + struct.pack("<I", size) + b"a" * size
        for index, taken in ((largest - 1, True), (largest, False)):
            put = b"r" + struct.pack("<I", index)
            program = inert_scan.scan(b"\x80\x02" + padding + put + b".")
            assert (program is not None) is taken
    assert inert_scan.scan(b"\x80\x02" + b"N" * (1 << 24) + b".") is None


def test_a_rewritten_program_is_not_much_longer() -> None:
    for opcode in b"QR\x81baesu":
        program = inert_scan.scan(b"\x80\x02" + bytes([opcode]) * 100_000 + b".")
        assert program is not None
        assert len(program.code) <= 500_003


@pytest.fixture
def nothing() -> Callable[[], Any]:
    """No import and no call of what a file names, by what an audit hook sees."""
    if not _hooked:
        main.warm_up()
        sys.addaudithook(_hook)
        _hooked.append(True)
    return _nothing_happens


_hooked: list[bool] = []
_seen: list[str] = []
_watching: list[bool] = []


def _hook(event: str, args: tuple[Any, ...]) -> None:
    if _watching and event.startswith(("exec", "import", "os.system", "subprocess", "pickle.find")):
        _seen.append(f"{event} {args!r}"[:200])


@contextlib.contextmanager
def _nothing_happens() -> Iterator[None]:
    _seen.clear()
    _watching.append(True)
    try:
        yield
    finally:
        _watching.clear()
    assert _seen == []
