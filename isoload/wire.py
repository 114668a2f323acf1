"""A reply as bytes: MessagePack, by the manifest's schema and by nothing else.

Nothing here is ever unpickled, evaluated or imported.
"""

from __future__ import annotations

from typing import Union

import msgspec

from . import collector
from . import manifest as m


class _GraphFrame(m.Struct):
    root: int
    nodes: msgspec.Raw
    storages: msgspec.Raw


class _LoadedFrame(m.Struct, tag="loaded"):
    reading: m.Reading
    graph: _GraphFrame


_encoder = msgspec.msgpack.Encoder()
_frame_decoder = msgspec.msgpack.Decoder(Union[_LoadedFrame, m.Failed, m.Passed])
_nodes_decoder = msgspec.msgpack.Decoder(list[m.Node])
_storages_decoder = msgspec.msgpack.Decoder(list[m.Storage])


def encode_reply(reply: m.Reply) -> bytes:
    """What the worker sends."""
    return _encoder.encode(reply)


def decode_reply(data: bytes, *, max_nodes: int = m.MAX_NODES) -> m.Reply:
    """Decode what a worker sent; raise ManifestError for anything that is not exactly a reply.

    The tables' lengths are read before the tables are, so that a short message cannot ask for more
    than `max_nodes` objects.
    """
    try:
        frame = _frame_decoder.decode(data)
        if isinstance(frame, (m.Failed, m.Passed)):
            return frame
        for table in (frame.graph.nodes, frame.graph.storages):
            if _length(bytes(memoryview(table)[:5])) > max_nodes:
                raise m.ManifestError(f"the reply describes more than {max_nodes} objects")
        with collector.paused():
            nodes = _nodes_decoder.decode(frame.graph.nodes)
            storages = _storages_decoder.decode(frame.graph.storages)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, OverflowError) as error:
        raise m.ManifestError(f"the reply breaks the schema: {error}") from None
    return m.Loaded(frame.reading, m.Graph(frame.graph.root, nodes, storages))


def _length(head: bytes) -> int:
    """The length in the head of a MessagePack array (its specification, "array format family")."""
    if len(head) > 0 and head[0] & 0xF0 == 0x90:
        return head[0] & 0x0F
    if len(head) > 2 and head[0] == 0xDC:
        return int.from_bytes(head[1:3], "big")
    if len(head) > 4 and head[0] == 0xDD:
        return int.from_bytes(head[1:5], "big")
    raise m.ManifestError("the reply breaks the schema: a table is not an array")
