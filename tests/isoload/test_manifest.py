"""The reply is decoded strictly: nothing but a reply in the schema gets through."""

from __future__ import annotations

import struct
from typing import Any

import msgspec
import pytest

from isoload import manifest as m
from isoload import wire

READING = m.Reading("weights_only", "zip")


def reply(*nodes: Any, storages: tuple[m.Storage, ...] = ()) -> bytes:
    return wire.encode_reply(m.Loaded(READING, m.Graph(0, [*nodes], [*storages])))


def test_every_node_survives_the_wire() -> None:
    nodes = [
        *(None, True, False, -(2**63), 2**63 - 1, 1.5, "é"),
        m.Bytes(b"\0"),
        m.Tuple([0, 1]),
        m.Size([1, 2]),
        m.Dict([0], [1], "OrderedDict", 2),
        m.Opaque("a.B", (0,), {"x": 1}, 2, (3,), (4,), (5,)),
        m.NumpyDtype("", ("a",), (0,), (0,), 4, (), True),
        m.Tensor(0, 0, 0, [2], [1], 1, 3),
        m.Quantized(0, 22, 0, [2], [1], axis=0, scales=1, zero_points=2),
        m.NestedJagged(0, 1),
    ]
    decoded = wire.decode_reply(reply(*nodes, storages=(m.Storage(0, 0, 8, "cpu"),)))
    assert isinstance(decoded, m.Loaded)
    assert decoded.graph.nodes == nodes
    assert decoded.graph.storages == [m.Storage(0, 0, 8, "cpu")]


def test_the_bits_of_a_nan_survive_the_wire() -> None:
    signalling = struct.unpack("<d", bytes.fromhex("010000000000f07f"))[0]
    decoded = wire.decode_reply(reply(signalling))
    assert isinstance(decoded, m.Loaded)
    node: Any = decoded.graph.nodes[0]
    assert struct.pack("<d", node).hex() == "010000000000f07f"


def test_a_failure_is_a_reply() -> None:
    failed = m.Failed("damaged", "why", READING)
    assert wire.decode_reply(wire.encode_reply(failed)) == failed


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"\x80\x04N.", id="a pickle"),
        pytest.param(reply(1) + b"\0", id="trailing bytes"),
        pytest.param(reply(1) * 2, id="two replies"),
        pytest.param(reply(1)[:-1], id="cut short"),
        pytest.param(b"\x91" * 1_000_000, id="deep nesting"),
        pytest.param(reply(1).replace(b"loaded", b"LOADED"), id="an unknown kind of reply"),
        pytest.param(msgspec.msgpack.encode({"graph": 1}), id="a map"),
        pytest.param(
            reply("é").replace("é".encode(), b"\xff\xff"), id="a string that is not UTF-8"
        ),
    ],
)
def test_what_is_no_reply_is_refused(data: bytes) -> None:
    with pytest.raises(m.ManifestError):
        wire.decode_reply(data)


@pytest.mark.parametrize(
    "node",
    [[99, 1], [3], [3, [1], 1], [3, ["a"]], [20, 0, 0, 0, [1.5], [1]], {}, b""],
)
def test_what_is_no_node_is_refused(node: Any) -> None:
    message = msgspec.msgpack.decode(reply(1))
    message[2][1] = [node]
    with pytest.raises(m.ManifestError):
        wire.decode_reply(msgspec.msgpack.encode(message))


def test_a_table_longer_than_the_budget_is_refused_before_it_is_made() -> None:
    with pytest.raises(m.ManifestError, match="more than 5"):
        wire.decode_reply(reply(*[None] * 6), max_nodes=5)
    head = reply(*[None] * 70_000)
    lying = head.replace((70_000).to_bytes(4, "big"), (2**32 - 1).to_bytes(4, "big"))
    assert lying != head
    with pytest.raises(m.ManifestError):
        wire.decode_reply(lying)


def test_parts_name_the_tensors_that_a_tensor_is_made_of() -> None:
    node = m.NestedJagged(4, 5, m.NONE, 1, 6)
    assert [*m.parts(node)] == [("values", 4), ("offsets", 5), ("min_seqlen", 6)]
    assert [*m.parts(m.List([1]))] == []
