"""The target of `fuzz_manifest.py`: what a parent does with a reply, from its bytes to tensors.

Only the bytes are hostile here: no worker runs. An input that ends in anything but an expected
error or a well-formed object is a finding; `test_fuzz_corpus.py` runs what was found once more.
"""

from __future__ import annotations

import contextlib
import os
import random
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import torch

from isoload import manifest as m
from isoload import wire
from isoload.check import check_graph
from isoload.errors import IsoloadError
from isoload.memory import map_private
from isoload.placement import Placement
from isoload.rebuild import rebuild
from isoload.report import make_report
from isoload.segments import Segments
from sandbox import WorkerError, create_memfd, seal

CORPUS = Path(__file__).parent / "corpus"
_ROWS = ([0, 1, 3], [0, 0, 1], [0, 1, 2], [1, 2], [1, 1], [0, 1])
"""What the sparse and nested tensors of `everything` are made of."""
ARENA = bytes(range(256)) * 8 + b"".join(
    struct.pack(f"<{len(row)}q", *row).ljust(64, b"\0") for row in _ROWS
)
MAX_NODES = 20_000
_EXPECTED = (m.ManifestError, IsoloadError, WorkerError)
_WORDS = (-(2**63), -2, -1, 0, 1, 2, 3, 4, 7, 8, 64, 255, 2**31, 2**62, 2**63, 2**64 - 1)
_LEAVES = (None, True, 1.5, float("nan"), float("inf"), b"", b"\xff" * 9, "", "cpu", "os.system")


def memfd(data: bytes) -> int:
    fd = create_memfd("fuzz")
    os.write(fd, data)
    seal(fd)
    return fd


@contextlib.contextmanager
def closing(*fds: int) -> Iterator[None]:
    try:
        yield
    finally:
        for fd in fds:
            os.close(fd)


def parent(data: bytes, fds: list[int]) -> Any:
    """What a Loader does with a reply: the object, or one of the expected errors."""
    message = wire.decode_reply(data, max_nodes=MAX_NODES)
    if isinstance(message, m.Failed):
        make_report(message.reading, source="fuzz", size=1).to_dict()
        return None
    segments = Segments(memoryview(map_private(fds[0], len(ARENA))), fds[1:], 1 << 20)
    check_graph(message.graph, segments.sizes, max_nodes=MAX_NODES)
    result = rebuild(message.graph, segments, Placement("cpu"), {})
    report = make_report(message.reading, source="fuzz", size=1, graph=message.graph)
    str(report)
    touch(result)
    return result


def touch(value: Any) -> None:
    """Read every byte of every tensor of a result, once."""
    seen: set[int] = set()
    stack = [value]
    while stack:
        item = stack.pop()
        if id(item) in seen:
            continue
        seen.add(id(item))
        if isinstance(item, torch.Tensor):
            if item.device.type == "cpu" and item.numel() < 1 << 20:
                plain = item.is_nested or item.layout == torch.strided
                with contextlib.suppress(RuntimeError):  # not every dtype has every operation
                    item.detach().clone() if plain else item.detach().to_dense()
        elif isinstance(item, dict):
            stack += [*item.keys(), *item.values()]
        elif isinstance(item, (list, tuple, set, frozenset)):
            stack += item
        elif hasattr(item, "state") and hasattr(item, "args"):
            stack += [item.args, item.kwargs, item.state, item.items]


def one(data: bytes) -> None:
    """Run one input; anything but an expected ending comes out as an exception."""
    source, arena = memfd(ARENA), memfd(ARENA)
    with closing(source, arena), contextlib.suppress(*_EXPECTED):
        parent(data, [source, arena])


def mutate(data: bytes, max_size: int, seed: int) -> bytes:
    """Change values of a decoded reply, or what the fuzzer makes of its bytes."""
    chance = random.Random(seed)
    try:
        reply = msgspec.msgpack.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, TypeError, RecursionError):
        return b""
    for _ in range(chance.randint(1, 5)):
        places = list(_places(reply)) if isinstance(reply, (list, dict)) else []
        if not places:
            return b""
        holder, key = chance.choice(places)
        kind = chance.random()
        if kind < 0.4:
            holder[key] = chance.choice(_WORDS)
        elif kind < 0.55:
            holder[key] = chance.choice(_LEAVES)
        elif kind < 0.8:
            other, at = chance.choice(places)
            holder[key] = other[at]
        elif isinstance(holder, list):
            if kind < 0.9:
                holder.insert(key, chance.choice([*_WORDS, *_LEAVES, holder[key]]))
            else:
                del holder[key]
    try:
        encoded = msgspec.msgpack.encode(reply)
    except (OverflowError, RecursionError, TypeError, msgspec.MsgspecError):
        return b""
    return encoded if len(encoded) <= max_size else b""


def _places(value: Any) -> Any:
    stack = [(value, 0)]
    while stack:
        holder, depth = stack.pop()
        for key in range(len(holder)) if isinstance(holder, list) else [*holder]:
            yield holder, key
            if isinstance(holder[key], (list, dict)) and depth < 12:
                stack.append((holder[key], depth + 1))


def seeds() -> dict[str, bytes]:
    """Replies to begin with: one of every kind of node, and the smallest."""
    return {
        "everything": wire.encode_reply(everything()),
        "failed": wire.encode_reply(m.Failed("refused", "x", m.Reading("inert", "zip"))),
        "small": wire.encode_reply(m.Loaded(m.Reading("inert", "zip"), m.Graph(0, [1], []))),
    }


def everything() -> m.Loaded:
    """A good reply with each kind of node, over the arena and the source."""
    int64, float32 = m.DTYPES.index("int64"), m.DTYPES.index("float32")
    storages = [
        m.Storage(m.ARENA, 0, 1024, "cpu"),
        m.Storage(m.SOURCE, 64, 64, "cuda:0"),
        m.Storage(m.ABSENT, 0, 1024, "meta"),
        *(m.Storage(m.ARENA, 2048 + 64 * n, 64, "cpu") for n in range(len(_ROWS))),
        m.Storage(m.ARENA, 512, 16, "cpu"),
    ]
    nodes: list[Any] = []

    def add(node: Any) -> int:
        nodes.append(node)
        return len(nodes) - 1

    scalars = [add(value) for value in (None, True, 7, 2.5, "key", "name")]
    key, name = scalars[4], scalars[5]
    matrix = add(m.Tensor(0, float32, 0, [4, 4], [4, 1], m.REQUIRES_GRAD | m.PARAMETER))
    vector = add(m.Tensor(0, float32, 0, [3], [1]))
    rows = [add(m.Tensor(3 + n, int64, 0, [len(row)], [1])) for n, row in enumerate(_ROWS)]
    ids = add(m.Tensor(5, int64, 0, [1, 3], [3, 1]))
    sizes, strides = (add(m.Tensor(n, int64, 0, [2, 1], [1, 1])) for n in (6, 7))
    attrs = add(m.Dict([key], [scalars[2]]))
    members = [
        add(m.Bytes(b"bytes")), add(m.ByteArray(b"array")), add(m.Text(b"\xed\xa0\x80")),
        add(m.BigInt(b"\0" * 9)), add(m.Complex(1.0, 2.0)), add(m.Size([1, 2])),
        add(m.Tuple([key, name])), add(m.Set([key, name])), add(m.Set([key], frozen=True)),
        add(m.Deque([key], 4)), add(m.Named("dtype", "float32")), add(m.Named("device", "cpu")),
        add(m.Named("global", "builtins.int")), add(m.Value("pathlib.PosixPath", [name])),
        add(m.Namespace("types.SimpleNamespace", attrs)), add(m.StorageValue(0, float32)),
        add(m.StorageValue(0)), add(m.Tensor(0, float32, 2, [2], [2], attrs=attrs)),
        add(m.Quantized(0, m.DTYPES.index("quint8"), 0, [4], [1], scale=0.5, zero_point=3)),
        add(m.SparseCoo(ids, vector, [9], False)),
        add(m.SparseCompressed("sparse_csr", rows[0], rows[1], vector, [2, 9])),
        add(m.NestedStrided(vector, sizes, strides, rows[5])), add(m.NestedJagged(vector, rows[0])),
        add(m.Subclass(vector, "package.Class", attrs)),
    ]  # fmt: skip
    dtype = add(m.NumpyDtype("<f4"))
    record = add(m.NumpyDtype("", ("x",), (dtype,), (0,), 4))
    members += [
        dtype, record, add(m.NumpyScalar(dtype, b"\0\0\0\0")), add(m.NdArray(9, dtype, [2, 2])),
        add(m.ObjectArray([2], [key, name])),
    ]  # fmt: skip
    items = add(m.List([*scalars, matrix, *members]))
    opaque = add(m.Opaque("package.Class", (key,), {"k": items}, attrs, (matrix,), (key,), (name,)))
    labels = [add(f"key{index}") for index in range(3)]
    root = add(m.Dict(labels, [items, opaque, len(nodes)], "OrderedDict", attrs))
    attempts = [m.Attempt("x", "y", "z", ["a.b"])]
    what = m.Reading("inert", "zip", attempts, ["a.b"], [m.Call("a", "b")])
    return m.Loaded(what, m.Graph(root, nodes, storages))
